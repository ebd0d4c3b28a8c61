"""Entropic Gromov-Wasserstein distances between heatmaps and small centres.

Epsilon is given in POT's convention. POT minimises the linearisation
2 (const - 2 C1 T C2) with entropy epsilon; OTT-JAX halves the linearisation,
so that its epsilon is half of POT's.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float
from ott.geometry import geometry
from ott.problems.quadratic import quadratic_problem
from ott.solvers.linear import sinkhorn
from ott.solvers.quadratic import gromov_wasserstein

from jaxpoison._checks import check_integer, check_positive
from jaxpoison.gw.grid import GridGeometry, pixel_distances
from jaxpoison.spaces import MeasureSpaces


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Centers:
    """Small metric measure spaces.

    Attributes:
        distances: Distances between the points of every centre.
        weights: Mass of every point; each centre's sum is 1.
    """

    distances: Float[Array, "k m m"]
    weights: Float[Array, "k m"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Coupled:
    """Solutions of Gromov-Wasserstein problems.

    Attributes:
        values: The distances; squared ones, as POT's ``gw_dist``.
        couplings: Transport plans, the centre's points first.
        information: Kullback-Leibler divergence of the plan from the product
            of its marginals, in nats; 0 where the plan says nothing.
        converged: Whether the solver's iteration ended within its tolerance.
    """

    values: Float[Array, ...]
    couplings: Float[Array, "... m p"]
    information: Float[Array, ...]
    converged: Bool[Array, ...]


@dataclass(frozen=True)
class EntropicGW:
    """How the entropic Gromov-Wasserstein problem is solved (Peyre et al. 2016).

    Attributes:
        epsilon: Entropic regularisation, in POT's convention.
        tolerance: Relative change of the objective that ends the iteration.
        max_iterations: Most linearisations.
        sinkhorn_tolerance: Error in the marginals (sum of magnitudes) that ends each
            inner Sinkhorn loop; float32 does not reliably get below 1e-5.
        max_sinkhorn_iterations: Most iterations of each inner loop.
    """

    epsilon: float = 0.1
    tolerance: float = 1e-6
    max_iterations: int = 200
    sinkhorn_tolerance: float = 2e-5
    max_sinkhorn_iterations: int = 2000

    def __post_init__(self) -> None:
        check_positive("epsilon", self.epsilon)
        check_integer("max_iterations", self.max_iterations, at_least=3)

    def __call__(
        self,
        grid: Float[Array, "p p"],
        factor: Float[Array, ""],
        weights: Float[Array, " p"],
        center: Float[Array, "m m"],
        center_weights: Float[Array, " m"],
    ) -> Coupled:
        """Couples one heatmap with one centre; meant to be mapped over with ``vmap``.

        Args:
            grid: Distances between pixels.
            factor: What this heatmap's distances are multiplied by.
            weights: The heatmap's mass per pixel.
            center: Distances between the centre's points.
            center_weights: Mass of the centre's points.
        """
        # The centre comes first: the plan is then [m, p], and loops over it
        # run along the pixels. Log domain, potentials kept between
        # linearisations, errors checked every time: measured, the fastest of
        # OTT's options here, and the one that also works at small epsilon.
        problem = quadratic_problem.QuadraticProblem(
            geometry.Geometry(center), GridGeometry(grid, factor), a=center_weights, b=weights
        )
        linear = sinkhorn.Sinkhorn(
            lse_mode=True,
            threshold=self.sinkhorn_tolerance,
            inner_iterations=1,
            max_iterations=self.max_sinkhorn_iterations,
        )
        solver = gromov_wasserstein.GromovWasserstein(
            linear,
            epsilon=self.epsilon / 2,
            threshold=self.tolerance,
            min_iterations=2,
            max_iterations=self.max_iterations,
            warm_start=True,
        )
        solution = solver(problem)
        plan = solution.matrix
        product = center_weights[:, None] * weights
        held = (plan > 0) & (product > 0)
        log_ratio = jnp.log(jnp.where(held, plan / jnp.where(held, product, 1), 1))
        # A divergence is never negative; rounding may be.
        information = jnp.maximum((plan * log_ratio).sum(), 0)
        # OTT also counts early inner loops that were cut short; what matters is that
        # the objective settled and that the last plan has the right marginals.
        inner = jnp.asarray(solution.linear_convergence)
        steps = (~jnp.isnan(inner)).sum()
        last = inner[steps - 1] == 1
        return Coupled(
            jnp.asarray(solution.primal_cost),
            plan,
            information,
            last & (steps < self.max_iterations),
        )


def distances_to_centers(
    spaces: MeasureSpaces,
    centers: Centers,
    solver: EntropicGW | None = None,
    *,
    chunk: int = 64,
) -> tuple[Float[Array, "n k"], Float[Array, "n k"], Bool[Array, "n k"]]:
    """Distances of all heatmaps to all centres, in chunks that bound the memory.

    Args:
        spaces: Heatmaps.
        centers: Centres.
        solver: How the problem is solved.
        chunk: Heatmaps coupled at once.

    Returns:
        Distances (squared, as POT gives them), information of the couplings in
        nats, and whether each problem converged.
    """
    grid = pixel_distances(spaces.height, spaces.width)
    solve = EntropicGW() if solver is None else solver

    def one(space: tuple[Array, Array]) -> tuple[Array, Array, Array]:
        weights, factor = space
        coupled = jax.vmap(lambda c, w: solve(grid, factor, weights, c, w))(
            centers.distances, centers.weights
        )
        return coupled.values, coupled.information, coupled.converged

    return map_chunks(one, (spaces.weights, spaces.factors), chunk)


def map_chunks(function, arrays, chunk: int):  # noqa: ANN001, ANN201
    """``lax.map`` over chunks of the first axis, itself a multiple of the chunk or below it."""
    n = jax.tree.leaves(arrays)[0].shape[0]
    return jax.lax.map(function, arrays, batch_size=min(chunk, n))
