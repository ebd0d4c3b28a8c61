"""Heatmaps as points of a plane, as far apart as their Gromov-Wasserstein distances say."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from jaxpoison._checks import check_integer
from jaxpoison.gw.pairs import distances_between
from jaxpoison.gw.solver import EntropicGW
from jaxpoison.gw.spaces import SmallSpaces

_LANDMARKS = 128


def scaled(
    spaces: SmallSpaces,
    solver: EntropicGW | None = None,
    *,
    dimensions: int = 2,
    landmarks: int = _LANDMARKS,
    seed: int = 0,
    progress: bool = False,
) -> Float[np.ndarray, "n d"]:
    """Classical scaling on distances to a few of the spaces (de Silva and Tenenbaum 2004).

    Some are placed by the eigenvectors of their doubly centred squared distances (Torgerson
    1952), all by their distances from these. Time grows with the number of spaces.

    Args:
        spaces: Quantised heatmaps, at least two.
        solver: How distances, debiased, are computed.
        dimensions: Of the points.
        landmarks: How many spaces all are measured from, if there are so many.
        seed: Of their choice.
        progress: Show a progress bar.

    Returns:
        Coordinates in units of the distance; along the first most differs.

    Raises:
        TypeError: ``dimensions`` or ``landmarks`` is not an integer.
        ValueError: There are no two spaces, or not more landmarks than dimensions.

    Examples:
        >>> spaces = jaxpoison.quantised(jaxpoison.measure_spaces(heatmaps), 10)
        >>> points = jaxpoison.gw.scaling.scaled(spaces, jaxpoison.EntropicGW(0.005))
        >>> plt.scatter(*points.T)
    """
    n = len(spaces)
    check_integer("dimensions", dimensions, at_least=1)
    check_integer("landmarks", landmarks, at_least=dimensions + 1)
    if n < 2:
        raise ValueError(f"expected at least two spaces to place, found {n}")
    some = np.sort(np.random.default_rng(seed).choice(n, min(landmarks, n), replace=False))
    squared = distances_between(spaces, np.arange(n), some, solver, progress=progress) ** 2
    among = squared[some]
    among = (among + among.T) / 2
    centred = among - among.mean(0) - among.mean(1, keepdims=True) + among.mean()
    values, vectors = np.linalg.eigh(-centred / 2)
    values, vectors = values[::-1][:dimensions], vectors[:, ::-1][:, :dimensions]
    # Signs are arbitrary: the entry that is largest is made positive.
    vectors = vectors * np.sign(vectors[np.abs(vectors).argmax(0), np.arange(vectors.shape[1])])
    length = np.sqrt(np.maximum(values, np.finfo(float).tiny))
    found = -(squared - among.mean(0)) / 2 @ (vectors / length)
    # What has no extent, as where all are alike, stays at 0; missing directions too.
    found[:, values <= 1e-12] = 0
    return np.pad(found, ((0, 0), (0, dimensions - found.shape[1])))
