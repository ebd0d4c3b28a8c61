"""Entropic Gromov-Wasserstein distances of heatmaps to small centres."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float, PyTree

from jaxpoison._precision import in_full_precision
from jaxpoison.gw.placement import Placed, on_host, place
from jaxpoison.gw.products import LaidOut, distance_product, laid_out
from jaxpoison.gw.solver import Couplings, EntropicGW, measure, solve, starting_from
from jaxpoison.gw.spaces import SmallSpaces, Spaces
from jaxpoison.gw.steps import Problems, product_plans
from jaxpoison.parallel import BATCH, bucket, mesh_of, padded

# Plans of so many heatmaps, or of so many bytes, are worked on at once on each device.
_GROUP = 1024
_GROUP_BYTES = 1 << 26
# What plans that are kept from one step of a clustering to the next take on all devices.
_KEPT_BYTES = 1 << 28


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Distances:
    """Distances of heatmaps to centres, and what stands behind them.

    Attributes:
        values: The distances; squared ones, as POT's ``gw_dist``.
        information: Divergence of every coupling from the product of its
            marginals, in nats; 0 where it says nothing.
        converged: Whether the solver's iteration ended within its tolerance.
        product: Where the coupling is the product of its marginals by
            certificate: the next plan would differ from it by less than the
            solver's tolerance.

    Examples:
        >>> spaces = jp.measure_spaces(heatmaps)
        >>> centers = jp.quantised(spaces, 10).take(np.array([0, 1]))
        >>> found = jp.distances_to_centers(spaces, centers)
        >>> found.values.shape, found.converged.shape
        ((20, 2), (20, 2))
    """

    values: Float[Array, "n k"]
    information: Float[Array, "n k"]
    converged: Bool[Array, "n k"]
    product: Bool[Array, "n k"]


class Moments(NamedTuple):
    """What the product coupling needs to know of every heatmap, with distances C and mass p.

    Attributes:
        mean: Mean distance of two points, ``p C p``.
        squares: Mean squared distance.
        spread: Standard deviation of a point's mean distance, ``C p``.
    """

    mean: Float[Array, " n"]
    squares: Float[Array, " n"]
    spread: Float[Array, " n"]


def mean_distances(spaces: Spaces) -> Float[np.ndarray, " n"]:
    """The mean distance of two points of every space, by their mass, in float64.

    Args:
        spaces: Heatmaps, or quantised ones.

    Examples:
        >>> jp.mean_distances(jp.measure_spaces(heatmaps)).shape
        (20,)
    """
    placed = place(spaces)
    return placed.of_spaces(_mean_distances(placed.spaces)).astype(np.float64)


@jax.jit
def _mean_distances(spaces: LaidOut) -> Float[Array, " n"]:
    def local(spaces: LaidOut) -> Array:
        return jax.lax.all_gather(moments(spaces).mean, BATCH, tiled=True)

    return jax.shard_map(
        local, mesh=mesh_of(jax.devices()), in_specs=P(BATCH), out_specs=P(), check_vma=False
    )(spaces)


@in_full_precision
def moments(spaces: Spaces | LaidOut) -> Moments:
    """Moments of the distances of every space."""
    spaces = laid_out(spaces)
    p = jnp.asarray(spaces.weights)
    each = distance_product(spaces, p[:, None])[:, 0]
    mean = (p * each).sum(-1)
    squares = (p * distance_product(spaces, p[:, None], 2)[:, 0]).sum(-1)
    return Moments(mean, squares, jnp.sqrt((p * (each - mean[:, None]) ** 2).sum(-1)))


def center_spread(distances: Float[Array, "m m"], weights: Float[Array, " m"]) -> Float[Array, ""]:
    """Standard deviation of a centre's points' mean distances."""
    each = distances @ weights
    return jnp.sqrt((weights * (each - weights @ each) ** 2).sum())


def product_change(
    heatmap_spread: Float[Array, ...], centre_spread: Float[Array, ...], epsilon: float
) -> Float[Array, ...]:
    r"""How far one iteration from the product of the marginals leads.

    To first order the next plan is
    :math:`p_i q_j (1 + \frac4\epsilon (Cp - \bar{Cp})_i (\bar C q - \dots)_j)`;
    by Cauchy and Schwarz its distance from the product (sum of magnitudes) is
    at most the product of the spreads times :math:`4 / \epsilon`.
    """
    return 4 / epsilon * heatmap_spread * centre_spread


def distances_to_centers(
    spaces: Spaces,
    centers: SmallSpaces,
    solver: EntropicGW | None = None,
) -> Distances:
    """Distances of all heatmaps, or other spaces, to all centres.

    Where the product of the marginals is certified to be the answer of the
    iteration (that of POT, which starts there), the closed form
    ``E[C^2] - 2 E[C] q D q + q D^2 q`` is taken. Heatmaps are split over all
    devices of all processes, each of which gets the whole result; the memory
    is bounded, and any number of heatmaps shares a few compilations.

    Args:
        spaces: Heatmaps.
        centers: Centres.
        solver: How the problem is solved.

    Raises:
        ValueError: There are no spaces.

    Examples:
        >>> spaces = jp.measure_spaces(heatmaps)
        >>> centers = jp.quantised(spaces, 10).take(np.array([0, 1]))
        >>> jp.distances_to_centers(spaces, centers, jp.EntropicGW(epsilon=0.05)).values.shape
        (20, 2)
    """
    return distances_of_placed(place(spaces), centers, EntropicGW() if solver is None else solver)


def distances_of_placed(placed: Placed, centers: SmallSpaces, solver: EntropicGW) -> Distances:
    """As :func:`distances_to_centers`, of spaces that are on the devices already."""
    centers = jax.device_put(on_host(centers), placed.everywhere)
    found, _ = _distances(placed.spaces, placed.real, centers, solver, False)
    return jax.tree.map(placed.of_spaces, found)


def nearest_couplings(
    spaces: LaidOut, centers: SmallSpaces, solver: EntropicGW, real: Bool[Array, " n"]
) -> tuple[Distances, Couplings]:
    """Distances of all rows to all centres, and couplings with the nearest ones.

    Args:
        spaces: Rows on all devices.
        centers: Centres.
        solver: How the problem is solved.
        real: Which rows hold a space. On every device they come first; others cost nothing,
            and what they get means nothing.

    Returns:
        The distances, and the couplings of each device's first rows, of as many as
        :func:`kept_rows` says; barycentres can start from them. They stay on the devices.
    """
    found, couplings = _distances(spaces, real, centers, solver, True)
    if couplings is None:
        raise RuntimeError("couplings were asked for, and are missing")
    return found, couplings


def kept_rows(rows: int, center_points: int, points: int) -> int:
    """How many rows of each device keep their plan from one step of a clustering to the next.

    On all devices together as many as 256 MiB hold: 6,553 heatmaps of 32x32 pixels, 1,638 of
    64x64, with centres of ten points. Those beyond start from products in every round, which
    takes longer and needs no memory. They are the same on any number of devices.

    Args:
        rows: Rows on a device.
        center_points: Points of a centre.
        points: Points of a space.
    """
    fitting = max(1, _KEPT_BYTES // (4 * center_points * points))
    return min(rows, -(-fitting // jax.device_count()))


def group_rows(center_points: int, points: int) -> int:
    """How many rows are worked on at once on each device."""
    return max(1, min(_GROUP, _GROUP_BYTES // (4 * center_points * points)))


def perturbation_gain(
    spaces: Spaces, centers: SmallSpaces, solver: EntropicGW, key: Array
) -> Float[Array, " n"]:
    """By how much another start of the iteration leads to better couplings.

    The product of the marginals is a fixed point for every centre whose points
    all have the same mean distance, whether or not it is a minimum: the
    certificate speaks of the iteration that starts there. Here the iteration
    also starts elsewhere: with a random point of the space and one of the centre
    laid upon each other, and all points coupled in the order of their distances
    from these two.

    Args:
        spaces: Heatmaps, or quantised ones.
        centers: As many centres, one for each.
        solver: How the problem is solved.
        key: Random key.

    Returns:
        How much lower the entropic objective (distance plus epsilon times the
        information) ends, as a share of it; negative where it ends higher.
    """
    n = len(spaces)
    size = bucket(n, 1)
    rows = [jax.tree.map(lambda x: padded(x, size), on_host(s)) for s in (spaces, centers)]
    return _perturbation_gain(rows[0], rows[1], solver, key)[:n]


@jax.jit
@in_full_precision
def _perturbation_gain(
    spaces: Spaces, centers: SmallSpaces, solver: EntropicGW, key: Array
) -> Float[Array, " n"]:
    problems = Problems(laid_out(spaces), centers)
    n, m = jnp.shape(centers.weights)
    p, q = jnp.asarray(problems.spaces.weights), jnp.asarray(centers.weights)
    of_space, of_center = jax.random.split(key)
    anchors = jax.nn.one_hot(jax.random.categorical(of_space, jnp.log(p)), p.shape[1])
    points = jax.random.randint(of_center, (n,), 0, m)
    below, above = _ranked(distance_product(problems.spaces, anchors[:, None])[:, 0], p)
    lower, upper = _ranked(jnp.asarray(centers.distances)[jnp.arange(n), points], q)
    # Mass goes where the two intervals of mass overlap.
    shared = jnp.minimum(above[:, None], upper[..., None])
    ordered = jnp.maximum(shared - jnp.maximum(below[:, None], lower[..., None]), 0)

    # Both starts in one go: the solver is compiled once.
    both = problems.take(jnp.tile(jnp.arange(n), 2))
    starts = starting_from(jnp.concatenate([product_plans(problems), ordered]))
    plans = solve(both, solver, 2 * n, starts).couplings.plans
    found = measure(both, plans, solver.width(p.shape[1]))
    usual, other = jnp.split(found.values + solver.epsilon * found.information, 2)
    return 1 - other / usual


def _ranked(
    keys: Float[Array, "n p"], masses: Float[Array, "n p"]
) -> tuple[Float[Array, "n p"], Float[Array, "n p"]]:
    """Where each point's mass begins and ends when points are lined up by their keys."""
    order = jnp.argsort(keys, axis=-1)
    ends = jnp.cumsum(jnp.take_along_axis(masses, order, -1), -1)
    ends = jnp.take_along_axis(ends, jnp.argsort(order, axis=-1), -1)
    return ends - masses, ends


