"""What estimators share: input as scikit-learn checks it, tags that say what they take."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.utils import Tags
from sklearn.utils.validation import check_array, validate_data

# Values that are not finite are found later, where the heatmap or image can be named.
_RULES: dict[str, Any] = {
    "dtype": "numeric",
    "ensure_2d": False,
    "allow_nd": True,
    "ensure_all_finite": False,
}


class TakesArrays(BaseEstimator):
    """An estimator that takes one array per image: pixels, activations or relevance."""

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = False
        tags.input_tags.three_d_array = True
        return tags

    def _fitted_to(self, X: Any) -> np.ndarray:  # noqa: N803
        """The input of ``fit`` as an array of numbers.

        Raises:
            TypeError: It is sparse.
            ValueError: It holds something else than real numbers, or fewer than two entries.
        """
        rows = self.__sklearn_tags__().input_tags.two_d_array
        rules = _RULES | {"ensure_2d": rows, "ensure_min_samples": 2}
        return validate_data(self, X, **rules)

    def _checked(self, X: Any) -> np.ndarray:  # noqa: N803
        """The input of ``transform`` or ``predict``, which may have another size."""
        return check_array(X, estimator=self, input_name="X", **_RULES)
