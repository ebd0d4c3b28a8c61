"""Layers as modules, so that relevance rules and paths can name them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from flax.nnx.nn.dtypes import promote_dtype
from flax.typing import Dtype
from jaxtyping import Array, Float

from jaxpoison.models.convolution import conv_general_dilated


class MaxPool(nnx.Module):
    """Maximum over windows that do not overlap; incomplete windows are dropped.

    The gradient goes to the winner, the first one where several are equal.

    Args:
        window: Side of the square window, and its stride.
    """

    def __init__(self, window: int = 2) -> None:
        self.window = window

    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n h2 w2 c"]:
        k = self.window
        return _max_pool(x[:, : x.shape[1] // k * k, : x.shape[2] // k * k], k)


# Comparing the window's places one by one is as fast as reduce_window forward; its
# gradient is far cheaper on CPUs than both reduce_window's and that of max().
# The winner is remembered as its place, not found again by its value: a compiler
# that recomputes the input for the backward pass may round it differently, and
# then no place would equal the maximum.


def _windows(x: Array, k: int) -> Array:
    n, h, w, c = x.shape
    return x.reshape(n, h // k, k, w // k, k, c)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def _max_pool(x: Array, k: int) -> Array:
    return _windows(x, k).max((2, 4))


@_max_pool.defjvp
def _max_pool_derivative(
    k: int, primals: tuple[Array], tangents: tuple[Array]
) -> tuple[Array, Array]:
    windows = _windows(primals[0], k)
    best = windows[:, :, 0, :, 0]
    winner = jnp.zeros(best.shape, jnp.int32)
    for place in range(1, k * k):
        value = windows[:, :, place // k, :, place % k]
        winner = jnp.where(value > best, place, winner)
        best = jnp.maximum(value, best)
    places = jnp.arange(k * k, dtype=jnp.int32).reshape(1, 1, k, 1, k, 1)
    # One selection, whose transpose is one: slices would be padded and added, place by place.
    chosen = places == winner[:, :, None, :, None]
    return best, jnp.where(chosen, _windows(tangents[0], k), 0).sum((2, 4))


class AvgPool(nnx.Module):
    """Average over windows with zero padding that keeps the size at stride 1.

    Padded zeros count in the average, as in the paper's network.

    Args:
        window: Side of the square window.
        stride: Stride of the window.
    """

    def __init__(self, window: int, stride: int = 1) -> None:
        self.window = window
        self.stride = stride

    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n h2 w2 c"]:
        return nnx.avg_pool(
            x, (self.window, self.window), (self.stride, self.stride), padding="SAME"
        )


class Concatenate(nnx.Module):
    """Joins the channels of several inputs."""

    def __call__(self, *xs: Float[Array, "n h w _"]) -> Float[Array, "n h w c"]:
        return jnp.concatenate(xs, axis=-1)


class Sum(nnx.Module):
    """Sum of several inputs of one shape, as at the end of a residual block."""

    def __call__(self, *xs: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        return functools.reduce(jnp.add, xs)


class GlobalAvgPool(nnx.Module):
    """Average over all pixels."""

    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n c"]:
        return x.mean((1, 2))


class Activation(nnx.Module):
    """An elementwise function as a module, so that a rule can name it.

    Args:
        function: Such as ``nnx.gelu``.
    """

    def __init__(self, function: Callable[[Array], Array]) -> None:
        self.function = function

    def __call__(self, x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        return self.function(x)


class Normalize(nnx.Module):
    """Takes a mean off every channel, and divides it by a deviation; both are fixed.

    Args:
        mean: One per channel.
        deviation: One per channel.
    """

    def __init__(self, mean: tuple[float, ...], deviation: tuple[float, ...]) -> None:
        self.mean = mean
        self.deviation = deviation

    def __call__(self, x: Float[Array, "*shape c"]) -> Float[Array, "*shape c"]:
        along_channels = (1,) * (x.ndim - 1) + (-1,)
        mean = jnp.asarray(self.mean, x.dtype).reshape(along_channels)
        return (x - mean) / jnp.asarray(self.deviation, x.dtype).reshape(along_channels)


class Identity(nnx.Module):
    """Its input; takes the place of a layer that was folded into another."""

    def __call__(self, x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        return x


def _promote_all_but_bias(
    args: tuple[Any, ...], /, *, dtype: Any = None, inexact: bool = True
) -> Any:
    """Lets a bias be added in the parameter's own float32, and have no gradient.

    Batch normalisation takes it off again: all that its gradient holds is rounding, which
    optimisers that divide by a gradient's size make steps of. Until batch statistics follow,
    such steps move what the network gives, and differently on every number of devices.
    """
    *operands, bias = args
    promoted = promote_dtype(tuple(operands), dtype=dtype, inexact=inexact)
    return (*promoted, None if bias is None else jax.lax.stop_gradient(bias))


class ConvBlock(nnx.Module):
    """Convolution with bias, batch normalisation, ReLU.

    The bias is the paper's. Batch normalisation takes it off again, so that it stays what it is:
    its gradient is 0, in evaluation mode too.

    Args:
        in_features: Input channels.
        out_features: Output channels.
        kernel_size: Side of the square kernel.
        padding: ``"SAME"`` or ``"VALID"``.
        dtype: Type the convolution computes in; ``None`` takes the input's.
        rngs: Source of the initial weights.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        kernel_size: int,
        *,
        padding: str = "SAME",
        dtype: Dtype | None = None,
        rngs: nnx.Rngs,
    ) -> None:
        self.conv = nnx.Conv(
            in_features,
            out_features,
            (kernel_size, kernel_size),
            padding=padding,
            dtype=dtype,
            conv_general_dilated=conv_general_dilated,
            promote_dtype=_promote_all_but_bias,
            rngs=rngs,
        )
        self.norm = nnx.BatchNorm(out_features, use_running_average=False, momentum=0.9, rngs=rngs)

    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n h2 w2 d"]:
        return nnx.relu(self.norm(self.conv(x)))


class DenseBlock(nnx.Module):
    """Dense layer with ReLU.

    Args:
        in_features: Input width.
        out_features: Output width.
        rngs: Source of the initial weights.
    """

    def __init__(self, in_features: int, out_features: int, *, rngs: nnx.Rngs) -> None:
        self.linear = nnx.Linear(in_features, out_features, rngs=rngs)

    def __call__(self, x: Float[Array, "n c"]) -> Float[Array, "n d"]:
        return nnx.relu(self.linear(x))
