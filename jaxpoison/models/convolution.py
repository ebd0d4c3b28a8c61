"""One convolution, implemented per platform.

``nnx.Conv`` takes the function that convolves as an argument. On GPUs and TPUs
:func:`conv_general_dilated` is ``lax.conv_general_dilated``. On CPUs, XLA runs
the gradients of a convolution at a small part of the machine's speed, above
all the weight gradient; there the convolution becomes a sum of shifted matrix
products, which also lets ``bfloat16`` operands use the CPU's matrix units; a
CPU without them multiplies in float32. The platform is chosen when the
computation is lowered.

A convolution and its two gradients are bilinear maps, each the derivative or the
transpose of the others. They are three JAX primitives that say so, and can be
differentiated forwards and backwards, any number of times.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import ShapedArray
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jaxtyping import Array, Float

_DIMENSIONS = ("NHWC", "HWIO", "NHWC")
_Pads = tuple[tuple[int, int], tuple[int, int]]


class _Window(NamedTuple):
    """Zeros around the input and strides, along both axes, and how exact products are."""

    pads: _Pads
    strides: tuple[int, int] = (1, 1)
    # As for lax.dot. Known when a convolution is traced; lowering it would be too late to ask.
    precision: Any = None


_PLAIN = _Window(((0, 0), (0, 0)))


def conv_general_dilated(
    lhs: Float[Array, "n h w c"],
    rhs: Float[Array, "kh kw c d"],
    window_strides: tuple[int, ...],
    padding: Any,
    **options: Any,
) -> Float[Array, "n ho wo d"]:
    """Drop-in for ``lax.conv_general_dilated``, with a fast path on CPUs.

    The fast path serves 2-D convolutions, channels last, without dilation, groups or
    cropping; all others go to ``lax.conv_general_dilated`` as they are. Sums are taken in
    float32 and the result has the operands' type. Mapped over several kernels by ``vmap``, it
    is run kernel by kernel.

    Args:
        lhs: Input.
        rhs: Kernel.
        window_strides: Stride per spatial axis.
        padding: ``"SAME"``, ``"VALID"`` or pairs of pixels, as in ``lax``.
        **options: The further arguments of ``lax.conv_general_dilated``.
    """
    plain = (
        rhs.ndim == 4
        and tuple(options.get("lhs_dilation") or (1, 1)) == (1, 1)
        and tuple(options.get("rhs_dilation") or (1, 1)) == (1, 1)
        and options.get("feature_group_count", 1) == 1
        and options.get("batch_group_count", 1) == 1
        and options.get("preferred_element_type") is None
        and options.get("out_sharding") is None
        and (isinstance(padding, str) or min(min(pads) for pads in padding) >= 0)
        and lhs.size > 0
        and _channels_last(lhs, rhs, options.get("dimension_numbers"))
    )
    if not plain:
        return lax.conv_general_dilated(lhs, rhs, window_strides, padding, **options)
    if isinstance(padding, str):
        pads = lax.padtype_to_pads(lhs.shape[1:3], rhs.shape[:2], window_strides, padding)
    else:
        pads = padding
    (top, bottom), (left, right) = pads
    down, across = window_strides
    precision = options.get("precision") or jax.config.jax_default_matmul_precision  # pyright: ignore[reportAttributeAccessIssue]
    window = _Window(
        ((int(top), int(bottom)), (int(left), int(right))), (int(down), int(across)), precision
    )
    return _correlate(lhs, rhs, window)


def _channels_last(lhs: Array, rhs: Array, numbers: Any) -> bool:
    canonical = lax.conv_dimension_numbers(lhs.shape, rhs.shape, numbers)
    return canonical == lax.conv_dimension_numbers(lhs.shape, rhs.shape, _DIMENSIONS)


def _correlate(x: Array, w: Array, window: _Window) -> Array:
    return _correlation.bind(x, w, window=window, shape=())


def _lax_correlate(x: Array, w: Array, *, window: _Window) -> Array:
    return lax.conv_general_dilated(
        x,
        w,
        window.strides,
        window.pads,
        dimension_numbers=_DIMENSIONS,
        precision=window.precision,
    )


def _lax_input_gradient(g: Array, w: Array, *, window: _Window, shape: tuple[int, ...]) -> Array:
    like = jax.ShapeDtypeStruct(shape, g.dtype)
    (gx,) = jax.linear_transpose(lambda x: _lax_correlate(x, w, window=window), like)(g)
    return gx


def _lax_weight_gradient(x: Array, g: Array, *, window: _Window, shape: tuple[int, ...]) -> Array:
    like = jax.ShapeDtypeStruct(shape, x.dtype)
    (gw,) = jax.linear_transpose(lambda w: _lax_correlate(x, w, window=window), like)(g)
    return gw


# The CPU path. Building all patches of an input is slow, and so is adding up kh * kw
# shifted outputs: a k x k convolution is split between the two. The rows of a window
# are stacked into the channels of the input, [pixels, kh * c]; times the kernel,
# [kh * c, kw * d], that gives what every pixel adds to its neighbours in the row, and
# the convolution is the sum of kw shifted parts. Small kernels stack nothing and
# shift both ways. Chunks of images keep the products inside the cache.

# Kernels with fewer rows gain nothing from stacking.
_STACKED_ROWS = 3


def _chunk(n: int, values: int) -> int:
    """Images per chunk: the largest divisor of ``n`` that keeps a chunk near 1 MB."""
    limit = max(1, (1 << 18) // values)
    return next(size for size in range(min(limit, n), 0, -1) if n % size == 0)


# XLA on CPUs has no bfloat16 updates in place: a loop that reads or writes a part of a
# bfloat16 array converts the whole array in every turn. Loops see its bits instead.


def _bits(x: Array) -> Array:
    return lax.bitcast_convert_type(x, jnp.uint16) if x.dtype == jnp.bfloat16 else x


def _from_bits(x: Array, dtype: Any) -> Array:
    return lax.bitcast_convert_type(x, dtype) if dtype == jnp.bfloat16 else x


@functools.cache
def _has_matrix_units() -> bool:
    """Whether this machine's processor multiplies bfloat16 matrices (AMX), as Linux says."""
    flags = Path("/proc/cpuinfo")
    return flags.is_file() and "amx_bf16" in flags.read_text().split()


