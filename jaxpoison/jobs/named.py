"""The detectors a run knows by name: everything about one that others show or choose by.

A further detector is a file in ``detectors`` and an entry in :data:`DETECTORS`; one that asks the
network is a file in ``evidence``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from jaxpoison.detectors.activation import ActivationClustering
from jaxpoison.detectors.density import HeatmapDensity
from jaxpoison.detectors.detection import Detector, Sees
from jaxpoison.detectors.heatmap import HeatmapClustering
from jaxpoison.detectors.mean_distance import MeanDistanceClustering
from jaxpoison.detectors.raw import RawClustering
from jaxpoison.evidence.estimator import TransplantJudge
from jaxpoison.gw.solver import PAPER_EPSILON


@dataclass(frozen=True)
class NamedDetector:
    """A detector as it is chosen, made and shown.

    Attributes:
        title: What tables call it.
        help: What it does, in a line.
        sees: What it looks at.
        make: Makes it from a seed.
        baseline: Whether tables of many detectors leave it out.
        counterpart: Its column in the tables of Schulth, Berghoff, Neu (``pca``, ``fastica``,
            ``ac``, ``hc``), where it has one.
        passes: Roughly what an image of the class costs, in forward passes of the compact
            Inception: for the time that is left.
        when_scanning: Options that differ where all classes are searched, to save time; ``mode``
            is the scan's.

    Examples:
        >>> jp.DETECTORS["activation_pca"].title
        'AC, PCA'
    """

    title: str
    help: str
    sees: Sees
    make: Callable[[int], Detector]
    baseline: bool = False
    counterpart: str | None = None
    passes: float = 1.0
    when_scanning: Mapping[str, Any] = field(default_factory=dict)


def _heatmap_clustering(**options: Any) -> Callable[[int], Detector]:
    return lambda seed: HeatmapClustering(random_state=seed, **options)


DETECTORS: dict[str, NamedDetector] = {
    "raw_pca": NamedDetector(
        "raw, PCA",
        "grey images, PCA, two-means",
        Sees.IMAGES,
        lambda seed: RawClustering("pca", random_state=seed),
        baseline=True,
        counterpart="pca",
        passes=0.3,
    ),
    "raw_ica": NamedDetector(
        "raw, FastICA",
        "grey images, FastICA, two-means",
        Sees.IMAGES,
        lambda seed: RawClustering("ica", random_state=seed),
        baseline=True,
        counterpart="fastica",
        passes=0.5,
    ),
    "activation_pca": NamedDetector(
        "AC, PCA",
        "Activation Clustering with PCA",
        Sees.ACTIVATIONS,
        lambda seed: ActivationClustering("pca", random_state=seed),
        counterpart="ac",
        passes=0.1,
    ),
    "activation_ica": NamedDetector(
        "AC, FastICA",
        "Activation Clustering with FastICA",
        Sees.ACTIVATIONS,
        lambda seed: ActivationClustering("ica", random_state=seed),
        counterpart="ac",
        passes=0.2,
    ),
    "mean_distance": NamedDetector(
        "mean distance",
        "two-means on one number per heatmap: Heatmap Clustering without geometry",
        Sees.RELEVANCE,
        lambda seed: MeanDistanceClustering(random_state=seed),
        counterpart="hc",
        passes=0.6,
    ),
    "heatmap_paper": NamedDetector(
        "HC, ε = 0.1",
        "Heatmap Clustering as published",
        Sees.RELEVANCE,
        _heatmap_clustering(epsilon=PAPER_EPSILON, n_init=1),
        counterpart="hc",
        passes=8.0,
    ),
    "heatmap": NamedDetector(
        "HC, ε = 0.02",
        "Heatmap Clustering with couplings that carry geometry",
        Sees.RELEVANCE,
        _heatmap_clustering(),
        counterpart="hc",
        passes=15.0,
        # Ten runs on every class would take three times as long.
        when_scanning={"n_init": 3},
    ),
    # Where 0.02 leaves the centre of clean heatmaps constant, both have a structure.
    "heatmap_sharp": NamedDetector(
        "HC, ε = 0.005, quick",
        "Heatmap Clustering of quantised heatmaps, at a smaller epsilon: for few poisoned images",
        Sees.RELEVANCE,
        _heatmap_clustering(epsilon=0.005, mode="quick"),
        counterpart="hc",
        passes=5.0,
    ),
    # Proposes groups in clean classes, too: evidence has to judge them.
    "heatmap_density": NamedDetector(
        "density",
        "tight groups of heatmaps, however few: HDBSCAN under the Gromov-Wasserstein distance",
        Sees.RELEVANCE,
        lambda seed: HeatmapDensity(),  # noqa: ARG005 (nothing is drawn)
        counterpart="hc",
        passes=6.0,
    ),
    "transplant": NamedDetector(
        "transplant",
        "images whose most relevant region turns images of other classes into theirs; density "
        "proposes groups",
        Sees.NETWORK,
        lambda seed: TransplantJudge(random_state=seed),
        counterpart="hc",
        passes=40.0,
        when_scanning={"screened": 0.25, "screened_by": 2, "asked": 16, "at_first": 12},
    ),
}
"""Detectors by name, in the order of tables; every job and option takes what is entered here."""


def default_detectors() -> tuple[str, ...]:
    """Names of the detectors that a run takes where none are chosen: all."""
    return tuple(DETECTORS)
