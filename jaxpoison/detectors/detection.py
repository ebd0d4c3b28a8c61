"""What every detector returns."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int


@dataclass(frozen=True, eq=False)
class Detection:
    """A split of one class's images into two clusters; the smaller is suspected.

    Attributes:
        labels: 1 for suspects, 0 for the others.
        scores: Distance to the clean centre minus distance to the suspects';
            higher is more suspicious.
        seconds: Time taken.
        converged: Whether all iterations ended within their tolerance.
        notes: Further measurements of this detector, by name.
    """

    labels: Int[np.ndarray, " n"]
    scores: Float[np.ndarray, " n"]
    seconds: float
    converged: bool
    notes: dict[str, float]

    @property
    def suspects(self) -> Bool[np.ndarray, " n"]:
        """Which images are called poisoned."""
        return self.labels == 1

    @property
    def cluster_sizes(self) -> tuple[int, int]:
        """Number of clean images and of suspects."""
        suspects = int(self.labels.sum())
        return len(self.labels) - suspects, suspects


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
    )
