"""The records that jobs leave for others: JSON and CSV, made from typed outcomes at the edge.

Nothing in the package reads them again, but for ``config.json``.
"""

from __future__ import annotations

import csv
import dataclasses
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool

from jaxpoison.datasets.dataset import Dataset
from jaxpoison.evidence.class_evidence import ClassEvidence, JudgedGroup
from jaxpoison.evidence.trigger import Trigger
from jaxpoison.evidence.verdict import JUDGE, SUSPICIOUS_FROM, TURNS_FROM
from jaxpoison.jobs.config import RunConfig
from jaxpoison.jobs.evaluating import Evaluation
from jaxpoison.jobs.outcome import (
    Finding,
    Network,
    Removal,
    RepairOutcome,
    RepairRound,
    RunOutcome,
    ScannedClass,
    ScanOutcome,
)
from jaxpoison.metrics import DetectionRates, ScoreRates, detection_rates
from jaxpoison.training.protocols import TrainConfig

SCHEMA = 2


def config_record(config: RunConfig | None, settings: TrainConfig | None) -> dict[str, Any]:
    """The configuration of a job, files by their name alone, and how it trains."""
    record = training = None
    if config is not None:
        record = config.record()
        files = {
            name: None if path is None else Path(path).name
            for name, path in (("exclude", config.exclude), ("weights", config.weights))
        }
        record = {**record, "data": Path(config.data).name, **files}
    if settings is not None:
        every = dataclasses.asdict(settings)
        training = {key: every[key] for key in _TRAINING}
    return {"config": record, "training": training}


def _settings(network: Network) -> TrainConfig | None:
    return None if network.training is None else network.training.settings


_TRAINING = (
    "epochs",
    "batch_size",
    "optimizer",
    "learning_rate",
    "schedule",
    "patience",
    "compute_dtype",
    "seed",
)


def run_record(outcome: RunOutcome) -> dict[str, Any]:
    """The content of ``result.json``."""
    explained, evaluation = outcome.explained, outcome.evaluation
    return {
        "schema": SCHEMA,
        **config_record(outcome.config, _settings(outcome.network)),
        "model": _model_record(evaluation),
        "attack": {**_attack_record(evaluation), **_poisoned_record(outcome)},
        "suspected_class": {
            "images": len(explained.members),
            "negative_logits": explained.negative_logits,
            "largest_absorbed_share": explained.largest_absorbed_share,
            "conservation": [dataclasses.asdict(row) for row in explained.balance] or None,
        },
        "detectors": {
            name: _finding_record(found, outcome.rates(name), outcome.score_rates(name))
            for name, found in outcome.findings.items()
        },
        "seconds": outcome.seconds,
        "versions": outcome.versions,
    }


def _model_record(evaluation: Evaluation) -> dict[str, Any]:
    return {
        "test_accuracy": evaluation.test_accuracy,
        "parameters": evaluation.parameters,
    }


def _poisoned_record(outcome: RunOutcome) -> dict[str, Any]:
    """How many images are poisoned, as a share of their class and of the training images."""
    count, train = _count(outcome.poisoned), outcome.data.train
    return {
        "poisoned_images": count,
        "share_of_class": None if count is None else count / len(outcome.explained.members),
        "share_of_data_set": None if count is None else count / len(train),
    }


def _attack_record(evaluation: Evaluation) -> dict[str, Any]:
    by_class = {str(c): share for c, share in evaluation.per_class_asr.items()}
    return {"asr": evaluation.asr, "masr": evaluation.masr, "per_class_asr": by_class or None}


def _count(poisoned: Bool[np.ndarray, " n"] | None) -> int | None:
    return None if poisoned is None else int(poisoned.sum())


def _finding_record(found: Finding, rates: DetectionRates, of_scores: ScoreRates) -> dict[str, Any]:
    detection = found.detection
    return {
        **dataclasses.asdict(rates),
        **dataclasses.asdict(of_scores),
        "cluster_sizes": list(detection.cluster_sizes),
        "seconds": detection.seconds,
        "converged": detection.converged,
        "silhouette": found.separation.silhouette,
        "suspicious": found.verdict.suspicious,
        **({} if found.evidence is None else {"evidence": _evidence_record(found.evidence)}),
        **({"notes": detection.notes} if detection.notes else {}),
    }


