"""Groups of heatmaps that are alike: density in Gromov-Wasserstein geometry."""

from __future__ import annotations

import time

import numpy as np
from jaxtyping import Float, Int
from scipy.sparse import csr_array
from sklearn.base import ClusterMixin
from sklearn.cluster import HDBSCAN

from jaxpoison._checks import check_integer
from jaxpoison._estimators import TakesArrays
from jaxpoison._sampling import evenly
from jaxpoison.detectors.detection import Detection
from jaxpoison.gw.neighbours import nearest_neighbours
from jaxpoison.gw.pairs import debiased_distances, distances_between
from jaxpoison.gw.quantisation import quantised
from jaxpoison.gw.solver import EntropicGW
from jaxpoison.gw.spaces import SmallSpaces, measure_spaces

# Up to so many heatmaps, all pairs are measured.
_ALL_PAIRS = 1024
# Neighbours of a heatmap that HDBSCAN is given where they are not: so many times min_samples.
_NEIGHBOURS = 2
# Below it couplings in float32 hardly converge. Heatmaps of one or two pixels have no structure at
# any epsilon.
_LEAST_EPSILON = 1e-3
# Heatmaps of the main group and of every other one to which all are then compared.
_OF_MAIN, _OF_GROUP = 64, 16


class HeatmapDensity(ClusterMixin, TakesArrays):
    """Heatmaps quantised to few points, HDBSCAN on their debiased distances.

    Two-means prefers two equal halves of a wide cloud to a small tight group; density does not.
    The largest group is the class as such; all others are proposed. A tight group alone proves
    nothing: thirty frames of one physical sign are one, too.

    HDBSCAN: Campello, Moulavi, Sander 2013; distances less half of both sides' distances from
    themselves, as for Sinkhorn divergences (Genevay, Peyré, Cuturi 2018), and their root. Up to
    1,024 heatmaps all pairs are measured. With more, HDBSCAN is given the nearest neighbours of
    every heatmap and the distances to a few landmarks, which connect them
    (:func:`nearest_neighbours`); time and memory then grow with their number. For 2,000 heatmaps
    that takes half the time of all pairs; in five classes of GTSRB the groups were the same but
    for single images.

    Args:
        epsilon: Entropic regularisation in POT's convention; by default half of the value from
            which on a constant barycentre of these heatmaps attracts, at least 0.001.
        points: Points that each heatmap is quantised to.
        mass: Share of relevance whose pixels are kept.
        min_cluster_size: Fewest heatmaps of a group.
        min_samples: Heatmaps, itself counted, within whose distance density is measured.
        progress: Show a progress bar.

    Attributes:
        groups_: Indices of the heatmaps of every group, the largest first. The first is the
            main group. None where HDBSCAN finds none.
        noise_: Indices of the heatmaps in no group.
        epsilon_: What distances were computed with.
        labels_: 1 for the heatmaps of all groups but the largest, 0 for the others.
        detection_: The full result; the score of a heatmap is its mean distance to the nearest
            of the main group, less that to the nearest of the proposed groups; with many
            heatmaps, of some of each group.
        spaces_: The quantised heatmaps.

    Examples:
        >>> detector = jp.HeatmapDensity(min_cluster_size=5).fit(heatmaps)
        >>> sum(len(group) for group in detector.groups_) <= len(heatmaps)
        True
    """

    def __init__(
        self,
        epsilon: float | None = None,
        points: int = 10,
        mass: float = 0.99,
        min_cluster_size: int = 8,
        min_samples: int = 5,
        progress: bool = False,
    ) -> None:
        self.epsilon = epsilon
        self.points = points
        self.mass = mass
        self.min_cluster_size = min_cluster_size
        self.min_samples = min_samples
        self.progress = progress

    def fit(
        self,
        X: Float[np.ndarray, "n h w c"] | Float[np.ndarray, "n h w"],  # noqa: N803
        y: None = None,
    ) -> HeatmapDensity:
        """Finds the groups of one class's relevance maps.

        Args:
            X: Relevance of every pixel towards the images' label.
            y: Ignored; the truth is never looked at.

        Raises:
            TypeError: An option has the wrong type.
            ValueError: An option is out of range, there are fewer heatmaps than a group's
                fewest, or one is constant, NaN or infinite.
        """
        started = time.perf_counter()
        check_integer("min_cluster_size", self.min_cluster_size, at_least=2)
        check_integer("min_samples", self.min_samples, at_least=2)
        X = self._fitted_to(X)  # noqa: N806
        if len(X) < max(self.min_cluster_size, self.min_samples + 1):
            raise ValueError(
                f"groups of {self.min_cluster_size} and densities of {self.min_samples} "
                f"neighbours need as many heatmaps, found {len(X)}"
            )
        self.spaces_: SmallSpaces = quantised(measure_spaces(X, mass=self.mass), self.points)
        self.epsilon_ = own_epsilon(self.spaces_) if self.epsilon is None else self.epsilon
        solver = EntropicGW(self.epsilon_)
        graph = _distances(self.spaces_, solver, self.min_samples, self.progress)
        found = HDBSCAN(
            min_cluster_size=self.min_cluster_size,
            # A full matrix holds the heatmap itself, and scikit-learn counts it.
            min_samples=self.min_samples - (not isinstance(graph, np.ndarray)),
            metric="precomputed",
            copy=True,
        ).fit(graph)
        sizes = np.bincount(found.labels_[found.labels_ >= 0])
        order = np.argsort(-sizes, kind="stable")
        self.groups_: tuple[Int[np.ndarray, " m"], ...] = tuple(
            np.flatnonzero(found.labels_ == group) for group in order
        )
        self.noise_: Int[np.ndarray, " m"] = np.flatnonzero(found.labels_ < 0)
        if isinstance(graph, np.ndarray):
            scores = _scores(graph, np.arange(len(X)), self.groups_, self.min_samples)
        else:
            some, groups = _representatives(self.groups_, len(X))
            to_some = distances_between(
                self.spaces_, np.arange(len(X)), some, solver, progress=self.progress
            )
            scores = _scores(to_some, some, groups, self.min_samples)
        proposed = np.zeros(len(X), bool)
        for group in self.groups_[1:]:
            proposed[group] = True
        self.labels_ = proposed.astype(int)
        self.detection_ = Detection(
            labels=self.labels_,
            scores=scores,
            seconds=time.perf_counter() - started,
            converged=True,
            notes={
                "epsilon": self.epsilon_,
                "groups": len(self.groups_),
                "noise": len(self.noise_),
            },
        )
        return self

    def sample_distances(self, chosen: Int[np.ndarray, " m"]) -> Float[np.ndarray, "m m"]:
        """Debiased distances, squared, between some of the heatmaps, after ``fit``.

        Args:
            chosen: Their indices.
        """
        solver = EntropicGW(self.epsilon_)
        return distances_between(self.spaces_, chosen, chosen, solver) ** 2


