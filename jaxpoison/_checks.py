"""Checks of arguments at the public edge: one place, one style of message.

Every message says what was expected and what was found.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sized
from numbers import Integral, Real
from typing import Any

import numpy as np


def set_fields(instance: object, **values: Any) -> None:
    """Gives a frozen dataclass its checked values, in plain Python types.

    A NumPy integer would pass every check, and then no JSON file would take it.
    """
    for name, value in values.items():
        object.__setattr__(instance, name, value)


def check_integer(name: str, value: object, *, at_least: int) -> int:
    """Returns ``value`` as an int, or raises if it is not one or is too small.

    Args:
        name: The argument's name, for the message.
        value: What the caller passed.
        at_least: The smallest value accepted.

    Raises:
        TypeError: ``value`` is not an integer.
        ValueError: ``value`` is smaller than ``at_least``.
    """
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name} must be an integer, found {value!r}")
    if value < at_least:
        raise ValueError(f"{name} must be at least {at_least}, found {value}")
    return int(value)


def check_fraction(name: str, value: object, *, below_one: bool = True) -> float:
    """Returns ``value`` as a float in (0, 1), or in (0, 1] on request.

    Raises:
        TypeError: ``value`` is not a number.
        ValueError: ``value`` lies outside; a value above 1 is told to be a percentage.
    """
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a number, found {value!r}")
    share = float(value)
    if not 0 < share <= 1 or (below_one and share == 1):
        bound = "between 0 and 1, ends excluded" if below_one else "above 0 and at most 1"
        hint = " (shares are fractions of 1, not percent)" if share > 1 else ""
        raise ValueError(f"{name} must be {bound}{hint}, found {value}")
    return share


def check_positive(name: str, value: object) -> float:
    """Returns ``value`` as a float above 0.

    Raises:
        TypeError: ``value`` is not a number.
        ValueError: ``value`` is 0, negative or not finite.
    """
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a number, found {value!r}")
    if not 0 < float(value) < float("inf"):
        raise ValueError(f"{name} must be above 0 and finite, found {value}")
    return float(value)


def check_choice(name: str, value: object, choices: Collection[str]) -> str:
    """Returns ``value`` if it is one of ``choices``.

    Raises:
        ValueError: It is not.
    """
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}; found {value!r}")
    return str(value)


def check_images(name: str, images: Any) -> None:
    """Raises if images are not at rest: 8-bit pixels, images × height × width × channels.

    Raises:
        TypeError: They are no array of ``uint8``; what floats are told is how to convert them.
        ValueError: They have another number of axes.
    """
    dtype = getattr(images, "dtype", None)
    if dtype != np.uint8:
        found = type(images).__name__ if dtype is None else str(dtype)
        raise TypeError(
            f"{name} must be uint8 in 0..255, found {found}; "
            "convert floats in [0, 1] with (255 * images).round().astype('uint8')"
        )
    if images.ndim != 4:
        raise ValueError(
            f"{name} must have shape [n, height, width, channels], found {images.shape}"
        )


def check_logits(output: Any) -> None:
    """Raises if a model gives something else than one array of logits.

    Raises:
        TypeError: It does; the message says what was found and what to do.
    """
    if not hasattr(output, "shape"):
        found = f"a {type(output).__name__}"
        if isinstance(output, Mapping):
            found += f" with {', '.join(sorted(map(str, output)))}"
        raise TypeError(
            f"the model must give one array of logits, images x classes, found {found}: wrap it "
            "in a module whose __call__ returns the logits alone"
        )
    if output.ndim != 2:
        raise TypeError(
            f"the model must give logits of the shape images x classes, found {output.shape}"
        )


def check_one_class_each(classes: Sized, images: Sized) -> None:
    """Raises if there are not as many classes as images.

    Raises:
        ValueError: Their numbers differ.
    """
    if len(classes) != len(images):
        raise ValueError(f"expected one class per image ({len(images)}), found {len(classes)}")


def check_class(name: str, value: object, num_classes: int) -> int:
    """Returns ``value`` as a class index below ``num_classes``.

    Raises:
        TypeError: ``value`` is not an integer.
        ValueError: There is no such class.
    """
    index = check_integer(name, value, at_least=0)
    if index >= num_classes:
        raise ValueError(
            f"{name} must be a class from 0 to {num_classes - 1}: "
            f"the data has {num_classes} classes; found {index}"
        )
    return index


def check_classes(name: str, values: object, num_classes: int) -> None:
    """Raises if one of many class indices is none.

    Raises:
        TypeError: They are not integers.
        ValueError: One of them is negative, or there is no such class; the first is named.
    """
    indices = np.asarray(values)
    if not np.issubdtype(indices.dtype, np.integer):
        raise TypeError(f"{name} must be integers, found {indices.dtype}")
    wrong = np.flatnonzero((indices < 0) | (indices >= num_classes))
    if len(wrong):
        raise ValueError(
            f"{name} must be classes from 0 to {num_classes - 1}: the network has {num_classes} "
            f"outputs; found {indices[wrong[0]]} at index {wrong[0]}"
        )
