"""What a detector is, and what every one returns."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from jaxtyping import Bool, Float, Int


@dataclass(frozen=True, eq=False)
class Detection:
    """Which of one class's images are suspected; of two clusters, the smaller.

    Attributes:
        labels: 1 for suspects, 0 for the others.
        scores: Higher is more suspicious; of two clusters, the distance to the clean centre minus
            that to the suspects'.
        seconds: Time taken.
        converged: Whether all iterations ended within their tolerance.
        notes: Further measurements of this detector, by name.
        called_from: The score from which on an image is suspected; ``None`` where that does
            not depend on the score alone.

    Examples:
        >>> found = jp.RawClustering(random_state=0).fit(images).detection_
        >>> found.labels.shape, found.scores.shape, found.suspects.sum() == found.cluster_sizes[1]
        ((20,), (20,), np.True_)
    """

    labels: Int[np.ndarray, " n"]
    scores: Float[np.ndarray, " n"]
    seconds: float
    converged: bool
    notes: dict[str, float]
    called_from: float | None = None

    @property
    def suspects(self) -> Bool[np.ndarray, " n"]:
        """Which images are called poisoned."""
        return self.labels == 1

    @property
    def cluster_sizes(self) -> tuple[int, int]:
        """Number of clean images and of suspects."""
        suspects = int(self.labels.sum())
        return len(self.labels) - suspects, suspects


class Sees(enum.Enum):
    """What a detector looks at: one entry per image of a class; or the network, which it asks.

    Examples:
        >>> jp.DETECTORS["heatmap"].sees is jp.Sees.RELEVANCE
        True
    """

    IMAGES = "images"
    ACTIVATIONS = "activations"
    RELEVANCE = "relevance"
    NETWORK = "network"


class Detector(Protocol):
    """What a run asks of a detector: a scikit-learn estimator with two more things.

    Attributes:
        detection_: After ``fit``, how it split the images.

    Examples:
        >>> class Brightness:
        ...     # Two parts of a class, by how bright its images are.
        ...     def fit(self, images):
        ...         bright = images.mean((1, 2, 3))
        ...         labels = (bright > np.median(bright)).astype(int)
        ...         self.bright_ = bright
        ...         self.detection_ = jp.Detection(labels, bright, 0.0, True, {})
        ...         return self
        ...     def sample_distances(self, chosen):
        ...         return np.abs(self.bright_[chosen, None] - self.bright_[None, chosen])
        ...     def get_params(self, deep=True):
        ...         return {}
        ...     def set_params(self, **params):
        ...         return self
        >>> detector: jp.Detector = Brightness()
        >>> detector.fit(images).detection_.cluster_sizes
        (10, 10)
    """

    detection_: Detection

    def fit(self, X: Any) -> Any:  # noqa: N803
        """Splits the images of one class, from what it :class:`Sees` of them."""
        ...

    def sample_distances(self, chosen: Int[np.ndarray, " m"]) -> Float[np.ndarray, "m m"]:
        """After ``fit``, distances between some of the images, as the detector sees them."""
        ...

    def get_params(self) -> dict[str, Any]:
        """Its options, by name."""
        ...

    def set_params(self, **options: Any) -> Any:
        """Changes options."""
        ...


def two_way_detection(
    clusters: Int[np.ndarray, " n"],
    distances: Float[np.ndarray, "n 2"],
    *,
    seconds: float,
    converged: bool,
    notes: dict[str, float] | None = None,
) -> Detection:
    """Calls the smaller of two clusters poisoned; the second one where they are equal.

    Args:
        clusters: Cluster of every image, 0 or 1.
        distances: Distance of every image to both centres.
        seconds: Time taken.
        converged: Whether all iterations ended within their tolerance.
        notes: Further measurements.
    """
    sizes = np.bincount(clusters, minlength=2)
    suspect = 0 if sizes[0] < sizes[1] else 1
    return Detection(
        labels=(clusters == suspect).astype(int),
        scores=distances[:, 1 - suspect] - distances[:, suspect],
        seconds=seconds,
        converged=converged,
        notes=notes or {},
        called_from=0.0,
    )