def images_table(outcome: RunOutcome) -> str:
    """The content of ``images.csv``: by image, every detector's cluster and score."""
    train = outcome.data.train
    header = ["id", "label"]
    header += [f"{name}_{what}" for name in outcome.findings for what in ("cluster", "score")]
    rows = []
    for row, index in enumerate(outcome.explained.members):
        cells: list[Any] = []
        for found in outcome.findings.values():
            cells += [int(found.detection.labels[row]), f"{found.detection.scores[row]:.6g}"]
        rows.append([train.ids[index], int(train.labels[index]), *cells])
    return csv_text(header, rows)


def scan_record(outcome: ScanOutcome) -> dict[str, Any]:
    """The content of ``scan.json``."""
    return {
        "schema": SCHEMA,
        **config_record(outcome.config, _settings(outcome.network)),
        **dataclasses.asdict(outcome.options),
        "suspicious_silhouettes": {
            k: SUSPICIOUS_FROM[k] for k in outcome.detectors if k in SUSPICIOUS_FROM
        },
        "suspicious_hosts_turned": TURNS_FROM if JUDGE in outcome.detectors else None,
        "left_out": list(outcome.left_out),
        "seconds": outcome.seconds,
        "classes": [_class_record(scanned, outcome.data.train) for scanned in outcome.classes],
        "truth": _truth_record(outcome),
    }


def _class_record(scanned: ScannedClass, train: Dataset) -> dict[str, Any]:
    found = scanned.finding
    suspects = found.detection.cluster_sizes[1]
    return {
        "class": scanned.label,
        "name": train.class_names[scanned.label],
        "detector": found.detector,
        "suspicion": scanned.suspicion,
        "suspicious": scanned.suspicious,
        "images": len(scanned.members),
        "suspects": suspects,
        "share": suspects / len(scanned.members),
        "hosts_turned": None if found.evidence is None else found.evidence.hosts_turned,
        "silhouette": found.separation.silhouette,
        "near_zero_eigenvalues": found.separation.near_zero_eigenvalues,
        "eigengap": found.separation.eigengap,
        "converged": found.detection.converged,
        "seconds": round(found.seconds, 2),
        "notes": found.detection.notes,
        "evidence": None if found.evidence is None else _evidence_record(found.evidence),
        "carriers": None
        if scanned.carriers is None
        else {
            "train": len(scanned.carriers.train),
            "validation": len(scanned.carriers.validation),
            "test": len(scanned.carriers.test),
        },
    }


def _evidence_record(evidence: ClassEvidence) -> dict[str, Any]:
    return {
        "windows": list(evidence.sizes),
        "asked": len(evidence.asked),
        "called": int(evidence.called.sum()),
        "called_as_carriers": len(evidence.carriers),
        "called_that_leave_without_the_region": evidence.leaving,
        "trigger": None if evidence.trigger is None else _trigger_record(evidence.trigger),
        "turned_by_host_class": {str(k): share for k, share in evidence.turned().items()} or None,
        "groups": [
            {
                "images": len(group.members),
                "hosts_turned": group.hosts_turned,
                **_group_record(group, evidence.sizes),
            }
            for group in evidence.groups
        ],
    }


def _group_record(group: JudgedGroup, sizes: tuple[int, ...]) -> dict[str, Any]:
    found = group.evidence
    if found is None:
        return {"share": None, "share_of_class_mates": None, "window": None, "p_value": None}
    return {
        "share": found.share,
        "share_of_class_mates": found.control,
        "window": sizes[found.region],
        "p_value": found.p_value,
    }


def _trigger_record(trigger: Trigger) -> dict[str, Any]:
    """Pixel values from 0 to 255, and the place that most windows have."""
    places, counts = np.unique(trigger.places, axis=0, return_counts=True)
    return {
        "values": trigger.values.round(1).tolist(),
        "spread": trigger.spread.round(1).tolist(),
        "most_common_place": places[counts.argmax()].tolist(),
        "share_at_that_place": float(counts.max() / counts.sum()),
    }


