"""Relevance inside the network: at named layers, and what each layer kept."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int, PyTree, UInt8

from jaxpoison._checks import check_classes, check_images, check_one_class_each
from jaxpoison._precision import in_full_precision
from jaxpoison.lrp.composites import Composite, paper
from jaxpoison.lrp.propagation import RuledLayer, propagate, ruled_layers
from jaxpoison.models.inference import class_count, evaluation_view
from jaxpoison.parallel import map_batches, over_devices


@dataclass(frozen=True)
class LayerBalance:
    """What one layer did with relevance: means over the images, as shares of the start.

    Attributes:
        layer: The layer and its rule.
        given: Relevance of its output.
        handed: Relevance it handed to its inputs.
        bias: Relevance its bias absorbed.

    Examples:
        >>> first = jp.conservation(model, images, labels)[0]
        >>> absorbed = first.bias + first.stabilizer
        >>> first.layer.path, bool(np.isclose(first.given, first.handed + absorbed))
        ('layers.0', True)
    """

    layer: RuledLayer
    given: float
    handed: float
    bias: float

    @property
    def stabilizer(self) -> float:
        """Relevance its stabiliser absorbed, or that found no input to go to."""
        return self.given - self.handed - self.bias


def conservation(
    model: nnx.Module,
    images: UInt8[np.ndarray, "n h w c"],
    classes: Int[np.ndarray, " n"],
    *,
    composite: Composite | None = None,
    batch_size: int = 128,
) -> tuple[LayerBalance, ...]:
    """What every layer was given, handed on and absorbed, from the input to the output.

    Args:
        model: Takes images in [0, 1], gives logits; not changed.
        images: Images at rest.
        classes: The class whose logit is explained, for every image.
        composite: Which rule serves which layer; the paper's by default.
        batch_size: Images per call; bounds the memory.

    Raises:
        TypeError: The images are not ``uint8``, or the model gives no array of logits.
        ValueError: The model has operations without rules, there are not as
            many classes as images, or one of them is none of the model's.

    Examples:
        >>> for row in jp.conservation(model, images, labels):
        ...     print(row.layer.path, type(row.layer.rule).__name__)
        layers.0 Epsilon
        layers.3 Epsilon
        layers.5 Epsilon
    """
    check_images("images", images)
    check_one_class_each(classes, images)
    check_classes("classes", classes, class_count(model, images))
    rules = paper() if composite is None else composite
    graphdef, state = nnx.split(evaluation_view(model))
    start, *books = map_batches(
        partial(_ledger, rules, graphdef),
        state,
        images,
        np.asarray(classes, np.int32),
        batch_size=batch_size,
    )
    # Nothing is handed to a logit of 0, and nothing comes of it.
    start = np.where(start > 0, start, 1)
    shares = [np.mean(book / start[:, None], axis=0) for book in books]
    sample = jnp.zeros((1, *images.shape[1:]))
    return tuple(
        LayerBalance(layer, *map(float, share))
        for layer, share in zip(ruled_layers(model, sample, rules), shares, strict=True)
    )


def layer_relevance(
    model: nnx.Module,
    images: UInt8[np.ndarray, "n h w c"],
    classes: Int[np.ndarray, " n"],
    layers: tuple[str, ...],
    *,
    composite: Composite | None = None,
    batch_size: int = 128,
) -> dict[str, Float[np.ndarray, "n ..."]]:
    """Relevance of the outputs of named layers.

    Args:
        model: Takes images in [0, 1], gives logits; not changed.
        images: Images at rest.
        classes: The class whose logit is explained, for every image.
        layers: Paths of layers, with dots; blocks of layers too.
        composite: Which rule serves which layer; the paper's by default.
        batch_size: Images per call; bounds the memory.

    Returns:
        By path, an array in the shape of that layer's output.

    Raises:
        TypeError: The images are not ``uint8``, or the model gives no array of logits.
        ValueError: There is no such layer, it is called more than once or
            never, there are not as many classes as images, or one of them is none
            of the model's.

    Examples:
        >>> found = jp.layer_relevance(model, images, labels, ("layers.0", "layers.3"))
        >>> found["layers.0"].shape, found["layers.3"].shape
        ((20, 8, 8, 8), (20, 16))
    """
    check_images("images", images)
    check_one_class_each(classes, images)
    check_classes("classes", classes, class_count(model, images))
    rules = paper() if composite is None else composite
    graphdef, state = nnx.split(evaluation_view(model))
    return map_batches(
        partial(_at_layers, rules, graphdef, tuple(layers)),
        state,
        images,
        np.asarray(classes, np.int32),
        batch_size=batch_size,
    )


@partial(jax.jit, static_argnums=(0, 1))
@in_full_precision
def _ledger(
    composite: Composite, graphdef: nnx.GraphDef[Any], state: PyTree, images: Array, classes: Array
) -> tuple[Array, ...]:
    def books(state: PyTree, pixels: Array, classes: Array) -> tuple[Array, ...]:
        found = propagate(graphdef, composite, state, pixels, classes, ledger=True)
        start = jnp.abs(jnp.take_along_axis(found.logits, classes[:, None], 1)[:, 0])
        return (start, *found.ledger)

    return over_devices(books)(state, images.astype(jnp.float32) / 255, classes)


@partial(jax.jit, static_argnums=(0, 1, 2))
@in_full_precision
def _at_layers(
    composite: Composite,
    graphdef: nnx.GraphDef[Any],
    layers: tuple[str, ...],
    state: PyTree,
    images: Array,
    classes: Array,
) -> dict[str, Array]:
    def found(state: PyTree, pixels: Array, classes: Array) -> dict[str, Array]:
        return propagate(graphdef, composite, state, pixels, classes, layers).layers

    return over_devices(found)(state, images.astype(jnp.float32) / 255, classes)
