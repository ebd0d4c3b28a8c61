"""What a model computes outside its layers: as right as a layer doing the same, or refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxpoison import relevance_function
from jaxpoison.lrp.composites import epsilon_plus_flat, paper
from jaxpoison.lrp.rules import Epsilon, Pass
from jaxpoison.models.inference import evaluation_view
from jaxpoison.models.layers import Activation, AvgPool, Concatenate, GlobalAvgPool, MaxPool, Sum

pytestmark = pytest.mark.mixes_types


class Functional(nnx.Module):
    """A convolution, an operation on image and features, a dense layer."""

    def __init__(self, operation, width):
        self.conv = nnx.Conv(3, 3, (3, 3), rngs=nnx.Rngs(0))
        self.dense = nnx.Linear(width, 4, rngs=nnx.Rngs(1))
        self.operation = operation

    def __call__(self, x):
        y = self.operation(x, self.conv(x))
        return self.dense(y.reshape(len(y), -1))


@pytest.fixture
def images(noise):
    return jnp.asarray(noise.images[:4, :8, :8], jnp.float32) / 255


# A bare operation, the layer that does the same, the layer's inputs, the width of its output.
SAME = {
    "sum": (lambda a, x: a + x, Sum, lambda a, x: (a, x), 192),
    "sum in a jitted function": (jax.jit(lambda a, x: x + a), Sum, lambda a, x: (a, x), 192),
    "average pool": (
        lambda a, x: nnx.avg_pool(a, (2, 2), (1, 1), padding="SAME"),
        lambda: AvgPool(2),
        lambda a, x: (a,),
        192,
    ),
    "mean": (lambda a, x: a.mean((1, 2)), GlobalAvgPool, lambda a, x: (a,), 3),
    "concatenation": (
        lambda a, x: jnp.concatenate([a, x], -1),
        Concatenate,
        lambda a, x: (a, x),
        384,
    ),
    "max pool": (
        lambda a, x: nnx.max_pool(a, (2, 2), (2, 2)),
        lambda: MaxPool(2),
        lambda a, x: (a,),
        48,
    ),
    "silu": (lambda a, x: nnx.silu(a), lambda: Activation(nnx.silu), lambda a, x: (a,), 192),
    "maximum": (
        lambda a, x: jnp.maximum(a - 0.1, 0),
        lambda: Activation(lambda a: nnx.relu(a - 0.1)),
        lambda a, x: (a,),
        192,
    ),
}


class Layered(nnx.Module):
    """As ``Functional``, with a layer in place of the operation."""

    def __init__(self, layer, take, width):
        self.conv = nnx.Conv(3, 3, (3, 3), rngs=nnx.Rngs(0))
        self.activation = Activation(nnx.relu)
        self.layer = layer()
        self.dense = nnx.Linear(width, 4, rngs=nnx.Rngs(1))
        self.take = take

    def __call__(self, x):
        y = self.layer(*self.take(self.activation(self.conv(x)), x))
        return self.dense(y.reshape(len(y), -1))


@pytest.mark.parametrize("name", SAME)
@pytest.mark.parametrize("composite", [paper, epsilon_plus_flat])
def test_bare_operations_have_the_rule_of_the_layer(name, composite, images):
    operation, layer, take, width = SAME[name]
    bare = Functional(lambda x, y: operation(nnx.relu(y), x), width)
    classes = jnp.arange(4)
    found, logits = relevance_function(bare, composite())(images, classes)
    layered = Layered(layer, take, width)
    expected, same = relevance_function(layered, composite())(images, classes)
    np.testing.assert_allclose(logits, same, rtol=1e-5, atol=1e-6)
    # A mean is a sum, then divided: its stabiliser weighs a little less.
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


def test_scaling_and_shifting_by_constants_passes(images):
    plain = Functional(lambda x, y: nnx.relu(y), 192)
    scale = jnp.array([2.0, 0.5, 4.0]).reshape(1, 1, 1, 3)
    scaled = Functional(lambda x, y: (3 * nnx.relu(y) * scale) / (3 * scale) - 0.0, 192)
    classes = jnp.arange(4)
    expected, _ = relevance_function(plain)(images, classes)
    found, _ = relevance_function(scaled)(images, classes)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


def test_difference_shares_by_signed_contributions(images):
    model = Functional(lambda x, y: nnx.relu(y) + 0.5 - x, 192)
    relevance, logits = relevance_function(model)(images, jnp.arange(4))
    start = np.abs(np.diagonal(logits))
    np.testing.assert_allclose(relevance.sum((1, 2, 3)), start, rtol=1e-2)


def test_difference_is_the_sum_with_the_negated(images):
    rules = paper().with_rules((Sum, Epsilon(exponent=2)))
    bare = Functional(lambda x, y: 1.2 * nnx.relu(y) - x, 192)
    summed = Functional(lambda x, y: 1.2 * nnx.relu(y) + (-x), 192)
    classes = jnp.arange(4)
    found, _ = relevance_function(bare, rules)(images, classes)
    expected, _ = relevance_function(summed, rules)(images, classes)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    assert np.abs(found).max() < 100


REFUSED = {
    "cube": (lambda x, y: y**3, 192, "operation 'integer_pow'.*layers.Activation"),
    "gates": (lambda x, y: nnx.sigmoid(y) * nnx.sigmoid(x), 192, "operation 'mul'.*no relevance"),
    "matrix": (lambda x, y: y @ jnp.ones((3, 3)), 192, "operation 'dot_general'.*use nnx.Linear"),
    "loop": (
        lambda x, y: jax.lax.fori_loop(0, 2, lambda _, z: 2 * z, y),
        192,
        "operation 'scan'",
    ),
    "index": (lambda x, y: x[:, 0, y[0, 0, :, 0].astype(int)], 24, "'convert_element_type'"),
    "stop": (lambda x, y: jax.lax.stop_gradient(y), 192, "operation 'stop_gradient'"),
    "inverse": (lambda x, y: 1 / (2 + nnx.relu(y)), 192, "operation 'div'"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_operations_without_one_meaning_are_refused(name, images):
    operation, width, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        relevance_function(Functional(operation, width))(images, jnp.arange(4))


class Cube(nnx.Module):
    def __call__(self, x):
        return x**3


class Cubed(nnx.Module):
    def __init__(self):
        self.cubes = nnx.List([Cube()])
        self.dense = nnx.Linear(8 * 8 * 3, 4, rngs=nnx.Rngs(1))

    def __call__(self, x):
        return self.dense(self.cubes[0](x).reshape(len(x), -1))


def test_a_layer_without_a_rule_is_named_and_can_be_given_one(images):
    with pytest.raises(ValueError, match=r"the layer cubes\.0 \(Cube\) applies.*with_rules"):
        relevance_function(Cubed())(images, jnp.arange(4))
    table = paper().with_rules((Cube, Pass()))
    relevance, logits = relevance_function(Cubed(), table)(images, jnp.arange(4))
    start = np.abs(np.diagonal(logits))
    np.testing.assert_allclose(relevance.sum((1, 2, 3)), start, rtol=1e-4)


class Options(nnx.Module):
    """Calls with options, shares containers, and reads its layers' attributes."""

    def __init__(self):
        rngs = nnx.Rngs(0)
        self.convs = nnx.List([nnx.Conv(3, 3, (3, 3), rngs=rngs)])
        self.again = self.convs
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.dense = nnx.Linear(192, 4, rngs=rngs)

    def __call__(self, x):
        x = self.again[0](x).reshape(len(x), self.dense.in_features)
        return self.dense(self.dropout(nnx.relu(x), deterministic=True))


@pytest.mark.parametrize("composite", [paper, epsilon_plus_flat])
def test_layers_may_be_shared_read_and_called_with_options(composite, images):
    relevance, logits = relevance_function(Options(), composite())(images, jnp.arange(4))
    np.testing.assert_allclose(logits, evaluation_view(Options())(images), rtol=1e-5)
    assert (relevance != 0).any(axis=(1, 2, 3)).all()
