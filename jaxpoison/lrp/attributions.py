"""Ways to say which pixels a decision rests on, all behind one call."""

from __future__ import annotations

import abc
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int, PyTree, UInt8

from jaxpoison._checks import (
    check_classes,
    check_images,
    check_integer,
    check_logits,
    check_one_class_each,
    check_positive,
)
from jaxpoison._precision import in_full_precision
from jaxpoison.lrp.composites import Composite, paper
from jaxpoison.lrp.propagation import Targets, propagate, start_relevance
from jaxpoison.models.inference import class_count, evaluation_view
from jaxpoison.parallel import map_batches, over_devices

Function = Callable[[Array], Array]


class Attribution(abc.ABC):
    """A method that gives every pixel and channel its part in a model's output.

    Examples:
        >>> methods: list[jp.Attribution] = [jp.LRP(), jp.Gradient(), jp.SmoothGrad(samples=2)]
        >>> [jp.explain(model, images[:2], method=method).relevance.shape for method in methods]
        [(2, 32, 32, 3), (2, 32, 32, 3), (2, 32, 32, 3)]
    """

    @abc.abstractmethod
    def attribute(
        self, graphdef: nnx.GraphDef[Any], state: PyTree, images: Array, targets: Targets
    ) -> tuple[Float[Array, "n h w c"], Float[Array, "n classes"]]:
        """Attribution and logits; to be jitted.

        Args:
            graphdef: The structure of a model in evaluation mode.
            state: Its arrays.
            images: Images in [0, 1].
            targets: See :func:`jaxpoison.lrp.propagation.start_relevance`.
        """


@dataclass(frozen=True)
class LRP(Attribution):
    """Layer-wise relevance propagation.

    Attributes:
        composite: Which rule serves which layer; the paper's by default.

    Examples:
        >>> from jaxpoison.lrp.composites import epsilon_plus
        >>> jp.explain(model, images, labels, method=jp.LRP(epsilon_plus())).relevance.shape
        (20, 32, 32, 3)
    """

    composite: Composite = field(default_factory=paper)

    def attribute(
        self, graphdef: nnx.GraphDef[Any], state: PyTree, images: Array, targets: Targets
    ) -> tuple[Array, Array]:
        """See :meth:`Attribution.attribute`."""
        found = propagate(graphdef, self.composite, state, images, targets)
        return found.relevance, found.logits


class _Differential(Attribution):
    """A method made from the gradient of the explained output.

    The explained output is the logits' product with weights: 1 at the target
    class, or the floats that were given.
    """

    @abc.abstractmethod
    def from_gradient(self, gradient: Function, images: Array) -> Array:
        """The attribution, from a function that gives the gradient at any images."""

    def attribute(
        self, graphdef: nnx.GraphDef[Any], state: PyTree, images: Array, targets: Targets
    ) -> tuple[Array, Array]:
        """See :meth:`Attribution.attribute`."""

        def model(images: Array) -> Array:
            # Merged where it is traced: a model may count its calls or keep intermediate values.
            return nnx.merge(graphdef, state, copy=True)(images)

        logits = model(images)
        check_logits(logits)
        start = start_relevance(logits, targets)
        if targets is None or not jnp.issubdtype(targets.dtype, jnp.floating):
            classes = logits.argmax(-1) if targets is None else targets
            known = (classes >= 0) & (classes < logits.shape[-1])
            chosen = jax.nn.one_hot(classes, logits.shape[-1], dtype=logits.dtype)
            start = jnp.where(known[:, None], chosen, jnp.nan)

        def gradient(at: Array) -> Array:
            return jax.vjp(model, at)[1](start)[0]

        return self.from_gradient(gradient, images), logits


@dataclass(frozen=True)
class Gradient(_Differential):
    """The gradient of the explained output (Simonyan et al. 2014, signed).

    Examples:
        >>> method = jp.Gradient()
        >>> jp.explain(model, images, labels, method=method).relevance.shape
        (20, 32, 32, 3)
    """

    def from_gradient(self, gradient: Function, images: Array) -> Array:
        """See :meth:`_Differential.from_gradient`."""
        return gradient(images)


@dataclass(frozen=True)
class InputTimesGradient(_Differential):
    """Input times gradient (Shrikumar et al. 2016).

    Examples:
        >>> method = jp.InputTimesGradient()
        >>> jp.explain(model, images, labels, method=method).relevance.shape
        (20, 32, 32, 3)
    """

    def from_gradient(self, gradient: Function, images: Array) -> Array:
        """See :meth:`_Differential.from_gradient`."""
        return images * gradient(images)


@dataclass(frozen=True)
class IntegratedGradients(_Differential):
    """Gradients along the straight path from a baseline (Sundararajan et al. 2017, eq. 3).

    Sums to the difference between the outputs at image and baseline, up to the
    error of the midpoint rule.

    Attributes:
        steps: Points of the path.
        baseline: Value of every pixel where the path begins.

    Examples:
        >>> method = jp.IntegratedGradients(steps=8)
        >>> jp.explain(model, images, labels, method=method).relevance.shape
        (20, 32, 32, 3)
    """

    steps: int = 32
    baseline: float = 0.0

    def __post_init__(self) -> None:
        check_integer("steps", self.steps, at_least=1)

    def from_gradient(self, gradient: Function, images: Array) -> Array:
        """See :meth:`_Differential.from_gradient`."""
        way = images - self.baseline

        def add(total: Array, position: Array) -> tuple[Array, None]:
            return total + gradient(self.baseline + position * way), None

        positions = (jnp.arange(self.steps, dtype=images.dtype) + 0.5) / self.steps
        total, _ = jax.lax.scan(add, jnp.zeros_like(images), positions)
        return way * total / self.steps


