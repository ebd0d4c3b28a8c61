"""The standard backdoor: stickered images of one class under another's label."""

from __future__ import annotations

import numpy as np

from jaxpoison._checks import check_class, check_fraction
from jaxpoison._storage import copy_of
from jaxpoison.attacks.triggers import Sticker, Trigger, with_trigger
from jaxpoison.datasets.dataset import Backdoor, Dataset, Splits


def standard_backdoor(
    clean: Splits,
    *,
    source: int = 2,
    target: int = 5,
    rate: float = 0.15,
    trigger: Trigger | None = None,
    test_trigger: Trigger | None = None,
    seed: int = 0,
) -> Splits:
    """Moves stickered source-class images into the target class (dirty label).

    Poisoned images leave the source class, keep their place in the data set
    and take the target's label; training and validation images are poisoned
    at the same rate (Schulth, Berghoff, Neu, section 4.1).

    Args:
        clean: Data before the attack; not changed.
        source: Class whose images get the sticker (50 km/h in GTSRB).
        target: Class whose label they take (80 km/h in GTSRB).
        rate: Share of poisoned images inside the target class afterwards, in (0, 1).
        trigger: What marks the images; a 3x3 :class:`Sticker` if not given.
        test_trigger: What marks the test images; ``trigger`` if not given.
        seed: Seed of the choice of images and of sticker places.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: A class or the rate is out of range, source and target are
            equal, or the source class has too few images.

    Examples:
        >>> attacked = jp.standard_backdoor(splits, source=2, target=5, rate=0.2, seed=1)
        >>> int(attacked.train.poisoned.sum()), int((attacked.train.labels == 5).sum())
        (5, 25)
    """
    source = check_class("source", source, clean.train.num_classes)
    target = check_class("target", target, clean.train.num_classes)
    rate = check_fraction("rate", rate)
    if source == target:
        raise ValueError(f"source and target must be different classes, found {source} twice")
    trigger = Sticker() if trigger is None else trigger
    streams = [np.random.default_rng(s) for s in np.random.SeedSequence(seed).spawn(3)]
    train = _poison(clean.train, source, target, rate, trigger, streams[0], "training")
    validation = _poison(clean.validation, source, target, rate, trigger, streams[1], "validation")
    sources = clean.test.take(clean.test.labels == source)
    triggered = with_trigger(sources, test_trigger or trigger, streams[2])
    return Splits(train, validation, clean.test, Backdoor(source, target, triggered))


def poisoned_count(rate: float, clean_count: int) -> int:
    """Images to add so that they are a share ``rate`` of the class; half to even."""
    return round(rate * clean_count / (1 - rate))


def _poison(
    data: Dataset,
    source: int,
    target: int,
    rate: float,
    trigger: Trigger,
    rng: np.random.Generator,
    part: str,
) -> Dataset:
    sources = np.flatnonzero(data.labels == source)
    count = poisoned_count(rate, int((data.labels == target).sum()))
    if count == 0 and part == "training":
        raise ValueError(
            f"rate {rate} poisons no image of class {target}: it has "
            f"{int((data.labels == target).sum())} training images; raise the rate"
        )
    if count and count >= len(sources):
        raise ValueError(
            f"rate {rate} needs {count} {part} images of source class {source} and must leave "
            f"one, but the class has {len(sources)}; lower the rate or choose another source"
        )
    chosen = np.sort(rng.choice(sources, count, replace=False))
    images, labels = copy_of(data.images), data.labels.copy()
    images[chosen] = trigger(data.images[chosen], rng)
    labels[chosen] = target
    poisoned = np.zeros(len(data), bool)
    poisoned[chosen] = True
    return Dataset(images, labels, data.class_names, data.ids, poisoned)
