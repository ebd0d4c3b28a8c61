"""Slow, plain NumPy versions, from the formulas alone."""

import numpy as np
from scipy.special import logsumexp


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


def dense_layer(layer, shape):
    """Matrix ``[j, k]`` and bias ``[k]`` of an affine map."""
    bias = np.asarray(layer(np.zeros((1, *shape), np.float32)), float).ravel()
    return dense_matrix(layer, shape), bias


def _shares(contributions, bias, relevance, epsilon):
    """Relevance of the inputs and of the bias, by share."""
    z = contributions.sum(0) + bias
    quotient = relevance / (z + np.where(z < 0, -epsilon, epsilon))
    return contributions @ quotient, float(bias @ quotient)


def _epsilon(rule, w, b, x, r):
    c, b = (x[:, None] * w) ** rule.exponent, b**rule.exponent * rule.bias
    return _shares(c, b, r, rule.epsilon)


def _z_plus(rule, w, b, x, r):
    c, b = x[:, None] * w, b * rule.bias
    return _shares(np.maximum(c, 0), np.maximum(b, 0), r, rule.epsilon)


def _alpha_beta(rule, w, b, x, r):
    c, b = x[:, None] * w, b * rule.bias
    plus = _shares(np.maximum(c, 0), np.maximum(b, 0), r, rule.epsilon)
    minus = _shares(np.minimum(c, 0), np.minimum(b, 0), r, rule.epsilon)
    return tuple(rule.alpha * p - rule.beta * m for p, m in zip(plus, minus, strict=True))


def _gamma(rule, w, b, x, r):
    c, kept = x[:, None] * w, b * rule.bias
    z = c.sum(0) + b
    g, e = rule.gamma, rule.epsilon
    plus = _shares(c + g * np.maximum(c, 0), kept + g * np.maximum(kept, 0), r * (z > 0), e)
    minus = _shares(c + g * np.minimum(c, 0), kept + g * np.minimum(kept, 0), r * (z < 0), e)
    return tuple(p + m for p, m in zip(plus, minus, strict=True))


def _z_box(rule, w, b, x, r):
    c = x[:, None] * w - rule.low * np.maximum(w, 0) - rule.high * np.minimum(w, 0)
    return _shares(c, 0 * b, r, rule.epsilon)


def _w_square(rule, w, b, x, r):
    return _shares(w**2, b**2 * rule.bias, r, rule.epsilon)


def _flat(rule, w, b, x, r):
    return _shares((w != 0).astype(float), 0 * b, r, rule.epsilon)


RULES = {
    "Epsilon": _epsilon,
    "ZPlus": _z_plus,
    "AlphaBeta": _alpha_beta,
    "Gamma": _gamma,
    "ZBox": _z_box,
    "WSquare": _w_square,
    "Flat": _flat,
}


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


def entropic_gw(center, distances, center_weights, weights, epsilon):
    """Distance and information by the plain iteration, in the log domain and float64."""
    p, q = np.asarray(weights, float), np.asarray(center_weights, float)
    c, d = np.asarray(center, float), np.asarray(distances, float)
    plan, f = q[:, None] * p, np.zeros(len(q))
    for _ in range(1000):
        exponent = 4 / epsilon * c @ plan @ d
        for _ in range(3000):
            g = np.log(p) - logsumexp(exponent + f[:, None], 0)
            new = np.log(q) - logsumexp(exponent + g, 1)
            moved, f = np.abs(new - f).max(), new
            if moved < 1e-9:
                break
        before, plan = plan, np.exp(exponent + f[:, None] + g)
        if np.abs(plan - before).sum() < 1e-9:
            break
    else:
        raise RuntimeError("the reference did not converge")
    value = p @ d**2 @ p + q @ c**2 @ q - 2 * (c * (plan @ d @ plan.T)).sum()
    ratio = np.log(np.maximum(plan, 1e-300) / (q[:, None] * p))
    return value, (plan * ratio).sum()
