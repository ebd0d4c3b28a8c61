"""Propagation rules, under their names in the literature."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxpoison._checks import check_integer, check_positive
from jaxpoison.lrp.shares import Layer, Modify, Rule, ShareRule, Shares, Term


def _same(w: Array) -> Array:
    return w


def _positive(w: Array) -> Array:
    return jnp.maximum(w, 0)


def _negative(w: Array) -> Array:
    return jnp.minimum(w, 0)


def _all(modify: Modify, inputs: tuple[Array, ...]) -> tuple[Array, ...]:
    return tuple(modify(x) for x in inputs)


@dataclass(frozen=True)
class Epsilon(ShareRule):
    r"""The epsilon rule: contributions :math:`(x_j w_{jk})^a`.

    Exponent 1 is the epsilon rule of Bach et al. 2015, *On pixel-wise
    explanations*, eq. 58. Exponent 2 without bias is the rule of Schulth,
    Berghoff, Neu, taken from the Pytorch-LRP package. For any linear layer,
    and, having no bias, for pooling by average and for sums.

    Attributes:
        exponent: The power a contribution is taken to.
        epsilon: Stabiliser; what it absorbs is lost to the sum of relevance.
        bias: Whether the bias contributes too; its share is absorbed.
    """

    exponent: int = 1
    epsilon: float = 1e-6
    bias: bool = True

    def __post_init__(self) -> None:
        check_integer("exponent", self.exponent, at_least=1)
        check_positive("epsilon", self.epsilon)

    def shares(self, layer: Layer, inputs: tuple[Array, ...]) -> Sequence[Shares]:
        """See :meth:`ShareRule.shares`."""

        def power(x: Array) -> Array:
            return x**self.exponent

        return [Shares((Term(_all(power, inputs), power, power if self.bias else None),))]


@dataclass(frozen=True)
class ZPlus(ShareRule):
    """The z+ rule: positive contributions only.

    Montavon et al. 2017, *Explaining nonlinear classification decisions with
    deep Taylor decomposition*, eq. 17; extended to inputs of both signs as the
    alpha-beta rule with alpha 1 and beta 0.

    Attributes:
        epsilon: Stabiliser.
        bias: Whether positive biases contribute too.
    """

    epsilon: float = 1e-6
    bias: bool = True

    def __post_init__(self) -> None:
        check_positive("epsilon", self.epsilon)

    def shares(self, layer: Layer, inputs: tuple[Array, ...]) -> Sequence[Shares]:
        """See :meth:`ShareRule.shares`."""
        return [Shares(_signed(inputs, _positive, _negative, self.bias))]


def _signed(
    inputs: tuple[Array, ...], with_positive: Modify, with_negative: Modify, bias: bool
) -> tuple[Term, Term]:
    """Positive inputs through one changed kernel, negative ones through another."""
    return (
        Term(_all(_positive, inputs), with_positive, with_positive if bias else None),
        Term(_all(_negative, inputs), with_negative, None),
    )


@dataclass(frozen=True)
class AlphaBeta(ShareRule):
    """The alpha-beta rule: positive and negative contributions apart.

    Bach et al. 2015, eq. 60, with alpha - beta = 1.

    Attributes:
        alpha: Weight of the positive contributions.
        beta: Weight of the negative ones.
        epsilon: Stabiliser.
        bias: Whether biases contribute too, each to the part of its sign.
    """

    alpha: float = 2.0
    beta: float = 1.0
    epsilon: float = 1e-6
    bias: bool = True

    def __post_init__(self) -> None:
        check_positive("epsilon", self.epsilon)
        if self.beta < 0 or abs(self.alpha - self.beta - 1) > 1e-9:
            raise ValueError(
                f"alpha - beta must be 1 and beta at least 0, found {self.alpha} and {self.beta}"
            )

    def shares(self, layer: Layer, inputs: tuple[Array, ...]) -> Sequence[Shares]:
        """See :meth:`ShareRule.shares`."""
        return [
            Shares(_signed(inputs, _positive, _negative, self.bias), self.alpha),
            Shares(_signed(inputs, _negative, _positive, self.bias), -self.beta),
        ]


@dataclass(frozen=True)
class Gamma(ShareRule):
    """The gamma rule: contributions of the output's own sign weigh more.

    Montavon et al. 2019, *Layer-wise relevance propagation: an overview*, for
    positive inputs; generalised to inputs of both signs by Andéol et al. 2021,
    *Learning domain invariant representations by joint Wasserstein distance
    minimization*.

    Attributes:
        gamma: How much more.
        epsilon: Stabiliser.
        bias: Whether biases contribute too.
    """

    gamma: float = 0.25
    epsilon: float = 1e-6
    bias: bool = True

    def __post_init__(self) -> None:
        check_positive("gamma", self.gamma)
        check_positive("epsilon", self.epsilon)

    def shares(self, layer: Layer, inputs: tuple[Array, ...]) -> Sequence[Shares]:
        """See :meth:`ShareRule.shares`."""

        def more_positive(w: Array) -> Array:
            return w + self.gamma * _positive(w)

        def more_negative(w: Array) -> Array:
            return w + self.gamma * _negative(w)

        z = layer(*inputs)
        return [
            Shares(_signed(inputs, more_positive, more_negative, self.bias), where=z > 0),
            Shares(_signed(inputs, more_negative, more_positive, self.bias), where=z < 0),
        ]


@dataclass(frozen=True)
class ZBox(ShareRule):
    """The z-B rule for inputs inside a box, as pixels are; for the first layer.

    Montavon et al. 2017, eq. 13 (there :math:`z^B`). The bias plays no part:
    its positive and its negative part are subtracted with the bounds.

    Attributes:
        low: Smallest possible value of an input; one, or one per channel.
        high: Largest possible value.
        epsilon: Stabiliser.
    """

    low: float | tuple[float, ...] = 0.0
    high: float | tuple[float, ...] = 1.0
    epsilon: float = 1e-6

    def __post_init__(self) -> None:
        check_positive("epsilon", self.epsilon)
        if not (np.asarray(self.low) < np.asarray(self.high)).all():
            raise ValueError(f"low must be below high, found {self.low} and {self.high}")
        # Rules are static arguments of jitted functions: they must hash.
        for name in ("low", "high"):
            if not isinstance(getattr(self, name), float | int):
                bounds = tuple(float(v) for v in getattr(self, name))
                object.__setattr__(self, name, bounds)

    def shares(self, layer: Layer, inputs: tuple[Array, ...]) -> Sequence[Shares]:
        """See :meth:`ShareRule.shares`."""

        def bound(value: float | tuple[float, ...]) -> tuple[Array, ...]:
            return _all(lambda x: jnp.broadcast_to(jnp.asarray(value, x.dtype), x.shape), inputs)

        terms = (
            Term(inputs, _same, None),
            Term(bound(self.low), _positive, None, -1),
            Term(bound(self.high), _negative, None, -1),
        )
        return [Shares(terms)]


@dataclass(frozen=True)
class WSquare(ShareRule):
    """The w² rule: squared weights, whatever the inputs; for the first layer.

    Montavon et al. 2017, eq. 12.

    Attributes:
        epsilon: Stabiliser.
        bias: Whether the squared bias contributes too.
    """

    epsilon: float = 1e-6
    bias: bool = True

    def __post_init__(self) -> None:
        check_positive("epsilon", self.epsilon)

    def shares(self, layer: Layer, inputs: tuple[Array, ...]) -> Sequence[Shares]:
        """See :meth:`ShareRule.shares`."""
        return [
            Shares(
                (Term(_all(jnp.ones_like, inputs), jnp.square, jnp.square if self.bias else None),)
            )
        ]


@dataclass(frozen=True)
class Flat(ShareRule):
    """The flat rule: equal shares for all inputs; for the first layer.

    Lapuschkin et al. 2019, *Unmasking Clever Hans predictors*.

    Attributes:
        epsilon: Stabiliser.
    """

    epsilon: float = 1e-6

    def __post_init__(self) -> None:
        check_positive("epsilon", self.epsilon)

    def shares(self, layer: Layer, inputs: tuple[Array, ...]) -> Sequence[Shares]:
        """See :meth:`ShareRule.shares`."""
        return [Shares((Term(_all(jnp.ones_like, inputs), jnp.ones_like, None),))]


@dataclass(frozen=True)
class Pass(Rule):
    """Relevance unchanged; for layers that keep the shape.

    Activations, dropout, batch normalisation (an affine map of every channel
    on its own), and, as in Achtibat et al. 2024, *AttnLRP*, eq. 9, layer
    normalisation.
    """

    def relevance(
        self, layer: Layer, inputs: tuple[Array, ...], outgoing: Array
    ) -> tuple[Array, ...]:
        """See :meth:`Rule.relevance`."""
        (x,) = inputs
        return (outgoing.reshape(x.shape),)


@dataclass(frozen=True)
class Route(Rule):
    """Relevance along the gradient; for layers that only select: max pool, concatenation.

    The gradient of a selection is 1 for what was selected and 0 elsewhere, so
    a max pool gives all relevance to its winner.
    """

    def relevance(
        self, layer: Layer, inputs: tuple[Array, ...], outgoing: Array
    ) -> tuple[Array, ...]:
        """See :meth:`Rule.relevance`."""
        return jax.vjp(layer, *inputs)[1](outgoing)