@partial(jax.jit, static_argnames="coupled")
@in_full_precision
def _distances(
    spaces: LaidOut, real: Any, centers: SmallSpaces, solver: EntropicGW, coupled: bool
) -> tuple[Distances, Couplings | None]:
    def local(
        spaces: LaidOut, real: Array, centers: SmallSpaces
    ) -> tuple[Distances, Couplings | None]:
        found, couplings = local_distances(spaces, real, centers, solver, coupled)
        return jax.lax.all_gather(found, BATCH, tiled=True), couplings

    return jax.shard_map(
        local,
        mesh=mesh_of(jax.devices()),
        in_specs=(P(BATCH), P(BATCH), P()),
        out_specs=(P(), P(BATCH)),
        check_vma=False,
    )(spaces, real, centers)


def local_distances(
    spaces: LaidOut,
    real: Bool[Array, " n"],
    centers: SmallSpaces,
    solver: EntropicGW,
    coupled: bool,
) -> tuple[Distances, Couplings | None]:
    """Distances of this device's rows; those that are not real come last and cost nothing.

    With ``coupled``, couplings with the nearest centres come too.
    """
    known = moments(spaces)
    distances, masses = jnp.asarray(centers.distances), jnp.asarray(centers.weights)
    spreads = jax.vmap(center_spread)(distances, masses)
    change = product_change(known.spread[:, None], spreads[None], solver.epsilon)
    rows = (spaces, known, change <= solver.tolerance)
    n, keep = len(real), 0
    points = masses.shape[1], spaces.weights.shape[1]
    size = group_rows(*points)
    parts, couplings = [], None
    if coupled:
        keep = kept_rows(n, *points)
        function = partial(_group, distances, masses, solver, True)
        some, couplings = in_groups(function, _rows(rows, 0, keep), real[:keep], size)
        parts.append(some)
    if keep < n:
        function = partial(_group, distances, masses, solver, False)
        rest, _ = in_groups(function, _rows(rows, keep, n), real[keep:], size)
        parts.append(rest)
    return jax.tree.map(lambda *x: jnp.concatenate(x), *parts), couplings


