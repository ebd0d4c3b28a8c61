"""Attacked or not: the one place that says so, and where its thresholds stand.

The silhouettes from which on a detector calls a class suspicious were fixed on the classes of
one network (GTSRB, standard attack, p = 33 %): 0.66 and 0.88 in the attacked one, at most 0.53
and 0.70 in the others. Activations projected by FastICA do not tell them apart (0.18 and at most
0.18), and the other detectors have no threshold yet: they cannot tell.
"""

from __future__ import annotations

from dataclasses import dataclass

from jaxpoison.evidence.separation import Separation

SUSPICIOUS_FROM = {"activation_pca": 0.58, "heatmap": 0.78}
# The paper's conclusion: one detector looks at every class, the next at those that it finds
# to fall into two.
CASCADE = ("activation_pca", "heatmap")
_PASSED_ON_FROM = 0.5


@dataclass(frozen=True)
class Verdict:
    """What the separation of a class's clusters says about the class.

    Attributes:
        suspicion: The silhouette over the one that makes a class suspicious to this detector;
            0 where one cluster is empty. ``None`` for detectors that cannot tell.
    """

    suspicion: float | None

    @property
    def suspicious(self) -> bool | None:
        """Whether the class is called attacked; ``None`` where that cannot be told."""
        return None if self.suspicion is None else self.suspicion >= 1


def judged(detector: str, apart: Separation) -> Verdict:
    """Judges a class by how far apart a detector's two clusters lie.

    Args:
        detector: Name of the detector that found them.
        apart: How far they lie apart, in that detector's distance.
    """
    if detector not in SUSPICIOUS_FROM:
        return Verdict(None)
    if apart.silhouette is None:
        return Verdict(0.0)
    return Verdict(apart.silhouette / SUSPICIOUS_FROM[detector])


def scanners() -> tuple[str, ...]:
    """What all classes can be searched with: whose word on a class counts."""
    return ("cascade", *SUSPICIOUS_FROM)


def passed_on(apart: Separation) -> bool:
    """Whether a class falls into two enough for a second detector to look at it."""
    return apart.silhouette is not None and apart.silhouette >= _PASSED_ON_FROM
