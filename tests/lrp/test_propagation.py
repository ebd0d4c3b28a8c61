import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from reference import dense_matrix, squared_rule

from jaxpoison import (
    PGD,
    CompactInception,
    conservation,
    explain,
    layer_relevance,
    perturbed,
    predict,
    projected_gradient_ascent,
    pure,
    relevance_function,
)
from jaxpoison.lrp import attributions
from jaxpoison.models.layers import AvgPool, MaxPool

pytestmark = pytest.mark.mixes_types


class Net(nnx.Module):
    """All kinds of layers in a row, small enough for dense matrices."""

    def __init__(self):
        rngs = nnx.Rngs(3)
        bias = nnx.initializers.normal(0.5)
        self.conv = nnx.Conv(2, 3, (3, 3), bias_init=bias, rngs=rngs)
        self.norm = nnx.BatchNorm(3, rngs=rngs)
        self.norm.mean[...] = jnp.array([0.1, -0.2, 0.3])
        self.norm.scale[...] = jnp.array([1.5, 0.7, 1.1])
        self.pool = MaxPool(2)
        self.average = AvgPool(3)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.dense = nnx.Linear(12, 4, bias_init=bias, rngs=rngs)

    def __call__(self, x):
        x = self.pool(nnx.relu(self.norm(self.conv(x))))
        x = self.average(x).reshape(len(x), -1)
        return self.dense(self.dropout(x))


def test_network_is_the_chain_of_dense_formulas(rng):
    net = Net()
    net.eval()
    x = rng.uniform(0, 1, (1, 4, 4, 2)).astype(np.float32)
    relevance, logits = relevance_function(net)(jnp.asarray(x), jnp.array([1]))
    a = nnx.relu(net.norm(net.conv(x)))
    b = net.pool(a)
    c = np.asarray(net.average(b)).reshape(-1)
    start = np.zeros(4)
    start[1] = abs(float(logits[0, 1]))
    r = squared_rule(net.dense.kernel[...], c, start)
    r = squared_rule(dense_matrix(net.average, (2, 2, 3)), np.asarray(b).ravel(), r, exponent=1)
    r = jax.vjp(net.pool, a)[1](jnp.asarray(r.reshape(1, 2, 2, 3), jnp.float32))[0]
    r = squared_rule(dense_matrix(net.conv, (4, 4, 2)), x.ravel(), np.asarray(r).ravel())
    np.testing.assert_allclose(relevance.ravel(), r, rtol=1e-4, atol=1e-6 * r.max())


@pytest.fixture(scope="module")
def inception():
    return CompactInception(4, rngs=nnx.Rngs(0))


def test_relevance_is_conserved_up_to_what_epsilon_keeps(inception, noise):
    found = explain(inception, noise.images, noise.labels, batch_size=20)
    assert (found.relevance >= 0).all()
    assert (found.start > 0).all()
    logits = predict(inception, noise.images)
    np.testing.assert_allclose(found.start, np.abs(logits[np.arange(40), noise.labels]), rtol=1e-5)
    assert found.negative.any()
    assert not found.negative.all()
    np.testing.assert_array_equal(found.negative, logits[np.arange(40), noise.labels] < 0)
    assert (found.absorbed >= -1e-4 * found.start).all()
    assert (found.absorbed < 0.2 * found.start).all()


def test_model_is_unchanged_and_nothing_recompiles(inception, noise):
    inception.train()
    before = predict(inception, noise.images)
    explain(inception, noise.images, noise.labels, batch_size=20)
    compiled = attributions._attribute._cache_size()
    explain(inception, noise.images, (noise.labels + 1) % 4, batch_size=20)
    assert attributions._attribute._cache_size() == compiled
    assert not inception.dropout1.deterministic
    assert type(inception.dense3) is nnx.Linear
    np.testing.assert_array_equal(predict(inception, noise.images), before)


def test_classes_must_be_one_per_image(inception, noise):
    with pytest.raises(ValueError, match=r"one class per image \(40\), found 39"):
        explain(inception, noise.images, noise.labels[:39])


def test_classes_that_are_none_are_refused(inception, noise):
    """At every public edge; where they are traced, relevance is NaN instead of 0."""
    images = noise.images[:3]
    inception.eval()
    edges = {
        "classes": lambda classes: explain(inception, images, classes),
        "classes ": lambda classes: conservation(inception, images, classes),
        "classes  ": lambda classes: layer_relevance(inception, images, classes, ("pool1",)),
        "targets": lambda classes: relevance_function(inception)(
            jnp.asarray(images, jnp.float32) / 255, jnp.asarray(classes)
        ),
        "labels": lambda classes: perturbed(*pure(inception), images, classes),
    }
    for what, edge in edges.items():
        for wrong in (-1, 4):
            message = f"{what.strip()} must be classes from 0 to 3: .* found {wrong} at index 1"
            with pytest.raises(ValueError, match=message):
                edge(np.array([0, wrong, 1], np.int32))
        if what != "targets":
            with pytest.raises(TypeError, match="must be integers, found float64"):
                edge(np.array([0.0, 1.0, 2.0]))
    traced = jax.jit(relevance_function(inception))
    relevance, logits = traced(jnp.asarray(images, jnp.float32) / 255, jnp.array([0, -1, 4]))
    assert np.isfinite(logits).all()
    assert np.isfinite(relevance[0]).all()
    assert np.isnan(relevance[1:]).all()
    moved = projected_gradient_ascent(
        inception, jnp.asarray(images, jnp.float32) / 255, jnp.array([0, -1, 4]), PGD()
    )
    assert np.isfinite(moved[0]).all()
    assert np.isnan(moved[1:]).all()
