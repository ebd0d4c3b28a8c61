"""Products with the distances of metric measure spaces, many at once."""

from __future__ import annotations

import functools
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxpoison.spaces import SmallSpaces, Spaces


def distance_product(
    spaces: Spaces, x: Float[Array, "n k p"], power: int = 1
) -> Float[Array, "n k p"]:
    """Product of functions on the points of every space with its distances, or their squares.

    Args:
        spaces: Heatmaps, all on one grid, or spaces with distances of their own.
        x: Functions on each space's points.
        power: Power that every distance is taken to.
    """
    if isinstance(spaces, SmallSpaces):
        return jnp.einsum("nkp,npq->nkq", x, jnp.asarray(spaces.distances) ** power)
    scale = (spaces.factors**power)[:, None, None]
    return grid_product(x, spaces.height, spaces.width, power) * scale


def largest_distances(spaces: Spaces) -> Float[Array, " n"]:
    """A bound on every space's distances."""
    if isinstance(spaces, SmallSpaces):
        return jnp.asarray(spaces.distances).max((1, 2))
    return (spaces.height**2 + spaces.width**2) ** 0.5 * spaces.factors


def pixel_distances(height: int, width: int) -> Float[Array, "p p"]:
    """Euclidean distances between the pixels of a grid, row by row, in pixels."""
    return jnp.asarray(_distances(height, width), jnp.float32)


def _distances(height: int, width: int) -> Float[np.ndarray, "p p"]:
    points = np.stack(np.meshgrid(np.arange(height), np.arange(width), indexing="ij"), -1)
    points = points.reshape(-1, 2).astype(float)
    return np.sqrt(((points[:, None] - points) ** 2).sum(-1))


# Distances on a grid do not change under its two mirror images. In the basis of
# functions that are even or odd under each, their matrix falls apart into four
# blocks of a quarter of its side; a product then takes a quarter of the operations.


def _fold(x: Any, axis: int, xp: Any) -> tuple[Any, Any]:
    """Coefficients of the even and of the odd functions along one axis."""
    n = x.shape[axis]
    x = xp.moveaxis(x, axis, 0)
    first, middle, last = x[: n // 2], x[n // 2 : n - n // 2], x[n - n // 2 :][::-1]
    even = xp.concatenate([(first + last) * np.sqrt(0.5), middle])
    odd = (first - last) * np.sqrt(0.5)
    return xp.moveaxis(even, 0, axis), xp.moveaxis(odd, 0, axis)


def _unfold(even: Array, odd: Array, axis: int) -> Array:
    """Inverse of :func:`_fold`."""
    even, odd = jnp.moveaxis(even, axis, 0), jnp.moveaxis(odd, axis, 0)
    half = len(odd)
    first, last = (even[:half] + odd) * np.sqrt(0.5), (even[:half] - odd) * np.sqrt(0.5)
    return jnp.moveaxis(jnp.concatenate([first, even[half:], last[::-1]]), 0, axis)


@functools.lru_cache(maxsize=8)
def _blocks(height: int, width: int, power: int) -> tuple[Float[np.ndarray, "q q"], ...]:
    """The four blocks of the distances to a power: even and odd rows, then columns."""
    whole = (_distances(height, width) ** power).reshape(height, width, height, width)
    blocks = []
    for rows in _pairs(whole, 0, 2):
        for block in _pairs(rows, 1, 3):
            side = block.shape[0] * block.shape[1]
            blocks.append(block.reshape(side, side).astype(np.float32))
    return tuple(blocks)


def _pairs(x: np.ndarray, left: int, right: int) -> list[np.ndarray]:
    """The even-even and the odd-odd part along two axes; the mixed parts are 0."""
    return [_fold(half, right, np)[k] for k, half in enumerate(_fold(x, left, np))]


def grid_product(
    x: Float[Array, "... p"], height: int, width: int, power: int = 1
) -> Float[Array, "... p"]:
    """Product with the grid's distances, or their squares, along the last axis.

    Args:
        x: Functions on the pixels, row by row.
        height: Rows of the grid.
        width: Columns of the grid.
        power: Power that every distance is taken to.
    """
    maps = x.reshape(-1, height, width)
    n = len(maps)
    blocks = iter(_blocks(height, width, power))
    done = []
    for rows in _fold(maps, 1, jnp):
        halves = [
            (part.reshape(n, -1) @ next(blocks)).reshape(part.shape) for part in _fold(rows, 2, jnp)
        ]
        done.append(_unfold(*halves, axis=2))
    return _unfold(*done, axis=1).reshape(x.shape)
