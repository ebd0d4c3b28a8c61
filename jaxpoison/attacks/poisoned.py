"""Data after an attack, with the truth about them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool

from jaxpoison.datasets.dataset import Dataset, Splits

Trigger = Callable[[np.ndarray, np.random.Generator], np.ndarray]


@dataclass(frozen=True, eq=False)
class PoisonedSplits:
    """Data after an attack, with the truth about it.

    Only attacks, metrics and reports may read the truth; detectors are given
    arrays without it.

    Attributes:
        splits: Poisoned training and validation images, clean test images.
        poisoned: Which training images are poisoned.
        triggered: Test images that carry the trigger, true labels kept.
        source: The class whose images are turned into another; ``None`` where the
            trigger turns images of every class.
        target: The class they are turned into.
    """

    splits: Splits
    poisoned: Bool[np.ndarray, " n"]
    triggered: Dataset
    source: int | None
    target: int


def with_trigger(data: Dataset, trigger: Trigger, rng: np.random.Generator) -> Dataset:
    """The images with the trigger, under their own labels."""
    return Dataset(trigger(data.images, rng), data.labels, data.class_names, data.ids)
