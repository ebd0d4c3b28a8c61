"""The first stages of every job: data, attack, training."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx

from jaxpoison._checks import check_class
from jaxpoison._progress import console
from jaxpoison._storage import cache_directory
from jaxpoison.attacks.backdoor import standard_backdoor
from jaxpoison.attacks.label_consistent import label_consistent_backdoor
from jaxpoison.attacks.pgd import perturbed
from jaxpoison.attacks.triggers import AmplitudePattern, Sticker, Trigger
from jaxpoison.datasets.dataset import Splits
from jaxpoison.datasets.excluding import listed_images, without_listed
from jaxpoison.datasets.loading import load_data
from jaxpoison.jobs.artefact import Artefact, Made
from jaxpoison.jobs.brought import brought
from jaxpoison.jobs.config import RunConfig
from jaxpoison.jobs.outcome import Network, Training
from jaxpoison.jobs.stages import WorkDirectory, stage_key
from jaxpoison.models.checkpoint import hash_of_weights, load_model, save_model
from jaxpoison.models.inference import fingerprint, kinds_of, pure
from jaxpoison.models.named import image_side_of, made_network
from jaxpoison.models.weights import load_weights
from jaxpoison.training.fit import Epoch, History, fit
from jaxpoison.training.protocols import TrainConfig, protocol

# Seed of the network that perturbs images: one for all runs, and none of theirs.
SURROGATE_SEED = 20_000


def prepare(config: RunConfig, work: WorkDirectory, progress: bool) -> tuple[Splits, TrainConfig]:
    """Loads the data and attacks them.

    Returns:
        The data, and how to train on them.

    Raises:
        ValueError: The configuration does not fit the data.
        FileNotFoundError: There are no data at the given path, or no list of images to exclude.
    """
    if config.exclude is not None:
        _check_exclude(Path(config.exclude), work)
    clean = _loaded(config, progress)
    _check_attack_fits(config, clean)
    data = _attacked(config, clean, work, progress)
    if config.exclude is not None:
        left = without_listed(data, config.exclude)
        if progress:
            console.print(
                f"{_count(data) - _count(left)} of {_count(data)} images left out: "
                f"{config.exclude} names them",
                soft_wrap=True,
            )
        data = left
    return data, settings_for(config, data, config.seed)


def _check_exclude(path: Path, work: WorkDirectory) -> None:
    """Raises, before anything takes time, where it is no list, or one that the job would overwrite.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is no list, or stands where a job writes its own.
    """
    listed_images(path)
    if path.resolve().parent == work.path.resolve():
        raise ValueError(
            f"{path} stands in the work directory, where a job may write its own: give another "
            "work directory, or a copy of the list"
        )


def _count(data: Splits) -> int:
    return len(data.train) + len(data.validation) + len(data.test)


def _check_attack_fits(config: RunConfig, clean: Splits) -> None:
    """Raises where the data lack a class of the attack, which may be one by default.

    Raises:
        ValueError: They do.
    """
    taking_part = {"none": (), "standard": ("source", "target")}
    for name in taking_part.get(config.attack, ("target",)):
        try:
            check_class(name, getattr(config, name), clean.train.num_classes)
        except ValueError as error:
            raise ValueError(
                f"{error} (the {name} of the attack: give another, or attack none for the images "
                "as they are)"
            ) from error


def _loaded(config: RunConfig, progress: bool) -> Splits:
    return load_data(
        config.data,
        image_size=config.image_size,
        resize=config.resize,
        expected_side=image_side_of(config.model),
        seed=config.seed,
        progress=progress,
    )


def settings_for(config: RunConfig, splits: Splits, seed: int) -> TrainConfig:
    """How a configuration trains on given data."""
    return protocol(
        config.protocol,
        len(splits.train),
        epochs=config.epochs,
        batch_size=config.batch_size,
        seed=seed,
    )


def _attacked(config: RunConfig, clean: Splits, work: WorkDirectory, progress: bool) -> Splits:
    if config.attack == "none":
        return clean
    trigger, test_trigger = _triggers(config)
    if config.attack == "standard":
        return standard_backdoor(
            clean,
            source=config.source,
            target=config.target,
            rate=config.rate,
            trigger=trigger,
            test_trigger=test_trigger,
            seed=config.seed,
        )
    return label_consistent_backdoor(
        clean,
        partial(_perturb, config, clean, work, progress),
        target=config.target,
        rate=config.rate,
        trigger=trigger,
        test_trigger=test_trigger,
        seed=config.seed,
    )


def _triggers(config: RunConfig) -> tuple[Trigger, Trigger]:
    """What marks training images, and what marks test images."""
    if config.trigger == "sticker":
        return Sticker(config.sticker_size), Sticker(config.sticker_size)
    pattern = AmplitudePattern(config.amplitude, config.trigger_distance, config.four_corners)
    return pattern, pattern.full


def _perturb(
    config: RunConfig,
    clean: Splits,
    work: WorkDirectory,
    progress: bool,
    images: np.ndarray,
    labels: np.ndarray,
) -> np.ndarray:
    """Images perturbed by the network that was trained on the clean data."""

    def make(_: Path) -> Made:
        network, state = pure(_surrogate(config, clean, progress))
        title = "perturbing" if progress else None
        moved = perturbed(network, state, images, labels, config.pgd, progress=title)
        return Made({}, {"images": moved})

    settings = settings_for(config, clean, SURROGATE_SEED)
    depends = {
        "surrogate": _training_key(config.model, settings, clean),
        "images": hashlib.sha256(images.tobytes()).hexdigest(),
        "pgd": dataclasses.asdict(config.pgd),
    }
    return work.stage("perturb", depends, make, code=(perturbed, pure)).arrays["images"]


def clean_network(config: RunConfig, *, progress: bool = False) -> tuple[nnx.Module, Splits]:
    """The network trained on the data before the attack, by the configuration's schedule.

    It perturbs the images of the label-consistent attack, and says what any network makes
    of triggered images. It is trained once, and then cached.

    Args:
        config: Which data, network and schedule; its attack plays no part.
        progress: Show progress bars.

    Returns:
        The network, and the data it was trained on.

    Raises:
        ValueError: The configuration does not fit the data.
        FileNotFoundError: There are no data at the given path.

    Examples:
        >>> network, data = jp.clean_network(jp.RunConfig())
        >>> jp.predict(network, data.test.images).shape == (len(data.test), 10)
        True
    """
    clean = _loaded(config, progress)
    return _surrogate(config, clean, progress), clean


def _surrogate(config: RunConfig, clean: Splits, progress: bool) -> nnx.Module:
    settings = settings_for(config, clean, SURROGATE_SEED)
    key = _training_key(config.model, settings, clean)
    cached = WorkDirectory(cache_directory() / "networks" / key[:24])
    with cached.locked(wait=True):
        return train_model(config.model, settings, clean, cached, progress).model


def _network(name: str, settings: TrainConfig, splits: Splits) -> nnx.Module:
    return made_network(name, splits.train.num_classes, settings.seed)


def job_network(
    config: RunConfig, settings: TrainConfig, splits: Splits, work: WorkDirectory, progress: bool
) -> Network:
    """The network of a job: trained, or with the weights that the configuration names.

    Args:
        config: Which network.
        settings: How to train.
        splits: What it is, or was, trained on.
        work: Where a trained network is kept.
        progress: Show a progress bar.

    Raises:
        FileNotFoundError: There are no such weights.
        ValueError: They do not fit the network, or that does not fit the data.
    """
    if config.weights is None:
        return train_model(config.model, settings, splits, work, progress)
    model = _network(config.model, settings, splits)
    load_weights(Path(config.weights), model)
    return brought(model, splits.train)


def _training_depends(
    name: str, model: nnx.Module, settings: TrainConfig, splits: Splits
) -> dict[str, Any]:
    """What decides a training.

    Args:
        name: The network's.
        model: The network before it.
        settings: How it is trained.
        splits: What it is trained on.
    """
    return {
        "data": [splits.train.fingerprint, splits.validation.fingerprint],
        "model": name,
        "network": fingerprint(model),
        "classes": splits.train.num_classes,
        "settings": dataclasses.asdict(settings),
    }


def _training_key(name: str, settings: TrainConfig, splits: Splits) -> str:
    model = _network(name, settings, splits)
    return stage_key(_training_depends(name, model, settings, splits), (fit, *kinds_of(model)))


def train_model(
    name: str, settings: TrainConfig, splits: Splits, work: WorkDirectory, progress: bool
) -> Network:
    """Trains a network, or reads the one the work directory holds.

    Args:
        name: The network's.
        settings: How to train; its seed is that of the first parameters too.
        splits: Training and validation images.
        work: Where the trained network is kept, and checkpoints while it trains.
        progress: Show a progress bar.
    """
    model = _network(name, settings, splits)

    def make(folder: Path) -> Made:
        history = fit(
            model,
            splits.train,
            splits.validation,
            settings,
            checkpoints=folder / "checkpoints",
            progress=progress,
        )
        save_model(folder / "model", model)
        record = {**dataclasses.asdict(history), "weights": hash_of_weights(model)}
        # A resumed training took the sum of its epochs, not the time since it resumed.
        return Made(record, {}, sum(e.seconds for e in history.epochs))

    depends = _training_depends(name, model, settings, splits)

    def stage() -> Artefact:
        return work.stage("train", depends, make, code=(fit, *kinds_of(model)))

    trained = stage()
    # Only now: a checkpoint that is half removed would be taken for one.
    shutil.rmtree(trained.folder / "checkpoints", ignore_errors=True)
    if not _is_loaded(trained, model):
        # Damaged: made again.
        (trained.folder / "stage.json").unlink()
        model = _network(name, settings, splits)
        trained = stage()
    history = History(
        tuple(Epoch(**epoch) for epoch in trained.values["epochs"]), trained.values["best"]
    )
    return Network(model, trained.key, Training(history, settings, trained))


def _is_loaded(trained: Artefact, model: nnx.Module) -> bool:
    """Reads a network's weights; whether they are those that were written."""
    try:
        load_model(trained.folder / "model", model)
    except (FileNotFoundError, ValueError):
        return False
    return hash_of_weights(model) == trained.values["weights"]


