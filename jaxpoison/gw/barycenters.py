"""Entropic Gromov-Wasserstein barycentres of many heatmaps at once."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float, Int

from jaxpoison._precision import in_full_precision
from jaxpoison.gw.distances import (
    center_spread,
    group_rows,
    in_groups,
    kept_rows,
    moments,
    product_change,
)
from jaxpoison.gw.placement import place
from jaxpoison.gw.products import LaidOut, distance_product
from jaxpoison.gw.solver import Couplings, EntropicGW, product_couplings, solve
from jaxpoison.gw.spaces import SmallSpaces, Spaces
from jaxpoison.gw.steps import Problems
from jaxpoison.parallel import BATCH, mesh_of

# With plans this near to products (sum of magnitudes of the difference), linearisations that
# lead back to products, and rounds that shrink what remains of a centre, both by this factor or
# more, all further rounds lead to a constant.
_NEAR = 0.05
_SHRINKS = 0.5
# Change of a coupling that ends its iteration, in units of the centres' tolerance: 1e-4
# by default, as in POT's barycentres; POT takes the root of the sum of squares, which is
# less than the sum of magnitudes. While centres move far, couplings need not be more
# exact than a share of their move; in the first round, of a move of 0.1.
_COUPLED = 5.0
_INEXACT_SHARE = 0.1
_FIRST_MOVE = 0.1
# Centres that a round moves by less are extrapolated, by at most so many times what it changed.
_STEADY = 0.01
_FARTHEST = 5.0
# Rounds that centres are given to settle in.
ROUNDS = 20


def barycenters(
    spaces: Spaces,
    labels: Int[Array | np.ndarray, " n"],
    member_weights: Float[Array, " n"],
    start: Float[Array | np.ndarray, "k m m"],
    solver: EntropicGW,
    *,
    tolerance: float = 2e-5,
    max_rounds: int = ROUNDS,
) -> tuple[SmallSpaces, Int[Array, ""]]:
    """Barycentres of clusters: points of equal weight, distances by fixed point.

    One round couples every heatmap with its own cluster's centre and sets
    ``C <- sum_s lambda_s T_s C_s T_s^T / (q q^T)`` (Peyre, Cuturi, Solomon
    2016, eq. 14, for the square loss). Couplings start from those of the round
    before, and the first from products; while centres move far, they are solved
    only as exactly as that. Centres that hardly move any more are extrapolated from the last
    two rounds (Anderson 1965, with one vector), since what remains may shrink by only a
    tenth in a round. Where further rounds are certain to end
    in a constant centre, as at a large epsilon, that constant is given at once:
    near it, a round multiplies the differences between points by
    ``4 / epsilon * mean Var_p(C p)``, to first order in them, and a linearisation
    what a coupling differs from a product by, by at most ``4 / epsilon`` times the standard
    deviations of a heatmap's and a centre's distances. Heatmaps are split
    over all devices.

    Args:
        spaces: Heatmaps.
        labels: Cluster of every heatmap.
        member_weights: Weight of every heatmap inside its cluster; 0 leaves it
            out. They need not sum to 1.
        start: Distances of the centres to start from.
        solver: How couplings are found.
        tolerance: Largest change of an entry that ends the rounds; five times that ends
            the iteration of a coupling, whatever less the solver asks.
        max_rounds: Most rounds.

    Returns:
        The centres, and the number of rounds taken; fewer than ``max_rounds`` where all
        entries came to rest. A cluster without members
        keeps its start.

    Examples:
        >>> spaces = jp.quantised(jp.measure_spaces(heatmaps), 10)
        >>> clusters = jax.numpy.zeros(20, int)
        >>> start = spaces.distances[:1]
        >>> centers, rounds = jp.barycenters(
        ...     spaces, clusters, jax.numpy.full(20, 1 / 20), start, jp.EntropicGW()
        ... )
        >>> centers.distances.shape
        (1, 10, 10)
    """
    placed = place(spaces)
    return barycenters_of_rows(
        placed.spaces,
        placed.of_rows(np.asarray(labels, np.int32)),
        placed.of_rows(np.asarray(member_weights)),
        None,
        jax.device_put(np.asarray(start), placed.everywhere),
        solver,
        tolerance,
        max_rounds,
    )


@jax.jit
@in_full_precision
def barycenters_of_rows(
    spaces: LaidOut,
    labels: Array,
    member_weights: Array,
    couplings: Couplings | None,
    start: Array,
    solver: EntropicGW,
    tolerance: float = 2e-5,
    max_rounds: int = ROUNDS,
) -> tuple[SmallSpaces, Array]:
    """As :func:`barycenters`, of rows that are on the devices already.

    Args:
        spaces: Rows.
        labels: Cluster of every row.
        member_weights: Weight of every row inside its cluster; 0 for those without a space.
        couplings: What couplings start from, made by
            :func:`~jaxpoison.gw.distances.nearest_couplings`; by default products.
        start: Distances of the centres to start from.
        solver: How couplings are found.
        tolerance: Largest change of an entry that ends the rounds.
        max_rounds: Most rounds.
    """

    def local(
        spaces: LaidOut,
        labels: Array,
        member_weights: Array,
        couplings: Couplings | None,
        start: Array,
    ) -> tuple[SmallSpaces, Array]:
        return local_barycenters(
            spaces, labels, member_weights, couplings, start, solver, tolerance, max_rounds
        )

    return jax.shard_map(
        local,
        mesh=mesh_of(jax.devices()),
        in_specs=(P(BATCH), P(BATCH), P(BATCH), P(BATCH), P()),
        out_specs=P(),
        check_vma=False,
    )(spaces, labels, member_weights, couplings, start)


class _Rounds(NamedTuple):
    """Barycentres on the way.

    Attributes:
        centers: Their distances.
        couplings: Every heatmap's with its own.
        taken: Rounds so far.
        moved: Largest change of an entry in the last one.
        settled: Which centres it left where they were, with exact couplings: they are done.
        image: What it made of the centres it began with.
        residual: How far that was from them; zero before the first round.
    """

    centers: Float[Array, "k m m"]
    couplings: Couplings
    taken: Int[Array, ""]
    moved: Float[Array, ""]
    settled: Bool[Array, " k"]
    image: Float[Array, "k m m"]
    residual: Float[Array, "k m m"]


def local_barycenters(
    spaces: LaidOut,
    labels: Int[Array, " n"],
    member_weights: Float[Array, " n"],
    couplings: Couplings | None,
    start: Float[Array, "k m m"],
    solver: EntropicGW,
    tolerance: float | Array,
    max_rounds: int | Array,
) -> tuple[SmallSpaces, Int[Array, ""]]:
    """Barycentres from this device's heatmaps and those of all others."""
    k, m = start.shape[:2]
    n = len(labels)
    uniform = jnp.full(m, 1 / m, start.dtype)
    # Rows beyond these start every round anew.
    keep = kept_rows(n, m, spaces.weights.shape[1])
    if couplings is None:
        masses = jnp.broadcast_to(uniform, (keep, m))
        unused = jnp.broadcast_to(start[:1], (keep, m, m))
        kept_spaces = jax.tree.map(lambda x: x[:keep], spaces)
        couplings = product_couplings(Problems(kept_spaces, SmallSpaces(unused, masses)))
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
    variance = jnp.maximum(known.squares - known.mean**2, 0)
    broadest = jnp.sqrt(jax.lax.pmax(variance.max(), BATCH))
    # Near a constant centre, rounds shrink its points' differences by this factor.
    contraction = 4 / solver.epsilon * mean_of(known.spread**2).max()

    exact = _COUPLED * jnp.asarray(tolerance)

    def closed(
        centers: Array,  # noqa: ARG001
        couplings: Couplings,
        coupled: Array,  # noqa: ARG001
        settled: Array,  # noqa: ARG001
    ) -> tuple[Array, Couplings]:
        """Under the product coupling all of a centre's points see the mean distance."""
        return jnp.broadcast_to(mean_of(known.mean)[:, None, None], (k, m, m)), couplings

    def iterated(
        centers: Array, couplings: Couplings, coupled: Array, settled: Array
    ) -> tuple[Array, Couplings]:
        def group(
            some: LaidOut,
            labels: Array,
            active: Array,
            couplings: Couplings | None,
            count: Array,
        ) -> tuple[Array, Couplings | None]:
            # Members of centres that are done come last, and cost nothing.
            order = jnp.argsort(~active)
            back = jnp.argsort(order)
            some, labels = some.take(order), labels[order]
            start = jax.tree.map(lambda x: x[order], couplings)
            masses = jnp.broadcast_to(uniform, (len(some), m))
            problems = Problems(some, SmallSpaces(centers[labels], masses))
            new = solve(problems, solver, count, start, coupled).couplings
            chunk = min(solver.width(some.weights.shape[1]), len(some))

            def add_seen(k: Array, seen: Array) -> Array:
                rows = k * chunk + jnp.arange(chunk)
                plans = new.plans[rows]
                parts = distance_product(some.take(rows), plans) @ plans.mT
                return seen.at[rows].set(parts, mode="drop")

            nothing = jnp.zeros((len(some), m, m), centers.dtype)
            seen = jax.lax.fori_loop(0, (count + chunk - 1) // chunk, add_seen, nothing)
            kept = None if couplings is None else jax.tree.map(lambda x: x[back], new)
            return seen[back], kept

        active = real & ~settled[labels]
        rows = (spaces, labels, active)
        kept, rest = (
            jax.tree.map(lambda x, r=r: x[r], rows) for r in (slice(keep), slice(keep, n))
        )
        size = group_rows(m, spaces.weights.shape[1])
        seen, couplings = in_groups(group, (*kept, couplings), kept[2], size)
        if keep < n:
            further, _ = in_groups(group, (*rest, None), rest[2], size)
            seen = jnp.concatenate([seen, further])
        return mean_of(seen) * m**2, couplings

    def advance(state: _Rounds) -> _Rounds:
        spreads = jax.vmap(center_spread, (0, None))(state.centers, uniform)
        change = product_change(widest, jnp.where(totals > 0, spreads, 0).max(), solver.epsilon)
        structure = jnp.where(totals > 0, state.centers.std((1, 2)), 0).max()
        # Products may be unstable where points see the same mean distance, as on a ring.
        stable = 4 / solver.epsilon * broadest * structure <= _SHRINKS
        small = (change <= solver.tolerance) | ((change <= _NEAR) & (contraction <= _SHRINKS))
        constant = stable & small
        coupled = jnp.maximum(exact, _INEXACT_SHARE * jnp.minimum(state.moved, _FIRST_MOVE))
        new, couplings = jax.lax.cond(
            constant, closed, iterated, state.centers, state.couplings, coupled, state.settled
        )
        moving = (totals > 0) & ~state.settled
        new = jnp.where(moving[:, None, None], new, state.centers)
        residual = new - state.centers
        moved = jnp.abs(residual).max()
        still = jnp.abs(residual).max((1, 2)) <= tolerance
        settled = state.settled | (still & (constant | (coupled <= exact)))
        last = constant | settled | (state.taken + 1 == max_rounds)
        beyond = _extrapolated(new, residual, state)
        following = jnp.where(last[:, None, None], new, beyond)
        return _Rounds(following, couplings, state.taken + 1, moved, settled, new, residual)

    def unfinished(state: _Rounds) -> Array:
        return (state.taken < max_rounds) & ~state.settled.all()

    far = jnp.asarray(jnp.inf, start.dtype)
    never, nothing = jnp.zeros(k, bool), jnp.zeros_like(start)
    first = _Rounds(start, couplings, jnp.int32(0), far, never, start, nothing)
    found = jax.lax.while_loop(unfinished, advance, first)
    return SmallSpaces(found.centers, jnp.broadcast_to(uniform, (k, m))), found.taken


def _extrapolated(
    image: Float[Array, "k m m"], residual: Float[Array, "k m m"], before: _Rounds
) -> Float[Array, "k m m"]:
    """Where the residual would be least if it went on changing as in the last round."""
    change = residual - before.residual
    size = (change**2).sum((1, 2))
    by = -(change * residual).sum((1, 2)) / jnp.where(size > 0, size, 1)
    steady = (jnp.abs(residual).max((1, 2)) < _STEADY) & (before.residual != 0).any((1, 2))
    by = jnp.where(steady, jnp.clip(by, -_FARTHEST, _FARTHEST), 0)
    return image + by[:, None, None] * (image - before.image)
