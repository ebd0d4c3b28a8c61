"""The pixel grid as an OTT geometry that all heatmaps of a run share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float
from ott.geometry import geometry


def pixel_distances(height: int, width: int) -> Float[Array, "p p"]:
    """Euclidean distances between the pixels of a grid, row by row, in pixels."""
    points = jnp.stack(jnp.meshgrid(jnp.arange(height), jnp.arange(width), indexing="ij"), -1)
    points = points.reshape(-1, 2).astype(jnp.float32)
    return jnp.sqrt(((points[:, None] - points) ** 2).sum(-1))


@jax.tree_util.register_pytree_node_class
class GridGeometry(geometry.Geometry):
    """Distances on one grid, times a factor.

    Under ``vmap`` over the factor alone, the matrix stays one for all
    problems, and applying it to a batch is one matrix product.

    Args:
        distances: Symmetric matrix, shared.
        factor: What the distances are multiplied by.
        **kwargs: Passed to :class:`ott.geometry.geometry.Geometry`.
    """

    def __init__(
        self, distances: Float[Array, "p p"], factor: Float[Array, ""], **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.distances = distances
        self.factor = factor

    @property
    def cost_matrix(self) -> Float[Array, "p p"]:
        """The dense matrix; only operations that cannot avoid it build it."""
        return self.distances * self.factor

    @property
    def shape(self) -> tuple[int, int]:
        """Number of pixels, twice."""
        n, m = self.distances.shape
        return n, m

    @property
    def is_symmetric(self) -> bool:
        """Always."""
        return True

    @property
    def can_LRC(self) -> bool:  # noqa: N802 (OTT's name)
        """Never: the distances' spectrum decays slowly."""
        return False

    def apply_cost(
        self,
        arr: Array,
        axis: int = 0,
        fn: Callable[[Array], Array] | None = None,
        is_linear: bool = False,
    ) -> Array:
        """Product of the distances, or of a function of them, with a vector or matrix."""
        if fn is not None and not is_linear:
            return super().apply_cost(arr, axis=axis, fn=fn, is_linear=is_linear)
        # Written with the pixels last, so that a batch of transposed couplings
        # multiplies the shared matrix without being moved in memory.
        product = (arr.T @ self.distances).T * self.factor
        return product if fn is None else fn(product)

    def apply_square_cost(self, arr: Array, axis: int = 0) -> Array:
        """Product of the squared distances with a vector or matrix."""
        return (arr.T @ self.distances**2).T * self.factor**2

    def tree_flatten(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """For JAX: the arrays, and what is static."""
        return (self.distances, self.factor, self._epsilon_init), {
            "relative_epsilon": self._relative_epsilon,
            "scale_cost": self._scale_cost,
        }

    @classmethod
    def tree_unflatten(cls, aux_data: dict[str, Any], children: tuple[Any, ...]) -> GridGeometry:
        """Inverse of :meth:`tree_flatten`."""
        distances, factor, epsilon = children
        return cls(distances, factor, epsilon=epsilon, **aux_data)
