"""The main job: poison, train, explain, detect, report."""

from __future__ import annotations

import csv
import dataclasses
import io
import platform
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from jaxpoison._checks import check_choice, check_class, check_fraction, check_integer
from jaxpoison._files import write_json, write_text
from jaxpoison.attacks.backdoor import PoisonedSplits, standard_backdoor
from jaxpoison.attacks.triggers import Sticker
from jaxpoison.datasets.dataset import Splits
from jaxpoison.datasets.loading import load_data
from jaxpoison.detectors.activation import ActivationClustering
from jaxpoison.detectors.detection import Detection
from jaxpoison.detectors.heatmap import HeatmapClustering
from jaxpoison.detectors.raw import RawClustering
from jaxpoison.lrp.explain import explain
from jaxpoison.metrics import accuracy, attack_success_rate, detection_rates
from jaxpoison.models.checkpoint import load_model, save_model
from jaxpoison.models.inception import CompactInception
from jaxpoison.models.inference import layer_outputs, parameter_count, predict
from jaxpoison.stages import SCHEMA, Artefact, Made, WorkDirectory, hash_of
from jaxpoison.training import PROTOCOLS, TrainConfig, fit, protocol

ATTACKS = ("standard", "none")
MODELS: dict[str, Callable[..., nnx.Module]] = {"inception": CompactInception}
DETECTORS = ("raw_pca", "raw_ica", "activation_pca", "activation_ica", "heatmap")
_REPORTED_PACKAGES = ("jaxpoison", "jax", "flax", "optax", "ott-jax", "numpy", "scikit-learn")


@dataclass(frozen=True)
class RunConfig:
    """Everything that decides the result of a run.

    Attributes:
        data: ``"synthetic"``, ``"gtsrb"``, or the path of an image folder or zip.
        attack: ``"standard"``, or ``"none"`` to take the data as they are.
        rate: Share of poisoned images inside the target class after the attack.
        sticker_size: Side of the sticker in pixels.
        source: Class whose images are poisoned.
        target: Class whose label they get; the one whose images are searched.
        image_size: Side to which the images of a folder or zip are resized.
        model: Name of the network.
        protocol: How to train, by name.
        epochs: Overrides the protocol's number of epochs.
        seed: Seed of the attack, the training and the detectors.
        detectors: Names of the detectors to run.
    """

    data: str = "synthetic"
    attack: str = "standard"
    rate: float = 0.15
    sticker_size: int = 3
    source: int = 2
    target: int = 5
    image_size: int | None = None
    model: str = "inception"
    protocol: str = "fast"
    epochs: int | None = None
    seed: int = 0
    detectors: tuple[str, ...] = DETECTORS

    def __post_init__(self) -> None:
        check_choice("attack", self.attack, ATTACKS)
        check_fraction("rate", self.rate)
        check_integer("sticker size", self.sticker_size, at_least=1)
        check_choice("model", self.model, MODELS)
        check_choice("protocol", self.protocol, PROTOCOLS)
        check_integer("seed", self.seed, at_least=0)
        if self.image_size is not None:
            check_integer("image size", self.image_size, at_least=1)
        if self.epochs is not None:
            check_integer("epochs", self.epochs, at_least=1)
        for name in self.detectors:
            check_choice("detector", name, DETECTORS)


@dataclass(frozen=True, eq=False)
class RunOutcome:
    """What a run found, and what a report shows.

    Attributes:
        result: The content of ``result.json``.
        data: The data the network was trained on, with the truth about them
            if there was an attack.
        suspected: Indices of the searched class's training images.
        relevance: Their relevance towards their label.
        detections: What each detector found.
        history: Losses and accuracies by epoch.
    """

    result: dict[str, Any]
    data: PoisonedSplits | Splits
    suspected: np.ndarray
    relevance: np.ndarray
    detections: dict[str, Detection]
    history: list[dict[str, float]]

    @property
    def poisoned(self) -> np.ndarray | None:
        """Which of the suspected images are poisoned, where that is known."""
        if isinstance(self.data, PoisonedSplits):
            return self.data.poisoned[self.suspected]
        return None

    @property
    def splits(self) -> Splits:
        """The data the network was trained on."""
        return self.data.splits if isinstance(self.data, PoisonedSplits) else self.data


