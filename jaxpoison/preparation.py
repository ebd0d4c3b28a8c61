"""The first stages of a run: data, attack, training."""

from __future__ import annotations

import dataclasses
import hashlib
from functools import partial

import numpy as np
from flax import nnx

from jaxpoison.attacks.backdoor import standard_backdoor
from jaxpoison.attacks.label_consistent import label_consistent_backdoor
from jaxpoison.attacks.pgd import perturbed
from jaxpoison.attacks.poisoned import PoisonedSplits, Trigger
from jaxpoison.attacks.triggers import AmplitudePattern, Sticker
from jaxpoison.config import MODELS, RunConfig
from jaxpoison.datasets.cache import cache_directory
from jaxpoison.datasets.dataset import Splits
from jaxpoison.datasets.loading import load_data
from jaxpoison.models.checkpoint import load_model, save_model
from jaxpoison.models.inference import pure
from jaxpoison.stages import Artefact, Made, WorkDirectory, hash_of
from jaxpoison.training import TrainConfig, fit, protocol

# Seed of the network that perturbs images: one for all runs, and none of theirs.
SURROGATE_SEED = 20_000


def prepare(
    config: RunConfig, work: WorkDirectory, progress: bool
) -> tuple[PoisonedSplits | Splits, Splits, TrainConfig]:
    """Loads the data and attacks them.

    Returns:
        The data with the truth about them if there was an attack, the data
        alone, and how to train on them.

    Raises:
        ValueError: The configuration does not fit the data.
        FileNotFoundError: There are no data at the given path.
    """
    clean = load_data(
        config.data, image_size=config.image_size, seed=config.seed, progress=progress
    )
    data = _attack(config, clean, work, progress)
    splits = data.splits if isinstance(data, PoisonedSplits) else data
    return data, splits, settings_for(config, splits, config.seed)


def settings_for(config: RunConfig, splits: Splits, seed: int) -> TrainConfig:
    """How a configuration trains on given data."""
    return protocol(
        config.protocol,
        len(splits.train),
        epochs=config.epochs,
        batch_size=config.batch_size,
        seed=seed,
    )


def _attack(
    config: RunConfig, clean: Splits, work: WorkDirectory, progress: bool
) -> PoisonedSplits | Splits:
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

    def make() -> Made:
        model = clean_network(config, clean, progress)
        title = "perturbing" if progress else None
        return Made(
            {}, {"images": perturbed(*pure(model), images, labels, config.pgd, progress=title)}
        )

    key = hash_of(
        surrogate=_training_key(config.model, settings_for(config, clean, SURROGATE_SEED), clean),
        images=hashlib.sha256(images.tobytes()).hexdigest(),
        pgd=dataclasses.asdict(config.pgd),
    )
    return work.stage("perturb", key, make).arrays["images"]


def clean_network(config: RunConfig, clean: Splits, progress: bool) -> nnx.Module:
    """The network trained on the clean data, by the configuration's schedule: once, then cached."""
    settings = settings_for(config, clean, SURROGATE_SEED)
    key = _training_key(config.model, settings, clean)
    cached = WorkDirectory(cache_directory() / f"surrogate-{key[:24]}")
    model, _ = train_model(config.model, settings, clean, cached, progress)
    return model


def _training_key(model: str, settings: TrainConfig, splits: Splits) -> str:
    return hash_of(data=splits.fingerprint, model=model, settings=dataclasses.asdict(settings))


def train_model(
    name: str, settings: TrainConfig, splits: Splits, work: WorkDirectory, progress: bool
) -> tuple[nnx.Module, Artefact]:
    """Trains a network, or reads the one the work directory holds.

    Args:
        name: The network's name in ``MODELS``.
        settings: How to train; its seed is that of the first parameters too.
        splits: Training and validation images.
        work: Where the trained network is kept, and checkpoints while it trains.
        progress: Show a progress bar.
    """
    model = MODELS[name](splits.train.num_classes, rngs=nnx.Rngs(settings.seed))
    key = _training_key(name, settings, splits)
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
