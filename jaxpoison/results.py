"""The records a run leaves for others: ``result.json``, ``suspects.csv``."""

from __future__ import annotations

import csv
import dataclasses
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxpoison.attacks.poisoned import PoisonedSplits
from jaxpoison.datasets.dataset import Splits
from jaxpoison.detectors.detection import Detection
from jaxpoison.detectors.named import suspicion
from jaxpoison.metrics import detection_rates
from jaxpoison.separation import Separation
from jaxpoison.stages import SCHEMA, Artefact
from jaxpoison.training import TrainConfig

if TYPE_CHECKING:
    from jaxpoison.config import RunConfig
    from jaxpoison.pipeline import RunOutcome

# What suspects.csv says of every image, per detector.
_SAID = ("cluster", "score")


def config_record(config: RunConfig, settings: TrainConfig) -> dict[str, Any]:
    """The configuration as it was resolved."""
    attacked = config.attack != "none"
    perturbs = config.attack == "label-consistent"
    stickers = attacked and config.trigger == "sticker"
    patterns = attacked and config.trigger == "amplitude"
    return {
        "data": Path(config.data).name,
        "attack": config.attack,
        "rate": config.rate if attacked else None,
        "trigger": config.trigger if attacked else None,
        "sticker_size": config.sticker_size if stickers else None,
        "amplitude": config.amplitude if patterns else None,
        "trigger_distance": config.trigger_distance if patterns else None,
        "four_corners": config.four_corners if patterns else None,
        "perturbation": dataclasses.asdict(config.pgd) if perturbs else None,
        "source": config.source if attacked and not perturbs else None,
        "target": config.target,
        "image_size": config.image_size,
        "model": config.model,
        "protocol": config.protocol,
        "epochs": settings.epochs,
        "batch_size": settings.batch_size,
        "optimizer": settings.optimizer,
        "learning_rate": settings.learning_rate,
        "seed": config.seed,
        "attribution": config.attribution,
        "detectors": list(config.detectors),
    }


def result_record(
    config: RunConfig,
    settings: TrainConfig,
    data: PoisonedSplits | Splits,
    suspected: np.ndarray,
    stages: dict[str, Artefact],
    detections: dict[str, Detection],
    separations: dict[str, Separation],
) -> dict[str, Any]:
    """The content of ``result.json``.

    Args:
        config: What was run.
        settings: How the network was trained.
        data: The data, with the truth about them if there was an attack.
        suspected: Indices of the searched images.
        stages: What the stages ``evaluate`` and ``explain`` gave, and the time of all.
        detections: What each detector found.
        separations: How far each one's clusters lie apart.
    """
    poisoned = data.poisoned[suspected] if isinstance(data, PoisonedSplits) else None
    evaluated, explained = stages["evaluate"].values, stages["explain"].values
    return {
        "schema": SCHEMA,
        "config": config_record(config, settings),
        "model": {
            "test_accuracy": evaluated["test_accuracy"],
            "parameters": evaluated["parameters"],
        },
        "attack": {
            "asr": evaluated["asr"],
            "masr": evaluated["masr"],
            "per_class_asr": evaluated["per_class_asr"],
            "poisoned_images": None if poisoned is None else int(poisoned.sum()),
        },
        "suspected_class": {
            "images": explained["images"],
            "negative_logits": explained["negative_logits"],
            "largest_absorbed_share": explained["largest_absorbed_share"],
            "conservation": explained["conservation"],
        },
        "detectors": {
            name: {
                **dataclasses.asdict(detection_rates(found.suspects, poisoned)),
                "cluster_sizes": list(found.cluster_sizes),
                "seconds": found.seconds,
                "converged": found.converged,
                "silhouette": separations[name].silhouette,
                "suspicious": _suspicious(name, separations[name]),
                **({"notes": found.notes} if found.notes else {}),
            }
            for name, found in detections.items()
        },
        "seconds": {name: stage.seconds for name, stage in stages.items()},
        "versions": {
            name: ", ".join(sorted({stage.versions[name] for stage in stages.values()}))
            for name in stages["train"].versions
        },
    }


def _suspicious(detector: str, apart: Separation) -> bool | None:
    found = suspicion(detector, apart)
    return None if found is None else found >= 1


def suspects_table(outcome: RunOutcome) -> str:
    """The content of ``suspects.csv``."""
    train = outcome.splits.train
    header = ["id", "label", *(f"{n}_{what}" for n in outcome.detections for what in _SAID)]
    rows = []
    for row, index in enumerate(outcome.suspected):
        cells: list[Any] = []
        for found in outcome.detections.values():
            cells += [int(found.labels[row]), f"{found.scores[row]:.6g}"]
        rows.append([train.ids[index], int(train.labels[index]), *cells])
    return csv_text(header, rows)


def csv_text(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A table as CSV, quoted where names need it."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(header)
    table.writerows(rows)
    return text.getvalue()
