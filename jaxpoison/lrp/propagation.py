"""Relevance as one vector-Jacobian product of the model under rules."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.core import Tracer
from jaxtyping import Array, Float, Int, PyTree

from jaxpoison._checks import check_classes, check_logits
from jaxpoison._precision import in_full_precision
from jaxpoison.lrp.canonizers import PLAIN_WEIGHTS
from jaxpoison.lrp.composites import Composite, paper
from jaxpoison.lrp.graph import INPUT, layer_calls
from jaxpoison.lrp.operations import layer_scope, with_operation_rules
from jaxpoison.lrp.shares import Rule
from jaxpoison.models.inference import evaluation_view
from jaxpoison.models.surgery import Path, Wrapper, find_module, replace_modules

Targets = Int[Array, " n"] | Float[Array, "n classes"] | None


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Propagation:
    """What one backward pass under rules gives.

    Attributes:
        relevance: Relevance of every pixel and channel.
        logits: The model's outputs.
        layers: Relevance of the outputs of the layers asked for, by path.
        ledger: For every layer with a rule, in the order of the computation,
            per image: the relevance it was given, what it handed on, and what
            its bias absorbed.
    """

    relevance: Float[Array, "n h w c"]
    logits: Float[Array, "n classes"]
    layers: dict[str, Array]
    ledger: tuple[Float[Array, "n 3"], ...]


def start_relevance(
    logits: Float[Array, "n classes"], targets: Targets
) -> Float[Array, "n classes"]:
    """The relevance handed to a model's outputs.

    Args:
        logits: The outputs.
        targets: A class per image: the magnitude of its logit. (Where that is
            negative, relevance would be negative throughout.) Classes that are none of the
            model's are refused; where they are traced, and cannot be, such an image's
            relevance is NaN. ``None``: the
            class with the largest logit. An array of floats in the shape of the
            logits: that relevance itself.

    Raises:
        TypeError: Classes are not integers.
        ValueError: The targets do not fit the logits.
    """
    if targets is not None and jnp.issubdtype(targets.dtype, jnp.floating):
        if targets.shape != logits.shape:
            raise ValueError(
                f"start relevance must have the shape of the logits {logits.shape}, "
                f"found {targets.shape}"
            )
        return targets
    classes = logits.argmax(-1) if targets is None else targets
    if classes.shape != logits.shape[:1]:
        raise ValueError(
            f"expected one class per image ({logits.shape[0]}), found the shape {classes.shape}"
        )
    if not isinstance(classes, Tracer):
        check_classes("targets", classes, logits.shape[-1])
    known = (classes >= 0) & (classes < logits.shape[-1])
    chosen = jax.nn.one_hot(classes, logits.shape[-1], dtype=logits.dtype)
    return jnp.where(known[:, None], jnp.abs(logits) * chosen, jnp.nan)


def relevance_function(
    model: nnx.Module, composite: Composite | None = None
) -> Callable[..., tuple[Float[Array, "n h w c"], Float[Array, "n classes"]]]:
    """A pure function from images and targets to relevance and logits.

    The model is read, not changed, and put into evaluation mode for this
    function only. The function can be jitted, vmapped and sharded, and its products are of
    float32 on every device; targets are those of :func:`start_relevance`. Inside
    ``jax.shard_map`` it needs ``check_vma=False``.

    Args:
        model: Takes images in [0, 1], gives logits.
        composite: Which rule serves which layer; the paper's by default.

    Raises:
        TypeError: On the first call, if the images are not floats.
        ValueError: On the first call, if the model computes something for which
            there is no rule, or the targets do not fit its logits.

    Examples:
        >>> relevance_of = jax.jit(jp.relevance_function(model))
        >>> relevance, logits = relevance_of(jax.numpy.asarray(images, "float32") / 255, labels)
        >>> relevance.shape, logits.shape
        ((20, 32, 32, 3), (20, 10))
    """
    graphdef, state = nnx.split(evaluation_view(model))
    rules = paper() if composite is None else composite

    @in_full_precision
    def function(images: Array, targets: Targets = None) -> tuple[Array, Array]:
        if not jnp.issubdtype(jnp.result_type(images), jnp.floating):
            raise TypeError(
                f"images must be floats in [0, 1], found {jnp.result_type(images)}; divide "
                "pixels in 0..255 by 255, or give them to jaxpoison.explain"
            )
        found = propagate(graphdef, rules, state, images, targets)
        return found.relevance, found.logits

    return function


@dataclass(frozen=True)
class RuledLayer:
    """A layer and the rule that serves it.

    Attributes:
        path: Its path in the model, with dots.
        kind: Name of its class.
        rule: The rule.
        shape: Of its output for one image; empty until it is called.
    """

    path: str
    kind: str
    rule: Rule
    shape: tuple[int, ...] = ()


def ruled_layers(
    model: nnx.Module, images: Float[Array, "n h w c"], composite: Composite | None = None
) -> tuple[RuledLayer, ...]:
    """Every layer that has a rule, in the order of the computation.

    Args:
        model: Takes images in [0, 1], gives logits.
        images: An input; only its shape and type matter.
        composite: Which rule serves which layer; the paper's by default.
    """
    prepared = _Prepared(
        evaluation_view(model), paper() if composite is None else composite, images
    )
    return prepared.layers()


def propagate(
    graphdef: nnx.GraphDef[Any],
    composite: Composite,
    state: PyTree,
    images: Float[Array, "n h w c"],
    targets: Targets,
    layers: tuple[str, ...] = (),
    ledger: bool = False,
) -> Propagation:
    """Relevance of a split model in evaluation mode.

    Args:
        graphdef: The model's structure.
        composite: Which rule serves which layer.
        state: The model's arrays.
        images: Images in [0, 1].
        targets: See :func:`start_relevance`.
        layers: Paths of layers whose outputs' relevance is wanted too.
        ledger: Whether to book what every layer was given and handed on.

    Raises:
        ValueError: There is no such layer, or an operation has no rule.
    """
    prepared = _Prepared(nnx.merge(graphdef, state), composite, images)
    probes = prepared.probes(layers)
    books = {}
    if ledger:
        books = {row.path: jnp.zeros((len(images), 3)) for row in prepared.layers()}
    forward = with_operation_rules(prepared.forward, _MARKERS, composite.sums)
    logits, vjp = jax.vjp(forward, images, probes, books)
    check_logits(logits)
    relevance, at_layers, booked = vjp(start_relevance(logits, targets))
    return Propagation(relevance, logits, at_layers, tuple(booked[path] for path in books))


class _Prepared:
    """A canonised model, and which of its layers come first."""

    def __init__(self, model: nnx.Module, composite: Composite, images: Array) -> None:
        for canonizer in (PLAIN_WEIGHTS, *composite.canonizers):
            model = canonizer.apply(model, images)
        self.model = model
        self.composite = composite
        self.images = images
        self.first: set[Path] = set()
        if composite.first:
            kinds = tuple(kind for kind, _ in composite.first)
            calls = layer_calls(model, images, kinds)
            self.first = {call.path for call in calls if INPUT in call.upstream}

    def forward(
        self,
        images: Array,
        probes: dict[str, Array],
        books: dict[str, Array],
        met: Callable[[RuledLayer], None] | None = None,
    ) -> Array:
        """The model with its layers under rules."""

        def bind(path: Path, layer: nnx.Module) -> nnx.Module | None:
            rule = self.composite.rule(path, layer, is_first=path in self.first)
            if rule is None:
                return None
            name = ".".join(map(str, path))
            row = RuledLayer(name, type(layer).__name__, rule)
            return _Ruled(layer, row, books.get(name), probes.get(name), met)

        def scope(path: Path, module: nnx.Module) -> nnx.Module:
            return _Scoped(module, path, probes.get(".".join(map(str, path)))) if path else module

        return replace_modules(self.model, bind, scope)(images)  # pyright: ignore[reportCallIssue]

    def layers(self) -> tuple[RuledLayer, ...]:
        """Every layer that has a rule, in the order of the computation."""
        met: list[RuledLayer] = []
        jax.eval_shape(lambda x: self.forward(x, {}, {}, met.append), self.images)
        return tuple({row.path: row for row in met}.values())

    def probes(self, layers: tuple[str, ...]) -> dict[str, Array]:
        """Zeros in the shapes of the layers' outputs."""
        outputs: dict[str, Any] = {}
        modules: dict[Path, nnx.Module] = dict(nnx.iter_modules(self.model))
        wanted = {find_module(self.model, layer): layer for layer in layers}

        def watch(path: Path, module: nnx.Module) -> nnx.Module:
            return _Watched(module, wanted[path], outputs) if path in wanted else module

        def watched(images: Array) -> Array:
            # Copied where it is traced: a model may count its calls or keep intermediate values.
            return replace_modules(self.model, lambda *_: None, watch)(images)  # pyright: ignore[reportCallIssue]

        if wanted:
            jax.eval_shape(watched, self.images)
        for path, name in wanted.items():
            if name not in outputs:
                raise ValueError(f"the model does not call {name}, so it has no relevance")
            for end in range(1, len(path)):
                if self.composite.rule(path[:end], modules[path[:end]]) is not None:
                    raise ValueError(
                        f"{name} lies inside {'.'.join(map(str, path[:end]))}, which has a rule "
                        "as a whole"
                    )
        return {name: jnp.zeros(o.shape, o.dtype) for name, o in outputs.items()}


