import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from reference import dense_matrix, squared_rule

from jaxpoison import CompactInception, explain, predict, relevance_function
from jaxpoison.lrp import explain as explain_module
from jaxpoison.lrp.composites import Composite, paper
from jaxpoison.lrp.rules import Epsilon, Pass, Route
from jaxpoison.models.convolution import conv_general_dilated
from jaxpoison.models.layers import AvgPool, MaxPool


def layers():
    rngs = nnx.Rngs(0)
    bias = nnx.initializers.normal(1.0)
    return {
        "dense": (nnx.Linear(12, 5, bias_init=bias, rngs=rngs), (12,)),
        "same": (nnx.Conv(3, 4, (3, 3), bias_init=bias, rngs=rngs), (5, 4, 3)),
        "valid": (nnx.Conv(3, 4, (2, 2), padding="VALID", rngs=rngs), (5, 4, 3)),
        "strided": (nnx.Conv(3, 4, (3, 3), strides=2, bias_init=bias, rngs=rngs), (6, 6, 3)),
        "grouped": (nnx.Conv(4, 4, (3, 3), feature_group_count=2, rngs=rngs), (4, 4, 4)),
        "fast": (
            nnx.Conv(3, 4, (3, 3), conv_general_dilated=conv_general_dilated, rngs=rngs),
            (5, 4, 3),
        ),
        "average": (AvgPool(3), (5, 4, 2)),
    }


# Average pooling has the same weight everywhere: its exponent is always 1.
@pytest.mark.parametrize(
    ("name", "exponent"),
    [(name, exponent) for name in layers() for exponent in (1, 2) if name != "average"]
    + [("average", 1)],
)
def test_epsilon_is_the_formula_on_the_dense_matrix(name, exponent, rng):
    layer, shape = layers()[name]
    x = rng.normal(size=(2, *shape)).astype(np.float32)
    outgoing = rng.normal(size=layer(x).shape).astype(np.float32)
    (found,) = Epsilon(exponent).relevance(layer, (jnp.asarray(x),), jnp.asarray(outgoing))
    matrix = dense_matrix(layer, shape)
    for k in range(2):
        expected = squared_rule(
            matrix, x[k].ravel(), outgoing[k].ravel(), exponent=exponent
        ).reshape(shape)
        # float32 against float64; exponent 1 divides by sums that cancel.
        scale = np.abs(expected).max()
        np.testing.assert_allclose(found[k], expected, atol=(1e-5, 1e-3)[exponent == 1] * scale)


def test_epsilon_carries_the_sign_of_the_sum():
    layer = nnx.Linear(1, 1, use_bias=False, rngs=nnx.Rngs(0))
    layer.kernel[...] = jnp.array([[-1.0]])
    rule = Epsilon(exponent=1, epsilon=0.5)
    (found,) = rule.relevance(layer, (jnp.ones((1, 1)),), jnp.ones((1, 1)))
    np.testing.assert_allclose(found, [[-1 / -1.5]], rtol=1e-6)


def test_route_gives_all_to_the_winner(rng):
    x = jnp.asarray(rng.normal(size=(1, 4, 4, 2)), jnp.float32)
    outgoing = jnp.asarray(rng.normal(size=(1, 2, 2, 2)), jnp.float32)
    (found,) = Route().relevance(MaxPool(2), (x,), outgoing)
    np.testing.assert_allclose(found.sum((1, 2)), outgoing.sum((1, 2)), rtol=1e-5)
    assert int((found != 0).sum()) == 8


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
    compiled = explain_module._jitted_relevance._cache_size()
    explain(inception, noise.images, (noise.labels + 1) % 4, batch_size=20)
    assert explain_module._jitted_relevance._cache_size() == compiled
    assert not inception.dropout1.deterministic
    assert type(inception.dense3) is nnx.Linear
    np.testing.assert_array_equal(predict(inception, noise.images), before)


