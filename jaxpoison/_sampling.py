"""A few of many, where all would be too much to compute or to look at."""

from __future__ import annotations

import numpy as np
from jaxtyping import Int


def evenly(count: int, most: int) -> Int[np.ndarray, " m"]:
    """Indices of at most so many of ``count`` things, evenly over them."""
    return np.linspace(0, count - 1, min(most, count)).astype(int)
