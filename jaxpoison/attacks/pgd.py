"""Projected gradient ascent on a network's loss (Madry et al. 2018)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree, UInt8

from jaxpoison._checks import (
    check_choice,
    check_classes,
    check_images,
    check_integer,
    check_one_class_each,
    check_positive,
    set_fields,
)
from jaxpoison._precision import in_full_precision
from jaxpoison.parallel import map_batches, over_devices

NORMS = ("l2", "linf")


@dataclass(frozen=True)
class PGD:
    """How images are perturbed; as published for the label-consistent attack, if not changed.

    There the ball has an l2 radius of 300, which never binds: five steps of
    0.015 reach at most 0.075 per pixel.

    Attributes:
        steps: Steps along the sign of the gradient.
        step_size: Of a step, in pixel values from 0 to 1.
        norm: ``l2`` or ``linf``: of the ball around an image it may not leave.
        radius: Of the ball, in pixel values from 0 to 1.

    Raises:
        TypeError: A value has the wrong type.
        ValueError: A value is not positive, or there is no such norm.

    Examples:
        >>> jp.PGD(steps=10, norm="linf", radius=8 / 255).steps
        10
    """

    steps: int = field(
        default=5,
        metadata={
            "help": "steps by which label-consistent images are perturbed",
            "metavar": "STEPS",
        },
    )
    step_size: float = field(
        default=0.015,
        metadata={"help": "of a step, in pixel values of 0..1", "metavar": "SIZE"},
    )
    norm: str = field(
        default="l2",
        metadata={"help": "l2 or linf: of the ball around an image it may not leave"},
    )
    radius: float = field(
        default=300.0,
        metadata={
            "help": "how far an image may be moved, in that norm; as published, no bound",
            "metavar": "RADIUS",
        },
    )

    def __post_init__(self) -> None:
        set_fields(
            self,
            steps=check_integer("PGD steps", self.steps, at_least=1),
            step_size=check_positive("PGD step size", self.step_size),
            norm=check_choice("PGD norm", self.norm, NORMS),
            radius=check_positive("PGD radius", self.radius),
        )


@in_full_precision
def projected_gradient_ascent(
    logits: Callable[[Float[Array, "n h w c"]], Float[Array, "n classes"]],
    images: Float[Array, "n h w c"],
    labels: Int[Array, " n"],
    settings: PGD,
) -> Float[Array, "n h w c"]:
    """Images moved so that the loss of their label rises.

    After every step an image is projected onto the ball around its start and
    clipped to [0, 1]. A pure function of arrays, for use inside other programs.

    Args:
        logits: The network; it must treat every image alone.
        images: Images in [0, 1].
        labels: Their classes. One that is none of the network's gives an image of NaN.
        settings: How far and how fast.

    Examples:
        >>> network, parameters = jp.pure(model)
        >>> pixels = jax.numpy.asarray(images, "float32") / 255
        >>> moved = jp.projected_gradient_ascent(
        ...     lambda x: network(parameters, x), pixels, jax.numpy.asarray(labels), jp.PGD()
        ... )
        >>> moved.shape == pixels.shape, bool((moved >= 0).all() and (moved <= 1).all())
        (True, True)
    """

    def loss(moved: Array) -> Array:
        scores = jax.nn.log_softmax(logits(moved))
        return -jnp.take_along_axis(scores, labels[:, None], 1).sum()

    def step(_: int, moved: Array) -> Array:
        change = moved + settings.step_size * jnp.sign(jax.grad(loss)(moved)) - images
        if settings.norm == "linf":
            change = jnp.clip(change, -settings.radius, settings.radius)
        else:
            length = jnp.sqrt((change**2).sum((1, 2, 3), keepdims=True))
            # A length of 0 needs no scaling.
            change = change * jnp.minimum(1, settings.radius / jnp.maximum(length, 1e-12))
        return jnp.clip(images + change, 0, 1)

    classes = jax.eval_shape(logits, images).shape[-1]
    known = (labels >= 0) & (labels < classes)
    moved = jax.lax.fori_loop(0, settings.steps, step, images)
    return jnp.where(known[:, None, None, None], moved, jnp.nan)


def perturbed(
    network: Callable[[PyTree, Float[Array, "n h w c"]], Float[Array, "n classes"]],
    parameters: PyTree,
    images: UInt8[np.ndarray, "n h w c"],
    labels: Int[np.ndarray, " n"],
    settings: PGD | None = None,
    *,
    batch_size: int = 128,
    progress: str | None = None,
) -> UInt8[np.ndarray, "n h w c"]:
    """Images at rest after projected gradient ascent, batch by batch.

    Args:
        network: Logits from parameters and images in [0, 1], as
            :func:`jaxpoison.pure` takes them from a Flax module.
        parameters: The network's parameters.
        images: Images at rest; not changed.
        labels: Their classes.
        settings: How far and how fast; as published if not given.
        batch_size: Images per call.
        progress: Title of a progress bar; none is shown without it.

    Raises:
        TypeError: The images are not ``uint8``.
        ValueError: There are no images, not one label for each, or a label is none of the
            network's classes.

    Examples:
        >>> network, parameters = jp.pure(model)
        >>> settings = jp.PGD(norm="linf", radius=0.03)
        >>> moved = jp.perturbed(network, parameters, images, labels, settings)
        >>> int(np.abs(moved.astype(int) - images).max())
        8
    """
    check_images("images", images)
    check_one_class_each(labels, images)
    one = jax.ShapeDtypeStruct((1, *images.shape[1:]), jnp.float32)
    check_classes("labels", labels, jax.eval_shape(network, parameters, one).shape[-1])
    ascend = partial(_perturbed, network, settings or PGD())
    return map_batches(ascend, parameters, images, labels, batch_size=batch_size, progress=progress)


@partial(jax.jit, static_argnums=(0, 1))
def _perturbed(
    network: Callable[[PyTree, Array], Array],
    settings: PGD,
    parameters: PyTree,
    images: Array,
    labels: Array,
) -> Array:
    def local(parameters: PyTree, images: Array, labels: Array) -> Array:
        return projected_gradient_ascent(partial(network, parameters), images, labels, settings)

    moved = over_devices(local)(parameters, images.astype(jnp.float32) / 255, labels)
    return jnp.round(255 * moved).astype(jnp.uint8)
