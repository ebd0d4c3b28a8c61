"""The judge of a class as a detector: density proposes, transplants decide."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int, UInt8
from sklearn.base import BaseEstimator
from sklearn.utils import Tags

from jaxpoison._storage import rows_of
from jaxpoison.detectors.density import HeatmapDensity
from jaxpoison.detectors.detection import Detection
from jaxpoison.evidence.class_evidence import ClassEvidence
from jaxpoison.evidence.judge import judge_class
from jaxpoison.evidence.transplant import Hosts
from jaxpoison.gw.spaces import constant

# Sides of windows on images of 32 pixels.
_OF_32 = (3, 5)


@dataclass(frozen=True, eq=False)
class Case:
    """A class as :class:`TransplantJudge` looks at it.

    Attributes:
        model: Takes images in [0, 1], gives logits.
        images: All of the class.
        heatmaps: Their relevance towards it.
        hosts: Of :func:`hosts_for`.
        label: The class.

    Examples:
        >>> hosts = jp.hosts_for(5, train.images, train.labels, jp.predict(model, train.images))
        >>> len(jp.Case(model, images, heatmaps, hosts, 5))
        20
    """

    model: Any
    images: UInt8[np.ndarray, "n h w c"]
    heatmaps: Float[np.ndarray, "n h w"]
    hosts: Hosts
    label: int

    def __len__(self) -> int:
        """How many images the class has."""
        return len(self.images)


class TransplantJudge(BaseEstimator):
    """Density proposes groups of a class, transplants judge them and every image.

    See :class:`HeatmapDensity` and :func:`judge_class`.

    Args:
        sizes: Sides of the windows of relevance that are pasted. By default 3 and 5 of every 32
            pixels of the images' shorter side, and no fewer.
        screened: Share of the images that are pasted on few hosts: those of the most concentrated
            relevance.
        screened_by: How many these hosts are.
        asked: Images whose windows are pasted on all hosts at first.
        at_first: Hosts on which a class is judged at first; on all of them only where that leaves
            a doubt. On all by default.
        random_state: Seed.
        progress: Show progress bars.

    Attributes:
        evidence_: What transplants say.
        detection_: The images called, and the score of every image.

    Examples:
        >>> hosts = jp.hosts_for(5, train.images, train.labels, jp.predict(model, train.images))
        >>> judge = jp.TransplantJudge().fit(jp.Case(model, images, heatmaps, hosts, 5))
        >>> judge.evidence_.verdict.suspicious, judge.detection_.suspects.shape
        (False, (20,))
    """

    def __init__(
        self,
        sizes: tuple[int, ...] | None = None,
        screened: float = 1.0,
        screened_by: int = 4,
        asked: int = 32,
        at_first: int | None = None,
        random_state: int = 0,
        progress: bool = False,
    ) -> None:
        self.sizes = sizes
        self.screened = screened
        self.screened_by = screened_by
        self.asked = asked
        self.at_first = at_first
        self.random_state = random_state
        self.progress = progress

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        # A class with the network that is asked; no array.
        tags.input_tags.two_d_array = False
        return tags

    def fit(self, X: Case, y: None = None) -> TransplantJudge:  # noqa: N803
        """Judges a class.

        Args:
            X: The class.
            y: Ignored; the truth is never looked at.

        Raises:
            TypeError: It is no :class:`Case`, or an option has the wrong type.
            ValueError: An option is out of range, all heatmaps are constant, or one is not
                finite.
        """
        if not isinstance(X, Case):
            raise TypeError(f"TransplantJudge looks at a Case, found {type(X).__name__}")
        started = time.perf_counter()
        side = min(X.heatmaps.shape[1:])
        sizes = self.sizes
        if sizes is None:
            sizes = tuple(round(size * max(1, side / 32)) for size in _OF_32)
        proposed = self._proposed(X.heatmaps)
        self.evidence_: ClassEvidence = judge_class(
            X.model,
            X.images,
            X.heatmaps,
            X.hosts,
            X.label,
            proposed,
            sizes=sorted({min(size, side) for size in sizes}),
            screened=self.screened,
            screened_by=self.screened_by,
            asked=self.asked,
            at_first=self.at_first,
            seed=self.random_state,
            progress="transplants" if self.progress else None,
        )
        self.detection_ = Detection(
            labels=self.evidence_.called.astype(int),
            scores=self.evidence_.scores,
            seconds=time.perf_counter() - started,
            converged=True,
            notes={"groups": len(proposed), "asked": len(self.evidence_.asked)},
            called_from=self.evidence_.called_from,
        )
        return self

    def _proposed(self, heatmaps: Float[np.ndarray, "n h w"]) -> list[Int[np.ndarray, " g"]]:
        """Groups of alike heatmaps; the largest, too, unless it is most of the class."""
        density = HeatmapDensity(progress=self.progress)
        # Constant heatmaps have no geometry: such images are in no group.
        shaped = np.flatnonzero(~constant(heatmaps))
        if len(shaped) < density.min_cluster_size:
            return []
        groups = [shaped[group] for group in density.fit(rows_of(heatmaps, shaped)).groups_]
        return [g for k, g in enumerate(groups) if k > 0 or 2 * len(g) < len(heatmaps)]

    def sample_distances(self, chosen: Int[np.ndarray, " m"]) -> Float[np.ndarray, "m m"]:
        """By how much the scores of some of the images differ, after ``fit``.

        Args:
            chosen: Their indices.
        """
        scores = self.detection_.scores[chosen]
        return np.abs(scores[:, None] - scores)
