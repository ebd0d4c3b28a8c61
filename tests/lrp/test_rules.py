"""Every rule against its formula on the layer's dense matrix, in float64."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from reference import RULES, dense_layer

from jaxpoison.lrp.rules import AlphaBeta, Epsilon, Flat, Gamma, Pass, Route, WSquare, ZBox, ZPlus
from jaxpoison.models.convolution import conv_general_dilated
from jaxpoison.models.layers import AvgPool, GlobalAvgPool, MaxPool, Sum

pytestmark = pytest.mark.mixes_types


def layers():
    rngs = nnx.Rngs(0)
    bias = nnx.initializers.normal(1.0)
    return {
        "dense": (nnx.Linear(12, 5, bias_init=bias, rngs=rngs), (12,)),
        "same": (nnx.Conv(3, 4, (3, 3), bias_init=bias, rngs=rngs), (5, 4, 3)),
        "no bias": (nnx.Conv(3, 4, (2, 2), use_bias=False, rngs=rngs), (5, 4, 3)),
        "strided": (nnx.Conv(3, 4, (3, 3), strides=2, bias_init=bias, rngs=rngs), (6, 6, 3)),
        "grouped": (nnx.Conv(4, 4, (3, 3), feature_group_count=2, rngs=rngs), (4, 4, 4)),
        "dilated": (
            nnx.Conv(3, 4, (2, 2), kernel_dilation=2, bias_init=bias, rngs=rngs),
            (5, 4, 3),
        ),
        "fast": (
            nnx.Conv(3, 4, (3, 3), conv_general_dilated=conv_general_dilated, rngs=rngs),
            (5, 4, 3),
        ),
    }


SETTINGS = {
    "epsilon": Epsilon(1, 0.01),
    "epsilon without bias": Epsilon(1, 0.01, bias=False),
    "squared": Epsilon(2, 1e-6, bias=False),
    "squared with bias": Epsilon(2),
    "z plus": ZPlus(),
    "z plus without bias": ZPlus(bias=False),
    "alpha beta": AlphaBeta(),
    "alpha 3 beta 2 without bias": AlphaBeta(3.0, 2.0, bias=False),
    "gamma": Gamma(0.25),
    "gamma without bias": Gamma(0.5, bias=False),
    "box": ZBox(-2.5, 3.0),
    "w square": WSquare(),
    "w square without bias": WSquare(bias=False),
    "flat": Flat(),
}


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("name", layers())
def test_rule_is_its_formula(name, setting, rng):
    layer, shape = layers()[name]
    rule = SETTINGS[setting]
    x = rng.normal(size=(2, *shape)).astype(np.float32)
    outgoing = rng.normal(size=layer(x).shape).astype(np.float32)
    (found,) = rule.relevance(layer, (jnp.asarray(x),), jnp.asarray(outgoing))
    absorbed = rule.bias_relevance(layer, (jnp.asarray(x),), jnp.asarray(outgoing))
    matrix, bias = dense_layer(layer, shape)
    for k in range(2):
        expected, to_bias = RULES[type(rule).__name__](
            rule, matrix, bias, x[k].ravel().astype(float), outgoing[k].ravel().astype(float)
        )
        # float32 against float64; sums of both signs cancel before they divide.
        scale = np.abs(expected).max()
        np.testing.assert_allclose(found[k].ravel(), expected, atol=1e-3 * scale)
        np.testing.assert_allclose(absorbed[k], to_bias, atol=1e-3 * max(scale, abs(to_bias)))


@pytest.mark.parametrize("rule", [Epsilon(1), ZPlus(), Gamma()], ids=["epsilon", "z+", "gamma"])
def test_positive_sums_conserve_relevance(rule, rng):
    x = jnp.asarray(rng.uniform(0.1, 1, size=(2, 4, 4, 3)), jnp.float32)
    for layer in (AvgPool(3), GlobalAvgPool()):
        outgoing = jnp.asarray(rng.normal(size=layer(x).shape), jnp.float32)
        (found,) = rule.relevance(layer, (x,), outgoing)
        np.testing.assert_allclose(found.sum(), outgoing.sum(), rtol=1e-3)
    outgoing = jnp.asarray(rng.normal(size=x.shape), jnp.float32)
    first, second = rule.relevance(Sum(), (x, 3 * x), outgoing)
    np.testing.assert_allclose(first, outgoing / 4, rtol=1e-4)
    np.testing.assert_allclose(second, 3 * outgoing / 4, rtol=1e-4)


@pytest.mark.parametrize("setting", ["z plus", "alpha beta", "gamma", "box", "epsilon"])
def test_layers_without_parameters_have_positive_weights(setting, rng):
    rule = SETTINGS[setting]
    x = rng.normal(size=(1, 3, 3, 1)).astype(np.float32)
    outgoing = rng.normal(size=(1, 1)).astype(np.float32)
    (found,) = rule.relevance(GlobalAvgPool(), (jnp.asarray(x),), jnp.asarray(outgoing))
    weights, bias = np.full((9, 1), 1 / 9), np.zeros(1)
    expected, _ = RULES[type(rule).__name__](
        rule, weights, bias, x.ravel().astype(float), outgoing[0].astype(float)
    )
    np.testing.assert_allclose(found.ravel(), expected, rtol=1e-3, atol=1e-4)


def test_rules_by_share_refuse_blocks():
    block = nnx.Sequential(nnx.Linear(3, 3, rngs=nnx.Rngs(0)))
    with pytest.raises(ValueError, match="found a Sequential with layers inside"):
        ZPlus().relevance(block, (jnp.ones((2, 3)),), jnp.ones((2, 3)))


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


def test_pass_changes_nothing(rng):
    outgoing = jnp.asarray(rng.normal(size=(2, 3)), jnp.float32)
    (found,) = Pass().relevance(nnx.relu, (jnp.ones((2, 3)),), outgoing)
    np.testing.assert_array_equal(found, outgoing)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Epsilon(epsilon=0.0), "epsilon must be above 0"),
        (lambda: Epsilon(exponent=0), "exponent must be at least 1"),
        (lambda: ZPlus(epsilon=-1.0), "epsilon must be above 0"),
        (lambda: AlphaBeta(2.0, 0.5), r"alpha - beta must be 1.*found 2.0 and 0.5"),
        (lambda: Gamma(-0.1), "gamma must be above 0"),
        (lambda: ZBox([0.0, 2.0], [1.0, 1.0]), "low must be below high"),
        (lambda: ZBox(1.0, 0.0), "low must be below high, found 1.0 and 0.0"),
    ],
)
def test_rules_check_their_numbers(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_rules_by_share_refuse_layers_with_other_parameters():
    layer = nnx.BatchNorm(3, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="found the parameter 'scale' in a BatchNorm"):
        Epsilon().relevance(layer, (jnp.ones((2, 3)),), jnp.ones((2, 3)))
