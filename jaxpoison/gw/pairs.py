"""Entropic Gromov-Wasserstein distances between all pairs of spaces.

Between quantised heatmaps, the problem is that of a heatmap and a centre, and
solved alike. Between whole heatmaps, a plan has as many entries as there are
pairs of pixels: its products with both sides' distances are products with the
grid's, and Sinkhorn's scaling, started where the linearisation before ended,
takes the place of Newton's method.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxpoison._precision import in_full_precision
from jaxpoison._progress import Bar
from jaxpoison.gw.distances import moments
from jaxpoison.gw.placement import on_host
from jaxpoison.gw.products import QuadrantSpaces, laid_out, quadrant_product
from jaxpoison.gw.sinkhorn import scaled_to_marginals
from jaxpoison.gw.solver import COARSE, EntropicGW, measure, solve
from jaxpoison.gw.spaces import SmallSpaces, Spaces
from jaxpoison.gw.steps import Problems
from jaxpoison.parallel import bucket, mesh_of, over_devices, shardings_on

# Pairs of one call on each device: of quantised heatmaps, of heatmaps; and the fewest.
_SMALL_BLOCK, _WHOLE_BLOCK = 1 << 15, 1 << 6
_LEAST_SMALL, _LEAST_WHOLE = 1 << 10, 1 << 3
# Pairs whose plans are in memory at once on each device, the latter on CPUs and elsewhere.
_SMALL_GROUP, _WHOLE_GROUP, _WHOLE_GROUP_ELSEWHERE = 4096, 1, 32


@dataclass(frozen=True, eq=False)
class PairDistances:
    """Distances between pairs of spaces.

    Attributes:
        values: The distances; squared ones, as POT's ``gw_dist``.
        information: Divergence of every coupling from the product of its
            marginals, in nats.
        converged: Whether the solver's iteration ended within its tolerance.

    Examples:
        >>> spaces = jp.quantised(jp.measure_spaces(heatmaps), 10)
        >>> found = jp.pair_distances(spaces, np.array([[0, 1], [0, 2]]))
        >>> found.values.shape, found.converged.dtype
        ((2,), dtype('bool'))
    """

    values: Float[np.ndarray, " k"]
    information: Float[np.ndarray, " k"]
    converged: Bool[np.ndarray, " k"]


def pair_distances(
    spaces: Spaces,
    pairs: Int[np.ndarray, "k 2"],
    solver: EntropicGW | None = None,
    *,
    progress: bool = False,
) -> PairDistances:
    """Distances between given pairs of spaces.

    Pairs are split over this process's devices, and worked on in blocks of few
    shapes; any number of pairs shares a few compilations.

    Args:
        spaces: Heatmaps, or quantised ones.
        pairs: Indices of both spaces of every pair.
        solver: How the problem is solved.
        progress: Show a progress bar.

    Raises:
        ValueError: ``pairs`` has another shape, or names a space that is not there.

    Examples:
        >>> spaces = jp.measure_spaces(heatmaps)
        >>> jp.pair_distances(spaces, np.array([[0, 1]])).values.shape
        (1,)
    """
    pairs = np.asarray(pairs)
    if pairs.ndim != 2 or pairs.shape[1] != 2 or not np.issubdtype(pairs.dtype, np.integer):
        raise ValueError(
            f"pairs must be integers of shape [k, 2], found {pairs.dtype} {pairs.shape}"
        )
    if pairs.size and not 0 <= pairs.min() <= pairs.max() < len(spaces):
        raise ValueError(
            f"pairs must be indices from 0 to {len(spaces) - 1}, found {pairs.min()} to "
            f"{pairs.max()}"
        )
    solver = EntropicGW() if solver is None else solver
    small = isinstance(spaces, SmallSpaces)
    devices = len(jax.local_devices())
    most = (_SMALL_BLOCK if small else _WHOLE_BLOCK) * devices
    least = _LEAST_SMALL if small else _LEAST_WHOLE
    block = bucket(len(pairs), devices, least=least, most=most)
    if len(pairs):
        # Rows beyond the last are in no pair.
        spaces = on_host(spaces).take(np.resize(np.arange(len(spaces)), bucket(len(spaces), 1)))
        spaces = jax.device_put(spaces, shardings_on(mesh_of())[0])
    parts: list[_Found] = []
    with Bar("GW distances", len(pairs), unit="pairs", show=progress) as bar:
        for first in range(0, len(pairs), block):
            part = pairs[first : first + block]
            padded = np.concatenate([part, np.zeros((block - len(part), 2), part.dtype)])
            # Neighbouring pairs are often equally hard: they are dealt out like cards.
            dealt = np.arange(block).reshape(-1, devices).T.ravel()
            found = (_small_pairs if small else _whole_pairs)(
                spaces, padded[dealt].astype(np.int32), dealt < len(part), solver
            )
            back = np.argsort(dealt)[: len(part)]
            parts.append(jax.tree.map(lambda x, back=back: np.asarray(x)[back], found))
            bar.advance(len(part))
    if not parts:
        none = np.zeros(0, np.float32)
        return PairDistances(none, none, none.astype(bool))
    return PairDistances(
        np.concatenate([part.values for part in parts]),
        np.concatenate([part.information for part in parts]),
        np.concatenate([part.converged for part in parts]),
    )


def all_distances(
    spaces: Spaces, solver: EntropicGW | None = None, *, progress: bool = False
) -> Float[np.ndarray, "n n"]:
    """The symmetric matrix of the distances between all spaces.

    With entropy, a space's distance from itself is not 0; it is computed like
    any other. Where the iteration does not converge, its last plan counts;
    :func:`pair_distances` says where.

    Args:
        spaces: Heatmaps, or quantised ones.
        solver: How the problem is solved.
        progress: Show a progress bar.

    Examples:
        >>> spaces = jp.quantised(jp.measure_spaces(heatmaps), 10)
        >>> distances = jp.all_distances(spaces)
        >>> distances.shape, bool((distances == distances.T).all())
        ((20, 20), True)
    """
    pairs = np.stack(np.triu_indices(len(spaces)), -1)
    values = pair_distances(spaces, pairs, solver, progress=progress).values
    matrix = np.zeros((len(spaces), len(spaces)), values.dtype)
    matrix[pairs[:, 0], pairs[:, 1]] = values
    matrix[pairs[:, 1], pairs[:, 0]] = values
    return matrix


def debiased_distances(
    spaces: Spaces, solver: EntropicGW | None = None, *, progress: bool = False
) -> Float[np.ndarray, "n n"]:
    """All distances less half of both sides' distances from themselves, at least 0.

    With entropy a space's distance from itself is not 0; as for Sinkhorn
    divergences (Genevay, Peyré, Cuturi 2018), it is taken off.

    Args:
        spaces: Heatmaps, or quantised ones.
        solver: How the problem is solved.
        progress: Show a progress bar.

    Examples:
        >>> spaces = jp.quantised(jp.measure_spaces(heatmaps), 10)
        >>> distances = jp.debiased_distances(spaces, jp.EntropicGW(epsilon=0.005))
        >>> float(np.abs(distances.diagonal()).max())  # from itself; the plain ones are above 0
        0.0
    """
    found = all_distances(spaces, solver, progress=progress).astype(np.float64)
    own = np.diag(found)
    debiased = np.maximum(found - (own[:, None] + own) / 2, 0)
    np.fill_diagonal(debiased, 0)
    return debiased


def distances_between(
    spaces: Spaces,
    rows: Int[np.ndarray, " a"],
    columns: Int[np.ndarray, " b"],
    solver: EntropicGW | None = None,
    *,
    progress: bool = False,
) -> Float[np.ndarray, "a b"]:
    """Roots of debiased distances between some spaces and others.

    Args:
        spaces: Heatmaps, or quantised ones.
        rows: Indices of some.
        columns: Indices of others, or of the same.
        solver: How the problem is solved.
        progress: Show a progress bar.
    """
    pairs = np.stack(np.meshgrid(rows, columns, indexing="ij"), -1).reshape(-1, 2)
    both = np.unique(np.concatenate([rows, columns]))
    own = np.zeros(len(spaces))
    own[both] = pair_distances(spaces, np.repeat(both[:, None], 2, 1), solver).values
    # The iteration may end elsewhere from the other side: always from the smaller index.
    values = pair_distances(spaces, np.sort(pairs, 1), solver, progress=progress).values
    debiased = np.maximum(values - own[pairs].sum(1) / 2, 0)
    return np.sqrt(np.where(pairs[:, 0] == pairs[:, 1], 0, debiased)).reshape(len(rows), -1)


class _Found(NamedTuple):
    values: Float[Array, " k"]
    information: Float[Array, " k"]
    converged: Bool[Array, " k"]


@jax.jit
@in_full_precision
def _small_pairs(
    spaces: SmallSpaces, pairs: Int[Array, "k 2"], real: Bool[Array, " k"], solver: EntropicGW
) -> _Found:
    def local(spaces: SmallSpaces, pairs: Array, real: Array) -> _Found:
        group = min(_SMALL_GROUP, len(pairs))

        def some(rows: tuple[Array, Array]) -> _Found:
            pairs, real = rows
            problems = Problems(spaces.take(pairs[:, 0]), spaces.take(pairs[:, 1]))
            # Those that are not real come last.
            plans = solve(problems, solver, real.sum())
            found = measure(problems, plans.couplings.plans, group)
            return _Found(found.values, found.information, plans.converged)

        missing = -len(pairs) % group
        rows = (jnp.pad(pairs, ((0, missing), (0, 0))), jnp.pad(real, (0, missing)))
        grouped = jax.tree.map(lambda x: x.reshape(-1, group, *x.shape[1:]), rows)
        found = jax.lax.map(some, grouped)
        return jax.tree.map(lambda x: x.reshape(-1)[: len(pairs)], found)

    return over_devices(local)(spaces, pairs, real)


@jax.jit
@in_full_precision
def _whole_pairs(
    spaces: Spaces, pairs: Int[Array, "k 2"], real: Bool[Array, " k"], solver: EntropicGW
) -> _Found:
    def local(spaces: QuadrantSpaces, pairs: Array, real: Array) -> _Found:
        known = moments(spaces)

        def one(row: tuple[Array, Array]) -> _Found:
            pair, real = row
            most = jnp.where(real, solver.max_iterations, 0)
            found, seen = _whole_pair(spaces.take(pair[0]), spaces.take(pair[1]), most, solver)
            # Never negative; rounding may be.
            values = jnp.maximum(known.squares[pair].sum() - 2 * seen, 0)
            return found._replace(values=values)

        on_cpu = jax.default_backend() == "cpu"
        batch = _WHOLE_GROUP if on_cpu else _WHOLE_GROUP_ELSEWHERE
        return jax.lax.map(one, (pairs, real), batch_size=batch if batch > 1 else None)

    return over_devices(local)(laid_out(spaces), pairs, real)


class _Linearised(NamedTuple):
    """A linearisation that was solved.

    Attributes:
        plan: Its plan.
        potentials: In units of epsilon, of the first and of the second space's points.
        change: Of the plan from the one before.
        error: Of the plan's marginals.
        seen: The plan's product with both spaces' distances, ``<C T D, T>``.
        taken: Linearisations so far.
    """

    plan: Float[Array, "p p"]
    potentials: tuple[Float[Array, " p"], Float[Array, " p"]]
    change: Float[Array, ""]
    error: Float[Array, ""]
    seen: Float[Array, ""]
    taken: Int[Array, ""]


def _whole_pair(
    first: QuadrantSpaces, second: QuadrantSpaces, most: Array, solver: EntropicGW
) -> tuple[_Found, Float[Array, ""]]:
    """Couples two heatmaps; gives what is found without the distance, and ``<C T D, T>``."""
    p, q = first.weights, second.weights
    size = (first.height, first.width)
    scale = first.factors * second.factors
    # The kernel's exponent is known to this relative error.
    largest = (first.height**2 + first.width**2) * scale
    tolerance = jnp.maximum(solver.tolerance, 2.4e-7 * largest / solver.epsilon)

    def linearised(plan: Array, moved: Array, before: _Linearised) -> _Linearised:
        new, potentials, error = scaled_to_marginals(
            4 / solver.epsilon * moved, p, q, before.potentials, tolerance, before.change
        )
        # To second order in the change, without a product of the new plan.
        seen = 2 * (moved * new).sum() - (moved * plan).sum()
        change = jnp.abs(new - plan).sum()
        return _Linearised(new, potentials, change, error, seen, before.taken + 1)

    def advance(state: _Linearised) -> _Linearised:
        moved = quadrant_product(quadrant_product(state.plan, *size), *size, axis=-2) * scale
        return linearised(state.plan, moved, state)

    def unfinished(state: _Linearised) -> Array:
        far = (state.change > tolerance) | (state.error > tolerance)
        return far & (state.taken < most)

    zero = jnp.zeros((), p.dtype)
    nothing = _Linearised(
        jnp.zeros((), p.dtype),
        (jnp.zeros_like(p), jnp.zeros_like(q)),
        zero + 1,
        zero,
        zero,
        jnp.int32(0),
    )
    # The first linearisation is at a product, whose product with distances is one too.
    moved = quadrant_product(p, *size)[:, None] * quadrant_product(q, *size)[None] * scale
    product = p[:, None] * q[None]
    found = jax.lax.while_loop(unfinished, advance, linearised(product, moved, nothing))
    held = (found.plan > 0) & (product > 0)
    ratio = jnp.log(jnp.where(held, found.plan / jnp.where(held, product, 1), 1))
    information = jnp.maximum((found.plan * ratio).sum(), 0)
    resolved = tolerance <= jnp.maximum(solver.tolerance, COARSE)
    converged = (found.change <= tolerance) & (found.error <= tolerance) & resolved
    return _Found(zero, information, converged), found.seen
