"""Folded models compute the same, and rules see other contributions."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxpoison import CompactInception, relevance_function
from jaxpoison.lrp.canonizers import MergeBatchNorm
from jaxpoison.lrp.composites import Composite, epsilon_plus, paper
from jaxpoison.lrp.graph import INPUT, layer_calls
from jaxpoison.lrp.rules import Flat, Pass, ZPlus
from jaxpoison.models.inference import evaluation_view
from jaxpoison.models.layers import Identity, Sum

pytestmark = pytest.mark.mixes_types


def unsettled(model, rng):
    """The model with batch statistics and affine parameters as if trained, in evaluation mode."""
    for _, module in nnx.iter_modules(model):
        if isinstance(module, nnx.BatchNorm):
            shape = module.mean[...].shape
            module.mean[...] = jnp.asarray(rng.normal(size=shape), jnp.float32)
            module.var[...] = jnp.asarray(rng.uniform(0.5, 2, size=shape), jnp.float32)
            module.scale[...] = jnp.asarray(rng.uniform(0.5, 2, size=shape), jnp.float32)
            module.bias[...] = jnp.asarray(rng.normal(size=shape), jnp.float32)
    return evaluation_view(model)


class Chain(nnx.Module):
    """Normalisations behind a layer, before one, used twice, and on their own."""

    def __init__(self):
        rngs = nnx.Rngs(0)
        self.first = nnx.BatchNorm(3, rngs=rngs)
        self.conv = nnx.Conv(3, 4, (3, 3), padding="VALID", use_bias=False, rngs=rngs)
        self.behind = nnx.BatchNorm(4, rngs=rngs)
        self.shared = nnx.Conv(4, 4, (1, 1), rngs=rngs)
        self.twice = nnx.BatchNorm(4, rngs=rngs)
        self.padded = nnx.Conv(4, 4, (3, 3), rngs=rngs)
        self.alone = nnx.BatchNorm(4, rngs=rngs)
        self.sum = Sum()
        self.flat = nnx.BatchNorm(144, rngs=rngs)
        self.dense = nnx.Linear(144, 5, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.behind(self.conv(self.first(x))))
        y = self.shared(x)
        x = self.sum(self.twice(y), y)  # what is normalised is used otherwise too
        x = self.padded(self.alone(nnx.relu(x)))  # padding comes after the normalisation
        return self.dense(self.flat(x.reshape(len(x), -1)))


@pytest.fixture
def images(noise):
    return jnp.asarray(noise.images[:3, :8, :8], jnp.float32) / 255


def test_folds_what_can_be_folded_and_computes_the_same(images, rng):
    model = unsettled(Chain(), rng)
    folded = MergeBatchNorm().apply(model, images)
    np.testing.assert_allclose(folded(images), model(images), rtol=1e-4, atol=1e-4)
    names = ("first", "behind", "twice", "alone", "flat")
    # One convolution takes one of its two neighbours; what is used twice stays.
    assert [isinstance(getattr(folded, n), Identity) for n in names] == [1, 0, 0, 0, 1]
    assert type(model.first) is nnx.BatchNorm


def test_folds_every_normalisation_of_the_inception(noise, rng):
    model = unsettled(CompactInception(4, rngs=nnx.Rngs(0)), rng)
    images = jnp.asarray(noise.images[:2], jnp.float32) / 255
    folded = MergeBatchNorm().apply(model, images)
    assert not [m for _, m in nnx.iter_modules(folded) if isinstance(m, nnx.BatchNorm)]
    np.testing.assert_allclose(folded(images), model(images), rtol=1e-3, atol=1e-3)


def test_a_composite_canonizes_first(images, rng):
    model = unsettled(Chain(), rng)
    classes = jnp.array([0, 1, 2])
    merged = epsilon_plus(canonizers=(MergeBatchNorm(),))
    found, logits = relevance_function(model, merged)(images, classes)
    by_hand = MergeBatchNorm().apply(model, images)
    expected, _ = relevance_function(by_hand, epsilon_plus())(images, classes)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(logits, model(images), rtol=1e-4, atol=1e-4)
    without, _ = relevance_function(model, epsilon_plus())(images, classes)
    assert np.abs(without - found).max() > 0.01 * np.abs(found).max()


def test_graph_says_which_layer_feeds_which(images):
    model = evaluation_view(Chain())
    calls = layer_calls(model, images, (nnx.Conv, nnx.Linear))
    names = [".".join(map(str, call.path)) for call in calls]
    assert names == ["conv", "shared", "padded", "dense"]
    assert [call.upstream for call in calls] == [{INPUT}, {0}, {1}, {2}]
    assert [call.direct for call in calls] == [None, None, None, None]
    # The second convolution's output is normalised and added.
    assert [call.uses for call in calls] == [1, 2, 1, 1]


def test_first_layers_are_all_that_the_image_reaches(noise):
    model = evaluation_view(CompactInception(4, rngs=nnx.Rngs(0)))
    images = jnp.asarray(noise.images[:2], jnp.float32)
    calls = layer_calls(model, images, (nnx.Conv, nnx.Linear))
    first = {call.path[0] for call in calls if INPUT in call.upstream}
    assert first == {"branch1x1", "branch5x5_1", "branch3x3_1", "branch_pool_1"}


def test_rules_by_path_come_before_rules_by_type():
    layer = nnx.Linear(2, 2, rngs=nnx.Rngs(0))
    table = Composite(
        ((nnx.Linear, ZPlus()),), ((nnx.Linear, Flat()),), (("blocks.*.dense", Pass()),)
    )
    assert table.rule(("blocks", 3, "dense"), layer, is_first=True) == Pass()
    # A pattern speaks of layers, not of the block that holds them.
    block = nnx.Sequential(layer, layer)
    assert Composite((), paths=(("*", Pass()),)).rule(("blocks", 3), block) is None
    assert table.rule(("head",), layer, is_first=True) == Flat()
    assert table.rule(("head",), layer) == ZPlus()
    assert table.rule(("norm",), nnx.BatchNorm(2, rngs=nnx.Rngs(0))) is None
    assert paper().rule(("head",), layer).exponent == 2
