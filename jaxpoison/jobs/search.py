"""A network trained and judged, and one class searched by detectors: what jobs are made of."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from jaxtyping import Int

from jaxpoison._checks import check_class
from jaxpoison._code import described
from jaxpoison.datasets.dataset import Dataset, Splits
from jaxpoison.detectors.detection import Detector, Sees
from jaxpoison.jobs.artefact import Artefact
from jaxpoison.jobs.asking import case_of, evidence_of, possible_hosts
from jaxpoison.jobs.config import RunConfig
from jaxpoison.jobs.detecting import FEWEST, detect, detection_of, separation_of
from jaxpoison.jobs.evaluating import evaluate, evaluation_of
from jaxpoison.jobs.explaining import ExplainedClass, explain_images, explained_class
from jaxpoison.jobs.named import DETECTORS
from jaxpoison.jobs.outcome import Finding, RunOutcome, Trained
from jaxpoison.jobs.prepare import train_model
from jaxpoison.jobs.stages import WorkDirectory
from jaxpoison.lrp.attributions import ATTRIBUTIONS
from jaxpoison.models.inference import kinds_of
from jaxpoison.training.protocols import TrainConfig


def members_of(train: Dataset, label: int, *, fewest: int = FEWEST) -> Int[np.ndarray, " n"]:
    """Indices of the training images of a class that is to be searched.

    Raises:
        ValueError: There is no such class, or it has too few images.
    """
    check_class("target", label, train.num_classes)
    members = np.flatnonzero(train.labels == label)
    if len(members) < fewest:
        raise ValueError(
            f"target must be a class of at least {fewest} training images to be searched: class "
            f"{label} has {len(members)}"
        )
    return members


def network(
    config: RunConfig, data: Splits, settings: TrainConfig, work: WorkDirectory, progress: bool
) -> tuple[Trained, Artefact]:
    """Trains a network and judges it.

    Returns:
        The network, and the stage that :func:`evaluation_of` reads.
    """
    trained = train_model(config.model, settings, data, work, progress)
    triggered = None
    if data.backdoor is not None:
        backdoor = data.backdoor
        triggered = [backdoor.source, backdoor.target, backdoor.triggered.fingerprint]
    evaluated = work.stage(
        "evaluate",
        {"train": trained.stage.key, "test": data.test.fingerprint, "triggered": triggered},
        partial(evaluate, trained.model, data, progress),
        code=(evaluate, *kinds_of(trained.model)),
    )
    return trained, evaluated


def search(
    config: RunConfig,
    data: Splits,
    settings: TrainConfig,
    work: WorkDirectory,
    progress: bool,
    detectors: Sequence[str],
) -> RunOutcome:
    """Trains a network on given data, judges it, and searches the target class.

    Args:
        config: Which network, attribution and target.
        data: Training, validation and test images.
        settings: How to train.
        work: Where the stages are kept.
        progress: Show progress bars.
        detectors: Names of the detectors that search.

    Raises:
        ValueError: There is no target class, or it has too few images to be searched.
    """
    members = members_of(data.train, config.target, fewest=FEWEST if detectors else 0)
    trained, evaluated = network(config, data, settings, work, progress)
    stage, explained = explain_members(config, trained, data.train, members, work, progress)
    found: dict[str, Artefact] = {}
    for name in detectors:
        entry = DETECTORS[name]
        detector = entry.make(config.seed)
        if entry.sees is Sees.NETWORK:
            hosts = possible_hosts(trained, data.train, work, progress)
            maps = explained.relevance.sum(-1)
            seen = case_of(trained, data.train, members, maps, config.target, hosts, config.seed)
            key = f"{stage.key} {hosts[1].key}"
        else:
            seen, key = _seen(entry.sees, explained, stage, data.train)
        found[name] = detected(name, entry.sees, detector, seen, key, work, progress)
    stages = (trained.stage, evaluated, stage, *found.values())
    return RunOutcome(
        config,
        data,
        trained,
        evaluation_of(evaluated),
        explained,
        {name: finding_of(name, stage) for name, stage in found.items()},
        stages,
    )


def explain_members(
    config: RunConfig,
    trained: Trained,
    train: Dataset,
    members: Int[np.ndarray, " n"],
    work: WorkDirectory,
    progress: bool,
) -> tuple[Artefact, ExplainedClass]:
    """Explains images towards the target class."""
    images = train.images[members]
    stage = work.stage(
        "explain",
        {
            "train": trained.stage.key,
            "target": config.target,
            "attribution": described(ATTRIBUTIONS[config.attribution]()),
            "images": train.take(members).fingerprint,
        },
        partial(explain_images, trained.model, images, config.target, config.attribution, progress),
        code=(
            explain_images,
            type(ATTRIBUTIONS[config.attribution]()),
            *kinds_of(trained.model),
        ),
    )
    return stage, explained_class(stage, config.target, members)


def _seen(
    sees: Sees, explained: ExplainedClass, stage: Artefact, train: Dataset
) -> tuple[np.ndarray, str]:
    """What a detector looks at, and what stands for it."""
    if sees is Sees.IMAGES:
        some = train.take(explained.members)
        return some.images, some.fingerprint
    return (explained.activations if sees is Sees.ACTIVATIONS else explained.relevance), stage.key


def detected(
    name: str,
    sees: Sees,
    detector: Detector,
    seen: Any,
    seen_key: str,
    work: WorkDirectory,
    progress: bool,
) -> Artefact:
    """One detector's stage.

    Args:
        name: Of the stage, after ``detect-``.
        sees: What the detector looks at.
        detector: A new one.
        seen: One entry per image, or the class with the network that is asked.
        seen_key: Stands for ``seen``.
        work: Where the stage is kept.
        progress: Show a progress bar, where the detector has one.
    """
    depends = {"seen": seen_key, "sees": sees.value, "options": detector.get_params()}
    if "progress" in depends["options"]:
        depends["options"] = {**depends["options"], "progress": False}
        detector.set_params(progress=progress)
    make = partial(detect, sees, detector, seen)
    return work.stage(f"detect-{name}", depends, make, code=(detect, type(detector)))


def finding_of(name: str, stage: Artefact) -> Finding:
    """What a detector's stage holds."""
    return Finding(
        name,
        detection_of(stage),
        separation_of(stage),
        stage.seconds,
        stage.key,
        evidence_of(stage),
    )
