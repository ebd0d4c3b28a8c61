"""One detector on one class: how it splits the class, and how far the clusters lie apart."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from jaxpoison.detectors.detection import Detection, Detector, Sees
from jaxpoison.evidence.judge import ClassEvidence, JudgedGroup
from jaxpoison.evidence.separation import Separation, sample, separation
from jaxpoison.evidence.transplant import TransplantEvidence
from jaxpoison.evidence.trigger import Trigger
from jaxpoison.gw.spaces import constant
from jaxpoison.jobs.artefact import Artefact, Made

# A class of fewer images is not searched.
FEWEST = 12


def detect(sees: Sees, detector: Detector, seen: Any, _: Path | None = None) -> Made:
    """Splits a class, and measures how far both clusters lie apart.

    Nothing here knows the truth: detectors see images, activations, relevance. Images
    with a constant heatmap tell nothing: heatmaps do not make them suspects, and
    their number stands in the notes.

    Args:
        sees: What the detector looks at.
        detector: A new one.
        seen: One entry per image, or the class with the network that is asked.

    Returns:
        What :func:`detection_of`, :func:`separation_of` and :func:`evidence_of` read.
    """
    empty = constant(seen) if sees is Sees.RELEVANCE else np.zeros(len(seen), bool)
    if empty.all():
        # The detector says what is wrong.
        empty[:] = False
    detector.fit(seen[~empty] if empty.any() else seen)
    found = detector.detection_
    chosen = sample(found.labels)
    apart = separation(detector.sample_distances(chosen), found.labels[chosen])
    labels, scores = np.zeros(len(seen), int), np.zeros(len(seen))
    labels[~empty], scores[~empty] = found.labels, found.scores
    evidence: ClassEvidence | None = getattr(detector, "evidence_", None)
    values, arrays = ({"evidence": None}, {}) if evidence is None else _kept(evidence)
    return Made(
        {
            **values,
            "seconds": found.seconds,
            "converged": bool(found.converged),
            "notes": found.notes | ({"constant_heatmaps": int(empty.sum())} if empty.any() else {}),
            "silhouette": apart.silhouette,
            "eigenvalues": apart.eigenvalues.tolist(),
        },
        {"labels": labels, "scores": scores, **arrays},
    )


# Arrays of evidence, by the names of its fields.
_EVIDENCE = (
    "classes",
    "screening",
    "asked",
    "flips",
    "shares",
    "weights",
    "carriers",
    "carried",
)
_TRIGGER = ("values", "spread", "places")


def _kept(evidence: ClassEvidence) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Evidence as the JSON values and arrays of a stage."""
    groups = []
    for group in evidence.groups:
        found = dataclasses.asdict(group.evidence)
        del found["classes"]
        found["by_class"] = group.evidence.by_class.tolist()
        groups.append({"hosts_turned": group.hosts_turned, "evidence": found})
    arrays = {name: getattr(evidence, name) for name in _EVIDENCE}
    for k, group in enumerate(evidence.groups):
        arrays[f"group_{k}"] = group.members
    if evidence.trigger is not None:
        for name in _TRIGGER:
            arrays[f"trigger_{name}"] = getattr(evidence.trigger, name)
    values = {
        "label": evidence.label,
        "sizes": list(evidence.sizes),
        "reach": evidence.reach,
        "groups": groups,
    }
    return {"evidence": values}, arrays


def evidence_of(stage: Artefact | Made) -> ClassEvidence | None:
    """What the network said, where it was asked."""
    values, arrays = stage.values["evidence"], stage.arrays
    if values is None:
        return None
    classes = np.unique(arrays["classes"])
    groups = []
    for k, group in enumerate(values["groups"]):
        found = {**group["evidence"], "by_class": np.array(group["evidence"]["by_class"])}
        evidence = TransplantEvidence(classes=classes, **found)
        groups.append(JudgedGroup(arrays[f"group_{k}"], group["hosts_turned"], evidence))
    found = [arrays[name] for name in (f"trigger_{n}" for n in _TRIGGER) if name in arrays]
    return ClassEvidence(
        label=values["label"],
        sizes=tuple(values["sizes"]),
        reach=values["reach"],
        trigger=Trigger(*found) if found else None,
        groups=tuple(groups),
        **{name: arrays[name] for name in _EVIDENCE},
    )


def detection_of(stage: Artefact | Made) -> Detection:
    """How a class was split."""
    return Detection(
        labels=stage.arrays["labels"],
        scores=stage.arrays["scores"],
        seconds=stage.values["seconds"],
        converged=stage.values["converged"],
        notes=stage.values["notes"],
    )


def separation_of(stage: Artefact | Made) -> Separation:
    """How far its clusters lie apart."""
    return Separation(stage.values["silhouette"], np.array(stage.values["eigenvalues"]))