def _truth_record(outcome: ScanOutcome) -> dict[str, Any] | None:
    """How right a scan is, where the truth is known."""
    backdoor = outcome.data.backdoor
    if backdoor is None:
        return None
    false = [c.label for c in outcome.classes if c.suspicious and c.label != backdoor.target]
    return {
        "attacked_class": backdoor.target,
        "rank": outcome.rank,
        "falsely_suspicious": false,
        **dataclasses.asdict(detection_rates(outcome.called, outcome.data.train.poisoned)),
    }


def classes_table(outcome: ScanOutcome) -> str:
    """The content of ``classes.csv``: one row per class."""
    rows = [_class_record(scanned, outcome.data.train) for scanned in outcome.classes]
    columns = [column for column in rows[0] if column not in ("notes", "evidence", "carriers")]
    return csv_text(columns, [[row[column] for column in columns] for row in rows])


def clusters_table(outcome: ScanOutcome) -> str:
    """The content of ``clusters.csv``: one row per image."""
    train = outcome.data.train
    rows = [
        (train.ids[i], scanned.label, int(cluster), f"{score:.6g}")
        for scanned in outcome.classes
        for i, cluster, score in zip(
            scanned.members,
            scanned.finding.detection.labels,
            scanned.finding.detection.scores,
            strict=True,
        )
    ]
    return csv_text(("id", "class", "cluster", "score"), rows)


def suspects_of_run(outcome: RunOutcome) -> str:
    """The content of ``suspects-class-K.csv``: images of the searched class to leave out."""
    members = outcome.explained.members[outcome.called]
    return listed(train=outcome.data.train.take(members))


def suspects_of_scan(outcome: ScanOutcome) -> str:
    """The content of ``suspects.csv``: images to leave out, whatever their class."""
    return listed(
        train=outcome.data.train.take(outcome.called),
        validation=outcome.data.validation.take(outcome.called_in_validation),
        test=outcome.data.test.take(outcome.called_in_test),
    )


def repair_record(outcome: RepairOutcome) -> dict[str, Any]:
    """The content of ``repair.json``."""
    networks = [_round_record(each) for each in outcome.rounds]
    return {
        "schema": SCHEMA,
        **config_record(outcome.config, outcome.settings),
        **dataclasses.asdict(outcome.options),
        "removed": int(outcome.removed.sum()),
        "ended": outcome.ended,
        "before": networks[0],
        "after": networks[outcome.kept],
        "networks": networks,
        "versions": outcome.versions,
    }


def _round_record(each: RepairRound) -> dict[str, Any]:
    """A network's accuracy, the attack's success with it, and what was taken out after it."""
    attack = _attack_record(each.evaluation)
    return {
        "training_images": len(each.train),
        "poisoned_images": _count(each.train.poisoned),
        "test_accuracy": each.evaluation.test_accuracy,
        "asr": attack["asr"],
        "masr": attack["masr"],
        "suspects": None if each.removal is None else _removal_record(each.removal),
    }


def _removal_record(removal: Removal) -> dict[str, Any]:
    return {
        "by_detector": removal.by_detector,
        "images": len(removal.images),
        "poisoned_images": _count(removal.images.poisoned),
        "validation_images": len(removal.validation),
        "as_label": removal.judged.as_label,
        "as_other": removal.judged.as_other,
        "other": removal.judged.other,
        "called_poisoned": removal.judged.poisoned,
    }


def listed(**parts: Dataset) -> str:
    """Names and labels of images, as :func:`jaxpoison.without_listed` reads them.

    Args:
        **parts: Images of ``train``, ``validation`` and ``test``.
    """
    rows = [
        (part, name, int(label))
        for part, data in parts.items()
        for name, label in zip(data.ids, data.labels, strict=True)
    ]
    return csv_text(("part", "id", "label"), rows)


def csv_text(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A table as CSV, quoted where names need it."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(header)
    table.writerows(rows)
    return text.getvalue()
