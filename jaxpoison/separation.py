"""How far the clusters of a class lie apart: silhouette, and the spectrum of its neighbourhoods."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from sklearn.metrics import silhouette_score
from sklearn.neighbors import NearestNeighbors

from jaxpoison._checks import check_integer
from jaxpoison.gw.pairs import all_distances
from jaxpoison.gw.quantisation import quantised
from jaxpoison.gw.solver import EntropicGW
from jaxpoison.spaces import SmallSpaces, Spaces

# Below this an eigenvalue of the normalised Laplacian, which lies in 0..2, counts as zero.
_NEAR_ZERO = 0.01
_EIGENVALUES = 10


@dataclass(frozen=True, eq=False)
class Separation:
    """How far clusters lie apart.

    Attributes:
        silhouette: Mean silhouette of the clusters, in [-1, 1] (Rousseeuw 1987); ``None``
            if only one of them has members.
        eigenvalues: The ten least of the normalised Laplacian of the nearest-neighbour
            graph, ascending (SpRAy: Lapuschkin et al. 2019). As many are 0 as the graph
            has parts that no edge connects.
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


def separation(
    spaces: Spaces,
    labels: Int[np.ndarray, " n"],
    solver: EntropicGW | None = None,
    *,
    points: int = 10,
    sample: int = 256,
    neighbors: int = 10,
) -> Separation:
    """Measures how far the clusters of a class lie apart.

    From all pairwise distances of a sample, evenly over the class, of quantised
    heatmaps. The entropic distance of a heatmap from itself is not 0; half of
    both sides' is taken off every distance.

    Args:
        spaces: Heatmaps of one class, or quantised ones.
        labels: Their clusters.
        solver: How distances are computed.
        points: Points to which whole heatmaps are quantised.
        sample: Most heatmaps to compare. A class of fewer takes as long, in the same
            compilation.
        neighbors: Neighbours of each in the graph.

    Raises:
        TypeError: A count is not an integer.
        ValueError: There are fewer than three heatmaps, not one label for each, or a
            count is too small.
    """
    check_integer("sample", sample, at_least=3)
    check_integer("neighbors", neighbors, at_least=1)
    n = len(spaces)
    if n < 3:
        raise ValueError(f"separation needs at least three heatmaps, found {n}")
    if len(labels) != n:
        raise ValueError(f"expected one label per heatmap ({n}), found {len(labels)}")
    count = min(sample, n)
    chosen = np.linspace(0, n - 1, count).astype(int)
    filled = spaces.take(chosen[np.arange(sample) % count])
    small = filled if isinstance(filled, SmallSpaces) else quantised(filled, points)
    found = all_distances(small, solver)[:count, :count].astype(np.float64)
    own = np.diag(found)
    distances = np.maximum(found - (own[:, None] + own) / 2, 0)
    np.fill_diagonal(distances, 0)
    clusters = np.asarray(labels)[chosen]
    several = 1 < len(np.unique(clusters)) < count
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
