"""The verdict in words."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from jaxpoison.evidence.class_evidence import ClassEvidence
from jaxpoison.evidence.verdict import JUDGE
from jaxpoison.jobs.config import RunConfig
from jaxpoison.jobs.outcome import RunOutcome, ScannedClass, ScanOutcome


def said_of_class(evidence: ClassEvidence) -> str:
    """Whether transplants call a class attacked, and why.

    Args:
        evidence: Of the class.
    """
    if not evidence.verdict.suspicious:
        said = (
            f"Class {evidence.label} is not called attacked: the regions that explain its images "
            f"turn {100 * evidence.hosts_turned:.0f} % of images of other classes into it"
        )
        return f"{said}.{_doubt(evidence)}"
    return (
        f"Class {evidence.label} is attacked: {int(evidence.called.sum())} of its "
        f"{len(evidence.screening)} images are called poisoned.{_why(evidence)}"
    )


def said_of_run(outcome: RunOutcome) -> Iterator[str]:
    """What a run says of the class it searched, the network's own word first.

    Args:
        outcome: Of the run.
    """
    evidence = [each.evidence for each in outcome.findings.values() if each.evidence is not None]
    yield from map(said_of_class, evidence)
    verdicts = {name: each.verdict.suspicious for name, each in outcome.findings.items()}
    for said, answer in (("attacked", True), ("not attacked", False)):
        names = [name for name, verdict in verdicts.items() if verdict is answer and name != JUDGE]
        if names:
            yield f"By how far two clusters lie apart, the class is {said} to {', '.join(names)}."
    if not evidence and True not in verdicts.values():
        yield "No detector that was run calls the class attacked: suspects are one of two clusters."


def said_of_scan(outcome: ScanOutcome) -> Iterator[str]:
    """A sentence for every class that is called attacked, or one that says that none is.

    Args:
        outcome: Of the scan.
    """
    names = outcome.data.train.class_names
    called = [scanned for scanned in outcome.classes if scanned.suspicious]
    for scanned in called:
        yield said_of_attacked(scanned, names)
    if not called:
        yield f"No class is called attacked.{_looked_at(outcome)}"
    for scanned in outcome.classes:
        evidence = scanned.finding.evidence
        if evidence is not None and evidence.doubted:
            yield (
                f"Class {scanned.label} ({names[scanned.label]}) is worth a look: its regions turn "
                f"{100 * evidence.hosts_turned:.0f} %.{_doubt(evidence)}"
            )


def said_of_excluded(config: RunConfig | None) -> str:
    """Which images a job was told to leave out; nothing where none.

    Args:
        config: Of the job, if there is one.
    """
    if config is None or config.exclude is None:
        return ""
    name = Path(config.exclude).name
    return f"The images that {name} names were left out: neither trained on nor searched."


def said_of_attacked(scanned: ScannedClass, names: Sequence[str]) -> str:
    """A sentence for a class that is called attacked.

    Args:
        scanned: What a scan found in it.
        names: Names of all classes.
    """
    suspects = int(scanned.finding.detection.suspects.sum())
    return (
        f"Class {scanned.label} ({names[scanned.label]}) is attacked: {suspects} of its "
        f"{len(scanned.members)} training images are called poisoned."
        f"{_why(scanned.finding.evidence)}{_elsewhere(scanned)}"
    )


def _elsewhere(scanned: ScannedClass) -> str:
    if scanned.carriers is None:
        return ""
    found = {
        "training images of other classes": len(scanned.carriers.train),
        "validation images": len(scanned.carriers.validation),
        "test images": len(scanned.carriers.test),
    }
    said = [f"{count} {what}" for what, count in found.items() if count]
    return f" Its trigger is also on {', '.join(said)}." if said else ""


def _why(evidence: ClassEvidence | None) -> str:
    if evidence is None:
        return ""
    said = (
        f" The region that explains them turns {100 * evidence.hosts_turned:.0f} % of images of "
        f"other classes into class {evidence.label}"
    )
    called = evidence.called
    leave = int((called & evidence.leaves).sum())
    return f"{said}, and {leave} of the {int(called.sum())} leave it without that region."


def _doubt(evidence: ClassEvidence) -> str:
    """Why a class is not called although its regions turn other images."""
    if not evidence.doubted or evidence.leaving is None:
        return ""
    return (
        f" But only {100 * evidence.leaving:.0f} % of the images that turn them leave the class "
        "without the region: it is more likely a part of what the class shows than a trigger."
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
