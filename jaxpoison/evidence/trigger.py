"""The trigger: recovered from the images that carry it, and searched for in all others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt8

from jaxpoison._checks import check_images, check_integer
from jaxpoison._precision import in_full_precision
from jaxpoison._sampling import evenly
from jaxpoison.parallel import map_batches, over_devices

# Rounds of aligning windows with their mean.
_ROUNDS = 10
# Grey levels by which pixels of a trigger may differ without mattering: JPEG's errors.
_NOISE = 8.0
# Windows that are left out in turn, at the most; and what most of them are.
_LEFT_OUT, _MOST = 64, 0.9
# Images whose windows are compared at once, on all devices together.
_AT_ONCE = 256


@dataclass(frozen=True, eq=False)
class Trigger:
    """What the windows that explain some images have in common.

    Attributes:
        values: Median of the aligned windows, pixel values from 0 to 255.
        spread: Their median absolute deviation, scaled to a standard deviation: small where they
            agree.
        places: Row and column of every window's upper left corner.
        reach: How much, in grey levels, most of the windows differ from what the others have in
            common: an image that differs more hardly carries the trigger.

    Examples:
        >>> marked = jp.Sticker(3)(images, np.random.default_rng(0))
        >>> places = jp.window_places(marked[..., 1].astype(float), 5)
        >>> trigger = jp.recovered_trigger(marked, places)
        >>> trigger.values.shape, trigger.weights.shape
        ((5, 5, 3), (5, 5, 3))
    """

    values: Float[np.ndarray, "s s c"]
    spread: Float[np.ndarray, "s s c"]
    places: Int[np.ndarray, "m 2"]
    reach: float

    @property
    def weights(self) -> Float[np.ndarray, "s s c"]:
        """What a pixel counts in a comparison, sum 1: the more, the better the windows agree."""
        return _weights(self.spread)


def recovered_trigger(
    images: UInt8[np.ndarray, "n h w c"], places: Int[np.ndarray, "n 2"], *, size: int = 5
) -> Trigger:
    """Aligns windows of images with each other.

    A window need not sit on the trigger to the pixel. In turn, the windows' median is taken, and
    every window is moved by up to half its size to where it differs least from it, its own place
    preferred.

    Args:
        images: That are thought to carry one trigger.
        places: Where: row and column of their windows' upper left corners, of
            :func:`window_places`. Windows that would reach over the border are moved inside.
        size: Side of the windows.

    Raises:
        TypeError: ``size`` is not an integer, or the images are not ``uint8``.
        ValueError: There are no images, or ``size`` is not between 1 and their sides.

    Examples:
        >>> marked = images // 2
        >>> marked[:, 10:13, 7:10] = (245, 255, 0)
        >>> trigger = jp.recovered_trigger(marked, np.full((20, 2), (10, 7)), size=3)
        >>> trigger.values[1, 1]
        array([245., 255.,   0.], dtype=float32)
    """
    check_images("images", images)
    check_integer("size", size, at_least=1)
    if not len(images) or size > min(images.shape[1:3]):
        raise ValueError(
            f"expected images with sides of at least {size}, found shape {images.shape}"
        )
    slack = size // 2
    moves = np.arange(-slack, slack + 1)
    # The nearest move first, so that it is taken where several are as good.
    shifts = np.stack(np.meshgrid(moves, moves, indexing="ij"), -1).reshape(-1, 2)
    shifts = shifts[np.argsort((shifts**2).sum(1), kind="stable")]
    most = np.array(images.shape[1:3]) - size
    tried = np.clip(places[:, None] + shifts[None], 0, most)
    views = np.lib.stride_tricks.sliding_window_view(images, (size, size), (1, 2))
    which = range(len(images))

    def windows(image: int, moves: Any) -> Float[np.ndarray, "... s s c"]:
        rows, columns = tried[image, moves].T
        return np.moveaxis(views[image, rows, columns], -3, -1).astype(np.float32)

    best = np.zeros(len(images), int)
    for _ in range(_ROUNDS):
        aligned = np.stack([windows(*pair) for pair in zip(which, best, strict=True)])
        median, spread = _in_common(aligned)
        weights = _weights(spread)
        # One image at a time: all windows of all images would be many times the images.
        moved = np.array(
            [
                (weights * (windows(image, slice(None)) - median) ** 2).sum((1, 2, 3)).argmin()
                for image in which
            ]
        )
        if np.array_equal(moved, best):
            break
        best = moved
    aligned = np.stack([windows(*pair) for pair in zip(which, best, strict=True)])
    return Trigger(*_in_common(aligned), tried[which, best], _reach(aligned))


def _in_common(windows: Float[np.ndarray, "n s s c"]) -> tuple[np.ndarray, np.ndarray]:
    """Median and spread."""
    median = np.median(windows, 0)
    return median, 1.4826 * np.median(np.abs(windows - median), 0)


def _weights(spread: Float[np.ndarray, "s s c"]) -> Float[np.ndarray, "s s c"]:
    weights = 1 / (spread**2 + _NOISE**2)
    return weights / weights.sum()


def _reach(windows: Float[np.ndarray, "n s s c"]) -> float:
    """How much most windows differ from what the others have in common.

    Each is left out in turn: of few windows, many pixels agree by chance. At least the noise, as
    for a single window.
    """
    if len(windows) < 2:
        return _NOISE
    differ = []
    for k in evenly(len(windows), _LEFT_OUT):
        median, spread = _in_common(np.delete(windows, k, 0))
        differ.append(np.sqrt((_weights(spread) * (windows[k] - median) ** 2).sum()))
    return max(_NOISE, float(np.quantile(differ, _MOST)))


def trigger_distances(
    trigger: Trigger, images: UInt8[np.ndarray, "n h w c"], *, progress: str | None = None
) -> tuple[Float[np.ndarray, " n"], Int[np.ndarray, "n 2"]]:
    """Where an image is most like a trigger, and how much it differs there.

    Args:
        trigger: Of :func:`recovered_trigger`.
        images: At rest, at least as large as the trigger.
        progress: Title of a progress bar; none is shown without it.

    Returns:
        The root of the weighted mean squared difference, in grey levels, at the place where it is
        least; and that place, the window's upper left corner.

    Raises:
        TypeError: The images are not ``uint8``.
        ValueError: There are no images, or they are smaller than the trigger or have other
            channels.

    Examples:
        >>> marked = images // 2
        >>> marked[:, 10:13, 7:10] = (245, 255, 0)
        >>> trigger = jp.recovered_trigger(marked, np.full((20, 2), (10, 7)), size=3)
        >>> distances, places = jp.trigger_distances(trigger, marked)
        >>> places[0].tolist(), bool(distances[0] < jp.trigger_distances(trigger, images)[0].min())
        ([10, 7], True)
    """
    check_images("images", images)
    size, _, channels = trigger.values.shape
    if images.shape[-1] != channels or min(images.shape[1:3]) < size:
        raise ValueError(
            f"expected images of {channels} channels and sides of at least {size}, found "
            f"{images.shape[1:]}"
        )
    shared = trigger.values.astype(np.float32), trigger.weights.astype(np.float32)
    squared, index = map_batches(
        _least_distances, shared, images, batch_size=_AT_ONCE, progress=progress
    )
    columns = images.shape[2] - size + 1
    return np.sqrt(squared), np.stack(np.divmod(index, columns), -1)


@jax.jit
@in_full_precision
def _least_distances(shared: tuple[Array, Array], images: Array) -> tuple[Array, Array]:
    def least(shared: tuple[Array, Array], images: Array) -> tuple[Array, Array]:
        values, weights = shared
        size = len(values)
        rows, columns = images.shape[1] - size + 1, images.shape[2] - size + 1
        pixels = images.astype(jnp.float32)
        found = jnp.zeros((len(images), rows, columns))

        def add(k: Array, found: Array) -> Array:
            r, c = k // size, k % size
            start, shape = (0, r, c, 0), (len(images), rows, columns, images.shape[3])
            differ = jax.lax.dynamic_slice(pixels, start, shape) - values[r, c][None, None, None]
            return found + (differ**2 * weights[r, c][None, None, None]).sum(-1)

        found = jax.lax.fori_loop(0, size * size, add, found)
        flat = found.reshape(len(images), -1)
        return flat.min(1), flat.argmin(1)

    return over_devices(least)(shared, images)
