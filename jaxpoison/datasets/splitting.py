"""Validation and test images held out where the data bring none."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from jaxpoison._progress import console
from jaxpoison.datasets.dataset import Dataset, Splits


def completed(
    origin: str,
    splits: Mapping[str, Dataset],
    *,
    validation_share: float,
    test_share: float,
    seed: int,
    progress: bool,
) -> Splits:
    """All three parts: those that there are, and others held out of the training images.

    Args:
        origin: Where the data are from, for messages.
        splits: By ``train`` (or ``all``), ``validation`` and ``test``.
        validation_share: Share of the training images held out for validation.
        test_share: Share of all images held out for testing.
        seed: Of the choice.
        progress: Say how many were held out.

    Raises:
        ValueError: There are no training images, or a class has too few to hold one out.
    """
    rng = np.random.default_rng(seed)
    train = splits.get("train", splits.get("all"))
    if train is None:
        raise ValueError(f"{origin} has no training images")
    test, validation = splits.get("test"), splits.get("validation")
    whole = test is not None and validation is not None
    if test is None:
        train, test = _hold_out(train, test_share, rng, f"test split of {origin}")
    if validation is None:
        train, validation = _hold_out(train, validation_share, rng, f"validation split of {origin}")
    if progress and not whole:
        console.print(
            f"held out of {origin}: {len(validation)} images for validation, {len(test)} for "
            f"testing; trained on: {len(train)}",
            soft_wrap=True,
        )
    return Splits(train, validation, test)


def _hold_out(
    data: Dataset, share: float, rng: np.random.Generator, what: str
) -> tuple[Dataset, Dataset]:
    """Splits off a share of every class at random, at least one image of each."""
    held = np.zeros(len(data), bool)
    for k, name in enumerate(data.class_names):
        members = np.flatnonzero(data.labels == k)
        if len(members) < 2:
            raise ValueError(
                f"class {name!r} needs at least 2 images to make a {what}, found {len(members)}"
            )
        count = min(max(1, round(share * len(members))), len(members) - 1)
        held[rng.choice(members, count, replace=False)] = True
    return data.take(~held), data.take(held)
