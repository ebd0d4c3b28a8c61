"""Arithmetic on many small matrices at once, the problem they belong to last.

With problems first, a row of ten points fills no vector register. With problems
last, every operation runs over neighbouring problems.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


def last(x: Array | np.ndarray) -> Array:
    """Problems come last instead of first."""
    return jnp.moveaxis(jnp.asarray(x), 0, -1)


def first(x: Array) -> Array:
    """Problems come first instead of last."""
    return jnp.moveaxis(x, -1, 0)


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


def solved(matrices: Float[Array, "m m b"], right: Float[Array, "m b"]) -> Float[Array, "m b"]:
    """Solves many small symmetric positive definite systems at once, by elimination.

    Gauss and Jordan's, without pivots. LAPACK is called for one matrix after the other, and
    from several CPU devices at once may wait for its own threads for ever.
    """
    points = jnp.arange(len(right))[:, None, None]

    def eliminate(k: Array, rest: Array) -> Array:
        row = rest[k] / rest[k, k]
        return jnp.where(points == k, row, rest - rest[:, k, None] * row)

    both = jnp.concatenate([matrices, right[:, None]], 1)
    return jax.lax.fori_loop(0, len(right), eliminate, both)[:, -1]
