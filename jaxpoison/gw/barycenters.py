"""Entropic Gromov-Wasserstein barycentres of many heatmaps at once."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float, Int

from jaxpoison.gw.distances import center_spread, in_groups, moments, product_change
from jaxpoison.gw.products import LaidOut, distance_product, laid_out
from jaxpoison.gw.solver import EntropicGW, solve
from jaxpoison.gw.steps import Problems, product_plans
from jaxpoison.parallel import BATCH, mesh_for
from jaxpoison.spaces import SmallSpaces, Spaces

# With plans this near to products (sum of magnitudes of the difference), and rounds that
# shrink what remains by this factor or more, all further rounds lead to a constant.
_NEAR = 0.05
_SHRINKS = 0.5
# Change of a coupling that ends its iteration, in units of the centres' tolerance: 1e-4
# by default, as in POT's barycentres; POT takes the root of the sum of squares, which is
# less than the sum of magnitudes. While centres move far, couplings need not be more
# exact than a share of their move; in the first round, of a move of 0.1.
_COUPLED = 5.0
_INEXACT_SHARE = 0.1
_FIRST_MOVE = 0.1


def barycenters(
    spaces: Spaces,
    labels: Int[Array | np.ndarray, " n"],
    member_weights: Float[Array, " n"],
    start: Float[Array | np.ndarray, "k m m"],
    solver: EntropicGW,
    *,
    plans: Float[Array, "n m p"] | None = None,
    tolerance: float = 2e-5,
    max_rounds: int = 20,
) -> tuple[SmallSpaces, Int[Array, ""]]:
    """Barycentres of clusters: points of equal weight, distances by fixed point.

    One round couples every heatmap with its own cluster's centre and sets
    ``C <- sum_s lambda_s T_s C_s T_s^T / (q q^T)`` (Peyre, Cuturi, Solomon
    2016, eq. 14, for the square loss). Couplings start from those of the round
    before, and the first from ``plans``; while centres move far, they are solved
    only as exactly as that. Where further rounds are certain to end
    in a constant centre, as at a large epsilon, that constant is given at once:
    near it, a round multiplies the differences between points by
    ``4 / epsilon * mean Var_p(C p)``, to first order in them. Heatmaps are split
    over all devices.

    Args:
        spaces: Heatmaps.
        labels: Cluster of every heatmap.
        member_weights: Weight of every heatmap inside its cluster; 0 leaves it
            out. They need not sum to 1.
        start: Distances of the centres to start from.
        solver: How couplings are found.
        plans: Couplings to start from, made by
            :func:`~jaxpoison.gw.distances.nearest_couplings`; by default products.
        tolerance: Largest change of an entry that ends the rounds; five times that ends
            the iteration of a coupling, whatever less the solver asks.
        max_rounds: Most rounds.

    Returns:
        The centres, and the number of rounds taken. A cluster without members
        keeps its start.
    """
    return _barycenters(spaces, labels, member_weights, plans, start, solver, tolerance, max_rounds)


@partial(jax.jit, static_argnames="solver")
def _barycenters(
    spaces: Spaces,
    labels: Any,
    member_weights: Array,
    plans: Array | None,
    start: Any,
    solver: EntropicGW,
    tolerance: float,
    max_rounds: int,
) -> tuple[SmallSpaces, Array]:
    def local(
        spaces: LaidOut, labels: Array, member_weights: Array, plans: Array | None, start: Array
    ) -> tuple[SmallSpaces, Array]:
        return local_barycenters(
            spaces, labels, member_weights, plans, start, solver, tolerance, max_rounds
        )

    return jax.shard_map(
        local,
        mesh=mesh_for(len(spaces), jax.devices()),
        in_specs=(P(BATCH), P(BATCH), P(BATCH), P(BATCH), P()),
        out_specs=P(),
        check_vma=False,
    )(laid_out(spaces), labels, member_weights, plans, start)


class _Rounds(NamedTuple):
    """Barycentres on the way.

    Attributes:
        centers: Their distances.
        plans: Every heatmap's coupling with its own.
        taken: Rounds so far.
        moved: Largest change of an entry in the last one.
        settled: Whether that ends the rounds: it was small, with exact couplings.
    """

    centers: Float[Array, "k m m"]
    plans: Float[Array, "n m p"]
    taken: Int[Array, ""]
    moved: Float[Array, ""]
    settled: Bool[Array, ""]


def local_barycenters(
    spaces: LaidOut,
    labels: Int[Array, " n"],
    member_weights: Float[Array, " n"],
    plans: Float[Array, "n m p"] | None,
    start: Float[Array, "k m m"],
    solver: EntropicGW,
    tolerance: float | Array,
    max_rounds: int | Array,
) -> tuple[SmallSpaces, Int[Array, ""]]:
    """Barycentres from this device's heatmaps and those of all others."""
    k, m = start.shape[:2]
    uniform = jnp.full(m, 1 / m, start.dtype)
    totals = jax.lax.psum(jax.ops.segment_sum(member_weights, labels, k), BATCH)
    shares = member_weights / jnp.where(totals > 0, totals, 1)[labels]
    # Members without weight need no plan. Those at the end cost nothing.
    real = jnp.flip(jnp.cumsum(jnp.flip(member_weights)) > 0)

    def mean_of(parts: Array) -> Array:
        """The weighted mean of every cluster's members."""
        weighted = parts * shares.reshape(-1, *(1 for _ in parts.shape[1:]))
        return jax.lax.psum(jax.ops.segment_sum(weighted, labels, k), BATCH)

    known = moments(spaces)
    widest = jax.lax.pmax(known.spread.max(), BATCH)
    # Near a constant centre, rounds shrink its points' differences by this factor.
    contraction = 4 / solver.epsilon * mean_of(known.spread**2).max()

    exact = _COUPLED * jnp.asarray(tolerance)

    def closed(
        centers: Array,  # noqa: ARG001
        plans: Array,
        coupled: Array,  # noqa: ARG001
    ) -> tuple[Array, Array]:
        """Under the product coupling all of a centre's points see the mean distance."""
        return jnp.broadcast_to(mean_of(known.mean)[:, None, None], (k, m, m)), plans

    def iterated(centers: Array, plans: Array, coupled: Array) -> tuple[Array, Array]:
        def group(some: LaidOut, labels: Array, plans: Array, count: Array) -> tuple[Array, Array]:
            masses = jnp.broadcast_to(uniform, (len(some), m))
            problems = Problems(some, SmallSpaces(centers[labels], masses))
            new = solve(problems, solver, count, plans, coupled).plans

            def seen(row: tuple[LaidOut, Array]) -> Array:
                space, plan = jax.tree.map(lambda x: x[None], row)
                return (distance_product(space, plan) @ plan.mT)[0]

            chunk = min(solver.width(some.weights.shape[1]), len(new))
            return jax.lax.map(seen, (some, new), batch_size=chunk), new

        parts, plans = in_groups(group, (spaces, labels, plans), real)
        return mean_of(parts) * m**2, plans

    def advance(state: _Rounds) -> _Rounds:
        spreads = jax.vmap(center_spread, (0, None))(state.centers, uniform)
        change = product_change(widest, jnp.where(totals > 0, spreads, 0).max(), solver.epsilon)
        constant = (change <= solver.tolerance) | ((change <= _NEAR) & (contraction <= _SHRINKS))
        coupled = jnp.maximum(exact, _INEXACT_SHARE * jnp.minimum(state.moved, _FIRST_MOVE))
        new, plans = jax.lax.cond(constant, closed, iterated, state.centers, state.plans, coupled)
        new = jnp.where((totals > 0)[:, None, None], new, state.centers)
        moved = jnp.abs(new - state.centers).max()
        settled = (moved <= tolerance) & (constant | (coupled <= exact))
        return _Rounds(new, plans, state.taken + 1, moved, settled)

    def unfinished(state: _Rounds) -> Array:
        return (state.taken < max_rounds) & ~state.settled

    if plans is None:
        masses = jnp.broadcast_to(uniform, (len(labels), m))
        plans = product_plans(Problems(spaces, SmallSpaces(start[labels], masses)))
    far = jnp.asarray(jnp.inf, start.dtype)
    first = _Rounds(start, plans, jnp.int32(0), far, jnp.asarray(False))
    found = jax.lax.while_loop(unfinished, advance, first)
    return SmallSpaces(found.centers, jnp.broadcast_to(uniform, (k, m))), found.taken
