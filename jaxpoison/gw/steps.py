"""Problems, and steps towards the entropic transport plan of their linearisation."""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxpoison.gw.many import first, last, product, solved, total
from jaxpoison.gw.products import LaidOut, distance_product, largest_distances
from jaxpoison.spaces import SmallSpaces

# Largest step of a potential; Newton's model of the problem holds only nearby.
_SCALING_STEP = 20.0
_NEWTON_STEP = 1.0
# Of float32, relative.
_ROUNDING = 1.2e-7
TINY = 1e-30


class Problems(NamedTuple):
    """Spaces, each with a centre of its own.

    Attributes:
        spaces: Heatmaps, or spaces of few points.
        centers: As many centres.
    """

    spaces: LaidOut
    centers: SmallSpaces

    def take(self, index: Array) -> Problems:
        """The problems at the given indices."""
        return Problems(self.spaces.take(index), self.centers.take(index))


def product_plans(problems: Problems) -> Float[Array, "n m p"]:
    """The products of the marginals: the usual start."""
    p, q = jnp.asarray(problems.spaces.weights), jnp.asarray(problems.centers.weights)
    return q[:, :, None] * p[:, None, :]


def strength_of(problems: Problems, epsilon: float) -> Float[Array, "n m m"]:
    """What a plan's products with distances enter the exponent of the next one with.

    Each column is centred: constants along the centre's points change no plan,
    and cost digits.
    """
    centers = jnp.asarray(problems.centers.distances)
    mean = jnp.einsum("bi,bij->bj", problems.centers.weights, centers)
    return (centers - mean[:, None, :]) * (4 / epsilon)


def resolution(problems: Problems, epsilon: float) -> Float[Array, " n"]:
    """The relative error of plans that rounding of the exponent makes."""
    weights = problems.centers.weights[:, None, :]
    sums = (jnp.abs(strength_of(problems, epsilon)) * weights).sum(-1)
    return _ROUNDING * largest_distances(problems.spaces) * sums.max(-1)


def step(
    problems: Problems,
    plan: Float[Array, "b m p"],
    potential: Float[Array, "b m"],
    epsilon: float,
) -> tuple[Float[Array, "b m p"], Float[Array, "b m"], Float[Array, " b"]]:
    """One step towards the entropic transport plan of the linearisation at a plan.

    With the pixels' potentials eliminated (their marginals hold exactly), the
    dual is a concave function of the centre's potentials: its gradient is the
    error of the centre's marginal, its Hessian ``plan diag(1/p) plan^T -
    diag(marginal)`` (Cuturi and Peyre 2018, *Semidual regularized optimal
    transport*, prop. 2). One step of scaling, then one of Newton's.

    Returns:
        A plan with the right mass on pixels, the centre's potentials, and the
        error of the plan's mass on the centre's points (sum of magnitudes).
    """
    p, q = jnp.asarray(problems.spaces.weights), jnp.asarray(problems.centers.weights)
    moved = distance_product(problems.spaces, plan)
    exponent = jnp.einsum("bij,bjp->bip", strength_of(problems, epsilon), moved)
    exponent += potential[:, :, None]
    kernel = jnp.exp(exponent - exponent.max(1, keepdims=True))

    def over_pixels(pixel_scale: Array) -> Array:
        return jnp.einsum("bmp,bp->bm", kernel, pixel_scale)

    def pixel_scale(scale: Array) -> Array:
        return p / jnp.maximum(jnp.einsum("bmp,bm->bp", kernel, scale), TINY)

    held = over_pixels(p / kernel.sum(1))
    change = jnp.log(q) - jnp.log(jnp.maximum(held, TINY))
    scale = jnp.exp(jnp.clip(change, -_SCALING_STEP, _SCALING_STEP))
    new = kernel * scale[:, :, None] * pixel_scale(scale)[:, None, :]
    held = new.sum(-1)
    inverse = jnp.where(p > 0, 1 / jnp.where(p > 0, p, 1), 0)
    shared = jnp.einsum("bip,bjp->bij", new, new * inverse[:, None, :])
    # The Hessian is singular along equal shifts of all potentials, and where the
    # plan falls apart into independent parts.
    points = q.shape[-1]
    eye = jnp.eye(points, dtype=p.dtype)
    hessian = held[:, :, None] * eye - shared + 1 / points**2 + 1e-7 * eye
    newton = first(solved(last(hessian), last(q - held)))
    newton = jnp.clip(jnp.nan_to_num(newton), -_NEWTON_STEP, _NEWTON_STEP)
    scale = scale * jnp.exp(newton)
    new = kernel * scale[:, :, None] * pixel_scale(scale)[:, None, :]
    error = jnp.abs(new.sum(-1) - q).sum(-1)
    potential = potential + jnp.log(scale)
    return new, potential - potential.mean(-1, keepdims=True), error


def small_step(
    strength: Float[Array, "m m b"],
    distances: Float[Array, "p p b"],
    p: Float[Array, "p b"],
    q: Float[Array, "m b"],
    plan: Float[Array, "m p b"],
    potential: Float[Array, "m b"],
) -> tuple[Float[Array, "m p b"], Float[Array, "m b"], Float[Array, " b"]]:
    """As :func:`step`, where both sides have few points, in half the time: problems last.

    Args:
        strength: What the plan's products with distances enter the exponent with.
        distances: Of each space.
        p: Mass of its points.
        q: Mass of the centre's points.
        plan: The plan of the last linearisation.
        potential: Of the centre's points.
    """
    exponent = product(strength, product(plan, distances)) + potential[:, None]
    largest = functools.reduce(jnp.maximum, list(exponent))
    kernel = jnp.exp(exponent - largest)

    def pixel_scale(scale: Array) -> Array:
        return p / jnp.maximum(total(kernel * scale[:, None]), TINY)

    held = total((kernel * (p / total(kernel))).swapaxes(0, 1))
    change = jnp.log(q) - jnp.log(jnp.maximum(held, TINY))
    scale = jnp.exp(jnp.clip(change, -_SCALING_STEP, _SCALING_STEP))
    new = kernel * scale[:, None] * pixel_scale(scale)
    held = total(new.swapaxes(0, 1))
    inverse = jnp.where(p > 0, 1 / jnp.where(p > 0, p, 1), 0)
    shared = product(new, (new * inverse).swapaxes(0, 1))
    points = len(q)
    eye = jnp.eye(points, dtype=p.dtype)[:, :, None]
    hessian = held[:, None] * eye - shared + 1 / points**2 + 1e-7 * eye
    newton = jnp.clip(jnp.nan_to_num(solved(hessian, q - held)), -_NEWTON_STEP, _NEWTON_STEP)
    scale = scale * jnp.exp(newton)
    new = kernel * scale[:, None] * pixel_scale(scale)
    error = jnp.abs(total(new.swapaxes(0, 1)) - q).sum(0)
    potential = potential + jnp.log(scale)
    return new, potential - total(potential) / points, error
