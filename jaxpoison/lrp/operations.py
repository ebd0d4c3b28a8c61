"""Rules for what a model computes outside its layers: sums, means, activations.

Rules are bound to modules; a bare operation such as ``x + y`` has none, and
its gradient would be silently wrong as relevance: that of a sum hands all of
it to both terms. The model's jaxpr shows every operation. Those with one
plain meaning get the rule that a layer doing the same would have; all others
are refused by name.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
from jax.extend import core
from jaxtyping import Array, PyTree

from jaxpoison.lrp.patterns import unnamed_calls
from jaxpoison.lrp.rules import Epsilon
from jaxpoison.lrp.shares import Rule

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
        "sharding_constraint",
        "split",
        "squeeze",
        "tile",
        "transpose",
    }
)
# Relevance by share in the sum.
_SUMS = frozenset({"add", "add_any", "sub", "reduce_sum", "reduce_window_sum"})
# With a constant: scaling and shifting pass relevance on, value by value.
_ELEMENTWISE = frozenset(
    {"add", "add_any", "sub", "mul", "div", "max", "min", "neg", "tanh", "logistic"}
)
# Functions of JAX that are jitted under their own name; relevance passes through.
_ACTIVATIONS = frozenset(
    "relu relu6 silu leaky_relu elu celu selu softplus hard_silu hard_tanh soft_sign mish "
    "squareplus sparse_plus".split()
)
# Activations that JAX does not jit are known by their operations.
_UNNAMED_ACTIVATIONS = (jax.nn.gelu, partial(jax.nn.gelu, approximate=False))
_UNNAMED = (*_UNNAMED_ACTIVATIONS, jax.nn.softmax)
# Linear maps of JAX that are jitted under their own name: relevance by share, as in an average.
_LINEAR_MAPS = frozenset({"_resize"})
# What gives gates: values by which a signal is multiplied. The signal takes all relevance
# (Arras et al. 2017, *Explaining recurrent neural network predictions in sentiment analysis*).
_GATES = frozenset({"logistic", "hard_sigmoid"})
_DEAD, _LIVE, _GATE = 0, 1, 2
_PROBABILITIES = frozenset({"softmax", "log_softmax"})
# Operations that call one jaxpr once; loops and reductions hold jaxprs too.
_CALLS = frozenset(
    "jit pjit closed_call core_call custom_jvp_call custom_vjp_call custom_vjp_call_jaxpr "
    "checkpoint remat remat2".split()
)
_REPLACEMENTS = {
    "dot_general": "use nnx.Linear",
    "conv_general_dilated": "use nnx.Conv",
    "mul": "write the product of activations as a module",
}


def with_operation_rules(
    function: Callable[..., PyTree], markers: frozenset[str], sums: Rule
) -> Callable[..., PyTree]:
    """The same function, in which bare operations propagate relevance backwards.

    Args:
        function: Takes and gives pytrees of arrays; relevance is propagated to
            its first argument.
        markers: Names of jitted functions called in it that have rules of their own.
        sums: The rule of sums and averages.

    Returns:
        A function of the same value. Its vector-Jacobian product propagates
        relevance; it raises ``ValueError`` for an operation without a rule.
    """

    def call(*inputs: PyTree) -> PyTree:
        closed, shapes = jax.make_jaxpr(function, return_shape=True)(*inputs)
        leaves = jax.tree.leaves(inputs)
        first = len(jax.tree.leaves(inputs[0]))
        live = [_LIVE if k < first else _DEAD for k in range(len(leaves))]
        evaluation = _Evaluation(markers, sums)
        outputs, kinds = evaluation.run(closed.jaxpr, closed.consts, leaves, live, ("the model",))
        if _GATE in kinds:
            raise ValueError(
                "the model ends in a sigmoid: what is explained are logits; hand over the model "
                "without it"
            )
        return jax.tree.unflatten(jax.tree.structure(shapes), outputs)

    return call


class _Evaluation:
    """Evaluates a jaxpr with other backward passes."""

    def __init__(self, markers: frozenset[str], sums: Rule) -> None:
        self.markers = markers
        self.sums = sums

    def run(
        self,
        jaxpr: Any,
        constants: list[Array],
        inputs: list[Array],
        live: list[int],
        place: tuple[str, ...],
    ) -> tuple[list[Array], list[int]]:
        """Outputs of a jaxpr, and which of them depend on live inputs, and are gates."""
        values: dict[Any, Array] = dict(zip(jaxpr.constvars, constants, strict=True))
        values.update(zip(jaxpr.invars, inputs, strict=True))
        alive = {v: flag for v, flag in zip(jaxpr.invars, live, strict=True) if flag}

        def read(atom: Any) -> Any:
            return atom.val if isinstance(atom, core.Literal) else values[atom]

        def is_live(atom: Any) -> int:
            return _DEAD if isinstance(atom, core.Literal) else alive.get(atom, _DEAD)

        unnamed = {call.start: call for call in unnamed_calls(jaxpr, _UNNAMED)}
        done = 0
        for index, equation in enumerate(jaxpr.eqns):
            if index < done:
                continue
            known = unnamed.get(index)
            if known is not None and is_live(known.input):
                if known.function not in _UNNAMED_ACTIVATIONS:
                    _refuse_probabilities(_place(equation, place))
                x = read(known.input)
                values[known.output] = _pass(x, known.function(x))
                alive[known.output] = is_live(known.input)
                done = known.end
                continue
            arguments = [read(v) for v in equation.invars]
            flags = [is_live(v) for v in equation.invars]
            here = _place(equation, place)
            results, result_flags = self.apply(equation, arguments, flags, here)
            values.update(zip(equation.outvars, results, strict=True))
            alive.update(
                (v, flag) for v, flag in zip(equation.outvars, result_flags, strict=True) if flag
            )
        return [read(v) for v in jaxpr.outvars], [is_live(v) for v in jaxpr.outvars]

    def apply(
        self, equation: Any, arguments: list[Any], live: list[int], place: tuple[str, ...]
    ) -> tuple[list[Array], list[int]]:
        """The outputs of one operation, with the backward pass that relevance needs."""
        name = equation.primitive.name
        call = str(equation.params.get("name", ""))
        is_jit = name in ("jit", "pjit")
        outputs = len(equation.outvars)
        operation = partial(_bind, equation)
        if not any(live) or not outputs or (is_jit and call in self.markers):
            return operation(*arguments), [_LIVE if any(live) else _DEAD] * outputs
        # Moved and scaled, a gate is one still.
        kind = _GATE if call in _GATES or name in _GATES or _LIVE not in live else _LIVE
        active = [a for a, flag in zip(arguments, live, strict=True) if flag]
        single = active[0] if len(active) == 1 and outputs == 1 else None
        same_shape = single is not None and single.shape == equation.outvars[0].aval.shape
        if is_jit and call in (_ACTIVATIONS | _GATES) and same_shape:
            return [_pass(single, *operation(*arguments))], [kind]
        if is_jit and call in _LINEAR_MAPS and single is not None:
            return [_share(_of_live(operation, arguments, live), self.sums, single)], [_LIVE]
        if is_jit and call in _PROBABILITIES:
            _refuse_probabilities(place)
        inner = called_jaxpr(equation)
        if inner is not None:
            body, constants = inner
            return self.run(body, constants, arguments, live, place)
        if name in _ELEMENTWISE and same_shape and not (name == "div" and live[1]):
            return [_pass(single, *operation(*arguments))], [kind]
        if name == "mul" and sorted(live) == [_LIVE, _GATE]:
            signal = arguments[live.index(_LIVE)]
            if signal.shape == equation.outvars[0].aval.shape:
                return [_pass(signal, *operation(*arguments))], [_LIVE]
        # A difference has contributions of both signs, which only shares as they are fit.
        if name == "sub" and all(live) and isinstance(self.sums, Epsilon):
            # The sum with what is subtracted, negated, so that powers of it are of either sign.
            a, b = arguments
            return [_share(jnp.add, self.sums, a, _pass(b, -b))], [_LIVE]
        if name in _SUMS - {"sub"} and all(live):
            return [_share(lambda *xs: operation(*xs)[0], self.sums, *arguments)], [_LIVE]
        if name in _MOVES and all(_is_float(a) for a in (*active, *equation.outvars)):
            return operation(*arguments), [kind] * outputs
        advice = _REPLACEMENTS.get(
            name, "write it as a module (layers.Activation for one function)"
        )
        shape = "x".join(map(str, equation.outvars[0].aval.shape))
        raise ValueError(
            f"{place[-1]} applies the operation {name!r} (output {shape}), for which there is no "
            f"relevance rule; {advice} and give it one: "
            "composite.with_rules((TheModule, TheRule()))"
        )


def _refuse_probabilities(place: tuple[str, ...]) -> NoReturn:
    raise ValueError(
        f"{place[-1]} applies a softmax, for which there is no relevance rule; where it makes "
        "probabilities of the logits, hand over the model without it"
    )


def _bind(equation: Any, *arguments: Any) -> list[Array]:
    parameters = equation.primitive.get_bind_params(equation.params)
    results = equation.primitive.bind(*arguments, **parameters)
    return list(results) if equation.primitive.multiple_results else [results]


def _of_live(
    operation: Callable[..., list[Array]], arguments: list[Any], live: list[int]
) -> Callable[[Array], Array]:
    """An operation as a function of its one live argument."""
    place = next(k for k, flag in enumerate(live) if flag)
    return lambda x: operation(*arguments[:place], x, *arguments[place + 1 :])[0]


def called_jaxpr(equation: Any) -> tuple[Any, list[Array]] | None:
    """The jaxpr of a call with one body, and its constants; ``None`` for plain operations."""
    if equation.primitive.name not in _CALLS:
        return None
    for key in ("jaxpr", "call_jaxpr", "fun_jaxpr"):
        body = equation.params.get(key)
        if body is not None:
            constants = list(getattr(body, "consts", []))
            body = getattr(body, "jaxpr", body)
            return (body, constants) if len(body.invars) == len(equation.invars) else None
    return None


def _is_float(x: Any) -> bool:
    # Relevance of an integer, such as an index, would be lost.
    return jnp.issubdtype(getattr(x, "aval", x).dtype, jnp.floating)


_LAYER = re.compile(r"layer <([^>]*)>")


def layer_scope(path: tuple[Any, ...], module: Any) -> Any:
    """A scope under which a module's operations are traced, to name it in errors."""
    return jax.named_scope(f"layer <{'.'.join(map(str, path))} ({type(module).__name__})>")


def _place(equation: Any, place: tuple[str, ...]) -> tuple[str, ...]:
    found = _LAYER.findall(str(equation.source_info.name_stack))
    return (*place, f"the layer {found[-1]}") if found else place


@jax.custom_vjp
def _pass(x: Array, y: Array) -> Array:  # noqa: ARG001
    """``y``, whose relevance is that of ``x``."""
    return y


_pass.defvjp(lambda x, y: (y, None), lambda _, g: (g, None))


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _share(operation: Callable[..., Array], rule: Rule, *inputs: Array) -> Array:  # noqa: ARG001
    return operation(*inputs)


_share.defvjp(
    lambda operation, rule, *inputs: (operation(*inputs), inputs),
    lambda operation, rule, inputs, g: rule.relevance(operation, inputs, g),
)
