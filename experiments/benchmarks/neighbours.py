"""Neighbours in Gromov-Wasserstein geometry: time, memory, and how many are found.

On the heatmaps of all training images of a run, of all classes together:

- all pairs of 2,000 quantised heatmaps;
- the neighbours of these without all pairs, and which of the ten nearest they miss;
- the neighbours of 20,000.

About four minutes on two cores:

    jaxpoison explain --data gtsrb32.zip --rate 0.02 --epochs 6 --workdir runs/p2
    python -m experiments.benchmarks.neighbours runs/p2

Expected: all pairs in 25 s, the neighbours of 20,000 in three minutes, at least 98 of 100 found.
"""

import argparse
import resource
import time
from pathlib import Path
from typing import Any

import numpy as np

from experiments.benchmarks.reporting import machine, record, versions
from jaxpoison import (
    EntropicGW,
    debiased_distances,
    measure_spaces,
    nearest_neighbours,
    pair_distances,
    quantised,
    use_one_device_per_core,
)

FEW, MANY, POINTS, EPSILON, K = 2_000, 20_000, 10, 0.005, 10


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="work directory of jaxpoison explain")
    options = parser.parse_args()
    use_one_device_per_core()
    heatmaps = np.load(options.run / "relevance.npy", mmap_mode="r")
    chosen = np.random.default_rng(0).permutation(len(heatmaps))[:MANY]
    shaped = np.asarray(heatmaps[np.sort(chosen)])
    shaped = shaped[np.ptp(shaped.reshape(len(shaped), -1), axis=1) > 0]
    solver = EntropicGW(EPSILON)
    started = time.perf_counter()
    spaces = quantised(measure_spaces(shaped), POINTS)
    result: dict[str, Any] = {
        "epsilon": EPSILON,
        "points": POINTS,
        "k": K,
        "quantising_seconds": time.perf_counter() - started,
    }
    few = spaces.take(np.sort(np.random.default_rng(1).choice(len(spaces), FEW, replace=False)))
    # One block of either compiles what is compiled.
    debiased_distances(few.take(np.arange(400)), solver)
    started = time.perf_counter()
    truth = debiased_distances(few, solver)
    result["all_pairs"] = {"heatmaps": FEW, "seconds": time.perf_counter() - started}
    print(result, flush=True)
    np.fill_diagonal(truth, np.inf)
    nearest = np.argsort(truth, 1, kind="stable")[:, :K]
    for name, some in (("few", few), ("many", spaces)):
        started = time.perf_counter()
        found = nearest_neighbours(some, K, solver, all_pairs=0, progress=True)
        result[name] = {
            "heatmaps": len(some),
            "seconds": time.perf_counter() - started,
            "pairs": found.pairs,
            "pairs_per_heatmap": found.pairs / len(some),
        }
        if name == "few":
            hits = [np.isin(a, b).mean() for a, b in zip(nearest, found.index, strict=True)]
            result[name]["recall"] = float(np.mean(hits))
        print(result[name], flush=True)
    # Of some of the many, the ten nearest among all of them.
    rows = np.random.default_rng(2).choice(len(spaces), 200, replace=False)
    result["many"]["recall"] = recall_of(spaces, rows, found.index, solver)
    result["peak_gib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    result |= {"machine": machine(), "versions": versions("jaxpoison", "jax", "numpy")}
    record("neighbours", result, markdown(result))


def recall_of(spaces: Any, rows: np.ndarray, index: np.ndarray, solver: EntropicGW) -> float:
    """Which share of the nearest of some spaces, by their distances from all, was found."""
    n = len(spaces)
    own = pair_distances(spaces, np.repeat(np.arange(n)[:, None], 2, 1), solver).values
    hits = []
    for row in rows:
        pairs = np.sort(np.stack([np.full(n, row), np.arange(n)], -1), 1)
        apart = pair_distances(spaces, pairs, solver).values - own / 2
        apart[row] = np.inf
        nearest = np.argsort(apart, kind="stable")[: index.shape[1]]
        hits.append(np.isin(nearest, index[row]).mean())
    return float(np.mean(hits))


def markdown(result: dict[str, Any]) -> str:
    pairs, few, many = result["all_pairs"], result["few"], result["many"]
    lines = [
        "# Neighbours in Gromov-Wasserstein geometry",
        "",
        f"`{result['machine']['cpu']}`, {result['machine']['cores']} cores; JAX "
        f"{result['versions']['jax']}. Heatmaps of all classes, quantised to {result['points']} "
        f"points, ε = {result['epsilon']}; the {result['k']} nearest of each.",
        "",
        f"All pairs of {pairs['heatmaps']:,}: {pairs['seconds']:.1f} s.",
        "",
        "| heatmaps | s | pairs measured | per heatmap | of the nearest found |",
        "|---:|---:|---:|---:|---:|",
    ]
    for row in (few, many):
        lines.append(
            f"| {row['heatmaps']:,} | {row['seconds']:.0f} | {row['pairs']:,} | "
            f"{row['pairs_per_heatmap']:.0f} | {row['recall']:.4f} |"
        )
    lines += [
        "",
        f"Of {many['heatmaps']:,}, the nearest of 200 heatmaps were compared with their distances "
        f"from all. The process took {result['peak_gib']:.2f} GiB at most.",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
