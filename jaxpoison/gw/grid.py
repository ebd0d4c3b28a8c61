"""The pixel grid as an OTT geometry that all heatmaps of a run share."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from ott.geometry import geometry


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


@jax.tree_util.register_pytree_node_class
class GridGeometry(geometry.Geometry):
    """Distances on one grid, times a factor.

    Under ``vmap`` over the factor alone, the grid stays one for all problems,
    and applying it to a batch is one matrix product.

    Args:
        height: Rows of the grid.
        width: Columns of the grid.
        factor: What the distances, in pixels, are multiplied by.
        **kwargs: Passed to :class:`ott.geometry.geometry.Geometry`.
    """

    def __init__(self, height: int, width: int, factor: Float[Array, ""], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.height = height
        self.width = width
        self.factor = factor

    @property
    def cost_matrix(self) -> Float[Array, "p p"]:
        """The dense matrix; only operations that cannot avoid it build it."""
        return pixel_distances(self.height, self.width) * self.factor

    @property
    def shape(self) -> tuple[int, int]:
        """Number of pixels, twice."""
        return self.height * self.width, self.height * self.width

    @property
    def is_symmetric(self) -> bool:
        """Always."""
        return True

    @property
    def can_LRC(self) -> bool:  # noqa: N802 (OTT's name)
        """Never: the distances' spectrum decays slowly."""
        return False

    def apply_cost(
        self,
        arr: Array,
        axis: int = 0,
        fn: Callable[[Array], Array] | None = None,
        is_linear: bool = False,
    ) -> Array:
        """Product of the distances, or of a function of them, with a vector or matrix."""
        if fn is not None and not is_linear:
            return super().apply_cost(arr, axis=axis, fn=fn, is_linear=is_linear)
        product = grid_product(arr.T, self.height, self.width).T * self.factor
        return product if fn is None else fn(product)

    def apply_square_cost(self, arr: Array, axis: int = 0) -> Array:
        """Product of the squared distances with a vector or matrix."""
        return grid_product(arr.T, self.height, self.width, 2).T * self.factor**2

    def tree_flatten(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """For JAX: the arrays, and what is static."""
        return (self.factor, self._epsilon_init), {
            "height": self.height,
            "width": self.width,
            "relative_epsilon": self._relative_epsilon,
            "scale_cost": self._scale_cost,
        }

    @classmethod
    def tree_unflatten(cls, aux_data: dict[str, Any], children: tuple[Any, ...]) -> GridGeometry:
        """Inverse of :meth:`tree_flatten`."""
        factor, epsilon = children
        return cls(factor=factor, epsilon=epsilon, **aux_data)
