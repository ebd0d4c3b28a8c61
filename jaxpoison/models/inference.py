"""Running a network over many images: fixed shapes, one compilation."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, PyTree, UInt8

from jaxpoison._checks import check_images, check_logits
from jaxpoison._code import described
from jaxpoison._precision import in_full_precision
from jaxpoison.models.surgery import Path, find_module, replace_modules
from jaxpoison.parallel import map_batches, over_devices

M = TypeVar("M", bound=nnx.Module)


def evaluation_view(model: M) -> M:
    """The model with batch statistics and dropout frozen; arrays are shared, the model kept.

    Raises:
        ValueError: Its call takes more than images, or options that are for training by default.
    """
    _refuse_options(type(model))
    return nnx.with_attributes(
        model, deterministic=True, use_running_average=True, raise_if_not_found=False
    )


# Options of a call that say whether it is one of training; and what they are then.
_TRAINS = {"train": True, "training": True, "is_training": True, "deterministic": False}


def _refuse_options(kind: type) -> None:
    """Nothing here knows what to hand over beside images."""
    options = list(inspect.signature(kind.__call__).parameters.values())[2:]
    plain = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    for option in options:
        if option.kind not in plain:
            continue
        needed = option.default is inspect.Parameter.empty
        if needed or (option.name in _TRAINS and option.default is _TRAINS[option.name]):
            found = "is needed" if needed else f"is {option.default} by default"
            raise ValueError(
                f"{kind.__name__} is called with images alone, and its {option.name!r} {found}: "
                f"wrap it in a module whose __call__ hands {option.name!r} over"
            )


def parameter_count(model: nnx.Module) -> int:
    """Number of trainable parameters."""
    return sum(p.size for p in jax.tree.leaves(nnx.state(model, nnx.Param)))


def fingerprint(model: nnx.Module) -> str:
    """A hash of what a model is made of: its modules' kinds, places and options, and its arrays.

    Equal for equal models, in other processes too, in training and in evaluation mode.
    """
    digest = hashlib.sha256()
    for path, module in sorted(nnx.iter_modules(model), key=lambda found: str(found[0])):
        options = {
            name: described(value)
            for name, value in sorted(vars(module).items())
            if not name.startswith("_") and name not in _MODES and not _holds_state(value)
        }
        kind = f"{type(module).__module__}.{type(module).__qualname__}"
        digest.update(f"{path} {kind} {options};".encode())
    for path, leaf in jax.tree.leaves_with_path(nnx.to_pure_dict(nnx.state(model))):
        is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        array = np.asarray(jax.random.key_data(leaf) if is_key else leaf)
        digest.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape};".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def kinds_of(model: nnx.Module) -> tuple[type, ...]:
    """The classes of a model's modules: whose code computes what it does."""
    kinds = {type(module) for _, module in nnx.iter_modules(model)}
    return tuple(sorted(kinds, key=lambda kind: f"{kind.__module__}.{kind.__qualname__}"))


# What differs between training and evaluation.
_MODES = frozenset({"deterministic", "use_running_average"})


def _holds_state(value: Any) -> bool:
    return isinstance(value, nnx.Pytree | nnx.Variable | jax.Array | np.ndarray)


def class_count(model: nnx.Module, images: UInt8[np.ndarray, "n h w c"]) -> int:
    """The number of logits that a model gives for such images; nothing is computed."""
    check_images("images", images)
    network, state = pure(model)
    one = jax.ShapeDtypeStruct((1, *images.shape[1:]), jnp.float32)
    return jax.eval_shape(network, state, one).shape[-1]


@dataclass(frozen=True)
class PureModel:
    """A model as a pure function of its state; equal ones share compilations.

    Attributes:
        graph: What the model is made of, without arrays.
    """

    graph: nnx.GraphDef

    def __call__(self, state: PyTree, images: Float[Array, "n h w c"]) -> Float[Array, "n classes"]:
        """Logits from the model's state and images in [0, 1]; products are of float32."""
        logits = in_full_precision(nnx.merge(self.graph, state))(images)
        check_logits(logits)
        return logits


def pure(model: nnx.Module) -> tuple[PureModel, PyTree]:
    """A model in evaluation mode as a pure function, and the state it takes.

    Args:
        model: Takes images in [0, 1], gives logits.

    Examples:
        >>> network, parameters = jp.pure(model)
        >>> jax.jit(network)(parameters, jax.numpy.zeros((1, 32, 32, 3))).shape
        (1, 10)
    """
    graph, state = nnx.split(evaluation_view(model))
    return PureModel(graph), state


@partial(jax.jit, static_argnums=0)
@in_full_precision
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

    Raises:
        TypeError: The images are not ``uint8``, or the model gives no array of logits.
        ValueError: There are no images, or the model's call takes more than images.

    Examples:
        >>> jp.predict(model, images).shape
        (20, 10)
    """
    check_images("images", images)
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
        TypeError: The images are not ``uint8``.
        ValueError: The model has no such module, or does not call it exactly once.

    Examples:
        >>> jp.layer_outputs(model, images, "layers.3").shape
        (20, 16)
    """
    return _layer_values(
        model, images, layer, inputs=False, batch_size=batch_size, progress=progress
    )


def layer_inputs(
    model: nnx.Module,
    images: UInt8[np.ndarray, "n h w c"],
    layer: str,
    *,
    batch_size: int = 128,
    progress: str | None = None,
) -> Float[np.ndarray, "n features"]:
    """What one module of a model in evaluation mode gets, flattened per image.

    Args, and errors, are those of :func:`layer_outputs`.

    Examples:
        >>> jp.layer_inputs(model, images, "layers.3").shape
        (20, 512)
    """
    return _layer_values(
        model, images, layer, inputs=True, batch_size=batch_size, progress=progress
    )


def _layer_values(
    model: nnx.Module,
    images: UInt8[np.ndarray, "n h w c"],
    layer: str,
    *,
    inputs: bool,
    batch_size: int,
    progress: str | None,
) -> Float[np.ndarray, "n features"]:
    check_images("images", images)
    path = find_module(model, layer)
    graphdef, state = nnx.split(evaluation_view(model))
    return map_batches(
        partial(_values_at, graphdef, path, inputs),
        state,
        images,
        batch_size=batch_size,
        progress=progress,
    )


@partial(jax.jit, static_argnums=(0, 1, 2))
@in_full_precision
def _values_at(
    graphdef: nnx.GraphDef, path: Path, inputs: bool, state: nnx.State, images: Array
) -> Array:
    def values(state: nnx.State, images: Array) -> Array:
        found: list[Array] = []
        tapped = replace_modules(
            nnx.merge(graphdef, state),
            lambda here, module: _Tap(module, inputs, found.append) if here == path else None,
        )
        tapped(images)
        if len(found) != 1:
            raise ValueError(
                f"the model must call {'.'.join(map(str, path))} once, found {len(found)} calls"
            )
        return found[0].reshape(len(images), -1)

    return over_devices(values)(state, images.astype(jnp.float32) / 255)


class _Tap(nnx.Module):
    """A module whose first input or output is handed to someone else as well."""

    def __init__(self, module: nnx.Module, inputs: bool, receive: Callable[[Array], None]) -> None:
        self.module = module
        self.inputs = inputs
        self.receive = receive

    def __call__(self, *args: Any, **kwargs: Any) -> Array:
        output = self.module(*args, **kwargs)
        self.receive(args[0] if self.inputs else output)
        return output
