"""Other attributions, against definitions and axioms."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxpoison import (
    LRP,
    Gradient,
    HeatmapClustering,
    InputTimesGradient,
    IntegratedGradients,
    SmoothGrad,
    explain,
)
from jaxpoison.lrp.attributions import ATTRIBUTIONS
from jaxpoison.models.inference import evaluation_view

pytestmark = pytest.mark.mixes_types


class Net(nnx.Module):
    def __init__(self):
        self.conv = nnx.Conv(3, 4, (3, 3), rngs=nnx.Rngs(0))
        self.dense = nnx.Linear(8 * 8 * 4, 3, rngs=nnx.Rngs(1))

    def __call__(self, x):
        return self.dense(nnx.silu(self.conv(x)).reshape(len(x), -1))


@pytest.fixture(scope="module")
def net():
    return Net()


@pytest.fixture
def images(noise):
    return noise.images[:5, :8, :8]


CLASSES = np.array([0, 1, 2, 0, 1])


def test_gradient_is_the_derivative(net, images):
    found = explain(net, images, CLASSES, method=Gradient())
    x = images.astype(np.float32) / 255
    step = np.zeros_like(x)
    step[:, 3, 4, 1] = 1e-2
    rise = (np.asarray(net(x + step)) - np.asarray(net(x - step))) / 2e-2
    np.testing.assert_allclose(
        found.relevance[:, 3, 4, 1], rise[np.arange(5), CLASSES], rtol=1e-2, atol=1e-4
    )
    times = explain(net, images, CLASSES, method=InputTimesGradient())
    np.testing.assert_allclose(times.relevance, x * found.relevance, rtol=1e-5)


def test_integrated_gradients_are_complete(net, images):
    found = explain(net, images, CLASSES, method=IntegratedGradients(steps=64, baseline=0.5))
    x = images.astype(np.float32) / 255
    risen = np.asarray(net(x) - net(np.full_like(x, 0.5)))[np.arange(5), CLASSES]
    np.testing.assert_allclose(found.relevance.sum((1, 2, 3)), risen, rtol=1e-3, atol=1e-4)


def test_smooth_grad_is_a_mean_of_gradients(net, images):
    x = jnp.asarray(images, jnp.float32) / 255
    found = explain(net, images, CLASSES, method=SmoothGrad(samples=3, noise=0.2, seed=4))
    total = np.zeros(x.shape)
    for key in jax.random.split(jax.random.key(4), 3):
        noisy = x + 0.2 * jax.random.normal(key, (1, *x.shape[1:]))
        _, vjp = jax.vjp(net, noisy)
        total += vjp(jax.nn.one_hot(CLASSES, 3))[0]
    np.testing.assert_allclose(found.relevance, total / 3, rtol=1e-4, atol=1e-5)


def test_without_classes_the_largest_logit_is_explained(net, images):
    for method in (LRP(), Gradient()):
        found = explain(net, images, method=method)
        expected = explain(net, images, found.logits.argmax(-1), method=method)
        np.testing.assert_array_equal(found.relevance, expected.relevance)


def test_classes_that_are_none_give_nan_where_they_are_traced(net, images):
    graphdef, state = nnx.split(evaluation_view(net))
    images = jnp.asarray(images[:3], jnp.float32) / 255
    for method in ATTRIBUTIONS.values():
        attribute = jax.jit(partial(method().attribute, graphdef))
        found, _ = attribute(state, images, jnp.array([1, 3, -1]))
        assert np.isfinite(found[0]).all()
        assert np.isnan(found[1:]).all()


@pytest.mark.parametrize("name", ATTRIBUTIONS)
def test_clustering_takes_any_of_them(name, net, images):
    found = explain(
        net, np.repeat(images, 4, 0), np.repeat(CLASSES, 4), method=ATTRIBUTIONS[name]()
    )
    labels = HeatmapClustering(epsilon=0.1, random_state=0).fit(found.relevance).labels_
    assert set(labels) == {0, 1}
    # Copies of an image are one point.
    assert all(len(set(labels[i : i + 4])) == 1 for i in range(0, 20, 4))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: IntegratedGradients(steps=0), "steps must be at least 1"),
        (lambda: SmoothGrad(samples=0), "samples must be at least 1"),
        (lambda: SmoothGrad(noise=0.0), "noise must be above 0"),
    ],
)
def test_numbers_are_checked(make, message):
    with pytest.raises(ValueError, match=message):
        make()
