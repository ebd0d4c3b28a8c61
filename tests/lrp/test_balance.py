"""Relevance inside the network, and laws that hold for any network."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st

from experiments.seeded import seeded
from jaxpoison import CompactInception, conservation, explain, layer_relevance, relevance_function
from jaxpoison.lrp.composites import COMPOSITES, Composite, epsilon_alpha2_beta1, paper
from jaxpoison.lrp.rules import Epsilon, ZPlus
from jaxpoison.models.layers import AvgPool, Concatenate, MaxPool, Sum

pytestmark = pytest.mark.mixes_types


@pytest.fixture(scope="module")
def inception():
    return seeded(CompactInception(4, rngs=nnx.Rngs(0)), 0)


@pytest.mark.parametrize("composite", [paper, epsilon_alpha2_beta1])
def test_every_layer_balances(inception, noise, composite):
    few = noise.take(np.arange(8))
    rows = conservation(inception, few.images, few.labels, composite=composite(), batch_size=4)
    by_path = {row.layer.path: row for row in rows}
    assert rows[-1].layer.path == "dense3"
    np.testing.assert_allclose(by_path["dense3"].given, 1, rtol=1e-5)
    # What one layer hands on is what the layer before it is given.
    np.testing.assert_allclose(
        by_path["dense3"].handed, by_path["dropout2"].given, rtol=1e-4, atol=1e-5
    )
    joined = sum(
        by_path[p].given
        for p in ("branch1x1.norm", "branch5x5_2.norm", "branch3x3_3.norm", "branch_pool_1.norm")
    )
    np.testing.assert_allclose(by_path["concatenate"].handed, joined, rtol=1e-4)
    found = explain(inception, few.images, few.labels, method=jp_lrp(composite()))
    handed = sum(
        by_path[p].handed
        for p in ("branch1x1.conv", "branch5x5_1.conv", "branch3x3_1.conv", "branch_pool")
    )
    shares = found.relevance.sum((1, 2, 3)) / found.start
    np.testing.assert_allclose(handed, shares.mean(), rtol=1e-3)
    for row in rows:
        if composite is paper:
            assert row.bias == 0
    if composite is not paper:
        assert any(abs(row.bias) > 1e-4 for row in rows)


def jp_lrp(composite):
    from jaxpoison import LRP

    return LRP(composite)


def test_relevance_at_a_layer(inception, noise):
    few = noise.take(np.arange(4))
    layers = ("concatenate", "pool4", "dense1", "dense2.linear")
    found = layer_relevance(inception, few.images, few.labels, layers)
    assert {name: r.shape for name, r in found.items()} == {
        "concatenate": (4, 32, 32, 256),
        "pool4": (4, 1, 1, 256),
        "dense1": (4, 256),
        "dense2.linear": (4, 128),
    }
    rows = {r.layer.path: r for r in conservation(inception, few.images, few.labels)}
    start = explain(inception, few.images, few.labels).start
    total = found["concatenate"].sum((1, 2, 3)) / start
    np.testing.assert_allclose(total.mean(), rows["concatenate"].given, rtol=1e-4)


def test_relevance_at_a_layer_by_hand(rng):
    class Two(nnx.Module):
        def __init__(self):
            self.hidden = nnx.Linear(6, 5, rngs=nnx.Rngs(0))
            self.out = nnx.Linear(5, 3, rngs=nnx.Rngs(1))

        def __call__(self, x):
            return self.out(nnx.relu(self.hidden(x.reshape(len(x), -1))))

    model = Two()
    images = rng.integers(0, 256, (2, 1, 2, 3)).astype(np.uint8)
    found = layer_relevance(model, images, np.array([0, 2]), ("hidden",))["hidden"]
    hidden = np.maximum(model.hidden(images.reshape(2, -1) / np.float32(255)), 0)
    for k, c in enumerate((0, 2)):
        shares = (hidden[k] * np.asarray(model.out.kernel[...])[:, c]) ** 2
        logit = abs(float(model.out(hidden[k])[c]))
        np.testing.assert_allclose(found[k], logit * shares / (shares.sum() + 1e-6), rtol=1e-4)


def test_layers_without_relevance_of_their_own_are_named(noise):
    class Net(nnx.Module):
        def __init__(self):
            self.unused = nnx.Linear(3, 3, rngs=nnx.Rngs(0))
            self.whole = nnx.Sequential(nnx.Linear(3072, 4, rngs=nnx.Rngs(0)))

        def __call__(self, x):
            return self.whole(x.reshape(len(x), -1))

    few = noise.take(np.arange(2))
    with pytest.raises(ValueError, match="does not call unused"):
        layer_relevance(Net(), few.images, few.labels, ("unused",))
    table = paper().with_rules((nnx.Sequential, Epsilon()))
    with pytest.raises(ValueError, match="lies inside whole, which has a rule"):
        layer_relevance(Net(), few.images, few.labels, ("whole.layers.0",), composite=table)
    with pytest.raises(ValueError, match=r"one class per image \(2\), found 1"):
        conservation(Net(), few.images, few.labels[:1])


def test_unknown_and_repeated_layers_are_named(inception, noise):
    with pytest.raises(ValueError, match="no module 'dense9'; it has .*dense1"):
        layer_relevance(inception, noise.images, noise.labels, ("dense9",))

    class Twice(nnx.Module):
        def __init__(self):
            self.dense = nnx.Linear(3072, 3072, rngs=nnx.Rngs(0))

        def __call__(self, x):
            return self.dense(self.dense(x.reshape(len(x), -1)))

    with pytest.raises(ValueError, match="calls dense more than once"):
        layer_relevance(Twice(), noise.images[:2], noise.labels[:2], ("dense",))


def test_targets(inception, noise):
    images = jnp.asarray(noise.images[:3], jnp.float32) / 255
    function = relevance_function(inception)
    largest, logits = function(images)
    by_class, _ = function(images, logits.argmax(-1))
    np.testing.assert_array_equal(largest, by_class)
    weighted, _ = function(images, jnp.abs(logits) * jax.nn.one_hot(logits.argmax(-1), 4))
    np.testing.assert_array_equal(weighted, by_class)
    with pytest.raises(ValueError, match=r"shape of the logits \(3, 4\), found \(3, 5\)"):
        function(images, jnp.ones((3, 5)))
    with pytest.raises(ValueError, match=r"one class per image \(3\), found the shape \(2,\)"):
        function(images, jnp.array([0, 1]))


class Random(nnx.Module):
    """A small network with branches, a residual sum and pooling, without biases."""

    def __init__(self, seed, width, depth, pool, bias=False):
        rngs = nnx.Rngs(seed)

        def conv(c, d, k):
            return nnx.Conv(c, d, (k, k), use_bias=bias, rngs=rngs)

        self.left, self.right = conv(2, width, 3), conv(2, width, 1)
        self.join = Concatenate()
        self.blocks = nnx.List([conv(2 * width, 2 * width, 3) for _ in range(depth)])
        self.sums = nnx.List([Sum() for _ in range(depth)])
        self.pool = pool(2)
        side = 3 if pool is MaxPool else 6
        self.dense = nnx.Linear(side * side * 2 * width, 3, use_bias=bias, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.join(self.left(x), self.right(x)))
        for block, add in zip(self.blocks, self.sums, strict=True):
            x = add(x, nnx.relu(block(x)))
        x = self.pool(x)
        return self.dense(x.reshape(len(x), -1))


# Built in the tests: hypothesis counts the time it takes to draw.
networks = st.tuples(
    st.integers(0, 2**16),
    st.integers(1, 4),
    st.integers(0, 2),
    st.sampled_from([MaxPool, AvgPool]),
)
# Rules that divide by sums of one sign lose nothing but what epsilon takes.
conserving = st.sampled_from(
    [
        paper(epsilon=1e-20),
        Composite(
            (
                (nnx.Conv, ZPlus(1e-20)),
                (nnx.Linear, Epsilon(2, 1e-20, bias=False)),
                *paper(epsilon=1e-20).rules,
            )
        ),
    ]
)


@given(networks, conserving, st.integers(0, 2**16))
def test_relevance_is_conserved(shape, composite, seed):
    model = Random(*shape)
    rng = np.random.default_rng(seed)
    images = jnp.asarray(rng.uniform(0.1, 1, (2, 6, 6, 2)), jnp.float32)
    function = jax.jit(relevance_function(model, composite))
    relevance, logits = function(images, jnp.array([0, 2]))
    start = np.abs(logits[jnp.arange(2), jnp.array([0, 2])])
    # Without biases a dead network starts with nothing.
    np.testing.assert_allclose(relevance.sum((1, 2, 3)), start, rtol=1e-3, atol=1e-6)


@given(networks, st.sampled_from(sorted(COMPOSITES)), st.integers(0, 2**16))
def test_relevance_is_linear_in_its_start(shape, name, seed):
    model = Random(*shape, bias=True)
    rng = np.random.default_rng(seed)
    images = jnp.asarray(rng.uniform(0, 1, (2, 6, 6, 2)), jnp.float32)
    first, second = jnp.asarray(rng.normal(size=(2, 2, 3)), jnp.float32)
    function = jax.jit(relevance_function(model, COMPOSITES[name]()))
    both, _ = function(images, 2 * first - second)
    apart = 2 * function(images, first)[0] - function(images, second)[0]
    np.testing.assert_allclose(both, apart, atol=2e-4 * max(1e-6, float(np.abs(apart).max())))
