"""Entropic Gromov-Wasserstein barycentres of many heatmaps at once."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxpoison.gw.distances import Centers, EntropicGW, map_chunks
from jaxpoison.gw.grid import pixel_distances
from jaxpoison.spaces import MeasureSpaces


def barycenters(
    spaces: MeasureSpaces,
    labels: Int[Array, " n"],
    member_weights: Float[Array, " n"],
    start: Float[Array, "k m m"],
    solver: EntropicGW,
    *,
    tolerance: float = 1e-4,
    max_rounds: int = 20,
    chunk: int = 64,
) -> tuple[Centers, Int[Array, ""]]:
    """Barycentres of clusters: points of equal weight, distances by fixed point.

    One round couples every heatmap with its own cluster's centre and sets
    ``C <- sum_s lambda_s T_s C_s T_s^T / (q q^T)`` (Peyre, Cuturi, Solomon
    2016, eq. 14, for the square loss).

    Args:
        spaces: Heatmaps.
        labels: Cluster of every heatmap.
        member_weights: Weight of every heatmap inside its cluster; 0 leaves it
            out. They need not sum to 1.
        start: Distances of the centres to start from.
        solver: How couplings are found.
        tolerance: Largest change of an entry that ends the rounds.
        max_rounds: Most rounds.
        chunk: Heatmaps coupled at once.

    Returns:
        The centres, and the number of rounds taken. A cluster without members
        keeps its start.
    """
    grid = pixel_distances(spaces.height, spaces.width)
    k, m = start.shape[:2]
    uniform = jnp.full(m, 1 / m, start.dtype)
    totals = jax.ops.segment_sum(member_weights, labels, k)
    shares = member_weights / jnp.where(totals > 0, totals, 1)[labels]

    def update(centers: Array) -> Array:
        def one(space: tuple[Array, Array, Array]) -> Array:
            weights, factor, label = space
            plan = solver(grid, factor, weights, centers[label], uniform).couplings
            return (plan @ grid) @ plan.T * factor

        parts = map_chunks(one, (spaces.weights, spaces.factors, labels), chunk)
        new = jax.ops.segment_sum(parts * shares[:, None, None], labels, k) * m**2
        return jnp.where((totals > 0)[:, None, None], new, centers)

    def advance(state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        centers, rounds, _ = state
        new = update(centers)
        return new, rounds + 1, jnp.abs(new - centers).max()

    def unfinished(state: tuple[Array, Array, Array]) -> Array:
        _, rounds, change = state
        return (rounds < max_rounds) & (change > tolerance)

    first = (start, jnp.int32(0), jnp.asarray(jnp.inf, start.dtype))
    found, rounds, _ = jax.lax.while_loop(unfinished, advance, first)
    return Centers(found, jnp.broadcast_to(uniform, (k, m))), rounds
