"""Steps of the coupling iteration where both sides have few points.

The arrays of :mod:`jaxpoison.gw.solver` put problems first, and a row of ten
points fills no vector register. Here problems come last, and every operation
runs over neighbouring problems: a step takes half the time.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

SCALING_STEP = 20.0
NEWTON_STEP = 1.0
TINY = 1e-30


def total(x: Array) -> Array:
    """Sum along the first axis, term by term: XLA's own takes fifty times as long on CPUs.

    Not where the sum is read many times: it is then computed as often.
    """
    return functools.reduce(jnp.add, list(x))


def product(x: Float[Array, "i k b"], y: Float[Array, "k j b"]) -> Float[Array, "i j b"]:
    """Matrix products of many problems at once."""

    # A loop, since XLA would compute an unrolled sum anew wherever it is read.
    def add(k: Array, sums: Array) -> Array:
        return sums + x[:, k, None] * y[None, k]

    return jax.lax.fori_loop(1, len(y), add, x[:, 0, None] * y[None, 0])


def step(
    strength: Float[Array, "m m b"],
    distances: Float[Array, "p p b"],
    p: Float[Array, "p b"],
    q: Float[Array, "m b"],
    plan: Float[Array, "m p b"],
    potential: Float[Array, "m b"],
) -> tuple[Float[Array, "m p b"], Float[Array, "m b"], Float[Array, " b"]]:
    """As ``jaxpoison.gw.solver._inner_step``, problems last.

    Args:
        strength: What the plan's products with distances enter the exponent with.
        distances: Of each space.
        p: Mass of its points.
        q: Mass of the centre's points.
        plan: The plan of the last linearisation.
        potential: Of the centre's points.
    """
    exponent = product(strength, product(plan, distances)) + potential[:, None]
    largest = functools.reduce(jnp.maximum, list(exponent))
    kernel = jnp.exp(exponent - largest)

    def pixel_scale(scale: Array) -> Array:
        return p / jnp.maximum(total(kernel * scale[:, None]), TINY)

    held = total((kernel * (p / total(kernel))).swapaxes(0, 1))
    change = jnp.log(q) - jnp.log(jnp.maximum(held, TINY))
    scale = jnp.exp(jnp.clip(change, -SCALING_STEP, SCALING_STEP))
    new = kernel * scale[:, None] * pixel_scale(scale)
    held = total(new.swapaxes(0, 1))
    inverse = jnp.where(p > 0, 1 / jnp.where(p > 0, p, 1), 0)
    shared = product(new, (new * inverse).swapaxes(0, 1))
    points = len(q)
    eye = jnp.eye(points, dtype=p.dtype)[:, :, None]
    hessian = held[:, None] * eye - shared + 1 / points**2 + 1e-7 * eye
    newton = jnp.clip(jnp.nan_to_num(solved(hessian, q - held)), -NEWTON_STEP, NEWTON_STEP)
    scale = scale * jnp.exp(newton)
    new = kernel * scale[:, None] * pixel_scale(scale)
    error = jnp.abs(total(new.swapaxes(0, 1)) - q).sum(0)
    potential = potential + jnp.log(scale)
    return new, potential - total(potential) / points, error


def solved(matrices: Float[Array, "m m b"], right: Float[Array, "m b"]) -> Float[Array, "m b"]:
    """Solves many small symmetric positive definite systems at once, by elimination.

    Gauss and Jordan's, without pivots.
    """
    points = jnp.arange(len(right))[:, None, None]

    def eliminate(k: Array, rest: Array) -> Array:
        row = rest[k] / rest[k, k]
        return jnp.where(points == k, row, rest - rest[:, k, None] * row)

    both = jnp.concatenate([matrices, right[:, None]], 1)
    return jax.lax.fori_loop(0, len(right), eliminate, both)[:, -1]
