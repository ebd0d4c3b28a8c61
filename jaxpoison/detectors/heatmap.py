"""Heatmap Clustering (Schulth, Berghoff, Neu)."""

from __future__ import annotations

import time

import numpy as np
from jaxtyping import Float, Int
from sklearn.base import ClusterMixin

from jaxpoison._estimators import TakesArrays
from jaxpoison.detectors.detection import Detection, two_way_detection
from jaxpoison.gw.kmeans import GWClusters, gw_kmeans, spaces_in_mode
from jaxpoison.gw.pairs import debiased_distances
from jaxpoison.gw.quantisation import quantised
from jaxpoison.gw.solver import EPSILON, EntropicGW
from jaxpoison.gw.spaces import MeasureSpaces, Spaces


class HeatmapClustering(ClusterMixin, TakesArrays):
    """Relevance maps as metric measure spaces, k-means++ under entropic GW.

    Args:
        epsilon: Entropic regularisation in POT's convention; the paper's is 0.1.
        center_size: Points of a centre.
        mode: ``exact``, or ``quick``: heatmaps are quantised to ``center_size`` points first.
        mass: Share of relevance whose pixels are kept.
        max_rounds: Most rounds of k-means.
        n_init: Runs from different seeds; the one of least inertia is kept. With one run
            alone a centre may stay constant, and the split be a bad one.
        random_state: Seed.
        progress: Show a progress bar.

    Attributes:
        labels_: 1 for suspects (the smaller cluster), 0 for the others.
        detection_: The full result.
        clusters_: What k-means found.
        spaces_: What it clustered.

    Examples:
        >>> detector = jp.HeatmapClustering(epsilon=0.005, mode="quick").fit(heatmaps)
        >>> sum(detector.detection_.cluster_sizes)
        20
    """

    def __init__(
        self,
        epsilon: float = EPSILON,
        center_size: int = 10,
        mode: str = "exact",
        mass: float = 0.99,
        max_rounds: int = 20,
        n_init: int = 10,
        random_state: int = 0,
        progress: bool = False,
    ) -> None:
        self.epsilon = epsilon
        self.center_size = center_size
        self.mode = mode
        self.mass = mass
        self.max_rounds = max_rounds
        self.n_init = n_init
        self.random_state = random_state
        self.progress = progress

    def fit(
        self,
        X: Float[np.ndarray, "n h w c"] | Float[np.ndarray, "n h w"],  # noqa: N803
        y: None = None,
    ) -> HeatmapClustering:
        """Splits the images of one class by their relevance maps.

        Args:
            X: Relevance of every pixel towards the images' label.
            y: Ignored; the truth is never looked at.

        Raises:
            TypeError: An option has the wrong type.
            ValueError: An option is out of range, there are fewer than two
                heatmaps, or one is constant, NaN or infinite.
        """
        started = time.perf_counter()
        solver = EntropicGW(epsilon=self.epsilon)
        X = self._fitted_to(X)  # noqa: N806
        self.spaces_: Spaces = spaces_in_mode(X, self.mode, self.mass, self.center_size)
        self.clusters_: GWClusters = gw_kmeans(
            self.spaces_,
            center_size=self.center_size,
            solver=solver,
            max_rounds=self.max_rounds,
            n_init=self.n_init,
            random_state=self.random_state,
            progress=self.progress,
        )
        found = self.clusters_
        self.detection_: Detection = two_way_detection(
            found.labels,
            found.distances,
            seconds=time.perf_counter() - started,
            converged=found.converged and found.unsolved == 0,
            notes={
                "epsilon": self.epsilon,
                "rounds": found.rounds,
                "inertia": found.inertia,
                "coupling_information_nats": found.information,
                "product_couplings_share": found.product,
                "improvable_couplings_share": found.improvable,
                "unsolved_share": found.unsolved,
                "settled_barycenters": float(found.settled),
            },
        )
        self.labels_ = self.detection_.labels
        return self

    def sample_distances(self, chosen: Int[np.ndarray, " m"]) -> Float[np.ndarray, "m m"]:
        """Debiased distances between some of the heatmaps, quantised, after ``fit``.

        Args:
            chosen: Their indices.
        """
        spaces = self.spaces_.take(chosen)
        if isinstance(spaces, MeasureSpaces):
            spaces = quantised(spaces, self.center_size)
        return debiased_distances(spaces, EntropicGW(self.epsilon))
