"""The pixel grid as an OTT geometry that all heatmaps of a run share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from jaxtyping import Array, Float
from ott.geometry import geometry

from jaxpoison.gw.products import grid_product, pixel_distances


@jax.tree_util.register_pytree_node_class
class GridGeometry(geometry.Geometry):
    """Distances on one grid, times a factor.

    Under ``vmap`` over the factor alone, the grid stays one for all problems,
    and applying it to a batch is one matrix product.

    Args:
        height: Rows of the grid.
        width: Columns of the grid.
        factor: What the distances, in pixels, are multiplied by.
        **kwargs: Passed to :class:`ott.geometry.geometry.Geometry`, but for ``scale_cost``:
            the factor is in its place.

    Raises:
        ValueError: ``scale_cost`` is not 1.

    Examples:
        >>> geometry = jp.GridGeometry(4, 4, 1.0)
        >>> geometry.shape, float(geometry.cost_matrix[0, 1])
        ((16, 16), 1.0)
    """

    def __init__(self, height: int, width: int, factor: Float[Array, ""], **kwargs: Any) -> None:
        if kwargs.get("scale_cost", 1.0) != 1.0:
            raise ValueError(f"scale_cost must be 1, found {kwargs['scale_cost']}; use factor")
        super().__init__(**kwargs)
        self.height = height
        self.width = width
        self.factor = factor

    @property
    def cost_matrix(self) -> Float[Array, "p p"]:
        """The dense matrix; only operations that cannot avoid it build it."""
        return pixel_distances(self.height, self.width) * self.factor

    @property
    def shape(self) -> tuple[int, int]:
        """Number of pixels, twice."""
        return self.height * self.width, self.height * self.width

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
        product = grid_product(arr.T, self.height, self.width).T * self.factor
        return product if fn is None else fn(product)

    def apply_square_cost(self, arr: Array, axis: int = 0) -> Array:
        """Product of the squared distances with a vector or matrix."""
        return grid_product(arr.T, self.height, self.width, 2).T * self.factor**2

    def tree_flatten(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """For JAX: the arrays, and what is static."""
        return (self.factor, self._epsilon_init), {
            "height": self.height,
            "width": self.width,
            "relative_epsilon": self._relative_epsilon,
            "scale_cost": self._scale_cost,
        }

    @classmethod
    def tree_unflatten(cls, aux_data: dict[str, Any], children: tuple[Any, ...]) -> GridGeometry:
        """Inverse of :meth:`tree_flatten`."""
        factor, epsilon = children
        return cls(factor=factor, epsilon=epsilon, **aux_data)
