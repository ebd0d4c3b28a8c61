"""How to train: settings, and the named protocols."""

from __future__ import annotations

import math
from dataclasses import dataclass

from jaxpoison._checks import check_choice, check_integer, check_positive, set_fields
from jaxpoison.training.augment import Augmentation

PROTOCOLS = ("fast", "paper")
OPTIMIZERS = ("adam", "muon")
SCHEDULES = ("constant", "one-cycle")
_DTYPES = ("bfloat16", "float32")
# The fast protocol shows the network at least this many images, however small the data.
_FAST_IMAGES = 10_000


@dataclass(frozen=True)
class TrainConfig:
    """How to train.

    Attributes:
        epochs: Most passes over the data.
        batch_size: Images per step; an incomplete last batch is left out.
        optimizer: ``"adam"``, or ``"muon"`` (Jordan 2024): orthogonalised momentum for
            kernels, and Adam with Nesterov's momentum for the rest. Muon's steps have
            the size of Adam's (Liu et al. 2025, *Muon is Scalable for LLM Training*).
        learning_rate: Of the optimiser; the peak, for the one-cycle schedule.
        schedule: ``"constant"`` or ``"one-cycle"`` (a cosine up and down again).
        patience: Epochs without a fall in validation loss after which training
            stops; ``None`` never stops early.
        augmentation: Random transformations of the training images, or ``None``.
        compute_dtype: Type convolutions and batch normalisations compute in
            while training; statistics and parameters are always float32, and so
            is everything after training.
        seed: Seed of order, augmentation and dropout.

    Examples:
        >>> jp.TrainConfig(epochs=5, optimizer="muon", learning_rate=0.02).compute_dtype
        'bfloat16'
    """

    epochs: int = 100
    batch_size: int = 32
    optimizer: str = "adam"
    learning_rate: float = 1e-3
    schedule: str = "constant"
    patience: int | None = 20
    augmentation: Augmentation | None = Augmentation()
    compute_dtype: str = "bfloat16"
    seed: int = 0

    def __post_init__(self) -> None:
        patience = self.patience
        set_fields(
            self,
            epochs=check_integer("epochs", self.epochs, at_least=1),
            batch_size=check_integer("batch size", self.batch_size, at_least=1),
            optimizer=check_choice("optimizer", self.optimizer, OPTIMIZERS),
            learning_rate=check_positive("learning rate", self.learning_rate),
            schedule=check_choice("schedule", self.schedule, SCHEDULES),
            patience=None if patience is None else check_integer("patience", patience, at_least=0),
            compute_dtype=check_choice("compute dtype", self.compute_dtype, _DTYPES),
            seed=check_integer("seed", self.seed, at_least=0),
        )


def protocol(
    name: str,
    images: int,
    *,
    epochs: int | None = None,
    batch_size: int | None = None,
    seed: int = 0,
) -> TrainConfig:
    """The settings of a named training protocol.

    ``"paper"``: Adam 1e-3, batch 32, at most 100 epochs, patience 20.
    ``"fast"``: Muon, one cycle to 3e-3 over 2 epochs at batch 64; data sets below
    10,000 images get smaller batches, and below 5,000 more epochs.

    Args:
        name: One of ``PROTOCOLS``.
        images: Number of training images.
        epochs: Overrides the protocol's number of epochs.
        batch_size: Overrides the protocol's number of images per step.
        seed: Seed of order, augmentation and dropout.

    Raises:
        ValueError: There is no such protocol.

    Examples:
        >>> settings = jp.protocol("fast", images=34_799, batch_size=64)
        >>> settings.epochs, settings.optimizer
        (2, 'muon')
    """
    check_choice("protocol", name, PROTOCOLS)
    if name == "paper":
        return TrainConfig(
            epochs=100 if epochs is None else epochs,
            batch_size=32 if batch_size is None else batch_size,
            seed=seed,
        )
    return TrainConfig(
        epochs=max(2, math.ceil(_FAST_IMAGES / images)) if epochs is None else epochs,
        batch_size=(64 if images >= 10_000 else 32) if batch_size is None else batch_size,
        optimizer="muon",
        learning_rate=3e-3,
        schedule="one-cycle",
        patience=None,
        seed=seed,
    )
