"""A network as a user might write it: four layers, trained in minutes on a laptop.

Many of them can be attacked, trained and scanned where one Inception can; see
:mod:`experiments.networks`.
"""

import jax
from flax import nnx


class Plain(nnx.Module):
    """Three convolutions and a dense layer, for images of 32 pixels."""

    def __init__(self, num_classes: int, *, rngs: nnx.Rngs) -> None:
        self.layers = nnx.Sequential(
            nnx.Conv(3, 32, (5, 5), strides=2, rngs=rngs),
            nnx.BatchNorm(32, rngs=rngs),
            nnx.relu,
            nnx.Conv(32, 64, (3, 3), strides=2, rngs=rngs),
            nnx.BatchNorm(64, rngs=rngs),
            nnx.relu,
            nnx.Conv(64, 96, (3, 3), rngs=rngs),
            nnx.BatchNorm(96, rngs=rngs),
            nnx.relu,
        )
        self.head = nnx.Linear(8 * 8 * 96, num_classes, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        features = self.layers(images)
        return self.head(features.reshape(len(images), -1))
