"""What geometry adds: the same HDBSCAN on other distances between the images of a class.

On a run that has ended, whose truth is known:

    python -m experiments.ablation runs/p2

Activations and heatmaps in Euclidean distance; the second lower bound of the Gromov-Wasserstein
distance alone (Mémoli 2011: quantile functions of the distances within a heatmap); the distance
itself at three settings of epsilon, with ten points a heatmap and with twenty. HDBSCAN has the
settings of HeatmapDensity everywhere. The truth is used to report, never to find. Takes about
ten minutes on two CPU cores.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.cluster import HDBSCAN
from sklearn.decomposition import PCA
from sklearn.metrics import pairwise_distances

from experiments.benchmarks.reporting import finished, machine, record, versions
from jaxpoison import (
    EntropicGW,
    HeatmapDensity,
    RunOutcome,
    SmallSpaces,
    debiased_distances,
    measure_spaces,
    quantised,
    use_one_device_per_core,
)

_QUANTILES = 64
_NEAREST = 5


def quantile_functions(spaces: SmallSpaces) -> np.ndarray:
    """Of the distances between two points of a space, drawn by their weights."""
    distances, weights = np.asarray(spaces.distances), np.asarray(spaces.weights)
    n = len(distances)
    values = distances.reshape(n, -1)
    mass = (weights[:, :, None] * weights[:, None]).reshape(n, -1)
    order = np.argsort(values, 1)
    values, mass = np.take_along_axis(values, order, 1), np.take_along_axis(mass, order, 1)
    levels = (np.arange(_QUANTILES) + 0.5) / _QUANTILES
    # The left end of every step, so that the function is that of a discrete measure.
    below = np.cumsum(mass, 1)
    last = values.shape[1] - 1
    return np.stack(
        [
            of_space[np.minimum(np.searchsorted(mass_below, levels), last)]
            for of_space, mass_below in zip(values, below, strict=True)
        ]
    )


def geometries(outcome: RunOutcome) -> dict[str, Callable[[], np.ndarray]]:
    """Distances between all images of the searched class, by what they are of."""
    heatmaps = outcome.explained.relevance.sum(-1)
    activations = outcome.explained.activations
    spaces = {points: quantised(measure_spaces(heatmaps, mass=0.99), points) for points in (10, 20)}
    shares = heatmaps.reshape(len(heatmaps), -1)
    shares = shares / np.abs(shares).sum(1, keepdims=True)

    def gw(points: int, epsilon: float) -> Callable[[], np.ndarray]:
        solver = EntropicGW(epsilon)
        return lambda: np.sqrt(debiased_distances(spaces[points], solver, progress=True))

    return {
        "activations, PCA 10": lambda: pairwise_distances(
            PCA(min(10, *activations.shape)).fit_transform(activations)
        ),
        "heatmaps, Euclidean": lambda: pairwise_distances(shares),
        "second lower bound, 10 points": lambda: pairwise_distances(quantile_functions(spaces[10])),
        "GW, ε = 0.1, 10 points": gw(10, 0.1),
        "GW, ε = 0.02, 10 points": gw(10, 0.02),
        "GW, ε = 0.005, 10 points": gw(10, 0.005),
        "GW, ε = 0.005, 20 points": gw(20, 0.005),
    }


def grouped(distances: np.ndarray, truth: np.ndarray) -> dict[str, Any]:
    """What HDBSCAN makes of distances."""
    settings = HeatmapDensity()
    found = HDBSCAN(
        min_cluster_size=settings.min_cluster_size,
        min_samples=settings.min_samples,
        metric="precomputed",
        copy=True,
    ).fit(distances.astype(np.float64))
    sizes = np.bincount(found.labels_[found.labels_ >= 0], minlength=1)
    groups = [found.labels_ == k for k in np.argsort(-sizes)[1:]]
    mostly = [group for group in groups if truth[group].mean() > 0.5]
    apart = distances.copy()
    np.fill_diagonal(apart, np.inf)
    nearest = np.argpartition(apart, _NEAREST - 1, 1)[:, :_NEAREST]
    alike = truth[nearest].mean(1)
    return {
        "groups": len(sizes),
        "noise": int((found.labels_ < 0).sum()),
        "poisoned_in_groups": int(sum(truth[group].sum() for group in mostly)),
        "clean_in_them": int(sum((~truth[group]).sum() for group in mostly)),
        "poisoned_neighbours_of_poisoned": float(alike[truth].mean()),
        "poisoned_neighbours_of_clean": float(alike[~truth].mean()),
    }


def markdown(result: dict[str, Any]) -> str:
    lines = [
        "# What geometry adds to density",
        "",
        f"`{result['data']}`, {result['attack']} attack, p = {100 * result['rate']:g} %: "
        f"{result['poisoned']} poisoned images among {result['clean']} clean ones. HDBSCAN with "
        "the settings of `HeatmapDensity` on other distances. *In groups*: poisoned images in "
        "groups, but for the largest, that are mostly poisoned; *clean there*: in the same groups. "
        f"Neighbours: the share of poisoned images among the {_NEAREST} nearest, in percent.",
        "",
        "| distances | groups | noise | poisoned in groups | clean there | "
        "neighbours of poisoned | of clean | s |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for name, row in result["rows"].items():
        lines.append(
            f"| {name} | {row['groups']} | {row['noise']} | {row['poisoned_in_groups']} | "
            f"{row['clean_in_them']} | {100 * row['poisoned_neighbours_of_poisoned']:.0f} | "
            f"{100 * row['poisoned_neighbours_of_clean']:.1f} | {row['seconds']:.0f} |"
        )
    return "\n".join(lines) + "\n"


def measured(workdir: Path) -> dict[str, Any]:
    outcome = finished(workdir)
    truth = outcome.poisoned
    if truth is None or not truth.any():
        raise ValueError(f"{workdir} has no poisoned images to group")
    rows = {}
    for name, distances in geometries(outcome).items():
        started = time.perf_counter()
        rows[name] = grouped(distances(), truth) | {"seconds": time.perf_counter() - started}
    return {
        "data": Path(outcome.config.data).name,
        "attack": outcome.config.attack,
        "rate": outcome.config.rate,
        "poisoned": int(truth.sum()),
        "clean": int((~truth).sum()),
        "rows": rows,
        "machine": machine(),
        "versions": versions("jaxpoison", "jax", "scikit-learn"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("workdir", type=Path, help="of jaxpoison run, or of a table's row")
    parser.add_argument("--name", default="ablation", help="of the record [%(default)s]")
    given = parser.parse_args()
    use_one_device_per_core()
    result = measured(given.workdir)
    record(given.name, result, markdown(result))


if __name__ == "__main__":
    main()
