"""Relevance of a model's inputs: one vector-Jacobian product of the model under rules."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int, PyTree, UInt8

from jaxpoison.lrp.audit import audit
from jaxpoison.lrp.composites import Composite, paper
from jaxpoison.lrp.rules import Rule
from jaxpoison.models.inference import evaluation_view, map_batches
from jaxpoison.models.surgery import replace_modules


@dataclass(frozen=True, eq=False)
class Explanation:
    """Relevance of images towards a class each.

    Attributes:
        relevance: Relevance of every pixel and channel.
        logits: The model's outputs.
        start: Relevance that was handed to the output: the magnitude of the
            class' logit. Where the logit is negative, relevance would be
            negative throughout, so its magnitude is explained.
        negative: Where that happened.
    """

    relevance: Float[np.ndarray, "n h w c"]
    logits: Float[np.ndarray, "n classes"]
    start: Float[np.ndarray, " n"]
    negative: np.ndarray

    @property
    def absorbed(self) -> Float[np.ndarray, " n"]:
        """What stabilisers kept of each image's starting relevance."""
        return self.start - self.relevance.sum((1, 2, 3))


def relevance_function(
    model: nnx.Module, composite: Composite | None = None
) -> Callable[
    [Float[Array, "n h w c"], Int[Array, " n"]],
    tuple[Float[Array, "n h w c"], Float[Array, "n classes"]],
]:
    """A pure function from images and classes to relevance and logits.

    The model is read, not changed, and put into evaluation mode for this
    function only. The function can be jitted, vmapped and sharded.

    Args:
        model: Takes images in [0, 1], gives logits.
        composite: Which rule serves which layer; the paper's by default.

    Raises:
        ValueError: On the first call, if the model computes something outside
            the layers that have rules.
    """
    graphdef, state = nnx.split(evaluation_view(model))
    return partial(_relevance, graphdef, paper() if composite is None else composite, state)


def explain(
    model: nnx.Module,
    images: UInt8[np.ndarray, "n h w c"],
    classes: Int[np.ndarray, " n"],
    *,
    composite: Composite | None = None,
    batch_size: int = 128,
    progress: str | None = None,
) -> Explanation:
    """Relevance of many images towards the given classes, batch by batch.

    Args:
        model: Takes images in [0, 1], gives logits; not changed.
        images: Images at rest.
        classes: The class whose logit is explained, for every image.
        composite: Which rule serves which layer; the paper's by default.
        batch_size: Images per call; bounds the memory.
        progress: Title of a progress bar; none is shown without it.

    Raises:
        ValueError: The model has operations without rules, or there are not as
            many classes as images.
    """
    if len(classes) != len(images):
        raise ValueError(f"expected one class per image ({len(images)}), found {len(classes)}")
    graphdef, state = nnx.split(evaluation_view(model))
    rules = paper() if composite is None else composite
    relevance, logits = map_batches(
        partial(_jitted_relevance, graphdef, rules, state),
        images,
        np.asarray(classes, np.int32),
        batch_size=batch_size,
        progress=progress,
    )
    logit = np.take_along_axis(logits, np.asarray(classes)[:, None], 1)[:, 0]
    return Explanation(relevance, logits, np.abs(logit), logit < 0)


def _relevance(
    graphdef: nnx.GraphDef, composite: Composite, state: PyTree, images: Array, classes: Array
) -> tuple[Array, Array]:
    model = nnx.merge(graphdef, state)
    ruled = replace_modules(model, lambda path, layer: _bind(layer, composite))
    audit(ruled, images, _MARKER)
    logits, vjp = jax.vjp(ruled, images)
    start = jnp.abs(logits) * jax.nn.one_hot(classes, logits.shape[-1], dtype=logits.dtype)
    (relevance,) = vjp(start)
    return relevance, logits


@partial(jax.jit, static_argnums=(0, 1))
def _jitted_relevance(
    graphdef: nnx.GraphDef, composite: Composite, state: PyTree, images: Array, classes: Array
) -> tuple[Array, Array]:
    pixels = images.astype(jnp.float32) / 255
    return _relevance(graphdef, composite, state, pixels, classes)


def _bind(layer: nnx.Module, composite: Composite) -> nnx.Module | None:
    rule = composite.rule(layer)
    return None if rule is None else _Ruled(layer, rule)


# The audit knows layers that have rules by the name of this jitted function.
_MARKER = "_propagate"


class _Ruled(nnx.Module):
    """A layer whose backward pass is a rule."""

    def __init__(self, layer: nnx.Module, rule: Rule) -> None:
        self.layer = layer
        self.rule = rule

    def __call__(self, *inputs: Array) -> Array:
        graphdef, state = nnx.split(self.layer)
        return _propagate(self.rule, graphdef, state, inputs)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _layer(rule: Rule, graphdef: nnx.GraphDef, state: PyTree, inputs: tuple[Array, ...]) -> Array:
    return nnx.merge(graphdef, state)(*inputs)


def _layer_forward(
    rule: Rule, graphdef: nnx.GraphDef, state: PyTree, inputs: tuple[Array, ...]
) -> tuple[Array, tuple[PyTree, tuple[Array, ...]]]:
    return _layer(rule, graphdef, state, inputs), (state, inputs)


def _layer_backward(
    rule: Rule, graphdef: nnx.GraphDef, saved: tuple[PyTree, tuple[Array, ...]], outgoing: Array
) -> tuple[None, tuple[Array, ...]]:
    state, inputs = saved
    return None, rule.relevance(nnx.merge(graphdef, state), inputs, outgoing)


_layer.defvjp(_layer_forward, _layer_backward)


@partial(jax.jit, static_argnums=(0, 1))
def _propagate(
    rule: Rule, graphdef: nnx.GraphDef, state: PyTree, inputs: tuple[Array, ...]
) -> Array:
    return _layer(rule, graphdef, state, inputs)
