"""The compact Inception of the paper."""

from __future__ import annotations

from typing import ClassVar

from flax import nnx
from flax.typing import Dtype
from jaxtyping import Array, Float

from jaxpoison.models.layers import AvgPool, Concatenate, ConvBlock, DenseBlock, MaxPool


class CompactInception(nnx.Module):
    """One Inception-A block, three 2x2 convolutions, three dense layers.

    32x32 images; 1,110,027 parameters at 43 classes (Schulth, Berghoff, Neu).
    Takes images in [0, 1], gives logits. ``model.train()`` and ``model.eval()``
    switch batch normalisation and dropout.

    Args:
        num_classes: Number of logits.
        channels: Image channels.
        dtype: Type the convolutions compute in (parameters are float32);
            ``None`` takes the input's.
        rngs: Source of the initial weights (``params``) and of ``dropout``.

    Attributes:
        image_side: Of the images it takes.

    Examples:
        >>> network = jp.CompactInception(43, rngs=nnx.Rngs(0))
        >>> sum(leaf.size for leaf in jax.tree.leaves(nnx.state(network, nnx.Param)))
        1110027
    """

    image_side: ClassVar[int | None] = 32

    def __init__(
        self,
        num_classes: int,
        *,
        channels: int = 3,
        dtype: Dtype | None = None,
        rngs: nnx.Rngs,
    ) -> None:
        def conv(c: int, d: int, k: int, padding: str = "SAME") -> ConvBlock:
            return ConvBlock(c, d, k, padding=padding, dtype=dtype, rngs=rngs)

        self.branch1x1 = conv(channels, 64, 1)
        self.branch5x5_1 = conv(channels, 48, 1)
        self.branch5x5_2 = conv(48, 64, 5)
        self.branch3x3_1 = conv(channels, 64, 1)
        self.branch3x3_2 = conv(64, 96, 3)
        self.branch3x3_3 = conv(96, 96, 3)
        self.branch_pool = AvgPool(3)
        self.branch_pool_1 = conv(channels, 32, 1)
        self.concatenate = Concatenate()
        self.pool1 = MaxPool(2)
        self.conv1 = conv(256, 256, 2, "VALID")
        self.pool2 = MaxPool(2)
        self.conv2 = conv(256, 256, 2, "VALID")
        self.pool3 = MaxPool(2)
        self.conv3 = conv(256, 256, 2, "VALID")
        self.pool4 = MaxPool(2)
        self.dense1 = DenseBlock(256, 256, rngs=rngs)
        self.dropout1 = nnx.Dropout(0.5, rngs=rngs)
        self.dense2 = DenseBlock(256, 128, rngs=rngs)
        self.dropout2 = nnx.Dropout(0.5, rngs=rngs)
        self.dense3 = nnx.Linear(128, num_classes, rngs=rngs)

    def __call__(self, x: Float[Array, "n 32 32 c"]) -> Float[Array, "n classes"]:
        if x.shape[1:3] != (32, 32):
            raise ValueError(
                f"the compact Inception takes images of 32x32, found {x.shape[1]}x{x.shape[2]}; "
                "resize them (--image-size 32 on the command line)"
            )
        x = self.concatenate(
            self.branch1x1(x),
            self.branch5x5_2(self.branch5x5_1(x)),
            self.branch3x3_3(self.branch3x3_2(self.branch3x3_1(x))),
            self.branch_pool_1(self.branch_pool(x)),
        )
        x = self.pool2(self.conv1(self.pool1(x)))
        x = self.pool3(self.conv2(x))
        x = self.pool4(self.conv3(x))
        x = x.reshape(x.shape[0], -1)
        x = self.dropout1(self.dense1(x))
        x = self.dropout2(self.dense2(x))
        return self.dense3(x)
