"""One detector on one class: how it splits the class, and how far the clusters lie apart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from jaxpoison.detectors.detection import Detection, Detector, Sees
from jaxpoison.evidence.separation import Separation, sample, separation
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
        What :func:`detection_of`, :func:`separation_of` and :meth:`ClassEvidence.of_parts` read.
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
    evidence = getattr(detector, "evidence_", None)
    values, arrays = (None, {}) if evidence is None else evidence.parts()
    return Made(
        {
            "evidence": values,
            "seconds": found.seconds,
            "converged": bool(found.converged),
            "notes": found.notes | ({"constant_heatmaps": int(empty.sum())} if empty.any() else {}),
            "called_from": found.called_from,
            "silhouette": apart.silhouette,
            "eigenvalues": apart.eigenvalues.tolist(),
        },
        {"labels": labels, "scores": scores, **arrays},
    )


def detection_of(stage: Artefact | Made) -> Detection:
    """How a class was split."""
    return Detection(
        labels=stage.arrays["labels"],
        scores=stage.arrays["scores"],
        seconds=stage.values["seconds"],
        converged=stage.values["converged"],
        notes=stage.values["notes"],
        called_from=stage.values["called_from"],
    )


def separation_of(stage: Artefact | Made) -> Separation:
    """How far its clusters lie apart."""
    return Separation(stage.values["silhouette"], np.array(stage.values["eigenvalues"]))