def run(config: RunConfig, workdir: Path, *, progress: bool = False) -> RunOutcome:
    """Runs all stages; finished ones are read from the work directory.

    Leaves ``config.json``, ``result.json`` and ``suspects.csv``, and each
    stage's own files under ``stages/``.

    Args:
        config: What to run.
        workdir: Where results and stages are kept.
        progress: Show progress bars.

    Raises:
        ValueError: The configuration does not fit the data.
        FileNotFoundError: There are no data at the given path.
    """
    work = WorkDirectory(workdir)
    clean = load_data(
        config.data, image_size=config.image_size, seed=config.seed, progress=progress
    )
    check_class("target", config.target, clean.train.num_classes)
    data = _attack(config, clean)
    splits = data.splits if isinstance(data, PoisonedSplits) else data
    settings = protocol(config.protocol, len(splits.train), epochs=config.epochs, seed=config.seed)
    write_json(workdir / "config.json", {"schema": SCHEMA, **_config_record(config, settings)})

    model, trained = _train(config, settings, splits, work, progress)
    evaluated = work.stage(
        "evaluate", hash_of(train=trained.key), lambda: _evaluate(config, model, data, progress)
    )
    suspected = np.flatnonzero(splits.train.labels == config.target)
    explained = work.stage(
        "explain",
        hash_of(train=trained.key, target=config.target),
        lambda: _explain(config, model, splits, suspected, progress),
    )
    detected = {
        name: work.stage(
            f"detect-{name}",
            hash_of(explain=explained.key, detector=name, seed=config.seed),
            partial(_detect, name, config.seed, splits, suspected, explained, progress),
        )
        for name in config.detectors
    }
    detections = {name: _detection_of(stage) for name, stage in detected.items()}
    stages = {"train": trained, "evaluate": evaluated, "explain": explained, **detected}
    outcome = RunOutcome(
        _result(config, settings, data, suspected, stages, detections),
        data,
        suspected,
        explained.arrays["relevance"],
        detections,
        trained.values["epochs"],
    )
    write_json(workdir / "result.json", outcome.result)
    write_text(workdir / "suspects.csv", _suspects(outcome))
    return outcome


def _attack(config: RunConfig, clean: Splits) -> PoisonedSplits | Splits:
    if config.attack == "none":
        return clean
    return standard_backdoor(
        clean,
        source=config.source,
        target=config.target,
        rate=config.rate,
        trigger=Sticker(config.sticker_size),
        seed=config.seed,
    )


def _train(
    config: RunConfig, settings: TrainConfig, splits: Splits, work: WorkDirectory, progress: bool
) -> tuple[nnx.Module, Artefact]:
    build = MODELS[config.model]
    model = build(splits.train.num_classes, rngs=nnx.Rngs(config.seed))
    key = hash_of(
        data=splits.fingerprint, model=config.model, settings=dataclasses.asdict(settings)
    )
    folder = work.folder("train")

    def make() -> Made:
        checkpoints = folder / "checkpoints" / key[:16]
        work.keep_only(checkpoints.parent, checkpoints.name)
        checkpoints.mkdir(parents=True, exist_ok=True)
        history = fit(
            model,
            splits.train,
            splits.validation,
            settings,
            checkpoints=checkpoints,
            progress=progress,
        )
        save_model(folder / "model", model)
        work.keep_only(checkpoints.parent, "")
        record = dataclasses.asdict(history)
        # A resumed training took the sum of its epochs, not the time since it resumed.
        return Made(record, {}, sum(e.seconds for e in history.epochs))

    stage = work.stage("train", key, make)
    load_model(folder / "model", model)
    return model, stage


def _evaluate(
    config: RunConfig, model: nnx.Module, data: PoisonedSplits | Splits, progress: bool
) -> Made:
    splits = data.splits if isinstance(data, PoisonedSplits) else data
    title = "testing" if progress else None
    asr = None
    if isinstance(data, PoisonedSplits) and len(data.triggered):
        asr = attack_success_rate(predict(model, data.triggered.images), data.target)
    test = predict(model, splits.test.images, progress=title)
    return Made(
        {
            "test_accuracy": accuracy(test, splits.test.labels),
            "parameters": parameter_count(model),
            "asr": asr,
        },
        {},
    )


