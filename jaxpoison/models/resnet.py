"""ResNet-18 for small images."""

from __future__ import annotations

from typing import ClassVar

from flax import nnx
from flax.typing import Dtype
from jaxtyping import Array, Float

from jaxpoison.models.convolution import conv_general_dilated
from jaxpoison.models.layers import GlobalAvgPool, Sum

_STAGES = ((64, 1), (128, 2), (256, 2), (512, 2))


class Normed(nnx.Module):
    """Convolution without bias, batch normalisation.

    Args:
        in_features: Input channels.
        out_features: Output channels.
        kernel_size: Side of the square kernel; padding keeps the size at stride 1.
        stride: Stride in both directions.
        dtype: Type the convolution computes in; ``None`` takes the input's.
        rngs: Source of the initial weights.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        kernel_size: int,
        stride: int = 1,
        *,
        dtype: Dtype | None = None,
        rngs: nnx.Rngs,
    ) -> None:
        margin = kernel_size // 2
        self.conv = nnx.Conv(
            in_features,
            out_features,
            (kernel_size, kernel_size),
            strides=stride,
            # Not "SAME", which pads an even side on one end only at stride 2.
            padding=((margin, margin), (margin, margin)),
            use_bias=False,
            kernel_init=nnx.initializers.he_normal(),
            dtype=dtype,
            conv_general_dilated=conv_general_dilated,
            rngs=rngs,
        )
        self.norm = nnx.BatchNorm(out_features, use_running_average=False, momentum=0.9, rngs=rngs)

    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n h2 w2 d"]:
        return self.norm(self.conv(x))


class BasicBlock(nnx.Module):
    """Two 3x3 convolutions and a shortcut (He et al. 2016, fig. 2).

    Args:
        in_features: Input channels.
        out_features: Output channels.
        stride: Stride of the first convolution and of the shortcut.
        dtype: Type the convolutions compute in.
        rngs: Source of the initial weights.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        stride: int,
        *,
        dtype: Dtype | None = None,
        rngs: nnx.Rngs,
    ) -> None:
        self.conv1 = Normed(in_features, out_features, 3, stride, dtype=dtype, rngs=rngs)
        self.conv2 = Normed(out_features, out_features, 3, dtype=dtype, rngs=rngs)
        changes = stride != 1 or in_features != out_features
        self.shortcut = (
            Normed(in_features, out_features, 1, stride, dtype=dtype, rngs=rngs)
            if changes
            else nnx.data(None)
        )
        self.sum = Sum()

    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n h2 w2 d"]:
        y = self.conv2(nnx.relu(self.conv1(x)))
        return nnx.relu(self.sum(x if self.shortcut is None else self.shortcut(x), y))


class ResNet18(nnx.Module):
    """ResNet-18 with a 3x3 stem and no pooling in front, as usual for 32x32 images.

    He et al. 2016, *Deep residual learning for image recognition*; 11,173,962
    parameters at 10 classes. Takes images in [0, 1] of any size, gives logits.

    Args:
        num_classes: Number of logits.
        channels: Image channels.
        dtype: Type the convolutions compute in (parameters are float32);
            ``None`` takes the input's.
        rngs: Source of the initial weights.

    Attributes:
        image_side: Of the images it takes: any.

    Examples:
        >>> network = jp.ResNet18(10, rngs=nnx.Rngs(0))
        >>> sum(leaf.size for leaf in jax.tree.leaves(nnx.state(network, nnx.Param)))
        11173962
    """

    image_side: ClassVar[int | None] = None

    def __init__(
        self,
        num_classes: int,
        *,
        channels: int = 3,
        dtype: Dtype | None = None,
        rngs: nnx.Rngs,
    ) -> None:
        self.stem = Normed(channels, 64, 3, dtype=dtype, rngs=rngs)
        blocks = []
        width = 64
        for features, stride in _STAGES:
            blocks += [
                BasicBlock(width, features, stride, dtype=dtype, rngs=rngs),
                BasicBlock(features, features, 1, dtype=dtype, rngs=rngs),
            ]
            width = features
        self.blocks = nnx.List(blocks)
        self.pool = GlobalAvgPool()
        self.dense = nnx.Linear(width, num_classes, rngs=rngs)

    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n classes"]:
        x = nnx.relu(self.stem(x))
        for block in self.blocks:
            x = block(x)
        return self.dense(self.pool(x))
