"""How far the clusters of a class lie apart: silhouette, and the spectrum of its neighbourhoods."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from sklearn.metrics import silhouette_score
from sklearn.neighbors import NearestNeighbors

from jaxpoison._checks import check_integer
from jaxpoison._sampling import evenly

# Below this an eigenvalue of the normalised Laplacian, which lies in 0..2, counts as zero.
_NEAR_ZERO = 0.01
_EIGENVALUES = 10
# Most members of a class whose distances are compared.
_SAMPLE = 256


@dataclass(frozen=True, eq=False)
class Separation:
    """How far clusters lie apart.

    Attributes:
        silhouette: Mean silhouette of the clusters, in [-1, 1] (Rousseeuw 1987); ``None``
            if only one of them has members.
        eigenvalues: The ten least of the normalised Laplacian of the nearest-neighbour
            graph, ascending (SpRAy: Lapuschkin et al. 2019). As many are 0 as the graph
            has parts that no edge connects.

    Examples:
        >>> jp.Separation(0.8, np.array([0.0, 0.001, 0.4, 0.5])).near_zero_eigenvalues
        2
    """

    silhouette: float | None
    eigenvalues: Float[np.ndarray, " k"]

    @property
    def near_zero_eigenvalues(self) -> int:
        """Eigenvalues below 0.01: parts of the graph that hardly an edge connects."""
        return int((self.eigenvalues < _NEAR_ZERO).sum())

    @property
    def eigengap(self) -> float:
        """Third eigenvalue less the second: large for two parts, not for one or many."""
        return float(self.eigenvalues[2] - self.eigenvalues[1])


def sample(clusters: Int[np.ndarray, " n"]) -> Int[np.ndarray, " m"]:
    """Whose distances are compared in a class: at most 256 members, evenly over it.

    Where fewer than a sixteenth of them would be suspects, so many are taken, or all there are.

    Args:
        clusters: 1 for suspects, 0 for the others.
    """
    chosen = evenly(len(clusters), _SAMPLE)
    suspects, others = np.flatnonzero(clusters == 1), np.flatnonzero(clusters == 0)
    fewest = min(_SAMPLE // 16, len(suspects))
    if clusters[chosen].sum() < fewest:
        suspects = suspects[evenly(len(suspects), fewest)]
        others = others[evenly(len(others), _SAMPLE - len(suspects))]
        chosen = np.sort(np.concatenate([suspects, others]))
    return chosen


def separation(
    distances: Float[np.ndarray, "n n"], clusters: Int[np.ndarray, " n"], *, neighbors: int = 10
) -> Separation:
    """Measures how far the clusters of a class lie apart, in any distance.

    Args:
        distances: Of all pairs, not negative, 0 from itself; for heatmaps
            :func:`jaxpoison.debiased_distances`.
        clusters: The cluster of each.
        neighbors: Neighbours of each in the graph.

    Raises:
        TypeError: ``neighbors`` is not an integer.
        ValueError: There are fewer than three points, the distances are no square, there
            is not one cluster for each, or ``neighbors`` is below 1.

    Examples:
        >>> points = np.r_[np.zeros(20), np.full(20, 9.0)]
        >>> points += np.random.default_rng(0).normal(size=40)
        >>> apart = jp.separation(np.abs(points[:, None] - points), np.arange(40) // 20)
        >>> apart.silhouette > 0.8, apart.near_zero_eigenvalues
        (True, 2)
    """
    check_integer("neighbors", neighbors, at_least=1)
    n = len(distances)
    if distances.shape != (n, n) or n < 3:
        raise ValueError(
            "separation needs a square of distances between at least three points, found shape "
            f"{distances.shape}"
        )
    if len(clusters) != n:
        raise ValueError(f"expected one cluster per point ({n}), found {len(clusters)}")
    several = 1 < len(np.unique(clusters)) < n
    silhouette = silhouette_score(distances, clusters, metric="precomputed") if several else None
    return Separation(
        None if silhouette is None else float(silhouette), spectrum(distances, neighbors)
    )


def spectrum(distances: Float[np.ndarray, "n n"], neighbors: int = 10) -> Float[np.ndarray, " k"]:
    """The ten least eigenvalues of the normalised Laplacian of the nearest-neighbour graph.

    Two points are joined if one is among the other's nearest.

    Args:
        distances: Of all pairs, 0 from itself.
        neighbors: Neighbours of each, at most ``n - 1``.
    """
    nearest = NearestNeighbors(n_neighbors=min(neighbors, len(distances) - 1), metric="precomputed")
    joined = nearest.fit(distances).kneighbors_graph().toarray()
    joined = np.maximum(joined, joined.T)
    scale = 1 / np.sqrt(joined.sum(1))
    laplacian = np.eye(len(joined)) - scale[:, None] * joined * scale
    return np.maximum(np.linalg.eigvalsh(laplacian)[:_EIGENVALUES], 0)
