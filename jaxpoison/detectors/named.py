"""The detectors a run knows by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from jaxpoison.detectors.activation import ActivationClustering
from jaxpoison.detectors.heatmap import HeatmapClustering
from jaxpoison.detectors.mean_distance import MeanDistanceClustering
from jaxpoison.detectors.raw import RawClustering
from jaxpoison.gw.solver import PAPER_EPSILON
from jaxpoison.separation import Separation

# What a detector looks at, and how it is made from a seed.
DETECTORS: dict[str, tuple[str, Callable[[int], Any]]] = {
    "raw_pca": ("images", lambda seed: RawClustering("pca", random_state=seed)),
    "raw_ica": ("images", lambda seed: RawClustering("ica", random_state=seed)),
    "activation_pca": ("activations", lambda seed: ActivationClustering("pca", random_state=seed)),
    "activation_ica": ("activations", lambda seed: ActivationClustering("ica", random_state=seed)),
    "mean_distance": ("relevance", lambda seed: MeanDistanceClustering(random_state=seed)),
    "heatmap_paper": (
        "relevance",
        lambda seed: HeatmapClustering(epsilon=PAPER_EPSILON, n_init=1, random_state=seed),
    ),
    "heatmap": ("relevance", lambda seed: HeatmapClustering(random_state=seed)),
    # Where 0.02 leaves the centre of clean heatmaps constant, both have a structure.
    "heatmap_sharp": (
        "relevance",
        lambda seed: HeatmapClustering(epsilon=0.005, mode="quick", random_state=seed),
    ),
}
# From which silhouette on a detector calls a class suspicious. Fixed on the classes of one network
# (GTSRB, standard attack, p = 33 %): 0.66 and 0.88 in the attacked one, at most 0.53 and 0.70 in
# the others. Activations projected by FastICA do not tell them apart (0.18 and at most 0.18).
SUSPICIOUS = {"activation_pca": 0.58, "heatmap": 0.78}


def suspicion(detector: str, apart: Separation) -> float | None:
    """The silhouette of two clusters over the one that makes their class suspicious.

    Args:
        detector: Who found them.
        apart: How far they lie apart.

    Returns:
        From 1 on the class looks attacked; 0 where one cluster is empty. ``None`` for
        detectors that cannot tell.
    """
    if detector not in SUSPICIOUS:
        return None
    return 0.0 if apart.silhouette is None else apart.silhouette / SUSPICIOUS[detector]
