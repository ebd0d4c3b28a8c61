"""Propagation rules: how a layer hands relevance from its outputs to its inputs.

A rule is an immutable value with one method. Layers' own parameters are read,
never changed.
"""

from __future__ import annotations

import abc
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jaxpoison._checks import check_integer, check_positive


class Rule(abc.ABC):
    """How relevance passes backwards through one layer."""

    @abc.abstractmethod
    def relevance(
        self, layer: Callable[..., Array], inputs: tuple[Array, ...], outgoing: Array
    ) -> tuple[Array, ...]:
        """Relevance of a layer's inputs.

        Args:
            layer: The layer, in evaluation mode.
            inputs: What it was called with.
            outgoing: Relevance of its output, in the output's shape.

        Returns:
            One array per input, in the inputs' shapes.
        """


@dataclass(frozen=True)
class Epsilon(Rule):
    r"""Relevance by share in the pre-activation, without the bias.

    .. math::
        R_j = \sum_k \frac{(x_j w_{jk})^a}{z_k + \epsilon\,\mathrm{sign}(z_k)} R_k,
        \qquad z_k = \sum_j (x_j w_{jk})^a

    Exponent 1 is the epsilon rule of Bach et al. 2015 (eq. 58) with the bias
    left out; exponent 2 is the rule of Schulth, Berghoff, Neu, taken from the
    Pytorch-LRP package. For any linear layer: dense, convolution, average pool.

    Attributes:
        exponent: The power a contribution is taken to.
        epsilon: Stabiliser; what it absorbs is lost to the sum of relevance.
    """

    exponent: int = 1
    epsilon: float = 1e-6

    def __post_init__(self) -> None:
        check_integer("exponent", self.exponent, at_least=1)
        check_positive("epsilon", self.epsilon)

    def relevance(
        self, layer: Callable[..., Array], inputs: tuple[Array, ...], outgoing: Array
    ) -> tuple[Array, ...]:
        """See :meth:`Rule.relevance`."""
        powers = tuple(x**self.exponent for x in inputs)
        z, transpose = jax.vjp(linear_part(layer, lambda w: w**self.exponent), *powers)
        shares = transpose(outgoing / (z + jnp.where(z < 0, -self.epsilon, self.epsilon)))
        return tuple(x * share for x, share in zip(powers, shares, strict=True))


@dataclass(frozen=True)
class Pass(Rule):
    """Relevance unchanged; for layers that keep the shape: BatchNorm, ReLU, dropout."""

    def relevance(
        self, layer: Callable[..., Array], inputs: tuple[Array, ...], outgoing: Array
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
        self, layer: Callable[..., Array], inputs: tuple[Array, ...], outgoing: Array
    ) -> tuple[Array, ...]:
        """See :meth:`Rule.relevance`."""
        return jax.vjp(layer, *inputs)[1](outgoing)


def linear_part(
    layer: Callable[..., Array], modify: Callable[[Array], Array]
) -> Callable[..., Float[Array, ...]]:
    """The layer without its bias and with its kernel modified; the layer is not changed.

    Layers without parameters (average pooling) come back as they are: all their
    weights are 1/n, and shares do not depend on a common factor.
    """
    if not isinstance(layer, nnx.Module) or not jax.tree.leaves(nnx.state(layer, nnx.Param)):
        return layer
    changed = nnx.clone(layer)
    for name, parameter in nnx.iter_children(changed):
        if isinstance(parameter, nnx.Param):
            value = parameter[...]
            new = jnp.zeros_like(value) if name == "bias" else modify(value)
            setattr(changed, str(name), nnx.Param(new))
    return changed
