"""Entropic Gromov-Wasserstein couplings of many heatmaps with small centres.

The iteration is that of Peyre, Cuturi, Solomon 2016 (and of POT): linearise,
solve the entropic transport problem, until the plan stops changing. Epsilon is
in POT's convention: POT minimises the linearisation 2 (const - 2 C1 T C2) with
entropy epsilon; OTT-JAX halves the linearisation, so that its epsilon is half
of POT's.

Five things make it fast. Products with pixel distances are one matrix product
for all problems (:mod:`jaxpoison.gw.products`). A centre has few points, so
that the inner problem has few unknowns once its pixel potentials are
eliminated: Newton's method solves it in one or two steps where Sinkhorn's
scaling takes hundreds at small epsilon. Plans are extrapolated where their
moves shrink steadily. Problems pass through a fixed number of slots: one that
is solved gives its place to the next, so that shapes are static and solved
problems cost nothing. And where both sides have few points, arrays put problems
last (:mod:`jaxpoison.gw.layouts`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxpoison._checks import check_integer, check_positive
from jaxpoison.gw.products import distance_product
from jaxpoison.gw.steps import Arranged, Problems, arranged, product_plans, resolution, step

# Spaces of so many points count as small.
_FEW = 64
INEXACT = 0.02
# Where float32 cannot tell plans apart better than so, none counts as converged.
COARSE = 0.01
# Plans are extrapolated where they move by less than this, and by a share between these
# of their move before.
_STEADY = 0.003
_SHRINKING = (0.3, 0.98)

# The package's, and that of Schulth, Berghoff, Neu.
EPSILON, PAPER_EPSILON = 0.02, 0.1


@jax.tree_util.register_pytree_node_class
@dataclass(frozen=True)
class EntropicGW:
    """How the entropic Gromov-Wasserstein problem is solved.

    A pytree: solvers that differ in epsilon share one compilation.

    Attributes:
        epsilon: Entropic regularisation, in POT's convention. The default, unlike the
            paper's 0.1, lets couplings carry geometry (docs/clustering.md).
        tolerance: Change of a plan (sum of magnitudes; its mass is 1) between two
            linearisations, and error of its marginals, that end the iteration.
            Where float32 cannot resolve that, what it can; where that is more than 0.01,
            nothing counts as converged. Barycentres have a tolerance of their own.
        max_iterations: Most linearisations.
        slots: Problems that are worked on at once on each device. Memory grows with them.
            By default 16 on CPUs, whose caches hold as many plans, else 512; for spaces
            of few points 64 and 8192.

    Examples:
        >>> jp.EntropicGW(epsilon=0.05).epsilon
        0.05
    """

    epsilon: float = EPSILON
    tolerance: float = 1e-5
    max_iterations: int = 500
    slots: int | None = None

    def __post_init__(self) -> None:
        check_positive("epsilon", self.epsilon)
        check_positive("tolerance", self.tolerance)
        check_integer("max_iterations", self.max_iterations, at_least=3)
        if self.slots is not None:
            check_integer("slots", self.slots, at_least=1)

    def tree_flatten(self) -> tuple[tuple[Any, Any, Any], int | None]:
        """Numbers that may be traced, and what decides shapes."""
        return (self.epsilon, self.tolerance, self.max_iterations), self.slots

    @classmethod
    def tree_unflatten(cls, slots: int | None, traced: tuple[Any, Any, Any]) -> EntropicGW:
        """The other way round, without the checks, which take no tracers."""
        epsilon, tolerance, max_iterations = traced
        solver = object.__new__(cls)
        solver.__dict__.update(
            epsilon=epsilon, tolerance=tolerance, max_iterations=max_iterations, slots=slots
        )
        return solver

    def width(self, points: int) -> int:
        """The number of slots for spaces of so many points."""
        if self.slots is not None:
            return self.slots
        if jax.default_backend() == "cpu":
            return 16 if points > _FEW else 64
        return 512 if points > _FEW else 8192


class Couplings(NamedTuple):
    """Plans, and what the next ones can be found from sooner.

    Attributes:
        plans: The plans, the centre's points first.
        potentials: Of the centre's points, in units of epsilon.
    """

    plans: Float[Array, "n m p"]
    potentials: Float[Array, "n m"]


def product_couplings(problems: Problems) -> Couplings:
    """The products of the marginals: the usual start."""
    return starting_from(product_plans(problems))


def starting_from(plans: Float[Array, "n m p"]) -> Couplings:
    """Plans whose potentials are not known."""
    return Couplings(plans, jnp.zeros(plans.shape[:2], plans.dtype))


class Solutions(NamedTuple):
    """Solutions of problems.

    Attributes:
        couplings: Plans and potentials.
        iterations: Linearisations taken.
        converged: Whether the iteration ended within its tolerance.
    """

    couplings: Couplings
    iterations: Int[Array, " n"]
    converged: Bool[Array, " n"]


class _Lanes(NamedTuple):
    """How far problems are.

    Attributes:
        plan: That of the last linearisation that was solved, or beyond: where the next
            linearisation is made.
        change: How far the last linearisation moved it; 0 where that says nothing.
        potential: Of the centre's points, in units of epsilon.
        taken: Linearisations solved.
        tried: Steps made.
        settled: Whether the plan has stopped changing.
    """

    plan: Float[Array, "b m p"]
    change: Float[Array, " b"]
    potential: Float[Array, "b m"]
    taken: Int[Array, " b"]
    tried: Int[Array, " b"]
    settled: Bool[Array, " b"]


class _Slots(NamedTuple):
    """Problems in progress.

    Attributes:
        problem: Which problem; as many as there are problems, if none.
        lanes: How far they are.
        following: The next problem that waits.
    """

    problem: Int[Array, " b"]
    lanes: _Lanes
    following: Int[Array, ""]


def solve(
    problems: Problems,
    solver: EntropicGW,
    count: Int[Array, ""] | int,
    start: Couplings | None = None,
    tolerance: Float[Array, ""] | None = None,
) -> Solutions:
    """Solves the first ``count`` problems; the others keep their start.

    Args:
        problems: What to couple.
        solver: How.
        count: How many problems there are; the rest is padding.
        start: What to start from; by default the products of the marginals.
        tolerance: In place of the solver's, where it is larger.
    """
    asked = jnp.asarray(solver.tolerance)
    if tolerance is not None:
        asked = jnp.maximum(asked, tolerance)
    n, pixels = problems.spaces.weights.shape
    size = min(solver.width(pixels), n)

    def load(index: Array) -> Couplings:
        index = jnp.minimum(index, n - 1)
        if start is not None:
            return Couplings(start.plans[index], start.potentials[index])
        return product_couplings(problems.take(index))

    def advance(state: tuple[_Slots, Solutions]) -> tuple[_Slots, Solutions]:
        slots, found = state
        here = problems.take(jnp.minimum(slots.problem, n - 1))
        tolerance = jnp.maximum(asked, resolution(here, solver.epsilon))
        resolved = tolerance <= jnp.maximum(asked, COARSE)
        plan, change, potential, taken, tried, settled = _steps(
            arranged(here, solver.epsilon), slots.lanes, tolerance, solver
        )
        busy = slots.problem < n
        done = busy & (settled | _spent(taken, tried, solver))
        into = jnp.where(done, slots.problem, n)
        plans, potentials = found.couplings
        found = Solutions(
            Couplings(
                plans.at[into].set(plan, mode="drop"),
                potentials.at[into].set(potential, mode="drop"),
            ),
            found.iterations.at[into].set(taken, mode="drop"),
            found.converged.at[into].set(settled & resolved, mode="drop"),
        )
        candidates = slots.following + jnp.cumsum(done, dtype=jnp.int32) - 1
        index = jnp.where(done, jnp.where(candidates < count, candidates, n), slots.problem)
        new = load(index)
        lanes = _Lanes(
            jnp.where(done[:, None, None], new.plans, plan),
            jnp.where(done, 0, change),
            jnp.where(done[:, None], new.potentials, potential),
            jnp.where(done, 0, taken),
            jnp.where(done, 0, tried),
            settled & ~done,
        )
        return _Slots(index, lanes, slots.following + done.sum(dtype=jnp.int32)), found

    def unfinished(state: tuple[_Slots, Solutions]) -> Array:
        return (state[0].problem < n).any()

    leading = jnp.arange(size)
    index = jnp.where(leading < count, leading, n)
    zeros = jnp.zeros(size, jnp.int32)
    begun = load(index)
    unknown = jnp.zeros(size, begun.plans.dtype)
    lanes = _Lanes(begun.plans, unknown, begun.potentials, zeros, zeros, zeros.astype(bool))
    slots = _Slots(index, lanes, jnp.int32(size))
    found = Solutions(
        product_couplings(problems) if start is None else start,
        jnp.zeros(n, jnp.int32),
        jnp.ones(n, bool),
    )
    return jax.lax.while_loop(unfinished, advance, (slots, found))[1]


def _spent(
    taken: Int[Array, " b"], tried: Int[Array, " b"], solver: EntropicGW
) -> Bool[Array, " b"]:
    # A linearisation takes one or two steps; many more mean that it has no end.
    return (taken >= solver.max_iterations) | (tried >= 4 * solver.max_iterations)


def _steps(
    problems: Arranged, lanes: _Lanes, tolerance: Float[Array, " b"], solver: EntropicGW
) -> _Lanes:
    """A few steps of every problem that is not done."""
    layout = problems.layout

    def one(_: int, lanes: _Lanes) -> _Lanes:
        plan, potential, error = step(problems, lanes.plan, lanes.potential)
        move = plan - lanes.plan
        change = layout.center_sum(jnp.abs(move)).sum(layout.center_axis)
        solved, settled = _judged(error, change, tolerance)
        on = ~(lanes.settled | _spent(lanes.taken, lanes.tried, solver))
        taken = lanes.taken + (on & solved).astype(jnp.int32)
        tried = lanes.tried + on.astype(jnp.int32)
        ending = settled | _spent(taken, tried, solver)
        further = jnp.where(ending, 0, _further(change, lanes.change))
        beyond = plan + layout.of_problem(further, move) * move
        return _Lanes(
            jnp.where(layout.of_problem(on & (solved | ending), plan), beyond, lanes.plan),
            jnp.where(on & solved, jnp.where(further > 0, 0, change), lanes.change),
            jnp.where(layout.of_problem(on, potential), potential, lanes.potential),
            taken,
            tried,
            lanes.settled | (on & settled),
        )

    start = lanes._replace(
        plan=layout.arranged(lanes.plan), potential=layout.arranged(lanes.potential)
    )
    end = jax.lax.fori_loop(0, layout.steps, one, start) if layout.steps > 1 else one(0, start)
    return end._replace(plan=layout.restored(end.plan), potential=layout.restored(end.potential))


def _judged(
    error: Float[Array, " b"], change: Float[Array, " b"], tolerance: Float[Array, " b"]
) -> tuple[Bool[Array, " b"], Bool[Array, " b"]]:
    """Whether a linearisation is solved, and whether it was the last."""
    # While plans still move far, their marginals need not hold to the last digit.
    solved = error <= jnp.maximum(tolerance, INEXACT * change)
    return solved, (error <= tolerance) & (change <= tolerance)


def _further(change: Float[Array, " b"], before: Float[Array, " b"]) -> Float[Array, " b"]:
    """How many times its last move a plan goes on, by which the iteration gains its end.

    Near its end every linearisation moves a plan by the same share of the move before; the
    moves to come then sum to a geometric series (Aitken 1926). Where that does not hold, the
    next linearisations lead back: they and what ends the iteration are the same.
    """
    low, high = _SHRINKING
    ratio = change / jnp.where(before > 0, before, 1)
    steady = (before > 0) & (change < _STEADY) & (ratio > low) & (ratio < high)
    return jnp.where(steady, ratio / (1 - jnp.minimum(ratio, high)), 0)


class Measured(NamedTuple):
    """What a plan says.

    Attributes:
        values: The transport cost without the entropy, POT's ``gw_dist``.
        information: Divergence of the plan from the product of its marginals, in nats.
    """

    values: Float[Array, " n"]
    information: Float[Array, " n"]


def measure(problems: Problems, plans: Float[Array, "n m p"], chunk: int) -> Measured:
    """Values and information of plans, in chunks that bound the memory."""

    def one(row: tuple[Problems, Array]) -> Measured:
        (spaces, centers), plan = jax.tree.map(lambda x: x[None], row)
        p, q, center = spaces.weights[0], centers.weights[0], centers.distances[0]
        plan = plan[0]
        moved = distance_product(spaces, plan[None])[0] @ plan.T
        squares = distance_product(spaces, p[None, None], 2)[0, 0] @ p
        value = squares + q @ center**2 @ q - 2 * (center * moved).sum()
        product = q[:, None] * p[None]
        held = (plan > 0) & (product > 0)
        ratio = jnp.log(jnp.where(held, plan / jnp.where(held, product, 1), 1))
        # A squared distance and a divergence are never negative; rounding may be.
        return Measured(jnp.maximum(value, 0), jnp.maximum((plan * ratio).sum(), 0))

    return jax.lax.map(one, (problems, plans), batch_size=min(chunk, len(plans)))
