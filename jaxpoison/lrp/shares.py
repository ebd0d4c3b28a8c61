"""What a rule is, and the rules that hand relevance on by shares.

A rule is an immutable value with one method. Layers' own parameters are read,
never changed. Most rules hand relevance on by shares in a sum of contributions;
they state only the contributions (:class:`ShareRule`).
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

Layer = Callable[..., Array]
Modify = Callable[[Array], Array]


class Rule(abc.ABC):
    """How relevance passes backwards through one layer."""

    @abc.abstractmethod
    def relevance(
        self, layer: Layer, inputs: tuple[Array, ...], outgoing: Array
    ) -> tuple[Array, ...]:
        """Relevance of a layer's inputs.

        Args:
            layer: The layer, in evaluation mode.
            inputs: What it was called with.
            outgoing: Relevance of its output, in the output's shape.

        Returns:
            One array per input, in the inputs' shapes.
        """

    def bias_relevance(
        self,
        layer: Layer,  # noqa: ARG002
        inputs: tuple[Array, ...],  # noqa: ARG002
        outgoing: Array,
    ) -> Float[Array, " n"]:
        """Relevance that went to the layer's bias instead of its inputs, per image."""
        return jnp.zeros(outgoing.shape[0], outgoing.dtype)


@dataclass(frozen=True)
class Term:
    """One application of a changed layer to changed inputs.

    Attributes:
        inputs: What the layer is applied to; contributions are these times their weights.
        kernel: Changes the layer's kernel.
        bias: Changes the layer's bias; ``None`` leaves it out.
        sign: 1 or -1: whether the result is added or subtracted.
    """

    inputs: tuple[Array, ...]
    kernel: Modify
    bias: Modify | None
    sign: int = 1


@dataclass(frozen=True)
class Shares:
    """Contributions that share one part of the outgoing relevance.

    Attributes:
        terms: Their sum is what the shares are taken of.
        weight: The part's factor.
        where: Outputs the part is taken from; all, if ``None``.
    """

    terms: tuple[Term, ...]
    weight: float = 1.0
    where: Array | None = None


class ShareRule(Rule):
    r"""Relevance by share in a sum of contributions.

    .. math::
        R_j = \sum_k \frac{c_{jk}}{z_k + \epsilon\,\mathrm{sign}(z_k)} R_k,
        \qquad z_k = \sum_j c_{jk} + b_k
    """

    epsilon: float

    @abc.abstractmethod
    def shares(self, layer: Layer, inputs: tuple[Array, ...]) -> Sequence[Shares]:
        """The contributions of a layer's inputs and bias to its outputs."""

    def relevance(
        self, layer: Layer, inputs: tuple[Array, ...], outgoing: Array
    ) -> tuple[Array, ...]:
        """See :meth:`Rule.relevance`."""
        total = tuple(jnp.zeros_like(x) for x in inputs)
        for part in self.shares(layer, inputs):
            applied = [
                jax.vjp(changed(layer, term.kernel, term.bias), *term.inputs) for term in part.terms
            ]
            quotient = self._quotient(part, [z for z, _ in applied], outgoing)
            for term, (_, pull) in zip(part.terms, applied, strict=True):
                total = tuple(
                    sum_ + term.sign * x * share
                    for sum_, x, share in zip(total, term.inputs, pull(quotient), strict=True)
                )
        return total

    def bias_relevance(
        self, layer: Layer, inputs: tuple[Array, ...], outgoing: Array
    ) -> Float[Array, " n"]:
        """See :meth:`Rule.bias_relevance`."""
        absorbed = jnp.zeros(outgoing.shape[0], outgoing.dtype)
        for part in self.shares(layer, inputs):
            values = [changed(layer, t.kernel, t.bias)(*t.inputs) for t in part.terms]
            quotient = self._quotient(part, values, outgoing)
            for term, value in zip(part.terms, values, strict=True):
                if term.bias is not None:
                    bias = value - changed(layer, term.kernel, None)(*term.inputs)
                    contribution = term.sign * bias * quotient
                    absorbed += contribution.reshape(len(contribution), -1).sum(1)
        return absorbed

    def _quotient(self, part: Shares, values: list[Array], outgoing: Array) -> Array:
        z = sum(term.sign * value for term, value in zip(part.terms, values, strict=True))
        quotient = part.weight * outgoing / stabilized(jnp.asarray(z), self.epsilon)
        return quotient if part.where is None else jnp.where(part.where, quotient, 0)


def stabilized(z: Array, epsilon: float) -> Array:
    """``z`` moved away from 0 by ``epsilon``."""
    return z + jnp.where(z < 0, -epsilon, epsilon)


def changed(layer: Layer, kernel: Modify, bias: Modify | None) -> Layer:
    """The layer with its kernel and bias changed; the layer itself is not.

    Layers without parameters (pooling, sums) count as having the weight 1
    everywhere: shares do not depend on a common positive factor.

    Args:
        layer: A dense layer, a convolution, or a linear layer without parameters.
        kernel: Changes the kernel.
        bias: Changes the bias; ``None`` makes it 0.

    Raises:
        ValueError: The layer has parameters other than ``kernel`` and ``bias``,
            or other layers inside.
    """
    if not isinstance(layer, nnx.Module) or not jax.tree.leaves(nnx.state(layer, nnx.Param)):
        weight = kernel(jnp.ones(()))
        return lambda *inputs: weight * layer(*inputs)
    if any(isinstance(child, nnx.Module) for _, child in nnx.iter_children(layer)):
        raise ValueError(
            f"rules by share need layers with a kernel and a bias, found a {type(layer).__name__} "
            "with layers inside; give those the rule"
        )
    copy = nnx.clone(layer)
    for name, parameter in list(nnx.iter_children(copy)):
        if not isinstance(parameter, nnx.Param):
            continue
        value = parameter[...]
        if name == "kernel":
            new = kernel(value)
        elif name == "bias":
            new = jnp.zeros_like(value) if bias is None else bias(value)
        else:
            raise ValueError(
                f"rules by share need layers with a kernel and a bias, found the parameter "
                f"{name!r} in a {type(layer).__name__}"
            )
        setattr(copy, str(name), nnx.Param(new))
    return copy
