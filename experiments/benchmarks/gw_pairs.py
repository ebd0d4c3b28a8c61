"""Distances between heatmaps, all pairs of quantised ones, and how clustering grows.

Four things, on the heatmaps of all training images of a run:

- distances between whole heatmaps at epsilon 0.1, beside POT;
- the quick mode: all pairs of 2,000 heatmaps quantised to 10 points, epsilon
  0.01, and how their ranks compare with those of the exact distances;
- time and memory of a clustering over the number of heatmaps, the pixels that
  hold mass and the side of the grid;
- the share of the machine's peak, a plain float32 matrix product, that the
  products of distances reach.

About twelve minutes on two cores:

    pip install -e '.[bench]'
    jaxpoison explain --data gtsrb32.zip --rate 0.33 --workdir runs/p33
    python -m experiments.benchmarks.gw_pairs runs/p33

Expected: between heatmaps at least 5 times as fast as POT, all pairs within two
minutes, rank correlation at least 0.98, less than 3 GiB for 2,463 heatmaps.
"""

import argparse
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy.stats import spearmanr

from experiments.benchmarks.gw import Pot, timed
from experiments.benchmarks.reporting import finished, machine, record, versions
from jaxpoison import (
    EntropicGW,
    all_distances,
    distances_to_centers,
    gw_kmeans,
    measure_spaces,
    pair_distances,
    quantised,
)
from jaxpoison.gw.products import laid_out
from jaxpoison.gw.solver import solve
from jaxpoison.gw.steps import Problems

TARGET, SIZE, PAIRS, SAMPLE, ALL_PAIRS = 5, 10, 16, 200, 2000
COUNTS, MASSES, SIDES = (500, 1000, 2500, 10_000), (0.5, 0.8, 0.95, 0.99), (16, 32, 64)


def between_heatmaps(heatmaps: np.ndarray, rng: np.random.Generator) -> dict[str, float]:
    spaces, solver = measure_spaces(heatmaps), EntropicGW(0.1)
    pairs = rng.choice(len(spaces), (PAIRS, 2), replace=False)
    seconds, found = timed(lambda: pair_distances(spaces, pairs, solver))
    pot = Pot(spaces, 0.1)
    places = [pot.space(int(k)) for k in pairs[0]]
    pot.between(places[0], places[1])
    started = time.perf_counter()
    values = [pot.between(pot.space(int(i)), pot.space(int(j))) for i, j in pairs]
    theirs = time.perf_counter() - started
    return {
        "milliseconds_per_pair": 1e3 * seconds / PAIRS,
        "pot_milliseconds_per_pair": 1e3 * theirs / PAIRS,
        "ratio": theirs / seconds,
        "largest_relative_difference": float(np.abs(found.values / np.array(values) - 1).max()),
        "information_nats": float(found.information.mean()),
    }


def quick_mode(heatmaps: np.ndarray, rng: np.random.Generator) -> dict[str, float]:
    spaces, solver = measure_spaces(heatmaps[:ALL_PAIRS]), EntropicGW(0.01)
    quantising, small = timed(lambda: quantised(spaces, SIZE))
    # One block compiles the shape that all blocks but the last have.
    all_distances(small.take(np.arange(400)), solver)
    started = time.perf_counter()
    matrix = all_distances(small, solver, progress=True)
    seconds = time.perf_counter() - started
    pairs = rng.integers(0, len(spaces), (SAMPLE, 2))
    pairs = pairs[pairs[:, 0] != pairs[:, 1]]
    exact = pair_distances(spaces, pairs, solver, progress=True)
    quick = matrix[pairs[:, 0], pairs[:, 1]]
    return {
        "heatmaps": len(spaces),
        "distances": len(spaces) * (len(spaces) + 1) // 2,
        "quantising_seconds": quantising,
        "seconds_with_one_compilation": seconds,
        "sample": len(pairs),
        "sample_converged": float(exact.converged.mean()),
        "rank_correlation": float(spearmanr(quick, exact.values).statistic),
        "median_relative_difference": float(np.median(np.abs(quick / exact.values - 1))),
    }


