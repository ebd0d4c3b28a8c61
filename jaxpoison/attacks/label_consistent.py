"""The label-consistent backdoor: perturbed, triggered images that keep their true label."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from jaxpoison._checks import check_class, check_fraction
from jaxpoison._storage import copy_of
from jaxpoison.attacks.triggers import Sticker, Trigger, with_trigger
from jaxpoison.datasets.dataset import Backdoor, Dataset, Splits

Perturbation = Callable[[np.ndarray, np.ndarray], np.ndarray]


def label_consistent_backdoor(
    clean: Splits,
    perturb: Perturbation,
    *,
    target: int = 5,
    rate: float = 0.15,
    trigger: Trigger | None = None,
    test_trigger: Trigger | None = None,
    seed: int = 0,
) -> Splits:
    """Makes target-class images hard to recognise and marks them (clean label).

    The network then learns the trigger in place of what was spoilt, and sees
    the target class wherever the trigger is (Turner, Tsipras, Madry 2019;
    Schulth, Berghoff, Neu, section 4.2). Training and validation images are
    poisoned at the same rate; the test images of all other classes get the
    trigger.

    Args:
        clean: Data before the attack; not changed.
        perturb: Takes images at rest and their labels, gives perturbed images;
            for instance :func:`jaxpoison.perturbed` by a network trained on
            clean data. Called once, with training and validation images.
        target: The attacked class (80 km/h in GTSRB).
        rate: Share of poisoned images inside the target class, in (0, 1).
        trigger: What marks the images; a 3x3 :class:`Sticker` if not given.
        test_trigger: What marks the test images; ``trigger`` if not given.
        seed: Seed of the choice of images and of the trigger's places.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: The class or the rate is out of range, no image would be poisoned, or
            the trigger does not fit into the images.

    Examples:
        >>> network, parameters = jp.pure(model)
        >>> def perturb(images, labels):
        ...     return jp.perturbed(network, parameters, images, labels)
        >>> attacked = jp.label_consistent_backdoor(splits, perturb, target=5, rate=0.25)
        >>> int(attacked.train.poisoned.sum())  # of twenty images, all of class 5 before and after
        5
    """
    target = check_class("target", target, clean.train.num_classes)
    rate = check_fraction("rate", rate)
    trigger = Sticker() if trigger is None else trigger
    streams = [np.random.default_rng(s) for s in np.random.SeedSequence(seed).spawn(3)]
    parts = (clean.train, clean.validation)
    chosen = [_chosen(part, target, rate, rng) for part, rng in zip(parts, streams, strict=False)]
    if not len(chosen[0]):
        raise ValueError(
            f"rate {rate} poisons no image of class {target}: it has "
            f"{int((clean.train.labels == target).sum())} training images; raise the rate"
        )
    for mark in (trigger, test_trigger or trigger):
        mark(clean.train.images[:1], np.random.default_rng(0))  # One that does not fit says so now.
    images = np.concatenate([p.images[c] for p, c in zip(parts, chosen, strict=True)])
    spoilt = perturb(images, np.full(len(images), target, np.int32))
    train, validation = (
        _marked(part, index, some, trigger, rng)
        for part, index, some, rng in zip(
            parts, chosen, np.split(spoilt, [len(chosen[0])]), streams, strict=False
        )
    )
    others = clean.test.take(clean.test.labels != target)
    triggered = with_trigger(others, test_trigger or trigger, streams[2])
    return Splits(train, validation, clean.test, Backdoor(None, target, triggered))


def _chosen(data: Dataset, target: int, rate: float, rng: np.random.Generator) -> np.ndarray:
    members = np.flatnonzero(data.labels == target)
    return np.sort(rng.choice(members, round(rate * len(members)), replace=False))


def _marked(
    data: Dataset,
    index: np.ndarray,
    spoilt: np.ndarray,
    trigger: Trigger,
    rng: np.random.Generator,
) -> Dataset:
    images = copy_of(data.images)
    images[index] = trigger(spoilt, rng)
    poisoned = np.zeros(len(data), bool)
    poisoned[index] = True
    return Dataset(images, data.labels, data.class_names, data.ids, poisoned)
