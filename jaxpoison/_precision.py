"""Products of float32 in float32, wherever a result is promised to be."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import jax

P = ParamSpec("P")
R = TypeVar("R")


def in_full_precision(function: Callable[P, R]) -> Callable[P, R]:
    """Lets products inside be of float32: GPUs and TPUs round operands to fewer digits else.

    Everything but training is computed so. With ten bits, the marginals of couplings are off
    by 1e-4, and none ever ends within its tolerance; relevance and decisions differ from those
    on a CPU. To be put inside of ``jax.jit``: what counts is when products are traced.
    """

    @functools.wraps(function)
    def inside(*arguments: P.args, **options: P.kwargs) -> R:
        with jax.default_matmul_precision("highest"):
            return function(*arguments, **options)

    return inside
