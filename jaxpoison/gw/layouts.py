"""Arithmetic on the plans of many problems at once, wherever the problems' axis stands.

A plan couples the points of a centre with those of a space. With problems first, products
are batched matrix products: right for heatmaps, whose rows are long. Where both sides have
few points, a row of ten fills no vector register; with problems last, every operation runs
over neighbouring problems.
"""

from __future__ import annotations

import abc
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxpoison.gw.products import LaidOut, distance_product
from jaxpoison.gw.spaces import SmallSpaces

Plan = Float[Array, "..."]
Mass = Float[Array, "..."]


class Layout(abc.ABC):
    """Where axes stand, and the operations that depend on it.

    Attributes:
        center_axis: That of the centre's points in a plan; the space's points follow.
        steps: Steps of the iteration before problems are exchanged.
    """

    center_axis: int
    steps: int

    @abc.abstractmethod
    def arranged(self, x: Array | np.ndarray) -> Array:
        """An array with problems first, in this layout."""

    @abc.abstractmethod
    def restored(self, x: Array) -> Array:
        """The other way round."""

    @abc.abstractmethod
    def mover(self, spaces: LaidOut) -> Callable[[Plan], Plan]:
        """What multiplies plans with the spaces' distances."""

    @abc.abstractmethod
    def product(self, x: Array, y: Array) -> Array:
        """Matrix products, problem by problem."""

    @abc.abstractmethod
    def center_sum(self, plan: Plan, factors: Mass | None = None) -> Mass:
        """Sum over the centre's points, each times its factor: what the space's points hold."""

    @abc.abstractmethod
    def space_sum(self, plan: Plan, factors: Mass | None = None) -> Mass:
        """Sum over the space's points, each times its factor: what the centre's points hold."""

    @abc.abstractmethod
    def solved(self, matrices: Array, right: Array) -> Array:
        """Solutions of small symmetric positive definite systems."""

    @abc.abstractmethod
    def of_problem(self, numbers: Float[Array, " b"], like: Array) -> Array:
        """One number a problem, to be multiplied with an array of this layout."""

    def of_center(self, mass: Mass) -> Plan:
        """One number a point of the centre, to be multiplied with plans."""
        return jnp.expand_dims(mass, self.center_axis + 1)

    def of_space(self, mass: Mass) -> Plan:
        """One number a point of the space, to be multiplied with plans."""
        return jnp.expand_dims(mass, self.center_axis)

    def transposed(self, plan: Plan) -> Plan:
        """The space's points before the centre's."""
        return plan.swapaxes(self.center_axis, self.center_axis + 1)

    def diagonal(self, mass: Mass) -> Array:
        """Diagonal matrices."""
        points = mass.shape[self.center_axis]
        shape = [1] * (mass.ndim + 1)
        shape[self.center_axis] = shape[self.center_axis + 1] = points
        return self.of_center(mass) * jnp.eye(points, dtype=mass.dtype).reshape(shape)


class ProblemsFirst(Layout):
    """Plans ``[b, m, p]``."""

    center_axis = 1
    steps = 1

    def arranged(self, x: Array | np.ndarray) -> Array:
        return jnp.asarray(x)

    def restored(self, x: Array) -> Array:
        return x

    def mover(self, spaces: LaidOut) -> Callable[[Plan], Plan]:
        return lambda plan: distance_product(spaces, plan)

    def product(self, x: Array, y: Array) -> Array:
        return jnp.einsum("bij,bjk->bik", x, y)

    def center_sum(self, plan: Plan, factors: Mass | None = None) -> Mass:
        return plan.sum(1) if factors is None else jnp.einsum("bmp,bm->bp", plan, factors)

    def space_sum(self, plan: Plan, factors: Mass | None = None) -> Mass:
        return plan.sum(2) if factors is None else jnp.einsum("bmp,bp->bm", plan, factors)

    def solved(self, matrices: Array, right: Array) -> Array:
        moved = (jnp.moveaxis(matrices, 0, -1), jnp.moveaxis(right, 0, -1))
        return jnp.moveaxis(_eliminated(*moved), -1, 0)

    def of_problem(self, numbers: Float[Array, " b"], like: Array) -> Array:
        return numbers.reshape(-1, *(1 for _ in like.shape[1:]))


class ProblemsLast(Layout):
    """Plans ``[m, p, b]``."""

    center_axis = 0
    steps = 4

    def arranged(self, x: Array | np.ndarray) -> Array:
        return jnp.moveaxis(jnp.asarray(x), 0, -1)

    def restored(self, x: Array) -> Array:
        return jnp.moveaxis(x, -1, 0)

    def mover(self, spaces: LaidOut) -> Callable[[Plan], Plan]:
        if not isinstance(spaces, SmallSpaces):
            raise TypeError("problems come last where spaces have few points and own distances")
        distances = self.arranged(spaces.distances)
        return lambda plan: self.product(plan, distances)

    def product(self, x: Float[Array, "i k b"], y: Float[Array, "k j b"]) -> Float[Array, "i j b"]:
        # A loop, since XLA would compute an unrolled sum anew wherever it is read.
        def add(k: Array, sums: Array) -> Array:
            return sums + x[:, k, None] * y[None, k]

        return jax.lax.fori_loop(1, len(y), add, x[:, 0, None] * y[None, 0])

    def center_sum(self, plan: Plan, factors: Mass | None = None) -> Mass:
        return _term_by_term(plan if factors is None else plan * self.of_center(factors))

    def space_sum(self, plan: Plan, factors: Mass | None = None) -> Mass:
        weighted = plan if factors is None else plan * self.of_space(factors)
        return _term_by_term(weighted.swapaxes(0, 1))

    def solved(self, matrices: Array, right: Array) -> Array:
        return _eliminated(matrices, right)

    def of_problem(self, numbers: Float[Array, " b"], like: Array) -> Array:
        return numbers.reshape(*(1 for _ in like.shape[1:]), -1)


def layout_of(spaces: LaidOut) -> Layout:
    """The layout in which such spaces are coupled."""
    return ProblemsLast() if isinstance(spaces, SmallSpaces) else ProblemsFirst()


def _term_by_term(x: Array) -> Array:
    """Sum along the first axis: XLA's own takes fifty times as long on CPUs.

    Not where the sum is read many times: it is then computed as often.
    """
    return functools.reduce(jnp.add, list(x))


def _eliminated(matrices: Float[Array, "m m b"], right: Float[Array, "m b"]) -> Float[Array, "m b"]:
    """Solves many small symmetric positive definite systems at once, by elimination.

    Gauss and Jordan's, without pivots. LAPACK is called for one matrix after the other, and
    from several CPU devices at once may wait for its own threads for ever.
    """
    points = jnp.arange(len(right))[:, None, None]

    def eliminate(k: Array, rest: Array) -> Array:
        row = rest[k] / rest[k, k][None]
        return jnp.where(points == k, row[None], rest - rest[:, k, None] * row[None])

    both = jnp.concatenate([matrices, right[:, None]], 1)
    return jax.lax.fori_loop(0, len(right), eliminate, both)[:, -1]