def _explain(
    config: RunConfig,
    model: nnx.Module,
    splits: Splits,
    suspected: np.ndarray,
    progress: bool,
) -> Made:
    images = splits.train.images[suspected]
    found = explain(
        model,
        images,
        np.full(len(images), config.target),
        progress="explaining" if progress else None,
    )
    activations = layer_outputs(
        model,
        images,
        model.feature_layer,  # pyright: ignore[reportAttributeAccessIssue]
        progress="activations" if progress else None,
    )
    return Made(
        {
            "images": len(images),
            "negative_logits": int(found.negative.sum()),
            "largest_absorbed_share": float((found.absorbed / found.start).max()),
        },
        {"relevance": found.relevance, "activations": activations},
    )


def _detect(
    name: str,
    seed: int,
    splits: Splits,
    suspected: np.ndarray,
    explained: Artefact,
    progress: bool,
) -> Made:
    # Nothing here knows the truth: detectors see images, activations, relevance.
    kind, _, projection = name.partition("_")
    if kind == "raw":
        detector = RawClustering(projection, random_state=seed)
        detection = detector.fit(splits.train.images[suspected]).detection_
    elif kind == "activation":
        detector = ActivationClustering(projection, random_state=seed)
        detection = detector.fit(explained.arrays["activations"]).detection_
    else:
        detector = HeatmapClustering(random_state=seed, progress=progress)
        detection = detector.fit(explained.arrays["relevance"]).detection_
    return Made(
        {"converged": detection.converged, "notes": detection.notes},
        {"labels": detection.labels, "scores": detection.scores},
        detection.seconds,
    )


def _detection_of(stage: Artefact) -> Detection:
    return Detection(
        labels=stage.arrays["labels"],
        scores=stage.arrays["scores"],
        seconds=stage.seconds,
        converged=stage.values["converged"],
        notes=stage.values["notes"],
    )


def _config_record(config: RunConfig, settings: TrainConfig) -> dict[str, Any]:
    attacked = config.attack != "none"
    return {
        "data": Path(config.data).name,
        "attack": config.attack,
        "rate": config.rate if attacked else None,
        "sticker_size": config.sticker_size if attacked else None,
        "trigger": "sticker" if attacked else None,
        "amplitude": None,
        "source": config.source if attacked else None,
        "target": config.target,
        "image_size": config.image_size,
        "model": config.model,
        "protocol": config.protocol,
        "epochs": settings.epochs,
        "batch_size": settings.batch_size,
        "seed": config.seed,
        "detectors": list(config.detectors),
    }


def _result(
    config: RunConfig,
    settings: TrainConfig,
    data: PoisonedSplits | Splits,
    suspected: np.ndarray,
    stages: dict[str, Artefact],
    detections: dict[str, Detection],
) -> dict[str, Any]:
    poisoned = data.poisoned[suspected] if isinstance(data, PoisonedSplits) else None
    evaluated, explained = stages["evaluate"].values, stages["explain"].values
    return {
        "schema": SCHEMA,
        "config": _config_record(config, settings),
        "model": {
            "test_accuracy": evaluated["test_accuracy"],
            "parameters": evaluated["parameters"],
        },
        "attack": {
            "asr": evaluated["asr"],
            "masr": None,
            "per_class_asr": None,
            "poisoned_images": None if poisoned is None else int(poisoned.sum()),
        },
        "suspected_class": {
            "images": explained["images"],
            "negative_logits": explained["negative_logits"],
            "largest_absorbed_share": explained["largest_absorbed_share"],
        },
        "detectors": {
            name: {
                **dataclasses.asdict(detection_rates(found.suspects, poisoned)),
                "cluster_sizes": list(found.cluster_sizes),
                "seconds": found.seconds,
                "converged": found.converged,
                **({"notes": found.notes} if found.notes else {}),
            }
            for name, found in detections.items()
        },
        "seconds": {name: stage.seconds for name, stage in stages.items()},
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in _REPORTED_PACKAGES},
            "platform": jax.default_backend(),
        },
    }


def _suspects(outcome: RunOutcome) -> str:
    train = outcome.splits.train
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    names = list(outcome.detections)
    table.writerow(
        ["id", "label", *(f"{n}_{what}" for n in names for what in ("cluster", "score"))]
    )
    for row, index in enumerate(outcome.suspected):
        cells: list[Any] = []
        for found in outcome.detections.values():
            cells += [int(found.labels[row]), f"{found.scores[row]:.6g}"]
        table.writerow([train.ids[index], int(train.labels[index]), *cells])
    return text.getvalue()
