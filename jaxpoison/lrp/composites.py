"""Tables from layers to rules, under their names in the literature."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase

from flax import nnx

from jaxpoison.lrp.canonizers import Canonizer
from jaxpoison.lrp.rules import AlphaBeta, Epsilon, Flat, Gamma, Pass, Route, ZBox, ZPlus
from jaxpoison.lrp.shares import Rule
from jaxpoison.models.layers import (
    Activation,
    AvgPool,
    Concatenate,
    GlobalAvgPool,
    MaxPool,
    Normalize,
    Sum,
)
from jaxpoison.models.surgery import Path

Row = tuple[type[nnx.Module], Rule]
# The latter are those of nnx.MultiHeadAttention.
_DENSE = (nnx.Linear, nnx.LinearGeneral)


@dataclass(frozen=True)
class Composite:
    """Which rule serves which layers.

    A layer's rule is the first that fits: by path, then, for the first layers,
    by ``first``, then by type.

    Attributes:
        rules: Pairs of layer type and rule.
        first: Pairs of layer type and rule for the first layers: of those
            whose type stands here, every one that the image reaches without
            passing another. A network with branches has several.
        paths: Pairs of a pattern of paths, as in ``"blocks.0.*"``, and rule. A
            pattern speaks of layers, not of the blocks that hold them.
        canonizers: Applied to the model, in order, before the rules.
    """

    rules: tuple[Row, ...]
    first: tuple[Row, ...] = ()
    paths: tuple[tuple[str, Rule], ...] = ()
    canonizers: tuple[Canonizer, ...] = ()

    def rule(self, path: Path, layer: nnx.Module, *, is_first: bool = False) -> Rule | None:
        """The rule of a layer; ``None`` for one that has none."""
        name = ".".join(map(str, path))
        rows = (*self.first, *self.rules) if is_first else self.rules
        typed = next((rule for kind, rule in rows if isinstance(layer, kind)), None)
        if typed is None and any(isinstance(c, nnx.Module) for _, c in nnx.iter_children(layer)):
            return None
        named = (rule for pattern, rule in self.paths if fnmatchcase(name, pattern))
        return next(named, typed)

    @property
    def sums(self) -> Rule:
        """The rule of sums, also of those written without a layer."""
        return next((rule for kind, rule in self.rules if kind is Sum), Epsilon())

    def with_rules(self, *rules: Row) -> Composite:
        """The same composite with rules that come before its own: to register new layers."""
        return dataclasses.replace(self, rules=(*rules, *self.rules))


def _common(epsilon: float) -> tuple[Row, ...]:
    """The layers that all composites treat alike."""
    share = Epsilon(1, epsilon)
    return (
        (Activation, Pass()),
        (Normalize, Pass()),
        (nnx.BatchNorm, Pass()),
        (nnx.LayerNorm, Pass()),
        (nnx.RMSNorm, Pass()),
        (nnx.GroupNorm, Pass()),
        (nnx.InstanceNorm, Pass()),
        (nnx.PReLU, Pass()),
        (nnx.Dropout, Pass()),
        (MaxPool, Route()),
        (Concatenate, Route()),
        (AvgPool, share),
        (GlobalAvgPool, share),
        (Sum, share),
    )


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
    rule = Epsilon(exponent, epsilon, bias=False)
    layers = (*_DENSE, nnx.Conv, nnx.ConvTranspose)
    return Composite((*((kind, rule) for kind in layers), *_common(epsilon)))


def epsilon_plus(*, epsilon: float = 1e-6, canonizers: tuple[Canonizer, ...] = ()) -> Composite:
    """z+ for convolutions, epsilon for dense layers.

    Args:
        epsilon: Stabiliser of the dense layers' rule.
        canonizers: Applied to the model before the rules.
    """
    return _dense_and_convolution(epsilon, ZPlus(), canonizers)


def epsilon_plus_flat(
    *, epsilon: float = 1e-6, canonizers: tuple[Canonizer, ...] = ()
) -> Composite:
    """As :func:`epsilon_plus`, with the flat rule for the first layers."""
    return _flat(epsilon_plus(epsilon=epsilon, canonizers=canonizers))


def epsilon_alpha2_beta1(
    *, epsilon: float = 1e-6, canonizers: tuple[Canonizer, ...] = ()
) -> Composite:
    """Alpha 2, beta 1 for convolutions, epsilon for dense layers."""
    return _dense_and_convolution(epsilon, AlphaBeta(2.0, 1.0), canonizers)


def epsilon_alpha2_beta1_flat(
    *, epsilon: float = 1e-6, canonizers: tuple[Canonizer, ...] = ()
) -> Composite:
    """As :func:`epsilon_alpha2_beta1`, with the flat rule for the first layers."""
    return _flat(epsilon_alpha2_beta1(epsilon=epsilon, canonizers=canonizers))


def epsilon_gamma_box(
    *,
    low: float | tuple[float, ...] = 0.0,
    high: float | tuple[float, ...] = 1.0,
    gamma: float = 0.25,
    epsilon: float = 1e-6,
    canonizers: tuple[Canonizer, ...] = (),
) -> Composite:
    """Gamma for convolutions, z-B for the first ones, epsilon for dense layers.

    Args:
        low: Smallest value of the first convolutions' input; one, or one per channel.
        high: Largest value.
        gamma: How much more contributions of the output's sign weigh.
        epsilon: Stabiliser of the dense layers' rule.
        canonizers: Applied to the model before the rules.
    """
    table = _dense_and_convolution(epsilon, Gamma(gamma), canonizers)
    return dataclasses.replace(table, first=((nnx.Conv, ZBox(low, high)),))


def _dense_and_convolution(
    epsilon: float, convolution: Rule, canonizers: tuple[Canonizer, ...]
) -> Composite:
    rows: tuple[Row, ...] = (
        *((kind, Epsilon(1, epsilon)) for kind in _DENSE),
        (nnx.Conv, convolution),
        (nnx.ConvTranspose, convolution),
    )
    return Composite((*rows, *_common(1e-6)), canonizers=canonizers)


def _flat(table: Composite) -> Composite:
    return dataclasses.replace(table, first=tuple((kind, Flat()) for kind in (*_DENSE, nnx.Conv)))


COMPOSITES: dict[str, Callable[[], Composite]] = {
    "Paper": paper,
    "EpsilonPlus": epsilon_plus,
    "EpsilonPlusFlat": epsilon_plus_flat,
    "EpsilonAlpha2Beta1": epsilon_alpha2_beta1,
    "EpsilonAlpha2Beta1Flat": epsilon_alpha2_beta1_flat,
    "EpsilonGammaBox": epsilon_gamma_box,
}