def _distances(
    spaces: SmallSpaces, solver: EntropicGW, min_samples: int, progress: bool
) -> Float[np.ndarray, "n n"] | csr_array:
    """Roots of debiased distances: of all pairs, or of neighbours and to landmarks."""
    n = len(spaces)
    if n <= _ALL_PAIRS:
        return np.sqrt(debiased_distances(spaces, solver, progress=progress))
    k = _NEIGHBOURS * min_samples
    near = nearest_neighbours(spaces, k, solver, all_pairs=0, progress=progress)
    graph = _to(near.index, near.distances).maximum(
        _to(np.tile(near.landmarks, (n, 1)), near.to_landmarks)
    )
    return graph.maximum(graph.T).tocsr()


def _to(others: Int[np.ndarray, "n k"], distances: Float[np.ndarray, "n k"]) -> csr_array:
    """Distances of all to some others, but not to themselves, as a sparse matrix."""
    n = len(others)
    rows, columns = np.repeat(np.arange(n), others.shape[1]), others.ravel()
    apart = rows != columns
    # No entry, to a sparse matrix, is one of 0: alike heatmaps are kept a little apart.
    values = np.maximum(distances.ravel(), np.finfo(np.float32).tiny)
    return csr_array((values[apart], (rows[apart], columns[apart])), (n, n))


def _representatives(
    groups: tuple[Int[np.ndarray, " m"], ...], n: int
) -> tuple[Int[np.ndarray, " r"], tuple[Int[np.ndarray, " s"], ...]]:
    """Some heatmaps of every group, and of all where there is none; and their places among them."""
    some = [
        group[evenly(len(group), _OF_MAIN if k == 0 else _OF_GROUP)]
        for k, group in enumerate(groups or (np.arange(n),))
    ]
    ends = np.cumsum([len(part) for part in some])
    starts = np.concatenate([[0], ends[:-1]])
    places = tuple(np.arange(a, b) for a, b in zip(starts, ends, strict=True))
    return np.concatenate(some), places


def own_epsilon(spaces: SmallSpaces) -> float:
    """The epsilon that follows from spaces: half of the critical one, at least 0.001.

    Args:
        spaces: Quantised heatmaps.
    """
    return max(critical_epsilon(spaces) / 2, _LEAST_EPSILON)


def critical_epsilon(spaces: SmallSpaces) -> float:
    """The epsilon from which on, to first order, a constant barycentre of spaces attracts.

    Four times the variance, over its mass, of the mean distance that a point of a space sees,
    meaned over the spaces.
    """
    distances, weights = np.asarray(spaces.distances), np.asarray(spaces.weights)
    seen = np.einsum("nij,nj->ni", distances, weights)
    mean = (seen * weights).sum(1, keepdims=True)
    return float(4 * ((seen - mean) ** 2 * weights).sum(1).mean())


def _scores(
    distances: Float[np.ndarray, "n m"],
    columns: Int[np.ndarray, " m"],
    groups: tuple[Int[np.ndarray, " g"], ...],
    nearest: int,
) -> Float[np.ndarray, " n"]:
    """Mean distance to the nearest of the main group, less that to the nearest proposed ones.

    With no proposed group, the distance to the main group alone.

    Args:
        distances: Of all heatmaps to some.
        columns: Indices of these.
        groups: Places of every group's heatmaps among them.
        nearest: How many of a group count.
    """
    oneself = np.arange(len(distances))[:, None] == columns[None]
    apart = np.where(oneself, np.inf, distances)

    def to_group(group: Int[np.ndarray, " g"]) -> Float[np.ndarray, " n"]:
        few = np.sort(apart[:, group], axis=1)[:, : min(nearest, len(group) - 1)]
        return few.mean(1)

    scores = to_group(groups[0] if groups else np.arange(len(columns)))
    if len(groups) > 1:
        scores = scores - np.min([to_group(group) for group in groups[1:]], axis=0)
    return scores