class Functional(nnx.Module):
    """A convolution, a bare operation, a dense layer."""

    def __init__(self, operation, width):
        self.conv = nnx.Conv(3, 2, (3, 3), rngs=nnx.Rngs(0))
        self.dense = nnx.Linear(width, 4, rngs=nnx.Rngs(1))
        self.operation = operation

    def __call__(self, x):
        y = self.operation(x, self.conv(x))
        return self.dense(y.reshape(len(y), -1))


WRONG = {
    "add": (lambda x, y: y + x[..., :2], 128, "operation 'add'.*module with a rule"),
    "average": (
        lambda x, y: nnx.avg_pool(y, (2, 2), (2, 2)),
        32,
        "reduce_window_sum.*layers.AvgPool",
    ),
    "mean": (lambda x, y: y.mean((1, 2)), 2, "'reduce_sum'.*layers.AvgPool"),
    "scale": (lambda x, y: 2 * y, 128, "operation 'mul'"),
    "gelu": (lambda x, y: nnx.gelu(y), 128, "operation '.*' .*has a relevance rule"),
    "hidden sum": (lambda x, y: jax.jit(lambda a, b: a + b)(y, y), 128, "operation 'add'"),
}


@pytest.mark.parametrize("name", WRONG)
def test_bare_operations_that_would_be_wrong_are_refused(name, noise):
    operation, width, message = WRONG[name]
    model = Functional(operation, width)
    images = jnp.asarray(noise.images[:2, :8, :8], jnp.float32) / 255
    with pytest.raises(ValueError, match=message):
        relevance_function(model)(images, jnp.array([0, 1]))


RIGHT = {
    "relu": (lambda x, y: nnx.relu(y), 128),
    "maximum": (lambda x, y: jnp.maximum(y, 0), 128),
    "concatenate": (lambda x, y: jnp.concatenate([nnx.relu(y), x], -1), 320),
    "max pool": (lambda x, y: nnx.max_pool(nnx.relu(y), (2, 2), (2, 2)), 32),
    "transpose": (lambda x, y: nnx.relu(y).transpose(0, 3, 1, 2)[:, :, 1:], 112),
}


@pytest.mark.parametrize("name", RIGHT)
def test_bare_operations_that_move_relevance_conserve_it(name, noise):
    model = Functional(*RIGHT[name])
    images = jnp.asarray(noise.images[:4, :8, :8], jnp.float32) / 255
    relevance, logits = relevance_function(model)(images, jnp.arange(4))
    start = np.abs(np.diagonal(logits))
    np.testing.assert_allclose(relevance.sum((1, 2, 3)), start, rtol=1e-3)


def test_rules_of_ones_own(noise):
    class Doubling(nnx.Module):
        def __call__(self, x):
            return 2 * x

    class WithDoubling(nnx.Module):
        def __init__(self):
            self.doubling = Doubling()
            self.dense = nnx.Linear(8 * 8 * 3, 4, rngs=nnx.Rngs(1))

        def __call__(self, x):
            return self.dense(self.doubling(x).reshape(len(x), -1))

    images = jnp.asarray(noise.images[:2, :8, :8], jnp.float32) / 255
    with pytest.raises(ValueError, match="operation 'mul'"):
        relevance_function(WithDoubling())(images, jnp.array([0, 1]))
    table = Composite(((Doubling, Pass()), *paper().rules))
    relevance, logits = relevance_function(WithDoubling(), table)(images, jnp.array([0, 1]))
    start = np.abs(np.diagonal(logits))
    np.testing.assert_allclose(relevance.sum((1, 2, 3)), start, rtol=1e-4)


def test_classes_must_be_one_per_image(inception, noise):
    with pytest.raises(ValueError, match=r"one class per image \(40\), found 39"):
        explain(inception, noise.images, noise.labels[:39])


def test_epsilon_checks_its_numbers():
    with pytest.raises(ValueError, match="epsilon must be above 0"):
        Epsilon(epsilon=0.0)
    with pytest.raises(ValueError, match="exponent must be at least 1"):
        Epsilon(exponent=0)
