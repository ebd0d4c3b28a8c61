"""Attacked or not: the one place that says so, and where its thresholds stand.

The silhouettes from which on a detector calls a class suspicious were fixed on the classes of
one network (GTSRB, standard attack, p = 33 %): 0.66 and 0.88 in the attacked one, at most 0.53
and 0.70 in the others. Activations projected by FastICA do not tell them apart (0.18 and at most
0.18), and the other detectors have no threshold yet: they cannot tell.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from jaxpoison.evidence.separation import Separation

# The detector that asks the network itself.
JUDGE = "transplant"
SUSPICIOUS_FROM = {"activation_pca": 0.58, "heatmap": 0.78}
# The paper's conclusion: one detector looks at every class, the next at those that it finds
# to fall into two.
CASCADE = ("activation_pca", "heatmap")
_PASSED_ON_FROM = 0.5


@dataclass(frozen=True)
class Verdict:
    """What is said of a class.

    Attributes:
        suspicion: The silhouette of a detector's clusters, or the share of hosts that regions
            turn, over the one that makes a class suspicious; 0 where one cluster is empty.
            ``None`` for detectors that cannot tell.

    Examples:
        >>> jp.Verdict(1.3).suspicious, jp.Verdict(0.4).suspicious, jp.Verdict(None).suspicious
        (True, False, None)
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

    Examples:
        >>> jp.judged("heatmap", jp.Separation(0.88, np.zeros(3))).suspicious
        True
    """
    if detector not in SUSPICIOUS_FROM:
        return Verdict(None)
    if apart.silhouette is None:
        return Verdict(0.0)
    return Verdict(apart.silhouette / SUSPICIOUS_FROM[detector])


def scanners() -> tuple[str, ...]:
    """What all classes can be searched with: whose word on a class counts."""
    return (JUDGE, "cascade", *SUSPICIOUS_FROM)


def passed_on(apart: Separation) -> bool:
    """Whether a class falls into two enough for a second detector to look at it."""
    return apart.silhouette is not None and apart.silhouette >= _PASSED_ON_FROM


TURNS_FROM = 0.3
"""Share of hosts that the region of an image turns into its class, or those of a group's members on
average, from which on it is called poisoned."""
# Where a class turns so many of a few hosts, it is asked on all of them.
UNCLEAR_FROM = TURNS_FROM / 4
# Images that turn so many make an attack from this number on.
FEWEST_IMAGES = 3
_OF_MEDIAN = 0.5


def turns(share: Float[np.ndarray, " n"]) -> Bool[np.ndarray, " n"]:
    """Which shares of hosts are larger than regions of clean images turn."""
    return share >= TURNS_FROM


def called_from(shares: Float[np.ndarray, " n"]) -> float:
    """The share of hosts from which on an image of an attacked class is called.

    More than clean regions turn, and at least half as many as such images turn on the median:
    where a trigger turns nearly all hosts, a third of them is no sign of it.

    Args:
        shares: Of hosts that single images turn.
    """
    turning = shares[turns(shares)]
    return max(TURNS_FROM, _OF_MEDIAN * float(np.median(turning))) if len(turning) else TURNS_FROM


def most_turned(shares: Float[np.ndarray, " n"], groups: Sequence[float]) -> float:
    """The share of hosts by which a class is judged.

    That which so many of its images turn each as make an attack, or which a group's members turn
    on average, whichever is more.

    Args:
        shares: Of hosts that single images turn, each image once.
        groups: Of hosts that members of every proposed group turn, on average.
    """
    few = np.sort(shares)[-FEWEST_IMAGES:]
    of_images = float(few[0]) if len(few) == FEWEST_IMAGES else 0.0
    return max([of_images, *groups])


# Of a proposed group, so many must leave the class without their region.
_NEEDED_FROM = 0.5
# Where so many of the images that turn enough hosts leave, all of them carry a trigger: without it
# an image may still look like the class, as one of a true label does.
MOST_LEAVE = 0.75
# Of a class whose regions turn enough hosts, but are not needed: first among those not called.
_DOUBTED = 0.99


def needed(leaves: Bool[np.ndarray, " g"]) -> bool:
    """Whether a group's members need their regions.

    Args:
        leaves: Which of them are not in the class without it.
    """
    return bool(leaves.mean() >= _NEEDED_FROM)


def judged_by_transplants(hosts_turned: float, by_needed: float) -> Verdict:
    """Judges a class by both halves of cause: what its regions do elsewhere, and without them.

    Args:
        hosts_turned: What :func:`most_turned` says of all its images.
        by_needed: The same of those that are not in the class without their region.
    """
    suspicion = min(hosts_turned / TURNS_FROM, _DOUBTED)
    return Verdict(max(suspicion, by_needed / TURNS_FROM))