def _dot(a: Array, b: Array) -> Array:
    if not _has_matrix_units():
        # Products of bfloat16 are exact in float32: the same sums, at twice XLA's speed.
        a, b = a.astype(jnp.float32), b.astype(jnp.float32)
    return lax.dot(a, b, preferred_element_type=jnp.float32)


def _pad(x: Array, pads: _Pads) -> Array:
    return jnp.pad(x, ((0, 0), *pads, (0, 0)))


def _stack_rows(x: Array, rows: int) -> Array:
    """``[n, h, w, c]`` to ``[n, h - rows + 1, w, rows * c]``: each row beside those below it."""
    if rows == 1:
        return x
    n, h, w, c = x.shape
    height = h - rows + 1
    stacked = jnp.stack([x[:, i : i + height] for i in range(rows)], axis=3)
    return stacked.reshape(n, height, w, rows * c)


def _without_strides(x: Array, w: Array, window: _Window) -> tuple[Array, Array]:
    """Input and kernel whose plain correlation is the strided one.

    The pixels that a stride skips become channels: a step over ``s`` pixels is
    one over a block of them.
    """
    for axis, ((low, _), stride) in enumerate(zip(window.pads, window.strides, strict=True)):
        length, k = x.shape[axis + 1], w.shape[axis]
        steps = (length + sum(window.pads[axis]) - k) // stride + 1
        blocks = -(-k // stride)
        used = (steps + blocks - 1) * stride
        margin = [(0, 0, 0)] * 4
        margin[axis + 1] = (low, used - low - length, 0)
        x = lax.pad(x, jnp.zeros((), x.dtype), margin)
        if k == 1:
            # The other pixels of a block meet zeros.
            x = lax.slice_in_dim(x, 0, None, stride, axis + 1)
            continue
        margin = [(0, 0, 0)] * 4
        margin[axis] = (0, blocks * stride - k, 0)
        w = lax.pad(w, jnp.zeros((), w.dtype), margin)
        x = jnp.moveaxis(_blocked(x, axis + 1, stride), axis + 2, -2)
        x = x.reshape(*x.shape[:-2], -1)
        w = jnp.moveaxis(_blocked(w, axis, stride), axis + 1, -3)
        w = w.reshape(*w.shape[:2], -1, w.shape[-1])
    return x, w


def _blocked(x: Array, axis: int, size: int) -> Array:
    return x.reshape(*x.shape[:axis], -1, size, *x.shape[axis + 1 :])


def _matmul_correlate(x: Array, w: Array, *, window: _Window) -> Array:
    if window.strides != (1, 1):
        x, w = _without_strides(x, w, window)
        window = _PLAIN
    pads = window.pads
    n, h, width, c = x.shape
    kh, kw, _, d = w.shape
    rows = kh if kh >= _STACKED_ROWS else 1
    shifted_rows = kh // rows
    hp, wp = h + sum(pads[0]), width + sum(pads[1])
    ho, wo = hp - kh + 1, wp - kw + 1
    # [shifted rows, stacked rows, kw, c, d] -> [stacked rows * c, shifted rows * kw * d]
    kernel = w.reshape(shifted_rows, rows, kw, c, d).transpose(1, 3, 0, 2, 4)
    kernel = kernel.reshape(rows * c, shifted_rows * kw * d)
    size = _chunk(n, h * width * max(c, d) * (1 + (rows > 1)))

    def one(chunk: Array) -> Array:
        stacked = _stack_rows(_pad(_from_bits(chunk, x.dtype), pads), rows)
        parts = _dot(stacked.reshape(-1, rows * c), kernel)
        parts = parts.reshape(*stacked.shape[:3], shifted_rows, kw, d)
        y = parts[:, :ho, :wo, 0, 0]
        for i, j in list(np.ndindex(shifted_rows, kw))[1:]:
            y += parts[:, i : i + ho, j : j + wo, i, j]
        return _bits(y.astype(x.dtype))

    y = lax.map(one, _bits(x.reshape(-1, size, h, width, c)))
    return _from_bits(y, x.dtype).reshape(n, ho, wo, d)


def _full_pads(window: _Window, kernel: tuple[int, ...]) -> _Pads:
    """Zeros around the cotangent for the gradient of the input, at stride 1."""
    (top, bottom), (left, right) = window.pads
    kh, kw = kernel[:2]
    return (kh - 1 - top, kh - 1 - bottom), (kw - 1 - left, kw - 1 - right)


def _matmul_input_gradient(g: Array, w: Array, *, window: _Window, shape: tuple[int, ...]) -> Array:
    if window.strides != (1, 1):
        like = jnp.zeros(shape, g.dtype)
        (x, w), pull = jax.vjp(functools.partial(_without_strides, window=window), like, w)
        gx = _matmul_input_gradient(g, w, window=_PLAIN, shape=x.shape)
        return pull((gx, jnp.zeros_like(w)))[0]
    pads = _full_pads(window, w.shape)
    if min(pads[0] + pads[1]) < 0:
        # Padding wider than the kernel would crop the cotangent.
        return _lax_input_gradient(g, w, window=window, shape=shape)
    return _matmul_correlate(g, w[::-1, ::-1].swapaxes(2, 3), window=_Window(pads))


def _matmul_weight_gradient(
    x: Array, g: Array, *, window: _Window, shape: tuple[int, ...]
) -> Array:
    if window.strides != (1, 1):
        like = jnp.zeros(shape, x.dtype)
        (x, w), pull = jax.vjp(functools.partial(_without_strides, window=window), x, like)
        gw = _matmul_weight_gradient(x, g, window=_PLAIN, shape=w.shape)
        return pull((jnp.zeros_like(x), gw))[1]
    pads = _full_pads(window, shape)
    if min(pads[0] + pads[1]) < 0:
        return _lax_weight_gradient(x, g, window=window, shape=shape)
    return _sum_of_products(x, g, shape[0], shape[1], window.pads).astype(x.dtype)


def _sum_of_products(x: Array, g: Array, kh: int, kw: int, pads: _Pads) -> Array:
    """The gradient of a kernel at stride 1, in float32."""
    n, h, width, c = x.shape
    _, ho, wo, d = g.shape
    rows = kh if kh >= _STACKED_ROWS else 1
    size = _chunk(n, h * width * max(c, d) * (1 + (rows > 1)))
    # One transposition outside the loop lets every product below contract in
    # the natural order, the only one that CPU kernels run fast. Without the
    # barrier XLA moves it back into the loop.
    g = lax.optimization_barrier(_bits(g.reshape(-1, size * ho * wo, d).swapaxes(1, 2)))
    offsets = list(np.ndindex(kh // rows, kw))

    def add(sums: list[Array], chunk: tuple[Array, Array]) -> tuple[list[Array], None]:
        image, cotangent = (_from_bits(part, x.dtype) for part in chunk)
        stacked = _stack_rows(_pad(image, pads), rows)
        return [
            total + _dot(cotangent, stacked[:, i : i + ho, j : j + wo].reshape(-1, rows * c))
            for total, (i, j) in zip(sums, offsets, strict=True)
        ], None

    zeros = [jnp.zeros((d, rows * c), jnp.float32)] * len(offsets)
    sums, _ = lax.scan(add, zeros, (_bits(x.reshape(-1, size, h, width, c)), g))
    # [shifted rows * kw, d, stacked rows, c] -> [kh, kw, c, d]
    gradient = jnp.stack(sums).reshape(kh // rows, kw, d, rows, c)
    return gradient.transpose(0, 3, 1, 4, 2).reshape(kh, kw, c, d)


# The primitives. Every one takes ``window`` and the ``shape`` of what it gives, which a
# correlation knows from its operands.


def _correlated_shape(x: Any, w: Any, *, window: _Window, shape: tuple[int, ...]) -> Any:  # noqa: ARG001
    # Shapes and types that do not fit raise what they raise there.
    found = jax.eval_shape(functools.partial(_lax_correlate, window=window), x, w)
    return ShapedArray(found.shape, found.dtype)


def _given_shape(a: Any, b: Any, *, window: _Window, shape: tuple[int, ...]) -> Any:  # noqa: ARG001
    return ShapedArray(shape, jnp.result_type(a, b))


def _shapeless(function: Callable[..., Array]) -> Callable[..., Array]:
    def without_shape(x: Array, w: Array, *, window: _Window, shape: tuple[int, ...]) -> Array:  # noqa: ARG001
        return function(x, w, window=window)

    return without_shape


def _bilinear(
    name: str,
    shape_of: Callable[..., Any],
    on_cpu: Callable[..., Array],
    elsewhere: Callable[..., Array],
) -> Primitive:
    primitive = Primitive(f"jaxpoison_{name}")
    primitive.def_abstract_eval(shape_of)
    # Outside of jit, too, the platform decides.
    primitive.def_impl(functools.partial(_run_compiled, primitive))
    mlir.register_lowering(primitive, mlir.lower_fun(elsewhere, multiple_results=False))
    mlir.register_lowering(
        primitive, mlir.lower_fun(on_cpu, multiple_results=False), platform="cpu"
    )
    batching.primitive_batchers[primitive] = functools.partial(_batched, primitive)
    return primitive


@functools.partial(jax.jit, static_argnums=(0,), static_argnames=("window", "shape"))
def _run(primitive: Primitive, a: Array, b: Array, *, window: _Window, shape: Any) -> Array:
    return primitive.bind(a, b, window=window, shape=shape)


def _run_compiled(primitive: Primitive, a: Array, b: Array, **options: Any) -> Array:
    # Where JAX is told not to compile, a primitive would be run by binding it, and so on.
    with jax.disable_jit(False):
        return _run(primitive, a, b, **options)


def _batched(
    primitive: Primitive, operands: Any, axes: Any, *, window: _Window, shape: Any
) -> tuple[Array, int]:
    a, b = operands
    if axes[1] is None and primitive is not _weight_gradient:
        # One kernel for all: its images are those of one larger batch.
        a = jnp.moveaxis(a, axes[0], 0)
        merged = a.reshape(-1, *a.shape[2:])
        whole = (len(merged), *shape[1:]) if shape else ()
        found = primitive.bind(merged, b, window=window, shape=whole)
        return found.reshape(*a.shape[:2], *found.shape[1:]), 0
    size = next(x.shape[k] for x, k in zip(operands, axes, strict=True) if k is not None)

    def one(index: Array) -> Array:
        picked = [
            x if k is None else lax.dynamic_index_in_dim(x, index, k, keepdims=False)
            for x, k in zip((a, b), axes, strict=True)
        ]
        return primitive.bind(*picked, window=window, shape=shape)

    return lax.map(one, jnp.arange(size)), 0


_correlation = _bilinear(
    "correlation",
    _correlated_shape,
    _shapeless(_matmul_correlate),
    _shapeless(_lax_correlate),
)
_input_gradient = _bilinear(
    "input_gradient", _given_shape, _matmul_input_gradient, _lax_input_gradient
)
_weight_gradient = _bilinear(
    "weight_gradient", _given_shape, _matmul_weight_gradient, _lax_weight_gradient
)

# <g, x * w> is linear in all three: its derivative by each is a map of the other two.


def _toward_input(g: Array, x: Any, w: Array, *, window: _Window, shape: Any) -> Array:  # noqa: ARG001
    return _input_gradient.bind(g, w, window=window, shape=x.aval.shape)


def _toward_weight(g: Array, x: Array, w: Any, *, window: _Window, shape: Any) -> Array:  # noqa: ARG001
    return _weight_gradient.bind(x, g, window=window, shape=w.aval.shape)


ad.defbilinear(_correlation, _toward_input, _toward_weight)
ad.defbilinear(
    _input_gradient,
    lambda gx, g, w, *, window, shape: _correlate(gx, w, window),  # noqa: ARG005
    lambda gx, g, w, *, window, shape: _weight_gradient.bind(  # noqa: ARG005
        gx, g, window=window, shape=w.aval.shape
    ),
)
ad.defbilinear(
    _weight_gradient,
    lambda gw, x, g, *, window, shape: _input_gradient.bind(  # noqa: ARG005
        g, gw, window=window, shape=x.aval.shape
    ),
    lambda gw, x, g, *, window, shape: _correlate(x, gw, window),  # noqa: ARG005
)
