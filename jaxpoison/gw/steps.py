"""Problems, and steps towards the entropic transport plan of their linearisation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxpoison.gw.layouts import Layout, Mass, Plan, layout_of
from jaxpoison.gw.products import LaidOut, largest_distances
from jaxpoison.gw.spaces import SmallSpaces

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


@dataclass(frozen=True)
class Arranged:
    """Problems in the layout that they are solved in.

    Attributes:
        layout: Where axes stand.
        strength: What a plan's products with distances enter the exponent with.
        moved: Multiplies a plan with the spaces' distances.
        p: Mass of the spaces' points.
        q: Mass of the centres' points.
    """

    layout: Layout
    strength: Array
    moved: Callable[[Plan], Plan]
    p: Mass
    q: Mass


def arranged(problems: Problems, epsilon: float, layout: Layout | None = None) -> Arranged:
    """Problems as :func:`step` takes them, by default in the layout that is fast for them."""
    layout = layout_of(problems.spaces) if layout is None else layout
    return Arranged(
        layout,
        layout.arranged(strength_of(problems, epsilon)),
        layout.mover(problems.spaces),
        layout.arranged(problems.spaces.weights),
        layout.arranged(problems.centers.weights),
    )


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
    weights = jnp.asarray(problems.centers.weights)[:, None, :]
    sums = (jnp.abs(strength_of(problems, epsilon)) * weights).sum(-1)
    return _ROUNDING * largest_distances(problems.spaces) * sums.max(-1)


def step(problems: Arranged, plan: Plan, potential: Mass) -> tuple[Plan, Mass, Float[Array, " b"]]:
    """One step towards the entropic transport plan of the linearisation at a plan.

    With the pixels' potentials eliminated (their marginals hold exactly), the
    dual is a concave function of the centre's potentials: its gradient is the
    error of the centre's marginal, its Hessian ``plan diag(1/p) plan^T -
    diag(marginal)`` (Cuturi and Peyre 2018, *Semidual regularized optimal
    transport*, prop. 2). One step of scaling, then one of Newton's.

    Args:
        problems: What to couple.
        plan: Where each one's linearisation is made.
        potential: Of the centre's points, in units of epsilon.

    Returns:
        A plan with the right mass on pixels, the centre's potentials, and the
        error of the plan's mass on the centre's points (sum of magnitudes).
    """
    layout, p, q = problems.layout, problems.p, problems.q
    axis = layout.center_axis
    points = q.shape[axis]
    exponent = layout.product(problems.strength, problems.moved(plan))
    exponent += layout.of_center(potential)
    kernel = jnp.exp(exponent - exponent.max(axis, keepdims=True))

    def scaled(scale: Mass) -> Plan:
        """The kernel with the centre's scale, and the space's that its marginal asks."""
        of_space = p / jnp.maximum(layout.center_sum(kernel, scale), TINY)
        return kernel * layout.of_center(scale) * layout.of_space(of_space)

    held = layout.space_sum(kernel, p / layout.center_sum(kernel))
    change = jnp.log(q) - jnp.log(jnp.maximum(held, TINY))
    scale = jnp.exp(jnp.clip(change, -_SCALING_STEP, _SCALING_STEP))
    new = scaled(scale)
    held = layout.space_sum(new)
    inverse = jnp.where(p > 0, 1 / jnp.where(p > 0, p, 1), 0)
    shared = layout.product(new, layout.transposed(new * layout.of_space(inverse)))
    # The Hessian is singular along equal shifts of all potentials, and where the
    # plan falls apart into independent parts.
    hessian = layout.diagonal(held + 1e-7) - shared + 1 / points**2
    newton = layout.solved(hessian, q - held)
    newton = jnp.clip(jnp.nan_to_num(newton), -_NEWTON_STEP, _NEWTON_STEP)
    scale = scale * jnp.exp(newton)
    new = scaled(scale)
    error = jnp.abs(layout.space_sum(new) - q).sum(axis)
    potential = potential + jnp.log(scale)
    return new, potential - potential.mean(axis, keepdims=True), error
