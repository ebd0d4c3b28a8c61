"""Functions of JAX that leave no name in a jaxpr, found again by their operations."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core
from jaxtyping import Array

Function = Callable[[Array], Array]


@dataclass(frozen=True)
class UnnamedCall:
    """Consecutive operations of a jaxpr that are a function of one variable.

    Attributes:
        function: Which.
        input: The variable.
        output: That of the result.
        start: Index of the first operation.
        end: Index after the last one.
    """

    function: Function
    input: Any
    output: Any
    start: int
    end: int


def unnamed_calls(jaxpr: Any, functions: Sequence[Function]) -> Iterator[UnnamedCall]:
    """Where a jaxpr holds the operations of some functions, one by one.

    They are compared with those that the installed JAX traces the functions to: kinds, options,
    constants and which result goes where.

    Args:
        jaxpr: Of a model.
        functions: Of one array.
    """
    for start, equation in enumerate(jaxpr.eqns):
        inputs = [v for v in equation.invars if not isinstance(v, core.Literal)]
        if not inputs or not inputs[0].aval.ndim or not _is_float(inputs[0]):
            continue
        found = (_call(jaxpr, start, inputs[0], function) for function in functions)
        yield from [call for call in found if call is not None][:1]


def _call(jaxpr: Any, start: int, x: Any, function: Function) -> UnnamedCall | None:
    template = _operations(function, x.aval.shape, x.aval.dtype)
    own = jaxpr.eqns[start : start + len(template.eqns)]
    same: dict[Any, Any] = {template.invars[0]: x}

    def alike(a: Any, b: Any) -> bool:
        if isinstance(a, core.Literal) or isinstance(b, core.Literal):
            return isinstance(a, core.Literal) and isinstance(b, core.Literal) and a.val == b.val
        return same.get(a) is b

    if len(own) < len(template.eqns):
        return None
    for expected, found in zip(template.eqns, own, strict=True):
        if expected.primitive is not found.primitive or expected.params != found.params:
            return None
        if not all(map(alike, expected.invars, found.invars)):
            return None
        same.update(zip(expected.outvars, found.outvars, strict=True))
    output = same[template.outvars[0]]
    end = start + len(own)
    used = [v for equation in jaxpr.eqns[end:] for v in equation.invars] + list(jaxpr.outvars)
    inner = {v for equation in own for v in equation.outvars} - {output}
    # What else is made of its parts is no call of the function.
    if any(v in inner for v in used if not isinstance(v, core.Literal)):
        return None
    return UnnamedCall(function, x, output, start, end)


@lru_cache(maxsize=256)
def _operations(function: Function, shape: tuple[int, ...], dtype: Any) -> Any:
    return jax.make_jaxpr(function)(jax.ShapeDtypeStruct(shape, dtype)).jaxpr


def _is_float(variable: Any) -> bool:
    return jnp.issubdtype(variable.aval.dtype, jnp.floating)
