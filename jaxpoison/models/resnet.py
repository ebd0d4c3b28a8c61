"""Residual networks, for small images and for those of ImageNet's size."""

from __future__ import annotations

from typing import ClassVar, Literal

from flax import nnx
from flax.typing import Dtype
from jaxtyping import Array, Float

from jaxpoison.models.convolution import conv_general_dilated
from jaxpoison.models.layers import GlobalAvgPool, Normalize, Sum

_WIDTHS = (64, 128, 256, 512)
# Of ImageNet's images in [0, 1], as torchvision's networks are given them.
_MEAN = (0.485, 0.456, 0.406)
_STD = (0.229, 0.224, 0.225)

Stem = Literal["small", "imagenet"]
_TORCH_ARRAYS = {
    "kernel": "weight",
    "scale": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "var": "running_var",
}


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
        width: Output channels.
        stride: Stride of the first convolution and of the shortcut.
        dtype: Type the convolutions compute in.
        rngs: Source of the initial weights.
    """

    expansion: ClassVar[int] = 1

    def __init__(
        self,
        in_features: int,
        width: int,
        stride: int,
        *,
        dtype: Dtype | None = None,
        rngs: nnx.Rngs,
    ) -> None:
        self.conv1 = Normed(in_features, width, 3, stride, dtype=dtype, rngs=rngs)
        self.conv2 = Normed(width, width, 3, dtype=dtype, rngs=rngs)
        self.shortcut = _shortcut(in_features, width, stride, dtype, rngs)
        self.sum = Sum()

    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n h2 w2 d"]:
        y = self.conv2(nnx.relu(self.conv1(x)))
        return nnx.relu(self.sum(x if self.shortcut is None else self.shortcut(x), y))


class Bottleneck(nnx.Module):
    """A 3x3 convolution between two of a single pixel, and a shortcut (He et al. 2016, fig. 5).

    The stride is the middle one's, as in torchvision.

    Args:
        in_features: Input channels.
        width: Channels of the first two convolutions; a quarter of the output's.
        stride: Stride of the second convolution and of the shortcut.
        dtype: Type the convolutions compute in.
        rngs: Source of the initial weights.
    """

    expansion: ClassVar[int] = 4

    def __init__(
        self,
        in_features: int,
        width: int,
        stride: int,
        *,
        dtype: Dtype | None = None,
        rngs: nnx.Rngs,
    ) -> None:
        out_features = self.expansion * width
        self.conv1 = Normed(in_features, width, 1, dtype=dtype, rngs=rngs)
        self.conv2 = Normed(width, width, 3, stride, dtype=dtype, rngs=rngs)
        self.conv3 = Normed(width, out_features, 1, dtype=dtype, rngs=rngs)
        self.shortcut = _shortcut(in_features, out_features, stride, dtype, rngs)
        self.sum = Sum()

    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n h2 w2 d"]:
        y = self.conv3(nnx.relu(self.conv2(nnx.relu(self.conv1(x)))))
        return nnx.relu(self.sum(x if self.shortcut is None else self.shortcut(x), y))


def _shortcut(
    in_features: int, out_features: int, stride: int, dtype: Dtype | None, rngs: nnx.Rngs
) -> Normed | None:
    if stride == 1 and in_features == out_features:
        return nnx.data(None)
    return Normed(in_features, out_features, 1, stride, dtype=dtype, rngs=rngs)


class ResNet(nnx.Module):
    """A residual network (He et al. 2016, *Deep residual learning for image recognition*).

    Takes images in [0, 1], gives logits. :class:`ResNet18`, :class:`ResNet34` and
    :class:`ResNet50` are those of the paper's table 1.

    Args:
        num_classes: Number of logits.
        stem: What comes first. ``"small"``, as usual for 32x32 images: a 3x3 convolution and no
            pooling. ``"imagenet"``, for images of 224 pixels: images normalised by ImageNet's mean
            and deviation, a 7x7 convolution of stride 2, a pooling of stride 2; as torchvision's.
        channels: Image channels; three for ``"imagenet"``.
        dtype: Type the convolutions compute in (parameters are float32);
            ``None`` takes the input's.
        rngs: Source of the initial weights.

    Attributes:
        image_side: Of the images it takes: any.

    Raises:
        ValueError: There is no such stem, or it takes other channels.
    """

    image_side: ClassVar[int | None] = None
    block: ClassVar[type[BasicBlock | Bottleneck]]
    # Blocks of each width.
    depths: ClassVar[tuple[int, ...]]

    def __init__(
        self,
        num_classes: int,
        *,
        stem: Stem = "small",
        channels: int = 3,
        dtype: Dtype | None = None,
        rngs: nnx.Rngs,
    ) -> None:
        if stem not in ("small", "imagenet"):
            raise ValueError(f"stem must be small or imagenet, found {stem!r}")
        large = stem == "imagenet"
        if large and channels != 3:
            raise ValueError(f"the stem imagenet takes images of 3 channels, found {channels}")
        self.normalize = Normalize(_MEAN, _STD) if large else nnx.data(None)
        size, stride = (7, 2) if large else (3, 1)
        self.stem = Normed(channels, _WIDTHS[0], size, stride, dtype=dtype, rngs=rngs)
        blocks, features = [], _WIDTHS[0]
        for stage, (width, depth) in enumerate(zip(_WIDTHS, self.depths, strict=True)):
            for k in range(depth):
                stride = 2 if stage and not k else 1
                blocks.append(self.block(features, width, stride, dtype=dtype, rngs=rngs))
                features = width * self.block.expansion
        self.blocks = nnx.List(blocks)
        self.pool = GlobalAvgPool()
        self.dense = nnx.Linear(features, num_classes, rngs=rngs)

    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n classes"]:
        if self.normalize is None:
            x = nnx.relu(self.stem(x))
        else:
            x = nnx.relu(self.stem(self.normalize(x)))
            x = nnx.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))  # pyright: ignore[reportArgumentType]
        for block in self.blocks:
            x = block(x)
        return self.dense(self.pool(x))

    def torchvision_name(self, name: str) -> str:
        """The name that torchvision's state dict has for one of the network's arrays.

        Args:
            name: Path of the array with dots.

        Examples:
            >>> jp.ResNet18(10, rngs=nnx.Rngs(0)).torchvision_name("blocks.2.conv1.norm.scale")
            'layer2.0.bn1.weight'
        """
        *path, array = name.split(".")
        array = _TORCH_ARRAYS[array]
        if path == ["dense"]:
            return f"fc.{array}"
        kind = "conv" if path[-1] == "conv" else "bn"
        if path[0] == "stem":
            return f"{kind}1.{array}"
        _, block, part, _ = path
        index, stage = int(block), 0
        while index >= self.depths[stage]:
            index, stage = index - self.depths[stage], stage + 1
        place = f"layer{stage + 1}.{index}"
        if part == "shortcut":
            return f"{place}.downsample.{0 if kind == 'conv' else 1}.{array}"
        return f"{place}.{kind}{part.removeprefix('conv')}.{array}"


class ResNet18(ResNet):
    """ResNet-18; see :class:`ResNet`. 11,173,962 parameters at 10 classes with the small stem.

    Examples:
        >>> network = jp.ResNet18(10, rngs=nnx.Rngs(0))
        >>> sum(leaf.size for leaf in jax.tree.leaves(nnx.state(network, nnx.Param)))
        11173962
    """

    block = BasicBlock
    depths = (2, 2, 2, 2)


class ResNet34(ResNet):
    """ResNet-34; see :class:`ResNet`.

    Examples:
        >>> network = jp.ResNet34(10, rngs=nnx.Rngs(0))
        >>> len(network.blocks)
        16
    """

    block = BasicBlock
    depths = (3, 4, 6, 3)


class ResNet50(ResNet):
    """ResNet-50; see :class:`ResNet`. Weights of torchvision's are read by :func:`load_weights`.

    Examples:
        >>> network = jp.ResNet50(1000, stem="imagenet", rngs=nnx.Rngs(0))
        >>> sum(leaf.size for leaf in jax.tree.leaves(nnx.state(network, nnx.Param)))
        25557032
    """

    block = Bottleneck
    depths = (3, 4, 6, 3)
