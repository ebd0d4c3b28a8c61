"""The verdict in words."""

from __future__ import annotations

from collections.abc import Iterator

from jaxpoison.evidence.class_evidence import ClassEvidence
from jaxpoison.jobs.outcome import ScanOutcome


def said_of_class(evidence: ClassEvidence) -> str:
    """Whether transplants call a class attacked, and why.

    Args:
        evidence: Of the class.
    """
    if not evidence.verdict.suspicious:
        return (
            f"Class {evidence.label} is not called attacked: the regions that explain its images "
            f"turn {100 * evidence.hosts_turned:.0f} % of images of other classes into it."
        )
    return (
        f"Class {evidence.label} is attacked: {int(evidence.called.sum())} of its "
        f"{len(evidence.screening)} images are called poisoned.{_why(evidence)}"
    )


def said_of_scan(outcome: ScanOutcome) -> Iterator[str]:
    """A sentence for every class that is called attacked, or one that says that none is.

    Args:
        outcome: Of the scan.
    """
    names = outcome.data.train.class_names
    called = [scanned for scanned in outcome.classes if scanned.suspicious]
    for scanned in called:
        suspects = int(scanned.finding.detection.suspects.sum())
        yield (
            f"Class {scanned.label} ({names[scanned.label]}) is attacked: {suspects} of its "
            f"{len(scanned.members)} images are called poisoned.{_why(scanned.finding.evidence)}"
        )
    if not called:
        yield f"No class is called attacked.{_looked_at(outcome)}"


def _why(evidence: ClassEvidence | None) -> str:
    if evidence is None:
        return ""
    by_class = evidence.turned().values()
    share = sum(by_class) / len(by_class)
    return (
        f" The region that explains them turns {100 * share:.0f} % of images of other classes "
        f"into class {evidence.label}."
    )


def _looked_at(outcome: ScanOutcome) -> str:
    """What a scan that calls nothing has seen."""
    images = sum(len(scanned.members) for scanned in outcome.classes)
    text = f" {images} images in {len(outcome.classes)} classes were searched"
    first = outcome.classes[0]
    if first.finding.evidence is None:
        return f"{text}."
    return (
        f"{text}; the regions that explain images of class {first.label} turn most images of "
        f"other classes into theirs: {100 * first.finding.evidence.hosts_turned:.0f} %."
    )
