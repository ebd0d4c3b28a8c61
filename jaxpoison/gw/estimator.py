"""Gromov-Wasserstein k-means as a scikit-learn estimator."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int
from sklearn.base import ClassNamePrefixFeaturesOutMixin, ClusterMixin, TransformerMixin
from sklearn.utils import Tags
from sklearn.utils.validation import check_is_fitted

from jaxpoison._estimators import TakesArrays
from jaxpoison.gw.distances import distances_to_centers
from jaxpoison.gw.kmeans import GWClusters, gw_kmeans, spaces_in_mode
from jaxpoison.gw.solver import EPSILON, EntropicGW
from jaxpoison.gw.spaces import SmallSpaces, Spaces

Maps = Float[np.ndarray, "n h w"] | Float[np.ndarray, "n h w c"]


class GromovWassersteinKMeans(
    ClassNamePrefixFeaturesOutMixin, TransformerMixin, ClusterMixin, TakesArrays
):
    """k-means++ of heatmaps as metric measure spaces, under entropic Gromov-Wasserstein distances.

    Args:
        n_clusters: Number of clusters.
        center_size: Points of a centre.
        epsilon: Entropic regularisation in POT's convention; the paper's is 0.1.
        mode: ``exact``, or ``quick``: heatmaps are quantised to ``center_size`` points first.
        mass: Share of a heatmap's mass whose pixels are kept.
        n_init: Runs from different seeds; the one of least inertia is kept. See
            :func:`jaxpoison.gw_kmeans`.
        max_iter: Most rounds of assignment and update.
        tol: Change of couplings at which their iteration ends; see :class:`EntropicGW`.
        random_state: Seed.
        progress: Show a progress bar.

    Attributes:
        labels_: Cluster of every heatmap.
        cluster_centers_: Distances between every centre's points, ``[k, m, m]``.
        cluster_weights_: Mass of every centre's points, ``[k, m]``.
        inertia_: Sum of the (squared) distances to the own centre.
        n_iter_: Rounds taken.
        clusters_: The full result.

    Examples:
        >>> estimator = jp.GromovWassersteinKMeans(2, epsilon=0.005, mode="quick").fit(heatmaps)
        >>> estimator.labels_.shape, estimator.transform(heatmaps).shape
        ((20,), (20, 2))
    """

    def __init__(
        self,
        n_clusters: int = 2,
        *,
        center_size: int = 10,
        epsilon: float = EPSILON,
        mode: str = "exact",
        mass: float = 0.99,
        n_init: int = 1,
        max_iter: int = 20,
        tol: float = 1e-5,
        random_state: int = 0,
        progress: bool = False,
    ) -> None:
        self.n_clusters = n_clusters
        self.center_size = center_size
        self.epsilon = epsilon
        self.mode = mode
        self.mass = mass
        self.n_init = n_init
        self.max_iter = max_iter
        self.tol = tol
        self.random_state = random_state
        self.progress = progress

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float32"]
        return tags

    def fit(self, X: Maps, y: None = None) -> GromovWassersteinKMeans:  # noqa: N803
        """Clusters heatmaps.

        Args:
            X: Heatmaps; any finite values.
            y: Ignored.

        Raises:
            TypeError: An option has the wrong type.
            ValueError: An option is out of range, there are fewer heatmaps
                than clusters, or one is constant, NaN or infinite.
        """
        found: GWClusters = gw_kmeans(
            self._spaces(self._fitted_to(X)),
            n_clusters=self.n_clusters,
            center_size=self.center_size,
            solver=self._solver(),
            max_rounds=self.max_iter,
            n_init=self.n_init,
            random_state=self.random_state,
            progress=self.progress,
        )
        self.clusters_ = found
        self.labels_ = found.labels
        self.cluster_centers_ = np.asarray(found.centers.distances)
        self.cluster_weights_ = np.asarray(found.centers.weights)
        self.inertia_ = found.inertia
        self.n_iter_ = found.rounds
        return self

    def transform(self, X: Maps) -> Float[np.ndarray, "n k"]:  # noqa: N803
        """Distances (squared) of heatmaps to all centres."""
        check_is_fitted(self)
        centers = SmallSpaces(self.cluster_centers_, self.cluster_weights_)
        return np.asarray(
            distances_to_centers(self._spaces(self._checked(X)), centers, self._solver()).values
        )

    def predict(self, X: Maps) -> Int[np.ndarray, " n"]:  # noqa: N803
        """The nearest centre of every heatmap."""
        return self.transform(X).argmin(1)

    @property
    def _n_features_out(self) -> int:
        return len(self.cluster_centers_)

    def _spaces(self, heatmaps: Maps) -> Spaces:
        return spaces_in_mode(heatmaps, self.mode, self.mass, self.center_size)

    def _solver(self) -> EntropicGW:
        return EntropicGW(self.epsilon, self.tol)
