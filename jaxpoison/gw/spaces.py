"""Heatmaps as metric measure spaces on a shared pixel grid."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxpoison._checks import check_fraction
from jaxpoison.parallel import map_batches, over_devices

# The pixel distances of a 224x224 grid would take 10 GB.
MAX_SIDE = 64
# Heatmaps that are worked on at once, on all devices.
CHUNK = 1024


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["weights", "factors"],
    meta_fields=["height", "width"],
)
@dataclass(frozen=True)
class MeasureSpaces:
    """Weighted pixels; distances are those of the grid times a factor per space.

    Attributes:
        weights: Mass of every pixel of the grid, row by row; 0 outside the
            support, sum 1.
        factors: What pixel distances are multiplied by: one over the largest
            distance inside the support, so that the diameter is 1.
        height: Rows of the grid.
        width: Columns of the grid.

    Examples:
        >>> spaces = jp.measure_spaces(heatmaps)
        >>> len(spaces), spaces.height, spaces.width, spaces.weights.shape
        (20, 32, 32, (20, 1024))
    """

    weights: Float[Array | np.ndarray, "n p"]
    factors: Float[Array | np.ndarray, " n"]
    height: int
    width: int

    def __len__(self) -> int:
        return self.weights.shape[0]

    @property
    def support_sizes(self) -> Int[Array | np.ndarray, " n"]:
        """Number of pixels with mass."""
        return (self.weights > 0).sum(-1)

    def take(self, index: Array | np.ndarray) -> MeasureSpaces:
        """The spaces at the given indices."""
        weights, factors = _picked(self.weights, index), _picked(self.factors, index)
        return MeasureSpaces(weights, factors, self.height, self.width)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class SmallSpaces:
    """Spaces of few points, with distances of their own: centres, or quantised heatmaps.

    Attributes:
        distances: Distances between the points of every space.
        weights: Mass of every point, above 0; each space's sum is 1.

    Examples:
        >>> points = np.array([[0.0, 1.0], [1.0, 0.0]], np.float32)
        >>> space = jp.SmallSpaces(points[None], np.array([[0.5, 0.5]], np.float32))
        >>> len(space)
        1
    """

    distances: Float[Array | np.ndarray, "n m m"]
    weights: Float[Array | np.ndarray, "n m"]

    def __len__(self) -> int:
        return self.weights.shape[0]

    def take(self, index: Array | np.ndarray) -> SmallSpaces:
        """The spaces at the given indices."""
        return SmallSpaces(_picked(self.distances, index), _picked(self.weights, index))


def _picked(x: Array | np.ndarray, index: Array | np.ndarray) -> Array | np.ndarray:
    # NumPy's arrays take no traced index.
    return jnp.asarray(x)[index] if isinstance(index, jax.Array) else x[index]


Spaces = MeasureSpaces | SmallSpaces


def measure_spaces(
    heatmaps: Float[Array | np.ndarray, "n h w"] | Float[Array | np.ndarray, "n h w c"],
    *,
    mass: float = 0.99,
) -> MeasureSpaces:
    """Keeps the pixels that hold most of each heatmap (Schulth, Berghoff, Neu, section 3).

    Channels are summed; values shifted and scaled to [0, 1] and divided by
    their sum; the largest pixels kept until they hold the given mass; and the
    weights divided by their sum again. Grids finer than 64x64 are summed over
    blocks first; blocks that the edge cuts count as if they were whole. Heatmaps are
    worked on in chunks of one size over all of this process's devices, which bounds the
    memory beside the result; that is in the host's.

    Args:
        heatmaps: Relevance of every pixel; any finite values.
        mass: Share of the mass to keep, in (0, 1].

    Raises:
        TypeError: ``mass`` is not a number.
        ValueError: The shape is not that of heatmaps, ``mass`` is out of
            range, or a heatmap is constant, NaN or infinite; the message names it.

    Examples:
        >>> spaces = jp.measure_spaces(heatmaps, mass=0.9)
        >>> bool((spaces.support_sizes < jp.measure_spaces(heatmaps).support_sizes).all())
        True
    """
    mass = check_fraction("mass", mass, below_one=False)
    maps = np.asarray(heatmaps)
    if maps.ndim not in (3, 4) or 0 in maps.shape:
        raise ValueError(f"heatmaps must have shape [n, h, w] or [n, h, w, c], found {maps.shape}")
    if not np.issubdtype(maps.dtype, np.number):
        raise TypeError(f"heatmaps must be numbers, found {maps.dtype}")
    mass32 = np.float32(mass)
    weights, factors, told = map_batches(_measured, mass32, maps, batch_size=CHUNK)
    bad = np.flatnonzero(~told)
    if len(bad):
        raise ValueError(
            f"{len(bad)} of {len(maps)} heatmaps are constant, NaN or infinite, the first is "
            f"number {bad[0]}: a heatmap must tell pixels apart to become a space"
        )
    height, width = (-(-side // -(-side // MAX_SIDE)) for side in maps.shape[1:3])
    return MeasureSpaces(weights, factors, height, width)


@jax.jit
def _measured(mass: Array, heatmaps: Array) -> tuple[Array, Array, Array]:
    """Weights and factors, and which heatmaps can be told pixels apart in."""

    def local(mass: Array, heatmaps: Array) -> tuple[Array, Array, Array]:
        maps = heatmaps.astype(jnp.float32)
        maps = _pool(maps.sum(-1) if maps.ndim == 4 else maps)
        flat = maps.reshape(len(maps), -1)
        weights = _weights(flat, mass)
        told = jnp.isfinite(flat).all(-1) & (flat.max(-1) > flat.min(-1))
        return weights, _factors(weights > 0, *maps.shape[1:]), told

    return over_devices(local)(mass, heatmaps)


def constant(
    heatmaps: Float[np.ndarray, "n h w"] | Float[np.ndarray, "n h w c"],
) -> Bool[np.ndarray, " n"]:
    """Which heatmaps are constant, as those of black images are: they tell no pixels apart.

    Args:
        heatmaps: Relevance of every pixel; channels are summed.
    """
    maps = heatmaps.sum(-1) if heatmaps.ndim == 4 else heatmaps
    return maps.max((1, 2)) == maps.min((1, 2))


def _pool(maps: Float[Array, "n h w"]) -> Float[Array, "n h2 w2"]:
    n, h, w = maps.shape
    kh, kw = -(-h // MAX_SIDE), -(-w // MAX_SIDE)
    if kh == kw == 1:
        return maps
    shape = (n, -(-h // kh), kh, -(-w // kw), kw)

    def over_blocks(x: Array) -> Array:
        x = jnp.pad(x, ((0, 0), (0, -h % kh), (0, -w % kw)))
        return x.reshape(-1, *shape[1:]).sum((2, 4))

    # Blocks that the edge cuts weigh as if they were whole.
    covered = over_blocks(jnp.ones((1, h, w)))
    return over_blocks(maps) * (kh * kw / covered)


def _weights(flat: Float[Array, "n p"], mass: Array) -> Float[Array, "n p"]:
    low = flat.min(-1, keepdims=True)
    scaled = (flat - low) / (flat.max(-1, keepdims=True) - low)
    scaled /= scaled.sum(-1, keepdims=True)
    order = jnp.argsort(-scaled, axis=-1)
    ranked = jnp.take_along_axis(scaled, order, -1)
    # A pixel is kept while those before it hold less than the mass.
    kept = jnp.cumsum(ranked, -1) - ranked < mass
    back = jnp.argsort(order, axis=-1)
    weights = jnp.where(jnp.take_along_axis(kept, back, -1), scaled, 0)
    return weights / weights.sum(-1, keepdims=True)


def _factors(support: Bool[Array, "n p"], height: int, width: int) -> Float[Array, " n"]:
    """One over the diameter. The two most distant pixels are each the first or last of a row."""
    rows = support.reshape(-1, height, width)
    columns = jnp.arange(width)[None, None]
    first = jnp.where(rows, columns, width).min(-1)
    last = jnp.where(rows, columns, -1).max(-1)
    used = rows.any(-1)
    across = jnp.maximum(last[:, :, None] - first[:, None, :], last[:, None, :] - first[:, :, None])
    down = jnp.arange(height)[None, :, None] - jnp.arange(height)[None, None]
    squared = jnp.where(used[:, :, None] & used[:, None, :], across**2 + down**2, 0).max((1, 2))
    diameter = jnp.sqrt(squared.astype(jnp.float32))
    # A single pixel has no distances to scale.
    return 1 / jnp.where(diameter > 0, diameter, 1)