def trained_network(workdir: str | Path, *, job: str | None = None) -> nnx.Module:
    """The network that the last job in a work directory trained or used, in evaluation mode.

    Args:
        workdir: Of ``jaxpoison run``, ``scan``, ``explain`` or ``repair``.
        job: One of these, whose network is wanted; by default that which ended last.

    Raises:
        FileNotFoundError: No job has ended there, or the last one was given its network.

    Examples:
        >>> outcome = jp.run(jp.RunConfig(detectors=("activation_pca",)), "runs/first")
        >>> network = jp.trained_network("runs/first")
        >>> test = outcome.data.test
        >>> accuracy = jp.accuracy(jp.predict(network, test.images), test.labels)
        >>> accuracy == outcome.evaluation.test_accuracy
        True
    """
    workdir = Path(workdir)
    work = WorkDirectory(workdir) if workdir.is_dir() else None
    jobs = work.finished() if work else []
    jobs = [each for each in jobs if job in (None, each["job"])]
    if work is None or not jobs:
        raise FileNotFoundError(f"no job has ended in {workdir}: run jaxpoison run first")
    key = jobs[-1]["network"]
    if key is None:
        raise FileNotFoundError(f"no network in {workdir}: the last job was given a trained one")
    folder = work.folder("train", key)
    depends = json.loads((folder / "stage.json").read_text())["depends"]
    model = made_network(depends["model"], depends["classes"], 0)
    load_model(folder / "model", model)
    return model
