"""The main job: poison, train, explain, detect, report."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx

from jaxpoison._checks import check_choice, check_class, check_fraction, check_integer
from jaxpoison._files import replace_file, write_json, write_text
from jaxpoison._progress import Bar
from jaxpoison.attacks.backdoor import PoisonedSplits, standard_backdoor
from jaxpoison.attacks.triggers import Sticker
from jaxpoison.attributions import ATTRIBUTIONS, explain
from jaxpoison.datasets.dataset import Splits
from jaxpoison.datasets.loading import load_data
from jaxpoison.detectors.activation import ActivationClustering
from jaxpoison.detectors.detection import Detection
from jaxpoison.detectors.heatmap import HeatmapClustering
from jaxpoison.detectors.raw import RawClustering
from jaxpoison.lrp.balance import conservation
from jaxpoison.metrics import accuracy, attack_success_rate
from jaxpoison.models.checkpoint import load_model, save_model
from jaxpoison.models.inception import CompactInception
from jaxpoison.models.inference import layer_outputs, parameter_count, predict
from jaxpoison.models.resnet import ResNet18
from jaxpoison.results import config_record, csv_text, result_record, suspects_table
from jaxpoison.stages import SCHEMA, Artefact, Made, WorkDirectory, hash_of
from jaxpoison.training import PROTOCOLS, TrainConfig, fit, protocol

ATTACKS = ("standard", "none")
MODELS: dict[str, Callable[..., nnx.Module]] = {
    "inception": CompactInception,
    "resnet18": ResNet18,
}
DETECTORS = ("raw_pca", "raw_ica", "activation_pca", "activation_ica", "heatmap")
_BALANCED_IMAGES = 64
# Images per stage of explain_all.
_PART = 2048


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
        attribution: Name of the method that makes the heatmaps.
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
    attribution: str = "lrp"
    detectors: tuple[str, ...] = DETECTORS

    def __post_init__(self) -> None:
        check_choice("attack", self.attack, ATTACKS)
        check_fraction("rate", self.rate)
        check_integer("sticker size", self.sticker_size, at_least=1)
        check_choice("model", self.model, MODELS)
        check_choice("protocol", self.protocol, PROTOCOLS)
        check_integer("seed", self.seed, at_least=0)
        check_choice("attribution", self.attribution, ATTRIBUTIONS)
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
    data, splits, settings = _prepare(config, progress)
    write_json(workdir / "config.json", {"schema": SCHEMA, **config_record(config, settings)})

    model, trained = _train(config, settings, splits, work, progress)
    evaluated = work.stage(
        "evaluate", hash_of(train=trained.key), lambda: _evaluate(config, model, data, progress)
    )
    suspected = np.flatnonzero(splits.train.labels == config.target)
    explained = work.stage(
        "explain",
        hash_of(train=trained.key, target=config.target, attribution=config.attribution),
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
        result_record(config, settings, data, suspected, stages, detections),
        data,
        suspected,
        explained.arrays["relevance"],
        detections,
        trained.values["epochs"],
    )
    write_json(workdir / "result.json", outcome.result)
    write_text(workdir / "suspects.csv", suspects_table(outcome))
    return outcome


def explain_all(config: RunConfig, workdir: Path, *, progress: bool = False) -> Path:
    """Explains every training image towards its label; trains first where that is not done.

    Works part by part with bounded memory; what is finished is not done again.
    Leaves ``relevance.npy``, float32 ``[n, h, w]``, summed over channels, and
    ``relevance.csv``, the images' ids and labels in the same order.

    Args:
        config: What to run; its detectors are not used.
        workdir: Where results and stages are kept; that of a run serves.
        progress: Show progress bars.

    Returns:
        The path of ``relevance.npy``.

    Raises:
        ValueError: The configuration does not fit the data.
        FileNotFoundError: There are no data at the given path.
    """
    work = WorkDirectory(workdir)
    _, splits, settings = _prepare(config, progress)
    model, trained = _train(config, settings, splits, work, progress)
    train, method = splits.train, ATTRIBUTIONS[config.attribution]()

    def part(start: int) -> np.ndarray:
        def make() -> Made:
            images = train.images[start : start + _PART]
            found = explain(model, images, train.labels[start : start + _PART], method=method)
            return Made({}, {"heatmaps": found.relevance.sum(-1)})

        key = hash_of(train=trained.key, attribution=config.attribution, start=start, size=_PART)
        return work.stage(f"explain-all-{start // _PART:04d}", key, make).arrays["heatmaps"]

    output = workdir / "relevance.npy"
    with (
        replace_file(output) as file,
        Bar("explaining", len(train), unit="images", show=progress) as bar,
    ):
        header = {"descr": "<f4", "fortran_order": False, "shape": train.images.shape[:3]}
        np.lib.format.write_array_header_1_0(file, header)
        for start in range(0, len(train), _PART):
            heatmaps = part(start)
            file.write(np.ascontiguousarray(heatmaps, "<f4").tobytes())
            bar.advance(len(heatmaps))
    rows = [(name, int(label)) for name, label in zip(train.ids, train.labels, strict=True)]
    write_text(workdir / "relevance.csv", csv_text(("id", "label"), rows))
    return output


def _prepare(
    config: RunConfig, progress: bool
) -> tuple[PoisonedSplits | Splits, Splits, TrainConfig]:
    """The data with the truth about them, the data alone, and how to train on them."""
    clean = load_data(
        config.data, image_size=config.image_size, seed=config.seed, progress=progress
    )
    check_class("target", config.target, clean.train.num_classes)
    data = _attack(config, clean)
    splits = data.splits if isinstance(data, PoisonedSplits) else data
    settings = protocol(config.protocol, len(splits.train), epochs=config.epochs, seed=config.seed)
    return data, splits, settings


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
    classes = np.full(len(images), config.target)
    is_lrp = config.attribution == "lrp"
    found = explain(
        model,
        images,
        classes,
        method=ATTRIBUTIONS[config.attribution](),
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
            "largest_absorbed_share": (
                float((found.absorbed / found.start).max()) if is_lrp else None
            ),
            "conservation": _balance(model, images, classes) if is_lrp else None,
        },
        {"relevance": found.relevance, "activations": activations},
    )


def _balance(
    model: nnx.Module, images: np.ndarray, classes: np.ndarray
) -> list[dict[str, str | float]]:
    """What every layer did with relevance, over a sample of the images."""
    sample = np.linspace(0, len(images) - 1, min(len(images), _BALANCED_IMAGES)).astype(int)
    return [
        {
            "layer": row.layer.path,
            "kind": row.layer.kind,
            "rule": type(row.layer.rule).__name__,
            "given": row.given,
            "handed": row.handed,
            "bias": row.bias,
            "stabilizer": row.stabilizer,
        }
        for row in conservation(model, images[sample], classes[sample])
    ]


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
