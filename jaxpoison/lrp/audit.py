"""What a model computes outside the layers that have rules.

Rules are bound to modules; an operation in between is differentiated as it
is. For some operations that passes relevance on rightly, for others (a sum
hands all of it to both terms) it would be silently wrong. The model's jaxpr
shows them all.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from jax.extend import core
from jaxtyping import Array, PyTree

# Their gradient moves relevance about without creating or losing any.
_MOVES = frozenset(
    {
        "broadcast_in_dim",
        "concatenate",
        "convert_element_type",
        "copy",
        "dynamic_slice",
        "gather",
        "pad",
        "reduce_max",
        "reduce_window_max",
        "reshape",
        "rev",
        "slice",
        "split",
        "squeeze",
        "stop_gradient",
        "transpose",
    }
)
# Activations whose zero outputs carry no relevance into the next layer, so that
# cutting the gradient there loses none.
_PASSING_CALLS = frozenset({"relu", "relu6"})

_REPLACEMENTS = {
    "add": "write the sum of branches as a module with a rule",
    "add_any": "write the sum of branches as a module with a rule",
    "dot_general": "use nnx.Linear",
    "conv_general_dilated": "use nnx.Conv",
    "reduce_window_sum": "use jaxpoison.models.layers.AvgPool",
    "reduce_sum": "use jaxpoison.models.layers.AvgPool",
    "logistic": "use nnx.relu",
    "tanh": "use nnx.relu",
}


def audit(forward: Callable[[Array], PyTree], images: Array, marker: str) -> None:
    """Refuses a model with operations that no rule covers.

    Args:
        forward: The model whose layers with rules are jitted under ``marker``.
        images: An input; only its shape and type matter.
        marker: Name of the jitted calls that have rules.

    Raises:
        ValueError: An operation between input and output has no rule; the
            message names it and what to write instead.
    """
    jaxpr = jax.make_jaxpr(forward)(jax.ShapeDtypeStruct(images.shape, images.dtype)).jaxpr
    _check(jaxpr, {jaxpr.invars[0]}, marker)


def _check(jaxpr: Any, live: set[Any], marker: str) -> None:
    """Walks the equations that depend on the input."""
    for equation in jaxpr.eqns:
        used = [v for v in equation.invars if not isinstance(v, core.Literal) and v in live]
        if not used:
            continue
        name = equation.primitive.name
        call = str(equation.params.get("name", ""))
        inner = _inner(equation)
        if name in ("jit", "pjit") and call in {marker, *_PASSING_CALLS}:
            pass
        elif inner is not None:
            fresh = {
                b
                for a, b in zip(equation.invars, inner.invars, strict=True)
                if not isinstance(a, core.Literal) and a in live
            }
            _check(inner, fresh, marker)
        elif name == "max" and len(used) == 1:
            pass  # relu written as maximum(x, 0)
        elif name not in _MOVES:
            advice = _REPLACEMENTS.get(name, "write it as a module and give it a rule")
            shape = "x".join(map(str, equation.outvars[0].aval.shape))
            raise ValueError(
                f"the model applies the operation {name!r} (output {shape}) outside any layer "
                f"that has a relevance rule, which would make relevance wrong; {advice}"
            )
        live.update(equation.outvars)


def _inner(equation: Any) -> Any:
    """The jaxpr of a call with one body; ``None`` for plain operations."""
    for key in ("jaxpr", "call_jaxpr", "fun_jaxpr"):
        body = equation.params.get(key)
        if body is not None:
            body = getattr(body, "jaxpr", body)
            return body if len(body.invars) == len(equation.invars) else None
    return None