def _rows(arrays: PyTree, start: int, end: int) -> PyTree:
    return jax.tree.map(lambda x: x[start:end], arrays)


def _group(
    distances: Float[Array, "k m m"],
    masses: Float[Array, "k m"],
    solver: EntropicGW,
    coupled: bool,
    spaces: LaidOut,
    known: Moments,
    product: Bool[Array, "g k"],
    count: Array,
) -> tuple[Distances, Couplings | None]:
    """Distances of a group of rows to all centres, one centre after the other."""
    size = len(spaces)
    weights = jnp.asarray(spaces.weights)

    def closed(center: Array, q: Array) -> tuple[Array, Array, Array, Couplings | None]:
        of_center = q @ center @ q
        # Never negative; rounding may be.
        values = jnp.maximum(known.squares - 2 * known.mean * of_center + q @ center**2 @ q, 0)
        kept = starting_from(q[None, :, None] * weights[:, None, :]) if coupled else None
        return values, jnp.zeros(size, weights.dtype), jnp.ones(size, bool), kept

    def iterated(center: Array, q: Array) -> tuple[Array, Array, Array, Couplings | None]:
        same = SmallSpaces(
            jnp.broadcast_to(center, (size, *center.shape)), jnp.broadcast_to(q, (size, *q.shape))
        )
        problems = Problems(spaces, same)
        solved = solve(problems, solver, count)
        found = measure(problems, solved.couplings.plans, solver.width(weights.shape[1]))
        kept = solved.couplings if coupled else None
        return found.values, found.information, solved.converged, kept

    def one(nearest: Any, center: tuple[Array, Array, Array]) -> tuple[Any, Distances]:
        distances, q, product = center
        all_products = (product | (jnp.arange(size) >= count)).all()
        values, information, converged, couplings = jax.lax.cond(
            all_products, closed, iterated, distances, q
        )
        if coupled:
            least, kept = nearest
            nearer = values < least
            kept = Couplings(
                jnp.where(nearer[:, None, None], couplings.plans, kept.plans),
                jnp.where(nearer[:, None], couplings.potentials, kept.potentials),
            )
            nearest = jnp.where(nearer, values, least), kept
        return nearest, Distances(values, information, converged, product)

    none = None
    if coupled:
        shape = (size, masses.shape[-1], weights.shape[-1])
        nothing = starting_from(jnp.zeros(shape, weights.dtype))
        none = jnp.full(size, jnp.inf, weights.dtype), nothing
    nearest, by_center = jax.lax.scan(one, none, (distances, masses, product.T))
    found = jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1), by_center)
    return found, nearest[1] if coupled else None


