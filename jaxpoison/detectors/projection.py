"""The shared core of the baselines: project to few dimensions, then two-means."""

from __future__ import annotations

import time
import warnings

import numpy as np
from jaxtyping import Float, Int
from sklearn.base import ClusterMixin
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA, FastICA
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import pairwise_distances

from jaxpoison._checks import check_choice, check_integer
from jaxpoison._estimators import TakesArrays
from jaxpoison.detectors.detection import Detection, two_way_detection

_ICA_ITERATIONS = 1000


class ProjectionClustering(ClusterMixin, TakesArrays):
    """PCA or FastICA, then k-means with two clusters.

    Args:
        projection: ``"pca"`` or ``"ica"``.
        n_components: Dimensions kept.
        n_init: Restarts of k-means.
        max_iter: Most iterations of each k-means run.
        random_state: Seed.

    Attributes:
        labels_: 1 for suspects (the smaller cluster), 0 for the others.
        detection_: The full result.
        points_: What was clustered, ``[n, n_components]``.
        n_iter_: Rounds of k-means.
    """

    def __init__(
        self,
        projection: str = "pca",
        n_components: int = 10,
        n_init: int = 10,
        max_iter: int = 300,
        random_state: int = 0,
    ) -> None:
        self.projection = projection
        self.n_components = n_components
        self.n_init = n_init
        self.max_iter = max_iter
        self.random_state = random_state

    def features(self, X: np.ndarray) -> Float[np.ndarray, "n d"]:  # noqa: N803
        """One row per image."""
        return np.asarray(X, np.float64).reshape(len(X), -1)

    def fit(self, X: np.ndarray, y: None = None) -> ProjectionClustering:  # noqa: N803
        """Splits the images of one class.

        Args:
            X: One entry per image.
            y: Ignored; the truth is never looked at.

        Raises:
            ValueError: An option is unknown, values are not finite, or there
                are fewer images or values per image than components.
        """
        started = time.perf_counter()
        check_choice("projection", self.projection, ("pca", "ica"))
        check_integer("n_components", self.n_components, at_least=1)
        rows = self.features(self._fitted_to(X))
        if not np.isfinite(rows).all():
            raise ValueError("the values to cluster must be finite, found NaN or infinity")
        if min(rows.shape) < max(2, self.n_components):
            raise ValueError(
                f"{self.n_components} components need at least as many images and values per "
                f"image, found n_samples = {rows.shape[0]}, n_features = {rows.shape[1]}"
            )
        self.points_, converged = self._project(rows)
        means = KMeans(
            2, n_init=self.n_init, max_iter=self.max_iter, random_state=self.random_state
        ).fit(self.points_)
        self.n_iter_ = means.n_iter_
        self.detection_: Detection = two_way_detection(
            means.labels_,
            means.transform(self.points_),
            seconds=time.perf_counter() - started,
            converged=converged and means.n_iter_ < self.max_iter,
        )
        self.labels_ = self.detection_.labels
        return self

    def sample_distances(self, chosen: Int[np.ndarray, " m"]) -> Float[np.ndarray, "m m"]:
        """Euclidean distances between some of the projected images, after ``fit``.

        Args:
            chosen: Their indices.
        """
        return pairwise_distances(self.points_[chosen])

    def _project(self, rows: np.ndarray) -> tuple[np.ndarray, bool]:
        if self.projection == "pca":
            model = PCA(self.n_components, random_state=self.random_state)
            return model.fit_transform(rows), True
        model = FastICA(
            self.n_components,
            whiten="unit-variance",
            max_iter=_ICA_ITERATIONS,
            random_state=self.random_state,
        )
        with warnings.catch_warnings():
            # Reported as data.
            warnings.simplefilter("ignore", ConvergenceWarning)
            points = model.fit_transform(rows)
        return points, model.n_iter_ < _ICA_ITERATIONS