@dataclass(frozen=True)
class SmoothGrad(_Differential):
    """The mean gradient at noisy copies of an image (Smilkov et al. 2017).

    Attributes:
        samples: Noisy copies.
        noise: Standard deviation of the noise, in pixel values.
        seed: Seed of the noise, which is the same for every image.

    Examples:
        >>> method = jp.SmoothGrad(samples=4)
        >>> jp.explain(model, images, labels, method=method).relevance.shape
        (20, 32, 32, 3)
    """

    samples: int = 16
    noise: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        check_integer("samples", self.samples, at_least=1)
        check_positive("noise", self.noise)

    def from_gradient(self, gradient: Function, images: Array) -> Array:
        """See :meth:`_Differential.from_gradient`."""

        def add(total: Array, key: Array) -> tuple[Array, None]:
            # One draw for all images, so that none depends on the batch it is in.
            noise = self.noise * jax.random.normal(key, images.shape[1:], images.dtype)
            return total + gradient(images + noise[None]), None

        keys = jax.random.split(jax.random.key(self.seed), self.samples)
        total, _ = jax.lax.scan(add, jnp.zeros_like(images), keys)
        return total / self.samples


ATTRIBUTIONS: dict[str, Callable[[], Attribution]] = {
    "lrp": LRP,
    "gradient": Gradient,
    "input_x_gradient": InputTimesGradient,
    "integrated_gradients": IntegratedGradients,
    "smooth_grad": SmoothGrad,
}


@dataclass(frozen=True, eq=False)
class Explanation:
    """Attribution of images towards a class each.

    Attributes:
        relevance: Part of every pixel and channel.
        logits: The model's outputs.
        start: Magnitude of the class' logit: what LRP hands to the output.
            Where the logit is negative, relevance would be negative throughout,
            so its magnitude is explained.
        negative: Where that happened.

    Examples:
        >>> explained = jp.explain(model, images, labels)
        >>> explained.relevance.shape, explained.logits.shape, explained.start.shape
        ((20, 32, 32, 3), (20, 10), (20,))
    """

    relevance: Float[np.ndarray, "n h w c"]
    logits: Float[np.ndarray, "n classes"]
    start: Float[np.ndarray, " n"]
    negative: np.ndarray

    @property
    def absorbed(self) -> Float[np.ndarray, " n"]:
        """What LRP's stabilisers and biases kept of each image's starting relevance."""
        return self.start - self.relevance.sum((1, 2, 3))


def explain(
    model: nnx.Module,
    images: UInt8[np.ndarray, "n h w c"],
    classes: Int[np.ndarray, " n"] | None = None,
    *,
    method: Attribution | None = None,
    batch_size: int = 128,
    progress: str | None = None,
) -> Explanation:
    """Attributes many images towards a class each, batch by batch.

    Args:
        model: Takes images in [0, 1], gives logits; not changed.
        images: Images at rest.
        classes: The class that is explained, for every image; by default the
            one with the largest logit.
        method: How; LRP with the paper's rules by default.
        batch_size: Images per call; bounds the memory.
        progress: Title of a progress bar; none is shown without it.

    Raises:
        TypeError: The images are not ``uint8``, or the model gives no array of logits.
        ValueError: The model has operations without rules, there are not as
            many classes as images, or one of them is none of the model's.

    Examples:
        >>> explained = jp.explain(model, images, labels)
        >>> explained.relevance.shape  # of every pixel and channel, towards each image's label
        (20, 32, 32, 3)
    """
    check_images("images", images)
    if classes is not None:
        check_one_class_each(classes, images)
        check_classes("classes", classes, class_count(model, images))
    graphdef, state = nnx.split(evaluation_view(model))
    arrays = [images] if classes is None else [images, np.asarray(classes, np.int32)]
    relevance, logits = map_batches(
        partial(_attribute, LRP() if method is None else method, graphdef),
        state,
        *arrays,
        batch_size=batch_size,
        progress=progress,
    )
    explained = logits.argmax(-1) if classes is None else np.asarray(classes)
    logit = np.take_along_axis(logits, explained[:, None], 1)[:, 0]
    return Explanation(relevance, logits, np.abs(logit), logit < 0)


@partial(jax.jit, static_argnums=(0, 1))
@in_full_precision
def _attribute(
    method: Attribution,
    graphdef: nnx.GraphDef[Any],
    state: PyTree,
    images: Array,
    classes: Array | None = None,
) -> tuple[Array, Array]:
    def attribute(
        state: PyTree, images: Array, targets: Array | None = None
    ) -> tuple[Array, Array]:
        return method.attribute(graphdef, state, images, targets)

    batch = [images.astype(jnp.float32) / 255]
    return over_devices(attribute)(state, *batch, *([] if classes is None else [classes]))
