"""The main job: poison, train, explain, detect, report."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx
from jaxtyping import Int

from jaxpoison._checks import check_class
from jaxpoison._files import replace_file, write_json, write_text
from jaxpoison._progress import Bar
from jaxpoison._sampling import evenly
from jaxpoison.attacks.poisoned import PoisonedSplits
from jaxpoison.attributions import ATTRIBUTIONS, explain
from jaxpoison.config import RunConfig
from jaxpoison.datasets.dataset import Dataset, Splits
from jaxpoison.detectors.detection import Detection
from jaxpoison.detectors.named import DETECTORS
from jaxpoison.lrp.balance import conservation
from jaxpoison.metrics import accuracy, attack_success_rate, success_rate_by_class
from jaxpoison.models.inference import layer_outputs, parameter_count, predict
from jaxpoison.preparation import prepare, train_model
from jaxpoison.results import config_record, csv_text, result_record, suspects_table
from jaxpoison.separation import Separation, sample, separation
from jaxpoison.spaces import constant
from jaxpoison.stages import SCHEMA, Artefact, Made, WorkDirectory, hash_of
from jaxpoison.training import TrainConfig

# A class of fewer images is not searched.
FEWEST = 12
_BALANCED_IMAGES = 64
# What a detector's stage holds beside its arrays.
_KEPT = ("converged", "notes", "silhouette", "eigenvalues")
# Images per stage of explain_class.
_PART = 2048


@dataclass(frozen=True, eq=False)
class RunOutcome:
    """What a run found, and what a report shows.

    Attributes:
        result: The content of ``result.json``.
        data: The data the network was trained on, with the truth about them
            if there was an attack.
        model: The network.
        suspected: Indices of the searched class's training images.
        relevance: Their relevance towards their label.
        activations: What the network's last hidden layer makes of them.
        detections: What each detector found.
        separations: How far each one's clusters lie apart.
        history: Losses and accuracies by epoch.
    """

    result: dict[str, Any]
    data: PoisonedSplits | Splits
    model: nnx.Module
    suspected: np.ndarray
    relevance: np.ndarray
    activations: np.ndarray
    detections: dict[str, Detection]
    separations: dict[str, Separation]
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
    data, _, settings = prepare(config, work, progress)
    write_json(workdir / "config.json", {"schema": SCHEMA, **config_record(config, settings)})
    outcome = search(config, data, settings, work, progress)
    write_json(workdir / "result.json", outcome.result)
    write_text(workdir / "suspects.csv", suspects_table(outcome))
    return outcome


def search(
    config: RunConfig,
    data: PoisonedSplits | Splits,
    settings: TrainConfig,
    work: WorkDirectory,
    progress: bool,
) -> RunOutcome:
    """Trains a network on given data, judges it, and searches the target class.

    Args:
        config: Which network, attribution and detectors.
        data: Training, validation and test images.
        settings: How to train.
        work: Where the stages are kept.
        progress: Show progress bars.

    Raises:
        ValueError: There is no target class, or it has too few images to be searched.
    """
    splits = data.splits if isinstance(data, PoisonedSplits) else data
    target = check_class("target", config.target, splits.train.num_classes)
    suspected = np.flatnonzero(splits.train.labels == target)
    if config.detectors and len(suspected) < FEWEST:
        raise ValueError(
            f"target must be a class of at least {FEWEST} training images to be searched: class "
            f"{target} has {len(suspected)}"
        )
    model, trained = train_model(config.model, settings, splits, work, progress)
    evaluated = work.stage(
        "evaluate",
        hash_of(train=trained.key, attack=config.attack),
        lambda: _evaluate(config, model, data, progress),
    )
    explained = work.stage(
        "explain",
        hash_of(train=trained.key, target=config.target, attribution=config.attribution),
        lambda: _explain(config, model, splits, suspected, progress),
    )
    searched: dict[str, Artefact] = {}
    for name in config.detectors:
        sees, make = DETECTORS[name]
        detector = make(config.seed)
        key = hash_of(
            explain=explained.key, detector=name, options=detector.get_params(), kept=_KEPT
        )
        if "progress" in detector.get_params():
            detector.set_params(progress=progress)
        searched[name] = work.stage(
            f"detect-{name}", key, partial(_detect, sees, detector, splits, explained, suspected)
        )
    detections = {name: detection_of(stage) for name, stage in searched.items()}
    separations = {name: separation_of(stage) for name, stage in searched.items()}
    stages = {"train": trained, "evaluate": evaluated, "explain": explained, **searched}
    return RunOutcome(
        result_record(config, settings, data, suspected, stages, detections, separations),
        data,
        model,
        suspected,
        explained.arrays["relevance"],
        explained.arrays["activations"],
        detections,
        separations,
        trained.values["epochs"],
    )


def explain_all(config: RunConfig, workdir: Path, *, progress: bool = False) -> Path:
    """Explains every training image towards its label; trains first where that is not done.

    Works class by class with bounded memory; what is finished is not done again.
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
    _, splits, settings = prepare(config, work, progress)
    model, trained = train_model(config.model, settings, splits, work, progress)
    train = splits.train
    output = workdir / "relevance.npy"
    with (
        replace_file(output) as file,
        Bar("explaining", len(train), unit="images", show=progress) as bar,
    ):
        shape = train.images.shape[:3]
        header = {"descr": "<f4", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        file.flush()
        heatmaps = np.memmap(file, "<f4", "r+", file.tell(), shape)
        for label in np.unique(train.labels):
            for members, part in explain_class(config, model, trained, train, int(label), work):
                heatmaps[members] = part.arrays["heatmaps"]
                bar.advance(len(members))
        heatmaps.flush()
    rows = [(name, int(label)) for name, label in zip(train.ids, train.labels, strict=True)]
    write_text(workdir / "relevance.csv", csv_text(("id", "label"), rows))
    return output


def explain_class(
    config: RunConfig,
    model: nnx.Module,
    trained: Artefact,
    train: Dataset,
    label: int,
    work: WorkDirectory,
) -> Iterator[tuple[Int[np.ndarray, " m"], Artefact]]:
    """Explains the training images of one class, part by part; finished parts are read.

    Args:
        config: Which attribution.
        model: The network.
        trained: The stage that trained it.
        train: Training images.
        label: The class, towards which its images are explained.
        work: Where the parts are kept.

    Yields:
        Indices of some images, and a stage with their ``heatmaps``, summed over channels.
    """
    method = ATTRIBUTIONS[config.attribution]()
    members = np.flatnonzero(train.labels == label)
    for start in range(0, len(members), _PART):
        part = members[start : start + _PART]

        def make(part: np.ndarray = part) -> Made:
            found = explain(model, train.images[part], train.labels[part], method=method)
            return Made({}, {"heatmaps": found.relevance.sum(-1)})

        key = hash_of(
            train=trained.key, attribution=config.attribution, label=label, start=start, size=_PART
        )
        yield part, work.stage(f"explain-class-{label:04d}-{start // _PART:03d}", key, make)


def _evaluate(
    config: RunConfig, model: nnx.Module, data: PoisonedSplits | Splits, progress: bool
) -> Made:
    splits = data.splits if isinstance(data, PoisonedSplits) else data
    title = "testing" if progress else None
    asr, by_class = None, {}
    if isinstance(data, PoisonedSplits) and len(data.triggered):
        triggered = predict(model, data.triggered.images, progress=title)
        if data.source is None:
            by_class = success_rate_by_class(triggered, data.triggered.labels, data.target)
        else:
            asr = attack_success_rate(triggered, data.target)
    test = predict(model, splits.test.images, progress=title)
    return Made(
        {
            "test_accuracy": accuracy(test, splits.test.labels),
            "parameters": parameter_count(model),
            "asr": asr,
            "masr": float(np.mean(list(by_class.values()))) if by_class else None,
            "per_class_asr": {str(c): share for c, share in by_class.items()} or None,
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
    few = evenly(len(images), _BALANCED_IMAGES)
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
        for row in conservation(model, images[few], classes[few])
    ]


def _detect(
    sees: str, detector: Any, splits: Splits, explained: Artefact, suspected: np.ndarray
) -> Made:
    # Nothing here knows the truth: detectors see images, activations, relevance.
    seen = splits.train.images[suspected] if sees == "images" else explained.arrays[sees]
    return search_class(sees, detector, seen)


def search_class(sees: str, detector: Any, seen: np.ndarray) -> Made:
    """Splits a class, and measures how far both clusters lie apart.

    Images with a constant heatmap tell nothing: heatmaps do not make them suspects, and
    their number stands in the notes.

    Args:
        sees: What the detector looks at.
        detector: One of ``DETECTORS``.
        seen: One entry per image.

    Returns:
        What :func:`detection_of` and :func:`separation_of` read; the time is the split's.
    """
    empty = constant(seen) if sees == "relevance" else np.zeros(len(seen), bool)
    if empty.all():
        # The detector says what is wrong.
        empty[:] = False
    detection = detector.fit(seen[~empty]).detection_
    chosen = sample(detection.labels)
    apart = separation(detector.sample_distances(chosen), detection.labels[chosen])
    notes = detection.notes | ({"constant_heatmaps": int(empty.sum())} if empty.any() else {})
    kept = (detection.converged, notes, apart.silhouette, apart.eigenvalues.tolist())
    labels, scores = np.zeros(len(seen), int), np.zeros(len(seen))
    labels[~empty], scores[~empty] = detection.labels, detection.scores
    return Made(
        dict(zip(_KEPT, kept, strict=True)),
        {"labels": labels, "scores": scores},
        detection.seconds,
    )


def detection_of(stage: Artefact) -> Detection:
    """How a class was split."""
    return Detection(
        labels=stage.arrays["labels"],
        scores=stage.arrays["scores"],
        seconds=stage.seconds,
        converged=stage.values["converged"],
        notes=stage.values["notes"],
    )


def separation_of(stage: Artefact) -> Separation:
    """How far its clusters lie apart."""
    return Separation(stage.values["silhouette"], np.array(stage.values["eigenvalues"]))
