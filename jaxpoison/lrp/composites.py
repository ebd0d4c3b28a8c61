"""Tables from layer types to rules."""

from __future__ import annotations

from dataclasses import dataclass

from flax import nnx

from jaxpoison.lrp.rules import Epsilon, Pass, Route, Rule
from jaxpoison.models.layers import AvgPool, Concatenate, MaxPool


@dataclass(frozen=True)
class Composite:
    """Which rule serves which layers.

    Attributes:
        rules: Pairs of layer type and rule; the first that fits a layer counts.
    """

    rules: tuple[tuple[type[nnx.Module], Rule], ...]

    def rule(self, layer: nnx.Module) -> Rule | None:
        """The rule of a layer; ``None`` for one that has none."""
        return next((rule for kind, rule in self.rules if isinstance(layer, kind)), None)


def paper(exponent: int = 2, epsilon: float = 1e-6) -> Composite:
    """The rules of Schulth, Berghoff, Neu.

    Squared contributions without bias for dense and convolutional layers,
    batch normalisation and dropout passed, the winner for max pooling and
    the share for average pooling.

    Args:
        exponent: The power contributions are taken to; 1 gives the plain
            epsilon rule without bias.
        epsilon: Stabiliser.
    """
    return Composite(
        (
            (nnx.Linear, Epsilon(exponent, epsilon)),
            (nnx.Conv, Epsilon(exponent, epsilon)),
            (nnx.BatchNorm, Pass()),
            (nnx.Dropout, Pass()),
            (MaxPool, Route()),
            (AvgPool, Epsilon(1, epsilon)),
            (Concatenate, Route()),
        )
    )
