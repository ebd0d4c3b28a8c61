"""How epsilon, the centres' size, their start and the mode change a clustering.

On the heatmaps of a run's searched class, every eighth of them. What a choice
may look at needs no truth: how much the couplings say, how far labels agree
between seeds and between settings, whether problems converge, and the time.
The detection rates stand in columns of their own, for the reader alone. About
six minutes on two cores:

    jaxpoison run --data gtsrb32.zip --rate 0.33 --workdir runs/p33
    python -m experiments.gw_study runs/p33
"""

import argparse
import os
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from sklearn.metrics import adjusted_rand_score

from experiments.benchmarks.reporting import finished, machine, record, versions
from jaxpoison import (
    EntropicGW,
    MeasureSpaces,
    SmallSpaces,
    UninformativeCouplingsWarning,
    detection_rates,
    gw_kmeans,
    measure_spaces,
    quantised,
)

EVERY, SEEDS = 8, 3


@dataclass(frozen=True)
class Setting:
    """One way to cluster."""

    epsilon: float
    size: int = 10
    start: str = "members"
    mode: str = "exact"


SETTINGS = (
    *(Setting(epsilon) for epsilon in (0.1, 0.05, 0.02, 0.01, 0.005)),
    *(Setting(0.02, size) for size in (5, 20, 40)),
    *(Setting(0.02, start=start) for start in ("random", "constant")),
    *(Setting(epsilon, mode="quick") for epsilon in (0.1, 0.02, 0.01)),
    Setting(0.02, 20, mode="quick"),
)


def centers(start: str, size: int, seed: int) -> SmallSpaces | None:
    """The centres to start from; none for those drawn from the members."""
    if start == "members":
        return None
    rng = np.random.default_rng(seed)
    if start == "random":
        points = rng.normal(size=(2, size, 2))
        distances = np.linalg.norm(points[:, :, None] - points[:, None], axis=-1)
        distances /= distances.max((1, 2), keepdims=True)
    else:
        distances = np.stack([np.full((size, size), c) for c in rng.uniform(0.1, 0.4, 2)])
    return SmallSpaces(distances.astype(np.float32), np.full((2, size), 1 / size, dtype=np.float32))


def study(setting: Setting, spaces: MeasureSpaces, truth: np.ndarray) -> dict[str, Any]:
    solver = EntropicGW(setting.epsilon)
    started = time.perf_counter()
    taken = quantised(spaces, setting.size) if setting.mode == "quick" else spaces
    jax.block_until_ready(taken.weights)
    preparing = time.perf_counter() - started
    found, seconds = [], []
    for seed in range(SEEDS):
        start = centers(setting.start, setting.size, seed)
        for _ in range(2 if seed == 0 else 1):  # The first call compiles.
            started = time.perf_counter()
            clusters = gw_kmeans(
                taken, center_size=setting.size, solver=solver, random_state=seed, start=start
            )
        seconds.append(time.perf_counter() - started)
        found.append(clusters)
    best = min(found, key=lambda clusters: clusters.inertia)
    smaller = best.labels == np.bincount(best.labels, minlength=2).argmin()
    rates = detection_rates(smaller, truth)
    pairs = [(i, j) for i in range(SEEDS) for j in range(i)]
    agreement = [adjusted_rand_score(found[i].labels, found[j].labels) for i, j in pairs]
    return {
        "epsilon": setting.epsilon,
        "size": setting.size,
        "start": setting.start,
        "mode": setting.mode,
        "seconds": preparing + float(np.mean(seconds)),
        "rounds": float(np.mean([c.rounds for c in found])),
        "inertia": [c.inertia for c in found],
        "information_nats": float(np.mean([c.information for c in found])),
        "improvable_share": float(np.mean([c.improvable for c in found])),
        "unsolved_share": float(np.mean([c.unsolved for c in found])),
        "agreement_between_seeds": float(np.mean(agreement)),
        "share_of_smaller": float(smaller.mean()),
        "labels": best.labels.tolist(),
        "acc": rates.acc,
        "tpr": rates.tpr,
        "tnr": rates.tnr,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="work directory of a run")
    options = parser.parse_args()
    jax.config.update("jax_num_cpu_devices", os.cpu_count())
    warnings.simplefilter("ignore", UninformativeCouplingsWarning)
    outcome = finished(options.run)
    heatmaps, poisoned = outcome.explained.relevance, outcome.poisoned
    if poisoned is None:
        parser.error(f"the run in {options.run} has no poisoned images")
    heatmaps, truth = heatmaps[::EVERY], poisoned[::EVERY]
    spaces = measure_spaces(heatmaps)
    results = []
    for setting in SETTINGS:
        results.append(study(setting, spaces, truth))
        print({k: v for k, v in results[-1].items() if k != "labels"}, flush=True)
    default = next(r for r in results if (r["epsilon"], r["size"]) == (0.02, 10))
    for result in results:
        result["agreement_with_epsilon_0.02"] = adjusted_rand_score(
            default["labels"], result["labels"]
        )
    for result in results:
        del result["labels"]
    record(
        "gw_study",
        {
            "heatmaps": len(spaces),
            "poisoned_share": float(truth.mean()),
            "settings": results,
            "machine": machine(),
            "versions": versions("jax"),
        },
        markdown(results, len(spaces), float(truth.mean())),
    )


def markdown(results: list[dict[str, Any]], count: int, poisoned: float) -> str:
    lines = [
        "# What epsilon, the centres' size, their start and the mode change",
        "",
        f"{count} heatmaps of one class, {poisoned:.0%} of them poisoned; means over {SEEDS} "
        "seeds, rates at the least inertia. Agreement is the adjusted Rand index: 1 for the same "
        "partition, about 0 by chance. *Improvable*: couplings that a perturbed start improves "
        "on. No choice looks at the last column.",
        "",
        "| ε | points | start | mode | KL, nats | improvable | unsolved | agreement of seeds | "
        "agreement with ε = 0.02 | smaller cluster | rounds | s | ACC / TPR / TNR, % |",
        "|---:|---:|---|---|---:|---:|---:|---:|---:|---:|---:|---:|---|",
    ]
    lines += [
        f"| {r['epsilon']} | {r['size']} | {r['start']} | {r['mode']} | "
        f"{r['information_nats']:.3f} | {r['improvable_share']:.0%} | {r['unsolved_share']:.1%} | "
        f"{r['agreement_between_seeds']:.2f} | {r['agreement_with_epsilon_0.02']:.2f} | "
        f"{r['share_of_smaller']:.1%} | {r['rounds']:.1f} | {r['seconds']:.1f} | "
        f"{100 * r['acc']:.1f} / {100 * r['tpr']:.1f} / {100 * r['tnr']:.1f} |"
        for r in results
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
