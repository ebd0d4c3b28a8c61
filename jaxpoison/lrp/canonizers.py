"""Equivalent models on which rules give a cleaner answer."""

from __future__ import annotations

import abc
from collections import Counter
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array

from jaxpoison.lrp.graph import layer_calls
from jaxpoison.models.layers import Identity
from jaxpoison.models.surgery import Path, replace_modules


class Canonizer(abc.ABC):
    """Rewrites a model into one that computes the same."""

    @abc.abstractmethod
    def apply(self, model: nnx.Module, images: Array) -> nnx.Module:
        """An equivalent model; the one given is not changed.

        Args:
            model: A model in evaluation mode.
            images: An input; only its shape and type matter.
        """


@dataclass(frozen=True)
class MergeBatchNorm(Canonizer):
    """Folds each batch normalisation into a dense or convolutional layer beside it.

    The layer before it, if nothing else uses that layer's result; else the
    layer after it, if that is the only use of the normalised values and the
    layer pads nothing. A normalisation with neither stays as it is. Guillemot
    et al. 2020, *Breaking batch normalization for better explainability of deep
    neural networks through layer-wise relevance propagation*.
    """

    def apply(self, model: nnx.Module, images: Array) -> nnx.Module:
        """See :meth:`Canonizer.apply`."""
        linear = (nnx.Linear, nnx.Conv)
        calls = layer_calls(model, images, (*linear, nnx.BatchNorm))
        layers: dict[Path, Any] = dict(nnx.iter_modules(model))
        times = Counter(call.path for call in calls)
        new: dict[Path, nnx.Module] = {}

        def free(path: Path) -> bool:
            return times[path] == 1 and path not in new

        for index, call in enumerate(calls):
            norm = layers[call.path]
            if not isinstance(norm, nnx.BatchNorm) or not free(call.path) or norm.axis != -1:
                continue
            scale, shift = _affine(norm)
            before = calls[call.direct] if call.direct is not None else None
            after = [c for c in calls if c.direct == index]
            if (
                before is not None
                and isinstance(layers[before.path], linear)
                and before.uses == 1
                and free(before.path)
            ):
                layer = layers[before.path]
                kernel = layer.kernel[...]
                scaled = kernel * scale.reshape(*(1 for _ in kernel.shape[:-1]), -1)
                new[before.path] = _with_parameters(layer, scaled, _bias(layer) * scale + shift)
                new[call.path] = Identity()
            elif call.uses == 1 and after and free(after[0].path):
                layer = layers[after[0].path]
                folded = _folded_behind(layer, scale, shift)
                if folded is not None:
                    new[after[0].path] = folded
                    new[call.path] = Identity()
        return replace_modules(model, lambda path, _: new.get(path))


@dataclass(frozen=True)
class PlainWeights(Canonizer):
    """Puts normalised weights in the place of ``nnx.SpectralNorm`` and ``nnx.WeightNorm``.

    In evaluation mode both give the layer they wrap the same weights at every call.
    """

    def apply(self, model: nnx.Module, images: Array) -> nnx.Module:  # noqa: ARG002
        """See :meth:`Canonizer.apply`."""
        kinds = (nnx.SpectralNorm, nnx.WeightNorm)
        if not any(isinstance(module, kinds) for _, module in nnx.iter_modules(model)):
            return model
        return replace_modules(
            model, lambda _, module: _normalised(module) if isinstance(module, kinds) else None
        )


def _normalised(wrapper: Any) -> nnx.Module:
    """The wrapped layer with the weights that the wrapper computes for a call."""
    copy = nnx.clone(wrapper)
    layer, kind = copy.layer_instance, type(copy.layer_instance)
    # The weights are set by a call; that of the layer itself is not needed for it.
    silent = type(kind.__name__, (kind,), {"__call__": lambda _, x, *args, **options: x})  # noqa: ARG005
    layer.__class__ = silent
    copy(jnp.zeros(()))
    layer.__class__ = kind
    return layer


PLAIN_WEIGHTS = PlainWeights()


def _affine(norm: nnx.BatchNorm) -> tuple[Array, Array]:
    """Scale and shift of a normalisation by its running statistics."""
    scale = 1 / jnp.sqrt(norm.var[...] + norm.epsilon)
    if norm.scale is not None:
        scale = scale * norm.scale[...]
    shift = -norm.mean[...] * scale
    return scale, shift if norm.bias is None else shift + norm.bias[...]


def _bias(layer: Any) -> Array:
    return jnp.zeros(layer.kernel[...].shape[-1]) if layer.bias is None else layer.bias[...]


def _folded_behind(layer: Any, scale: Array, shift: Array) -> nnx.Module | None:
    """A layer that takes unnormalised values; ``None`` where padding makes it impossible."""
    if isinstance(layer, nnx.Conv):
        dilated = np.any(np.asarray(layer.input_dilation) != 1)
        if layer.padding != "VALID" or layer.feature_group_count != 1 or dilated:
            return None
        if layer.mask is not None:
            return None
    elif not isinstance(layer, nnx.Linear):
        return None
    kernel = layer.kernel[...]
    # Along the inputs, whatever axes a kernel has before them.
    of_inputs = (*(1 for _ in kernel.shape[:-2]), -1, 1)
    added = (shift.reshape(of_inputs) * kernel).reshape(-1, kernel.shape[-1]).sum(0)
    return _with_parameters(layer, kernel * scale.reshape(of_inputs), _bias(layer) + added)


def _with_parameters(layer: Any, kernel: Array, bias: Array) -> nnx.Module:
    copy: Any = nnx.clone(layer)
    copy.kernel = nnx.Param(kernel)
    copy.bias = nnx.Param(bias)
    copy.use_bias = True
    return copy
