"""Groups of heatmaps that are alike: density in Gromov-Wasserstein geometry."""

from __future__ import annotations

import time

import numpy as np
from jaxtyping import Float, Int
from sklearn.base import BaseEstimator, ClusterMixin
from sklearn.cluster import HDBSCAN

from jaxpoison._checks import check_integer
from jaxpoison.detectors.detection import Detection
from jaxpoison.gw.pairs import debiased_distances
from jaxpoison.gw.quantisation import quantised
from jaxpoison.gw.solver import EntropicGW
from jaxpoison.gw.spaces import SmallSpaces, measure_spaces


class HeatmapDensity(ClusterMixin, BaseEstimator):
    """Heatmaps quantised to few points, HDBSCAN on their debiased distances.

    Two-means prefers two equal halves of a wide cloud to a small tight group; density does not.
    The largest group is the class as such; all others are proposed. A tight group alone proves
    nothing: thirty frames of one physical sign are one, too.

    HDBSCAN: Campello, Moulavi, Sander 2013; distances less half of both sides' distances from
    themselves, as for Sinkhorn divergences (Genevay, Peyré, Cuturi 2018), and their root. All
    pairs are measured: time and memory grow with the square of a class, 20 s and 32 MB for
    2,000 heatmaps on two cores.

    Args:
        epsilon: Entropic regularisation in POT's convention; by default half of the value from
            which on a constant barycentre of these heatmaps attracts.
        points: Points that each heatmap is quantised to.
        mass: Share of relevance whose pixels are kept.
        min_cluster_size: Fewest heatmaps of a group.
        min_samples: Neighbours within which a heatmap's density is measured.
        progress: Show a progress bar.

    Attributes:
        groups_: Indices of the heatmaps of every group, the largest first. The first is the
            main group. None where HDBSCAN finds none.
        noise_: Indices of the heatmaps in no group.
        epsilon_: What distances were computed with.
        labels_: 1 for the heatmaps of all groups but the largest, 0 for the others.
        detection_: The full result; the score of a heatmap is its mean distance to the nearest
            of the main group, less that to the nearest of the proposed groups.
        spaces_: The quantised heatmaps.
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
                fewest, or one is constant or not finite.
        """
        started = time.perf_counter()
        check_integer("min_cluster_size", self.min_cluster_size, at_least=2)
        check_integer("min_samples", self.min_samples, at_least=1)
        if len(X) < max(self.min_cluster_size, self.min_samples + 1):
            raise ValueError(
                f"groups of {self.min_cluster_size} and densities of {self.min_samples} "
                f"neighbours need as many heatmaps, found {len(X)}"
            )
        self.spaces_: SmallSpaces = quantised(measure_spaces(X, mass=self.mass), self.points)
        self.epsilon_ = critical_epsilon(self.spaces_) / 2 if self.epsilon is None else self.epsilon
        solver = EntropicGW(self.epsilon_)
        squared = debiased_distances(self.spaces_, solver, progress=self.progress)
        self._distances = distances = np.sqrt(squared)
        found = HDBSCAN(
            min_cluster_size=self.min_cluster_size,
            min_samples=self.min_samples,
            metric="precomputed",
            copy=True,
        ).fit(distances)
        sizes = np.bincount(found.labels_[found.labels_ >= 0])
        order = np.argsort(-sizes, kind="stable")
        self.groups_: tuple[Int[np.ndarray, " m"], ...] = tuple(
            np.flatnonzero(found.labels_ == group) for group in order
        )
        self.noise_: Int[np.ndarray, " m"] = np.flatnonzero(found.labels_ < 0)
        proposed = np.zeros(len(X), bool)
        for group in self.groups_[1:]:
            proposed[group] = True
        self.labels_ = proposed.astype(int)
        self.detection_ = Detection(
            labels=self.labels_,
            scores=_scores(distances, self.groups_, self.min_samples),
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
        return self._distances[np.ix_(chosen, chosen)] ** 2


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
    distances: Float[np.ndarray, "n n"], groups: tuple[Int[np.ndarray, " m"], ...], nearest: int
) -> Float[np.ndarray, " n"]:
    """Mean distance to the nearest of the main group, less that to the nearest proposed ones.

    With no proposed group, the distance to the main group alone.
    """
    main = groups[0] if groups else np.arange(len(distances))
    scores = _mean_of_nearest(distances, main, nearest)
    if len(groups) > 1:
        each = [_mean_of_nearest(distances, group, nearest) for group in groups[1:]]
        scores = scores - np.min(each, axis=0)
    return scores


def _mean_of_nearest(
    distances: Float[np.ndarray, "n n"], group: Int[np.ndarray, " m"], nearest: int
) -> Float[np.ndarray, " n"]:
    """Mean distance to the nearest members of a group, oneself apart."""
    of_group = distances[:, group].copy()
    of_group[group, np.arange(len(group))] = np.inf
    few = np.sort(of_group, axis=1)[:, : min(nearest, len(group) - 1)]
    return few.mean(1)
