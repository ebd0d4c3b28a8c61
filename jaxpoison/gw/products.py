"""Products with the distances of metric measure spaces, many at once.

Distances on a grid do not change under its two mirror images. With the four
quadrants of the grid, mirrored onto one, as the four elements of a group, their
matrix is a convolution over the group: sums and differences of the quadrants
make four blocks of it, and a product takes a quarter of the operations. For the
sums to run over neighbouring memory, pixels are laid out quadrant by quadrant.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxpoison.gw.spaces import MeasureSpaces, SmallSpaces, Spaces

# Signs under which functions on the quadrants (top left, top right, bottom left,
# bottom right) are summed.
_SIGNS = np.array([[1, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]])


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["weights", "factors"],
    meta_fields=["height", "width"],
)
@dataclass(frozen=True)
class QuadrantSpaces:
    """Heatmaps whose pixels are laid out quadrant by quadrant, each mirrored onto the first.

    A side of odd length gets one more row or column, without mass.

    Attributes:
        weights: Mass of every pixel.
        factors: What pixel distances are multiplied by.
        height: Rows of the grid.
        width: Columns of the grid.
    """

    weights: Float[Array, "n p"]
    factors: Float[Array, " n"]
    height: int
    width: int

    def __len__(self) -> int:
        return self.weights.shape[0]

    def take(self, index: Array) -> QuadrantSpaces:
        """The spaces at the given indices."""
        return QuadrantSpaces(self.weights[index], self.factors[index], self.height, self.width)


LaidOut = QuadrantSpaces | SmallSpaces


def laid_out(spaces: Spaces | LaidOut) -> LaidOut:
    """Spaces in the layout that products are fast in."""
    if not isinstance(spaces, MeasureSpaces):
        return spaces
    size = (spaces.height, spaces.width)
    weights = _to_quadrants(jnp.asarray(spaces.weights), *size)
    return QuadrantSpaces(weights, jnp.asarray(spaces.factors), *size)


def distance_product(
    spaces: LaidOut, x: Float[Array, "n k p"], power: int = 1
) -> Float[Array, "n k p"]:
    """Product of functions on the points of every space with its distances, or their squares.

    Args:
        spaces: Spaces.
        x: Functions on each space's points.
        power: Power that every distance is taken to.
    """
    if isinstance(spaces, SmallSpaces):
        return jnp.einsum("nkp,npq->nkq", x, jnp.asarray(spaces.distances) ** power)
    scale = (spaces.factors**power)[:, None, None]
    return quadrant_product(x, spaces.height, spaces.width, power) * scale


def largest_distances(spaces: LaidOut) -> Float[Array, " n"]:
    """A bound on every space's distances."""
    if isinstance(spaces, SmallSpaces):
        return jnp.asarray(spaces.distances).max((1, 2))
    return (spaces.height**2 + spaces.width**2) ** 0.5 * spaces.factors


def pixel_distances(height: int, width: int) -> Float[Array, "p p"]:
    """Euclidean distances between the pixels of a grid, row by row, in pixels."""
    return jnp.asarray(_distances(height, width), jnp.float32)


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
    found = quadrant_product(_to_quadrants(x, height, width), height, width, power)
    return found[..., np.argsort(_order(height, width))[: height * width]]


def quadrant_product(
    x: Float[Array, "... p"], height: int, width: int, power: int = 1, axis: int = -1
) -> Float[Array, "... p"]:
    """As :func:`grid_product`, of pixels laid out quadrant by quadrant, along the last axis.

    With ``axis`` -2, along the last but one.
    """
    blocks = _blocks(height, width, power)
    sums = _over_signs(*jnp.split(jnp.asarray(x), 4, axis))
    # Whoever asks, as OTT may, gets products of float32.
    product = functools.partial(jnp.matmul, precision="highest")
    if axis == -2:
        parts = [product(block, part) for block, part in zip(blocks, sums, strict=True)]
    else:
        parts = [product(part, block) for block, part in zip(blocks, sums, strict=True)]
    return jnp.concatenate(_over_signs(*parts), axis)


def _over_signs(a: Array, b: Array, c: Array, d: Array) -> tuple[Array, Array, Array, Array]:
    """The sums of four parts under all four signs."""
    top, bottom, across, below = a + b, c + d, a - b, c - d
    return top + bottom, across + below, top - bottom, across - below


def _distances(height: int, width: int) -> Float[np.ndarray, "p p"]:
    points = np.stack(np.divmod(np.arange(height * width), width), -1).astype(float)
    return np.sqrt(((points[:, None] - points) ** 2).sum(-1))


@functools.lru_cache(maxsize=8)
def _order(height: int, width: int) -> Int[np.ndarray, " p"]:
    """The pixel that stands at every place; those beyond the grid come after all others."""
    rows, columns = -(-height // 2), -(-width // 2)
    inside, outside = np.arange(height * width), height * width
    padded = np.full((2 * rows, 2 * columns), -1)
    padded[:height, :width] = inside.reshape(height, width)
    missing = padded < 0
    padded[missing] = outside + np.arange(missing.sum())
    halves = (padded[:rows], padded[rows:][::-1])
    return np.stack([q for h in halves for q in (h[:, :columns], h[:, columns:][:, ::-1])]).ravel()


def _to_quadrants(x: Float[Array, "... p"], height: int, width: int) -> Float[Array, "... q"]:
    order = _order(height, width)
    padding = [(0, 0)] * (x.ndim - 1) + [(0, len(order) - x.shape[-1])]
    return jnp.pad(x, padding)[..., order]


@functools.lru_cache(maxsize=8)
def _blocks(height: int, width: int, power: int) -> tuple[Float[np.ndarray, "q q"], ...]:
    """The blocks of the distances to a power, one for each of the signs."""
    rows, columns = -(-height // 2), -(-width // 2)
    distances = _distances(2 * rows, 2 * columns) ** power
    order = _order(2 * rows, 2 * columns)
    quarter = len(order) // 4
    between = distances[np.ix_(order[:quarter], order)].reshape(quarter, 4, quarter)
    # The sums and differences are taken twice; a quarter undoes that.
    blocks = np.einsum("ks,isj->kij", _SIGNS, between) / 4
    return tuple(blocks.astype(np.float32))