class _Watched(Wrapper):
    def __init__(self, layer: nnx.Module, name: str, outputs: dict[str, Any]) -> None:
        super().__init__(layer)
        self._own_receive = partial(_receive_once, outputs, name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        output = self._own_module(*args, **kwargs)  # pyright: ignore[reportCallIssue]
        self._own_receive(output)
        return output


def _receive_once(outputs: dict[str, Any], name: str, output: Any) -> None:
    if name in outputs:
        raise ValueError(f"the model calls {name} more than once: its relevance is not one array")
    outputs[name] = jax.ShapeDtypeStruct(output.shape, output.dtype)


class _Scoped(Wrapper):
    """A module without a rule, named in the operations it is traced to."""

    def __init__(self, layer: nnx.Module, path: Path, probe: Array | None) -> None:
        super().__init__(layer)
        self._own_path = path
        self._own_probe = nnx.data(probe)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with layer_scope(self._own_path, self._own_module):
            output = self._own_module(*args, **kwargs)  # pyright: ignore[reportCallIssue]
        return output if self._own_probe is None else _jaxpoison_probe(output, self._own_probe)


class _Ruled(Wrapper):
    """A layer whose backward pass is a rule."""

    def __init__(
        self,
        layer: nnx.Module,
        row: RuledLayer,
        book: Array | None,
        probe: Array | None,
        met: Callable[[RuledLayer], None] | None,
    ) -> None:
        super().__init__(layer)
        self._own_row = row
        self._own_book = nnx.data(book)
        self._own_probe = nnx.data(probe)
        self._own_met = met

    def __call__(self, *inputs: Array, **options: Any) -> Array:
        graphdef, state = nnx.split(self._own_module)
        static = _Layer(self._own_row.rule, graphdef, tuple(sorted(options.items())))
        output = _jaxpoison_rule(static, state, inputs, self._own_book)
        if self._own_met is not None:
            self._own_met(dataclasses.replace(self._own_row, shape=output.shape[1:]))
        return output if self._own_probe is None else _jaxpoison_probe(output, self._own_probe)


@dataclass(frozen=True)
class _Layer:
    """What is fixed when a layer under a rule is traced."""

    rule: Rule
    graphdef: nnx.GraphDef[Any]
    # Options of the call, such as ``deterministic``; rules know the layer alone.
    options: tuple[tuple[str, Any], ...]

    def module(self, state: PyTree) -> Callable[..., Array]:
        return nnx.merge(self.graphdef, state)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _layer(
    static: _Layer,
    state: PyTree,
    inputs: tuple[Array, ...],
    book: Array | None,  # noqa: ARG001
) -> Array:
    return static.module(state)(*inputs, **dict(static.options))


def _layer_forward(
    static: _Layer, state: PyTree, inputs: tuple[Array, ...], book: Array | None
) -> tuple[Array, tuple[PyTree, tuple[Array, ...], Array | None]]:
    return _layer(static, state, inputs, book), (state, inputs, book)


def _layer_backward(
    static: _Layer, saved: tuple[PyTree, tuple[Array, ...], Array | None], outgoing: Array
) -> tuple[None, tuple[Array, ...], Array | None]:
    state, inputs, book = saved
    layer = static.module(state)
    handed = static.rule.relevance(layer, inputs, outgoing)
    if book is None:
        return None, handed, None

    def per_image(x: Array) -> Array:
        return x.reshape(len(x), -1).sum(1)

    booked = (
        per_image(outgoing),
        jnp.stack([per_image(r) for r in handed]).sum(0),
        static.rule.bias_relevance(layer, inputs, outgoing),
    )
    return None, handed, jnp.stack(booked, axis=1)


_layer.defvjp(_layer_forward, _layer_backward)


@partial(jax.jit, static_argnums=0)
def _jaxpoison_rule(
    static: _Layer, state: PyTree, inputs: tuple[Array, ...], book: Array | None
) -> Array:
    return _layer(static, state, inputs, book)


@jax.custom_vjp
def _both(x: Array, probe: Array) -> Array:  # noqa: ARG001
    return x


_both.defvjp(lambda x, probe: (x, None), lambda _, g: (g, g))


@jax.jit
def _jaxpoison_probe(x: Array, probe: Array) -> Array:
    """``x``; its relevance is the probe's too."""
    return _both(x, probe)


# Operations know the calls that have rules by the names of these jitted functions.
_MARKERS = frozenset({"_jaxpoison_rule", "_jaxpoison_probe"})
