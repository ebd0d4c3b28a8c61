"""Rules for what a model computes outside its layers: sums, means, activations, attention.

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
from jaxpoison.lrp.shares import Rule, stabilized

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
# Linear maps of JAX that are jitted under their own name: relevance by share, as in an average.
_LINEAR_MAPS = frozenset({"_resize"})
# What gives gates: values by which a signal is multiplied. The signal takes all relevance
# (Arras et al. 2017, *Explaining recurrent neural network predictions in sentiment analysis*).
_GATES = frozenset({"logistic", "hard_sigmoid"})
# Whether a value depends on the image, and how. A softmax is known by its parts: exponentials,
# which are divided by a sum of theirs, and are probabilities then.
_DEAD, _LIVE, _GATE, _EXPONENTIAL, _NORMALISER, _PROBABILITY = range(6)
_NO_LOGITS = {
    _GATE: "a sigmoid",
    _EXPONENTIAL: "an exponential",
    _NORMALISER: "a sum of exponentials",
    _PROBABILITY: "a softmax",
}
# What may be done with exponentials and their sums before they are divided.
_OF_EXPONENTIALS = frozenset(
    {"broadcast_in_dim", "convert_element_type", "copy", "reshape", "squeeze", "transpose"}
)
_OF_A_MAXIMUM = _OF_EXPONENTIALS | {"max", "stop_gradient"}
# Operations that call one jaxpr once; loops and reductions hold jaxprs too.
_CALLS = frozenset(
    "jit pjit closed_call core_call custom_jvp_call custom_vjp_call custom_vjp_call_jaxpr "
    "checkpoint remat remat2".split()
)
# Stabiliser of products and probabilities.
_EPSILON = 1e-6
_REPLACEMENTS = {
    "dot_general": "use nnx.Linear",
    "conv_general_dilated": "use nnx.Conv",
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
        for kind in kinds:
            if kind in _NO_LOGITS:
                raise ValueError(
                    f"the model ends in {_NO_LOGITS[kind]}: what is explained are logits; hand "
                    "over the model without it"
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

        unnamed = {call.start: call for call in unnamed_calls(jaxpr, _UNNAMED_ACTIVATIONS)}
        made_by: dict[Any, Any] = {}
        done = 0
        for index, equation in enumerate(jaxpr.eqns):
            if index < done:
                continue
            known = unnamed.get(index)
            made_by.update((v, equation) for v in equation.outvars)
            if known is not None and is_live(known.input):
                x = read(known.input)
                values[known.output] = _pass(x, known.function(x))
                alive[known.output] = is_live(known.input)
                done = known.end
                continue
            arguments = [read(v) for v in equation.invars]
            flags = [is_live(v) for v in equation.invars]
            here = _place(equation, place)
            name = equation.primitive.name
            if name == "exp" and flags == [_LIVE]:
                x = _without_maximum(equation.invars[0], made_by)
                results, result_flags = [_exponential(read(x), arguments[0])], [_EXPONENTIAL]
            elif name == "stop_gradient" and _is_maximum(equation.invars[0], made_by):
                # What is subtracted from exponents, and changes nothing.
                results, result_flags = arguments, [_DEAD]
            else:
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
        if _EXPONENTIAL in live or _NORMALISER in live:
            made = _in_a_softmax(name, live)
            if made is None:
                self.refuse(equation, place)
            values = operation(*arguments)
            return [_shared_as(values[0]) if made == _PROBABILITY else values[0]], [made]
        # Moved and scaled, a gate is one still, and so are probabilities.
        kind = next((kind for kind in (_LIVE, _GATE, _PROBABILITY) if kind in live), _LIVE)
        if call in _GATES or name in _GATES:
            kind = _GATE
        active = [a for a, flag in zip(arguments, live, strict=True) if flag]
        single = active[0] if len(active) == 1 and outputs == 1 else None
        same_shape = single is not None and single.shape == equation.outvars[0].aval.shape
        if is_jit and call in (_ACTIVATIONS | _GATES) and same_shape:
            return [_pass(single, *operation(*arguments))], [kind]
        if is_jit and call == "log_softmax":
            raise ValueError(
                f"{place[-1]} applies a log_softmax, for which there is no relevance rule; where "
                "it makes probabilities of the logits, hand over the model without it"
            )
        if is_jit and call in _LINEAR_MAPS and single is not None:
            return [_share(_of_live(operation, arguments, live), self.sums, single)], [_LIVE]
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
        if all(live) and (name == "dot_general" or (name == "mul" and _GATE not in live)):
            return [_product(lambda a, b: operation(a, b)[0], *arguments)], [_LIVE]
        # A difference has contributions of both signs, which only shares as they are fit.
        if name == "sub" and all(live) and isinstance(self.sums, Epsilon):
            # The sum with what is subtracted, negated, so that powers of it are of either sign.
            a, b = arguments
            return [_share(jnp.add, self.sums, a, _pass(b, -b))], [_LIVE]
        if name in _SUMS - {"sub"} and all(live):
            return [_share(lambda *xs: operation(*xs)[0], self.sums, *arguments)], [_LIVE]
        if name in _MOVES and all(_is_float(a) for a in (*active, *equation.outvars)):
            return operation(*arguments), [kind] * outputs
        self.refuse(equation, place)

    def refuse(self, equation: Any, place: tuple[str, ...]) -> NoReturn:
        """Raises the error that an operation has no rule."""
        name = equation.primitive.name
        advice = _REPLACEMENTS.get(
            name, "write it as a module (layers.Activation for one function)"
        )
        shape = "x".join(map(str, equation.outvars[0].aval.shape))
        raise ValueError(
            f"{place[-1]} applies the operation {name!r} (output {shape}), for which there is no "
            f"relevance rule; {advice} and give it one: "
            "composite.with_rules((TheModule, TheRule()))"
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


def _in_a_softmax(name: str, live: list[int]) -> int | None:
    """What an operation on exponentials or their sums gives; ``None`` if it is no softmax."""
    if name == "div" and live == [_EXPONENTIAL, _NORMALISER]:
        return _PROBABILITY
    if name == "reduce_sum" and live == [_EXPONENTIAL]:
        return _NORMALISER
    return live[0] if name in _OF_EXPONENTIALS and len(live) == 1 else None


def _without_maximum(variable: Any, made_by: dict[Any, Any]) -> Any:
    """The variable from which a maximum was subtracted before its exponential was taken."""
    equation = made_by.get(variable)
    if equation is None or equation.primitive.name != "sub":
        return variable
    shifted, shift = equation.invars
    return shifted if _is_maximum(shift, made_by) else variable


def _is_maximum(atom: Any, made_by: dict[Any, Any]) -> bool:
    """Whether it is a maximum of a value, moved about."""
    while not isinstance(atom, core.Literal) and atom in made_by:
        step = made_by[atom]
        if step.primitive.name == "reduce_max":
            return True
        if step.primitive.name not in _OF_A_MAXIMUM:
            return False
        atom = next((v for v in step.invars if not isinstance(v, core.Literal)), step.invars[0])
    return False


# A softmax's relevance is that of its Taylor expansion, in which relevance of an output stands for
# a gradient times that output: x_i (R_i - s_i sum_j R_j) (Achtibat et al. 2024, *AttnLRP*,
# prop. 3.1). Between its two ends the gradient is JAX's own.


@jax.custom_vjp
def _exponential(x: Array, shifted: Array) -> Array:  # noqa: ARG001
    """The exponential of ``shifted``; what it is given is a gradient, what ``x`` gets relevance."""
    return jnp.exp(shifted)


_exponential.defvjp(
    lambda x, shifted: (jnp.exp(shifted), (x, shifted)),
    lambda saved, g: (saved[0] * jnp.exp(saved[1]) * g, None),
)


@jax.custom_vjp
def _shared_as(probabilities: Array) -> Array:
    """The probabilities; their relevance becomes a gradient."""
    return probabilities


_shared_as.defvjp(lambda s: (s, s), lambda s, g: (g / stabilized(s, _EPSILON),))


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _product(multiply: Callable[..., Array], a: Array, b: Array) -> Array:
    """A product of two values that both depend on the image.

    Each gets half the relevance, by its shares in the sum of products
    (Achtibat et al. 2024, *AttnLRP*, prop. 3.3).
    """
    return multiply(a, b)


def _product_backward(
    multiply: Callable[..., Array], saved: tuple[Array, Array], g: Array
) -> tuple[Array, Array]:
    z, pull = jax.vjp(multiply, *saved)
    of_a, of_b = pull(g / stabilized(2 * z, _EPSILON))
    return saved[0] * of_a, saved[1] * of_b


_product.defvjp(lambda multiply, a, b: (multiply(a, b), (a, b)), _product_backward)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _share(operation: Callable[..., Array], rule: Rule, *inputs: Array) -> Array:  # noqa: ARG001
    return operation(*inputs)


_share.defvjp(
    lambda operation, rule, *inputs: (operation(*inputs), inputs),
    lambda operation, rule, inputs, g: rule.relevance(operation, inputs, g),
)