def clustering_seconds(heatmaps: np.ndarray, mass: float = 0.99) -> dict[str, float]:
    """Seeding, one assignment, one barycentre from them, one assignment, at epsilon 0.02."""
    spaces = measure_spaces(heatmaps, mass=mass)
    start = quantised(spaces.take(np.array([0, len(spaces) // 2])), SIZE)
    solver = EntropicGW(0.02)
    seconds, _ = timed(lambda: gw_kmeans(spaces, solver=solver, start=start, max_rounds=1).labels)
    return {
        "heatmaps": len(spaces),
        "median_support": float(np.median(spaces.support_sizes)),
        "seconds": seconds,
    }


def share_of_peak(heatmaps: np.ndarray) -> dict[str, float]:
    spaces, solver = measure_spaces(heatmaps), EntropicGW(0.02)
    center = quantised(spaces.take(np.array([0])), SIZE)
    side = jnp.ones((4096, 1024)), jnp.ones((1024, 1024))
    product = jax.jit(jnp.matmul)
    best = min(timed(lambda: product(*side))[0] for _ in range(5))
    peak = 2 * 4096 * 1024**2 / best
    n = len(spaces)
    each = jax.tree.map(lambda x: jnp.repeat(x, n, 0), center)
    plans = jax.jit(lambda s: solve(Problems(laid_out(s), each), solver, n).iterations)
    linearisations = int(plans(spaces).sum())
    seconds, _ = timed(lambda: distances_to_centers(spaces, center, solver))
    needed = linearisations * 2 * SIZE * 1024**2 / 4
    return {
        "matrix_product_gflops": peak / 1e9,
        "linearisations_per_problem": linearisations / n,
        "needed_gflops": needed / seconds / 1e9,
        "share_of_peak": needed / seconds / peak,
        "dense_equivalent_share": 4 * needed / seconds / peak,
    }


def only_cluster(heatmaps: Path) -> None:
    """What the memory is measured of."""
    spaces = measure_spaces(np.load(heatmaps))
    gw_kmeans(spaces, solver=EntropicGW(0.02), max_rounds=1)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{len(spaces)} {peak}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="work directory of a run and of its explain")
    parser.add_argument("--only-cluster", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    jax.config.update("jax_num_cpu_devices", os.cpu_count())
    of_class = options.run / "heatmaps-of-class.npy"
    if options.only_cluster:
        only_cluster(of_class)
        return
    heatmaps = finished(options.run).explained.relevance.sum(-1)
    np.save(of_class, heatmaps)
    command = [sys.executable, "-m", __spec__.name, str(options.run), "--only-cluster"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    count, gib = map(float, done.stdout.split()[-2:])
    result: dict[str, Any] = {"memory": {"heatmaps": int(count), "peak_gib": gib}}
    print(result, flush=True)
    everything = np.load(options.run / "relevance.npy", mmap_mode="r")
    rng = np.random.default_rng(0)
    result["between_heatmaps"] = between_heatmaps(heatmaps, rng)
    print(result["between_heatmaps"], flush=True)
    result["peak"] = share_of_peak(heatmaps[:1024])
    print(result["peak"], flush=True)
    result["quick_mode"] = quick_mode(heatmaps, rng)
    print(result["quick_mode"], flush=True)
    result["by_count"] = [clustering_seconds(np.asarray(everything[:n])) for n in COUNTS]
    print(result["by_count"], flush=True)
    result["by_mass"] = [{"mass": m, **clustering_seconds(heatmaps[:500], mass=m)} for m in MASSES]
    print(result["by_mass"], flush=True)
    result["by_side"] = [
        {
            "side": side,
            **clustering_seconds(
                np.asarray(jax.image.resize(heatmaps[:500], (500, side, side), "linear"))
            ),
        }
        for side in SIDES
    ]
    result |= {"machine": machine(), "versions": versions("jax", "POT")}
    record("gw_pairs", result, markdown(result))


def markdown(result: dict[str, Any]) -> str:
    whole, quick, peak = result["between_heatmaps"], result["quick_mode"], result["peak"]
    memory = result["memory"]
    lines = [
        "# Gromov-Wasserstein distances between heatmaps; growth; memory",
        "",
        f"`{result['machine']['cpu']}`, {result['machine']['cores']} cores; JAX "
        f"{result['versions']['jax']}, POT {result['versions']['POT']}.",
        "",
        f"**Between whole heatmaps**, ε = 0.1: {whole['milliseconds_per_pair']:.0f} ms a pair, POT "
        f"{whole['pot_milliseconds_per_pair']:.0f} ms: {whole['ratio']:.1f} times as fast; largest "
        f"relative difference {whole['largest_relative_difference']:.0e}.",
        "",
        f"**Quick mode**, ε = 0.01, all {quick['distances']:,} distances of {quick['heatmaps']:,} "
        f"heatmaps: {quick['quantising_seconds']:.1f} s to quantise, "
        f"{quick['seconds_with_one_compilation']:.0f} s for the distances. Rank correlation with "
        f"the exact distances of {quick['sample']} pairs {quick['rank_correlation']:.3f}; median "
        f"relative difference {quick['median_relative_difference']:.1%}.",
        "",
        f"**Memory** of a process that clusters {memory['heatmaps']:,} heatmaps: at most "
        f"{memory['peak_gib']:.2f} GiB.",
        "",
        f"**Share of the peak**: products that use the grid's symmetry need "
        f"{peak['needed_gflops']:.0f} GFLOP/s, {peak['share_of_peak']:.0%} of a plain float32 "
        f"matrix product's {peak['matrix_product_gflops']:.0f} (dense products of the same speed: "
        f"{peak['dense_equivalent_share']:.0%}), at {peak['linearisations_per_problem']:.1f} "
        "linearisations a problem. The rest: exponentials, row sums and Newton's system, bound by "
        "memory or by operations of ten points; more than one step of some linearisations; "
        "slots that idle at the end of a group.",
        "",
        "**Growth** of one round of clustering, ε = 0.02, two centres:",
        "",
        "| heatmaps | grid | pixels with mass (median) | s | ms per heatmap |",
        "|---:|---:|---:|---:|---:|",
    ]
    for rows, side in (("by_count", 32), ("by_mass", 32), ("by_side", None)):
        for row in result[rows]:
            size = side or row["side"]
            lines.append(
                f"| {row['heatmaps']:,} | {size}×{size} | {row['median_support']:.0f} | "
                f"{row['seconds']:.1f} | {1e3 * row['seconds'] / row['heatmaps']:.1f} |"
            )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
