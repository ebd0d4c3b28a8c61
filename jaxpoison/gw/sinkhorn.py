"""Sinkhorn's scaling of dense kernels in float32, at small epsilons too."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxpoison.gw.solver import INEXACT
from jaxpoison.gw.steps import TINY

# Most scalings of one linearisation.
_MOST_SCALINGS = 1000
# Largest logarithm of a scale: what a kernel cannot hold then makes less than e**-27 of a plan.
_FARTHEST = 30.0


def scaled_to_marginals(
    exponent: Float[Array, "p p"],
    p: Float[Array, " p"],
    q: Float[Array, " p"],
    potentials: tuple[Float[Array, " p"], Float[Array, " p"]],
    tolerance: Array,
    change: Array,
) -> tuple[Float[Array, "p p"], tuple[Array, Array], Float[Array, ""]]:
    """Sinkhorn's scaling of ``exp(exponent)`` to marginals, from given potentials.

    A kernel holds what float32 can of ``exp``. Where scales grow so far that entries which it
    does not hold might count, they go into the potentials, and the kernel is made anew (Schmitzer
    2019, *Stabilized sparse scaling algorithms for entropy regularized transport problems*).
    """
    # Where no mass is, entries may be of any size.
    massive = (p[:, None] > 0) & (q[None] > 0)
    # While plans still move far, their marginals need not hold to the last digit.
    enough = jnp.maximum(tolerance, INEXACT * change)

    def absorbed(state: _Scaling) -> _Scaling:
        shown = exponent + state.f[:, None] + state.g[None]
        # So that every row and every column keeps an entry that does not underflow.
        rows = jnp.where(q[None] > 0, shown, -jnp.inf).max(1)
        shown = shown - rows[:, None]
        columns = jnp.where(p[:, None] > 0, shown, -jnp.inf).max(0)
        kernel = jnp.where(massive, jnp.exp(jnp.minimum(shown - columns[None], 0)), 0)

        def scale(state: tuple[Array, Array, Array, Array]) -> tuple[Array, Array, Array, Array]:
            _, v, _, taken = state
            u = p / jnp.maximum(kernel @ v, TINY)
            held = u @ kernel
            error = jnp.abs(v * held - q).sum()
            return u, q / jnp.maximum(held, TINY), error, taken + 1

        def unfinished(state: tuple[Array, Array, Array, Array]) -> Array:
            u, v, error, taken = state
            far = jnp.maximum(_size(u, p), _size(v, q)) > _FARTHEST
            return (error > enough) & (taken < _MOST_SCALINGS) & ~(far & (taken > before))

        before = state.taken
        start = (
            jnp.ones_like(p),
            jnp.where(q > 0, jnp.exp(jnp.maximum(columns, -2 * _FARTHEST)), 0),
            jnp.full((), jnp.inf, p.dtype),
            before,
        )
        u, v, error, taken = jax.lax.while_loop(unfinished, scale, start)
        return _Scaling(
            u[:, None] * kernel * v[None],
            state.f - rows + jnp.log(jnp.maximum(u, TINY)),
            state.g - columns + jnp.log(jnp.maximum(v, TINY)),
            error,
            jnp.maximum(_size(u, p), _size(v, q)),
            taken,
        )

    def unfinished(state: _Scaling) -> Array:
        far = state.farthest > _FARTHEST
        return ((state.error > enough) | far) & (state.taken < _MOST_SCALINGS)

    zero = jnp.zeros((), p.dtype)
    nothing = _Scaling(zero, *potentials, zero + jnp.inf, zero, jnp.int32(0))
    first = absorbed(nothing)
    found = jax.lax.while_loop(unfinished, absorbed, first)
    error = jnp.abs(found.plan.sum(1) - p).sum()
    return found.plan, (found.f, found.g), error


class _Scaling(NamedTuple):
    """How far a scaling is.

    Attributes:
        plan: Its plan.
        f: Potential of the first space's points, in units of epsilon.
        g: Of the second's.
        error: Of the second marginal.
        farthest: Largest logarithm of a scale of the last kernel.
        taken: Scalings so far.
    """

    plan: Float[Array, "p p"]
    f: Float[Array, " p"]
    g: Float[Array, " p"]
    error: Float[Array, ""]
    farthest: Float[Array, ""]
    taken: Int[Array, ""]


def _size(scale: Float[Array, " p"], mass: Float[Array, " p"]) -> Float[Array, ""]:
    """Largest logarithm of a scale, where there is mass."""
    return jnp.abs(jnp.log(jnp.where(mass > 0, jnp.maximum(scale, TINY), 1))).max()
