"""Heatmaps compressed to a few points each."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxpoison._checks import check_integer
from jaxpoison._precision import in_full_precision
from jaxpoison.gw.spaces import CHUNK, MeasureSpaces, SmallSpaces
from jaxpoison.parallel import map_batches, over_devices

# Rounds of k-means; heatmaps that are compressed at once on each device.
_ROUNDS = 25
_AT_ONCE = 64


def quantised(spaces: MeasureSpaces, size: int) -> SmallSpaces:
    """Compresses every heatmap to a few weighted points: weighted k-means of its pixels.

    Starts from pixels far from each other, weighed by their mass, so that no
    chance is involved. The distance of two points, and of a point from itself, is
    the root mean square distance between the mass that they stand for: as between
    their places, and how far mass spreads around each. So a heatmap's mean squared
    distance is kept. Heatmaps are split over this process's devices; the result is in the
    host's memory.

    Args:
        spaces: Heatmaps.
        size: Number of points; if a heatmap has fewer pixels, the heaviest
            point is split into copies of itself.

    Raises:
        TypeError: ``size`` is not an integer.
        ValueError: It is below 1.

    Examples:
        >>> spaces = jp.quantised(jp.measure_spaces(heatmaps), 10)
        >>> spaces.distances.shape, spaces.weights.shape
        ((20, 10, 10), (20, 10))
    """
    check_integer("size", size, at_least=1)
    grid = np.divmod(np.arange(spaces.height * spaces.width), spaces.width)
    pixels = np.stack(grid, -1).astype(np.float32)
    weights, factors = np.asarray(spaces.weights), np.asarray(spaces.factors)
    return map_batches(partial(_quantised, size), pixels, weights, factors, batch_size=CHUNK)


@partial(jax.jit, static_argnums=0)
@in_full_precision
def _quantised(size: int, pixels: Array, weights: Array, factors: Array) -> SmallSpaces:
    return over_devices(partial(_compressed, size))(pixels, weights, factors)


def _compressed(
    size: int,
    pixels: Float[Array, "p 2"],
    weights: Float[Array, "n p"],
    factors: Float[Array, " n"],
) -> SmallSpaces:

    def one(space: tuple[Array, Array]) -> SmallSpaces:
        weights, factor = space
        places = _lloyd(pixels, weights, _far_apart(pixels, weights, size))
        held = _assigned(pixels, weights, places)
        mass = held.sum(1)
        top, empty = mass.argmax(), mass <= 0
        shares = held / jnp.where(empty, 1, mass)[:, None]
        means = shares @ pixels
        spread = (shares * _squared_distances(means, pixels)).sum(1)
        means = jnp.where(empty[:, None], means[top][None], means)
        spread = jnp.where(empty, spread[top], spread)
        share = mass[top] / (1 + empty.astype(mass.dtype).sum())
        mass = jnp.where(empty, share, mass).at[top].set(share)
        squares = _squared_distances(means, means) + (spread[:, None] + spread[None])
        return SmallSpaces(jnp.sqrt(squares) * factor, mass / mass.sum())

    return jax.lax.map(one, (weights, factors), batch_size=_AT_ONCE)


def _squared_distances(a: Float[Array, "m 2"], b: Float[Array, "p 2"]) -> Float[Array, "m p"]:
    return ((a[:, None] - b[None]) ** 2).sum(-1)


def _far_apart(
    pixels: Float[Array, "p 2"], weights: Float[Array, " p"], size: int
) -> Float[Array, "m 2"]:
    """The heaviest pixel, then those far from all before, by distance squared times root of mass.

    With the mass itself in place of its root, the start is worse: few points in
    the outskirts, whose mass is small and many pixels.
    """

    def add(k: int, state: tuple[Array, Array]) -> tuple[Array, Array]:
        places, nearest = state
        place = pixels[(jnp.sqrt(weights) * nearest).argmax()]
        nearest = jnp.minimum(nearest, _squared_distances(place[None], pixels)[0])
        return places.at[k].set(place), nearest

    start = jnp.zeros((size, 2), pixels.dtype), jnp.ones(len(pixels), pixels.dtype)
    first, _ = add(0, start)
    nearest = _squared_distances(first[:1], pixels)[0]
    return jax.lax.fori_loop(1, size, add, (first, nearest))[0]


def _assigned(
    pixels: Float[Array, "p 2"], weights: Float[Array, " p"], places: Float[Array, "m 2"]
) -> Float[Array, "m p"]:
    """Every pixel's mass, in the row of its nearest place."""
    nearest = _squared_distances(places, pixels).argmin(0)
    return jnp.where(nearest[None] == jnp.arange(len(places))[:, None], weights[None], 0)


def _lloyd(
    pixels: Float[Array, "p 2"], weights: Float[Array, " p"], places: Float[Array, "m 2"]
) -> Float[Array, "m 2"]:
    def move(_: int, places: Array) -> Array:
        held = _assigned(pixels, weights, places)
        mass = held.sum(1, keepdims=True)
        return jnp.where(mass > 0, held @ pixels / jnp.where(mass > 0, mass, 1), places)

    return jax.lax.fori_loop(0, _ROUNDS, move, places)
