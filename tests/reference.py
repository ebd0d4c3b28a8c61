"""Slow, plain NumPy versions, from the formulas alone."""

import numpy as np


def squared_rule(matrix, x, relevance, *, exponent=2, epsilon=1e-6):
    """The epsilon rule for one dense matrix ``[j, k]``, without bias, in float64."""
    share = (np.asarray(x, float)[:, None] * np.asarray(matrix, float)) ** exponent
    z = share.sum(0)
    z = z + np.where(z < 0, -epsilon, epsilon)
    return (share / z * np.asarray(relevance, float)).sum(1)


def dense_matrix(layer, shape):
    """The matrix ``[j, k]`` of a linear map, from its values at the unit vectors."""
    size = int(np.prod(shape))
    basis = np.eye(size, dtype=np.float32).reshape(size, *shape)
    zero = np.asarray(layer(np.zeros((1, *shape), np.float32)), float)
    return (np.asarray(layer(basis), float) - zero).reshape(size, -1)


def space(heatmap, mass=0.99):
    """Pixels and weights of one heatmap, and distances over their maximum."""
    h = np.asarray(heatmap, float)
    h = h.sum(-1) if h.ndim == 3 else h
    h = (h - h.min()) / (h.max() - h.min())
    h = h / h.sum()
    order = np.argsort(-h, axis=None)
    count = int(np.searchsorted(np.cumsum(h.ravel()[order]), mass)) + 1
    kept = np.sort(order[:count])
    points = np.stack(np.unravel_index(kept, h.shape), -1).astype(float)
    weights = h.ravel()[kept] / h.ravel()[kept].sum()
    distances = np.linalg.norm(points[:, None] - points, axis=-1)
    return kept, weights, distances / distances.max()


def two_means(values, start, max_rounds=20):
    """One-dimensional two-means from the given labels."""
    labels = np.asarray(start)
    for _ in range(max_rounds):
        means = np.array([values[labels == k].mean() for k in range(2)])
        new = np.abs(values[:, None] - means).argmin(1)
        if (new == labels).all():
            break
        labels = new
    return labels
