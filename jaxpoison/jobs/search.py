"""A network judged, and one class searched by detectors: what jobs are made of."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx
from jaxtyping import Int

from jaxpoison._checks import check_choice, check_class
from jaxpoison._code import described
from jaxpoison._files import write_json, write_text
from jaxpoison._storage import rows_of
from jaxpoison.datasets.dataset import Dataset, Splits
from jaxpoison.detectors.detection import Detector, Sees
from jaxpoison.jobs.artefact import Artefact
from jaxpoison.jobs.asking import case_of, evidence_of, possible_hosts
from jaxpoison.jobs.brought import brought, splits_of
from jaxpoison.jobs.config import SearchOptions
from jaxpoison.jobs.detecting import FEWEST, detect, detection_of, separation_of
from jaxpoison.jobs.evaluating import Evaluation, evaluate, evaluation_of
from jaxpoison.jobs.explaining import ExplainedClass, explain_images, explained_class
from jaxpoison.jobs.named import DETECTORS, default_detectors
from jaxpoison.jobs.outcome import Finding, Network, RunOutcome
from jaxpoison.jobs.planning import plan_of_search
from jaxpoison.jobs.records import images_table, run_record, suspects_of_run
from jaxpoison.jobs.stages import WorkDirectory, working
from jaxpoison.lrp.attributions import ATTRIBUTIONS
from jaxpoison.models.inference import kinds_of


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


def search(
    model: nnx.Module,
    data: Splits | Dataset,
    target: int,
    *,
    detectors: Sequence[str] | None = None,
    attribution: str = SearchOptions.attribution,
    layer: str | None = None,
    seed: int = 0,
    workdir: str | Path | None = None,
    progress: bool = False,
) -> RunOutcome:
    """Searches one class of the data that a network was trained on.

    Args:
        model: Takes images in [0, 1], gives logits; in whatever mode, and not changed.
        data: What it was trained on, perhaps with validation and test images.
        target: The class that is searched.
        detectors: Names in :data:`DETECTORS`; all by default.
        attribution: What makes heatmaps.
        layer: Path of the layer whose outputs are the activations that detectors see; by default
            what the last dense layer gets.
        seed: Of everything random.
        workdir: Where stages are kept, so that a search that was interrupted goes on, and where
            the files of :func:`run` are left; nowhere by default.
        progress: Show progress bars.

    Returns:
        What was found; :func:`write_report` makes a page of it.

    Raises:
        TypeError: A value has the wrong type.
        ValueError: There is no such class, detector or layer, the class has too few images, or
            another process works in the directory.

    Examples:
        >>> outcome = jp.search(model, train, 5, detectors=("activation_pca",))
        >>> outcome.findings["activation_pca"].detection.suspects.shape
        (20,)
    """
    names = default_detectors() if detectors is None else tuple(detectors)
    for name in names:
        check_choice("detector", name, DETECTORS)
    options = SearchOptions(attribution, layer, seed)
    with working(workdir, "search") as work:
        splits = splits_of(data)
        network = brought(model, splits.train)
        work.plan = plan_of_search(target, splits, None, names)
        outcome = search_class(options, network, splits, target, names, work, progress)
        if workdir is not None:
            write_records(Path(workdir), outcome)
        work.finish(None)
    return outcome


def write_records(workdir: Path, outcome: RunOutcome) -> None:
    """Leaves ``result.json``, ``images.csv`` and ``suspects-class-K.csv``."""
    label = outcome.explained.label
    write_json(workdir / "result.json", run_record(outcome))
    write_text(workdir / "images.csv", images_table(outcome))
    write_text(workdir / f"suspects-class-{label}.csv", suspects_of_run(outcome))


def judge_network(
    network: Network, data: Splits, work: WorkDirectory, progress: bool
) -> tuple[Evaluation, Artefact]:
    """How well a network does, and the attack on it."""
    triggered = None
    if data.backdoor is not None:
        backdoor = data.backdoor
        triggered = [backdoor.source, backdoor.target, backdoor.triggered.fingerprint]
    evaluated = work.stage(
        "evaluate",
        {"network": network.key, "test": data.test.fingerprint, "triggered": triggered},
        partial(evaluate, network.model, data, progress),
        code=(evaluate, *kinds_of(network.model)),
    )
    return evaluation_of(evaluated), evaluated


def search_class(
    options: SearchOptions,
    network: Network,
    data: Splits,
    target: int,
    detectors: Sequence[str],
    work: WorkDirectory,
    progress: bool,
) -> RunOutcome:
    """Judges a network, and searches one class.

    Args:
        options: How the network is asked.
        network: Trained on the data.
        data: Training, validation and test images.
        target: The class.
        detectors: Names of the detectors that search.
        work: Where the stages are kept.
        progress: Show progress bars.

    Raises:
        ValueError: There is no such class, or it has too few images to be searched.
    """
    members = members_of(data.train, target, fewest=FEWEST if detectors else 0)
    evaluation, evaluated = judge_network(network, data, work, progress)
    stage, explained = explain_members(
        options, network, data.train, members, target, work, progress
    )
    found: dict[str, Artefact] = {}
    for name in detectors:
        entry = DETECTORS[name]
        detector = entry.make(options.seed)
        if entry.sees is Sees.NETWORK:
            hosts = possible_hosts(network, data.train, work, progress)
            maps = explained.relevance.sum(-1)
            seen = case_of(network, data.train, members, maps, target, hosts, options.seed)
            key = f"{stage.key} {hosts[1].key}"
        else:
            seen, key = _seen(entry.sees, explained, stage, data.train)
        found[name] = detected(name, entry.sees, detector, seen, key, work, progress)
    return RunOutcome(
        options,
        data,
        network,
        evaluation,
        explained,
        {name: finding_of(name, stage) for name, stage in found.items()},
        (*network.stages, evaluated, stage, *found.values()),
    )


def explain_members(
    options: SearchOptions,
    network: Network,
    train: Dataset,
    members: Int[np.ndarray, " n"],
    target: int,
    work: WorkDirectory,
    progress: bool,
) -> tuple[Artefact, ExplainedClass]:
    """Explains images towards the target class."""
    images, model = rows_of(train.images, members), network.model
    stage = work.stage(
        "explain",
        {
            "network": network.key,
            "target": target,
            "attribution": described(ATTRIBUTIONS[options.attribution]()),
            "layer": options.layer,
            "images": train.take(members).fingerprint,
        },
        partial(
            explain_images, model, images, target, options.attribution, options.layer, progress
        ),
        code=(explain_images, type(ATTRIBUTIONS[options.attribution]()), *kinds_of(model)),
    )
    return stage, explained_class(stage, target, members)


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
