"""Running a network over many images: fixed shapes, one compilation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, PyTree, UInt8

from jaxpoison.models.surgery import Path, find_module, replace_modules
from jaxpoison.parallel import map_batches, over_devices

M = TypeVar("M", bound=nnx.Module)


def evaluation_view(model: M) -> M:
    """The model with batch statistics and dropout frozen; arrays are shared, the model kept."""
    return nnx.with_attributes(
        model, deterministic=True, use_running_average=True, raise_if_not_found=False
    )


def parameter_count(model: nnx.Module) -> int:
    """Number of trainable parameters."""
    return sum(p.size for p in jax.tree.leaves(nnx.state(model, nnx.Param)))


@dataclass(frozen=True)
class PureModel:
    """A model as a pure function of its state; equal ones share compilations.

    Attributes:
        graph: What the model is made of, without arrays.
    """

    graph: nnx.GraphDef

    def __call__(self, state: PyTree, images: Float[Array, "n h w c"]) -> Float[Array, "n classes"]:
        """Logits from the model's state and images in [0, 1]."""
        return nnx.merge(self.graph, state)(images)


def pure(model: nnx.Module) -> tuple[PureModel, PyTree]:
    """A model in evaluation mode as a pure function, and the state it takes.

    Args:
        model: Takes images in [0, 1], gives logits.
    """
    graph, state = nnx.split(evaluation_view(model))
    return PureModel(graph), state


@partial(jax.jit, static_argnums=0)
def _logits(network: PureModel, state: PyTree, images: Array) -> Array:
    return over_devices(network)(state, images.astype(jnp.float32) / 255)


def predict(
    model: nnx.Module,
    images: UInt8[np.ndarray, "n h w c"],
    *,
    batch_size: int = 128,
    progress: str | None = None,
) -> Float[np.ndarray, "n classes"]:
    """Logits of a model in evaluation mode.

    Args:
        model: Takes images in [0, 1], gives logits.
        images: Images at rest.
        batch_size: Images per call.
        progress: Title of a progress bar; none is shown without it.
    """
    network, state = pure(model)
    return map_batches(
        partial(_logits, network), state, images, batch_size=batch_size, progress=progress
    )


def layer_outputs(
    model: nnx.Module,
    images: UInt8[np.ndarray, "n h w c"],
    layer: str,
    *,
    batch_size: int = 128,
    progress: str | None = None,
) -> Float[np.ndarray, "n features"]:
    """Outputs of one module of a model in evaluation mode, flattened per image.

    Args:
        model: Takes images in [0, 1].
        images: Images at rest.
        layer: Path of the module, with dots.
        batch_size: Images per call.
        progress: Title of a progress bar; none is shown without it.

    Raises:
        ValueError: The model has no such module, or does not call it exactly once.
    """
    path = find_module(model, layer)
    graphdef, state = nnx.split(evaluation_view(model))
    return map_batches(
        partial(_layer_outputs, graphdef, path),
        state,
        images,
        batch_size=batch_size,
        progress=progress,
    )


@partial(jax.jit, static_argnums=(0, 1))
def _layer_outputs(graphdef: nnx.GraphDef, path: Path, state: nnx.State, images: Array) -> Array:
    def outputs(state: nnx.State, images: Array) -> Array:
        found: list[Array] = []
        tapped = replace_modules(
            nnx.merge(graphdef, state),
            lambda here, module: _Tap(module, found.append) if here == path else None,
        )
        tapped(images)
        if len(found) != 1:
            raise ValueError(
                f"the model must call {'.'.join(map(str, path))} once, found {len(found)} calls"
            )
        return found[0].reshape(len(images), -1)

    return over_devices(outputs)(state, images.astype(jnp.float32) / 255)


class _Tap(nnx.Module):
    """A module whose output is handed to someone else as well."""

    def __init__(self, module: nnx.Module, receive: Callable[[Array], None]) -> None:
        self.module = module
        self.receive = receive

    def __call__(self, *args: Any, **kwargs: Any) -> Array:
        output = self.module(*args, **kwargs)
        self.receive(output)
        return output