def in_groups(
    function: Callable[..., PyTree],
    arrays: tuple[PyTree, ...],
    real: Bool[Array, " n"],
    size: int,
) -> PyTree:
    """Applies a function to groups of rows, one after the other.

    Groups without a real row cost nothing, and give zeros. Devices wait for each
    other after every group: XLA takes a device that comes to a collective
    operation a minute after the others for dead.

    Args:
        function: Takes the arrays' rows of one group and the number of those
            that are real.
        arrays: Pytrees of arrays with one row per heatmap.
        real: Which rows are. They are counted only: where they do not come first, the
            function brings them to the front of their group. What it gives for a group without
            any is lost.
        size: Rows of a group.
    """
    n = len(real)
    size = min(size, n)
    missing = -n % size

    def grouped(x: Array) -> Array:
        x = jnp.pad(x, ((0, missing), *((0, 0) for _ in x.shape[1:])))
        return x.reshape(-1, size, *x.shape[1:])

    counts = grouped(real.astype(jnp.int32)).sum(1)
    groups = (*jax.tree.map(grouped, arrays), counts)
    result = jax.eval_shape(function, *jax.tree.map(lambda x: x[0], groups))

    def nothing(*_: PyTree) -> PyTree:
        return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), result)

    def one(arrived: Array, group: tuple[PyTree, ...]) -> tuple[Array, PyTree]:
        found = jax.lax.cond(group[-1] > 0, function, nothing, *group)
        # Depends on the result, so that it is not sent before; never negative.
        ready = jnp.isnan(jax.tree.leaves(found)[0]).any().astype(jnp.int32)
        return arrived + jax.lax.psum(ready, BATCH), found

    arrived, found = jax.lax.scan(one, jnp.int32(0), groups)
    return jax.tree.map(
        lambda x: jnp.where(arrived >= 0, x.reshape(-1, *x.shape[2:])[:n], jnp.zeros((), x.dtype)),
        found,
    )
