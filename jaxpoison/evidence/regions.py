"""The regions of images that explain them: where most of their relevance lies."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float, Int

from jaxpoison._checks import check_integer

# Heatmaps whose windows are summed at once.
_ROWS = 256


def relevant_windows(
    relevance: Float[np.ndarray, "n h w"] | Float[np.ndarray, "n h w c"], size: int
) -> Bool[np.ndarray, "n h w"]:
    """The square window of every heatmap that holds most relevance.

    Args:
        relevance: Of every pixel; channels are summed. Negative relevance counts against a
            window.
        size: Side of the window, in pixels.

    Returns:
        Masks, true in the window.

    Raises:
        TypeError: ``size`` is not an integer.
        ValueError: ``size`` is not between 1 and the sides of the heatmaps, or there are none.

    Examples:
        >>> int(jp.relevant_windows(np.eye(4)[None], 2)[0].sum())
        4
    """
    maps = _summed(relevance)
    return windows_at(window_places(maps, size), size, maps.shape[1:])


def window_places(
    relevance: Float[np.ndarray, "n h w"] | Float[np.ndarray, "n h w c"], size: int
) -> Int[np.ndarray, "n 2"]:
    """Where the window of every heatmap lies that holds most relevance.

    Args:
        relevance: Of every pixel; channels are summed.
        size: Side of the window.

    Returns:
        Row and column of the upper left corners.

    Raises:
        TypeError: ``size`` is not an integer.
        ValueError: ``size`` is not between 1 and the sides of the heatmaps, or there are none.

    Examples:
        >>> jp.window_places(np.diag([0.0, 0, 2, 1])[None], 2)
        array([[2, 2]])
    """
    return _best_windows(_summed(relevance), size)[0]


def concentration(
    relevance: Float[np.ndarray, "n h w"] | Float[np.ndarray, "n h w c"], size: int
) -> Float[np.ndarray, " n"]:
    """The share of every heatmap's relevance that one window holds.

    Of the magnitude of all relevance, so that it is at most 1; 0 where there is none.

    Args:
        relevance: Of every pixel; channels are summed.
        size: Side of the window.

    Raises:
        TypeError: ``size`` is not an integer.
        ValueError: ``size`` is not between 1 and the sides of the heatmaps, or there are none.

    Examples:
        >>> jp.concentration(np.eye(4)[None], 2)
        array([0.5])
    """
    maps = _summed(relevance)
    _, most = _best_windows(maps, size)
    total = np.abs(maps).sum((1, 2))
    return np.where(total > 0, most / np.where(total > 0, total, 1), 0.0)


def _best_windows(
    maps: Float[np.ndarray, "n h w"], size: int
) -> tuple[Int[np.ndarray, "n 2"], Float[np.ndarray, " n"]]:
    """Where the windows lie that hold most, and how much they hold."""
    check_integer("size", size, at_least=1)
    _, height, width = maps.shape
    if size > min(height, width):
        raise ValueError(f"size must be at most the sides, {height} and {width}, found {size}")
    places, most = [], []
    for first in range(0, len(maps), _ROWS):
        some = maps[first : first + _ROWS]
        # Rows first, then columns: work in proportion to the side, not to the window.
        rows = np.lib.stride_tricks.sliding_window_view(some, size, 1).sum(-1)
        sums = np.lib.stride_tricks.sliding_window_view(rows, size, 2).sum(-1)
        best = sums.reshape(len(sums), -1).argmax(1)
        places.append(np.stack(np.unravel_index(best, sums.shape[1:]), -1))
        most.append(sums.max((1, 2)))
    return np.concatenate(places), np.concatenate(most)


def windows_at(
    places: Int[np.ndarray, "n 2"], size: int, shape: tuple[int, ...]
) -> Bool[np.ndarray, "n h w"]:
    """Masks that are true in a square window.

    Args:
        places: Row and column of the upper left corners.
        size: Side of the windows.
        shape: Height and width of the masks.
    """
    rows, columns = np.arange(shape[0])[None, :, None], np.arange(shape[1])[None, None]
    top, left = places[:, 0, None, None], places[:, 1, None, None]
    return (rows >= top) & (rows < top + size) & (columns >= left) & (columns < left + size)


def relevant_pixels(
    relevance: Float[np.ndarray, "n h w"] | Float[np.ndarray, "n h w c"], count: int
) -> Bool[np.ndarray, "n h w"]:
    """The pixels of every heatmap that hold most relevance.

    Args:
        relevance: Of every pixel; channels are summed.
        count: How many pixels.

    Returns:
        Masks, true at these pixels.

    Raises:
        TypeError: ``count`` is not an integer.
        ValueError: ``count`` is not between 1 and the number of pixels, or there are no heatmaps.

    Examples:
        >>> int(jp.relevant_pixels(np.eye(4)[None], 3)[0].sum())
        3
    """
    check_integer("count", count, at_least=1)
    maps = _summed(relevance)
    flat = maps.reshape(len(maps), -1)
    if count > flat.shape[1]:
        raise ValueError(f"count must be at most the pixels, {flat.shape[1]}, found {count}")
    masks = np.zeros(flat.shape, bool)
    np.put_along_axis(masks, np.argpartition(-flat, count - 1, 1)[:, :count], True, axis=1)
    return masks.reshape(maps.shape)


def _summed(relevance: np.ndarray) -> Float[np.ndarray, "n h w"]:
    if relevance.ndim not in (3, 4) or not len(relevance):
        raise ValueError(
            "expected relevance of at least one image, [n, h, w] or [n, h, w, c], found shape "
            f"{relevance.shape}"
        )
    return relevance.sum(-1) if relevance.ndim == 4 else relevance
