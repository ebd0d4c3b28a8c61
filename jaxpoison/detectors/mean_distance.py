"""Two-means on one number per heatmap: what Heatmap Clustering is without geometry."""

from __future__ import annotations

import time

import numpy as np
from jaxtyping import Float, Int
from sklearn.base import ClusterMixin
from sklearn.cluster import KMeans

from jaxpoison._estimators import TakesArrays
from jaxpoison.detectors.detection import Detection, two_way_detection
from jaxpoison.gw.distances import mean_distances
from jaxpoison.gw.spaces import measure_spaces


class MeanDistanceClustering(ClusterMixin, TakesArrays):
    """The mean pairwise distance of the relevance mass of every heatmap, two-means.

    At the paper's epsilon the barycentres of Heatmap Clustering are constant and
    its couplings products; its distances then compare this number alone. What
    Heatmap Clustering finds beyond it, it owes to geometry.

    Args:
        mass: Share of relevance whose pixels are kept.
        n_init: Restarts of k-means.
        random_state: Seed.

    Attributes:
        labels_: 1 for suspects (the smaller cluster), 0 for the others.
        detection_: The full result.
        mean_distances_: The number of every heatmap, as a share of its largest distance.

    Examples:
        >>> detector = jp.MeanDistanceClustering(random_state=0).fit(heatmaps)
        >>> sum(detector.detection_.cluster_sizes)
        20
    """

    def __init__(self, mass: float = 0.99, n_init: int = 10, random_state: int = 0) -> None:
        self.mass = mass
        self.n_init = n_init
        self.random_state = random_state

    def fit(
        self,
        X: Float[np.ndarray, "n h w c"] | Float[np.ndarray, "n h w"],  # noqa: N803
        y: None = None,
    ) -> MeanDistanceClustering:
        """Splits the images of one class by their relevance maps.

        Args:
            X: Relevance of every pixel towards the images' label.
            y: Ignored; the truth is never looked at.

        Raises:
            ValueError: An option is out of range, there are fewer than two
                heatmaps, or one is constant, NaN or infinite.
        """
        started = time.perf_counter()
        spaces = measure_spaces(self._fitted_to(X), mass=self.mass)
        self.mean_distances_ = mean_distances(spaces)
        column = self.mean_distances_[:, None]
        means = KMeans(2, n_init=self.n_init, random_state=self.random_state).fit(column)
        self.detection_: Detection = two_way_detection(
            means.labels_,
            means.transform(column),
            seconds=time.perf_counter() - started,
            converged=means.n_iter_ < means.max_iter,
        )
        self.labels_ = self.detection_.labels
        return self

    def sample_distances(self, chosen: Int[np.ndarray, " m"]) -> Float[np.ndarray, "m m"]:
        """Differences between the numbers of some of the heatmaps, after ``fit``.

        Args:
            chosen: Their indices.
        """
        numbers = self.mean_distances_[chosen]
        return np.abs(numbers[:, None] - numbers)
