"""Nothing in the main computations is bound to the CPU: they lower for GPUs and TPUs."""

import dataclasses

import jax
import jax.export
import jax.numpy as jnp
import pytest
from flax import nnx

from jaxpoison import CompactInception, EntropicGW, SmallSpaces, TrainConfig, relevance_function
from jaxpoison.clustering import gw_round
from jaxpoison.gw.solver import starting_from
from jaxpoison.spaces import MeasureSpaces
from jaxpoison.training import make_train_step

pytestmark = pytest.mark.parametrize("platform", ["cuda", "tpu"])


def lowered(function, platform, *arguments):
    # Random keys cannot be exported as arguments; they are made inside.
    exported = jax.export.export(jax.jit(function), platforms=[platform])(*arguments)
    assert exported.platforms == (platform,)
    return exported.mlir_module()


@pytest.fixture(scope="module")
def model():
    return CompactInception(4, rngs=nnx.Rngs(0))


def test_train_step(model, platform):
    state, step = make_train_step(model, TrainConfig(batch_size=8), 10)
    leaves, tree = jax.tree.flatten(state)
    keys = [i for i, x in enumerate(leaves) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key)]
    leaves = [jax.random.key_data(x) if i in keys else x for i, x in enumerate(leaves)]

    def function(leaves, images, labels, indices):
        typed = [jax.random.wrap_key_data(x) if i in keys else x for i, x in enumerate(leaves)]
        new, metrics = step(
            jax.tree.unflatten(tree, typed), images, labels, indices, jax.random.key(0)
        )
        return new.parameters, metrics

    images = jnp.zeros((16, 32, 32, 3), jnp.uint8)
    module = lowered(function, platform, leaves, images, jnp.zeros(16, jnp.int32), jnp.arange(8))
    # Convolutions are the platform's own, not the CPU's matrix products.
    assert "stablehlo.convolution" in module


def test_relevance(model, platform):
    explained = relevance_function(model)
    module = lowered(explained, platform, jnp.zeros((4, 32, 32, 3)), jnp.zeros(4, jnp.int32))
    assert "stablehlo.convolution" in module


def test_clustering_round(platform):
    spaces = MeasureSpaces(jnp.full((64, 256), 1 / 256), jnp.ones(64), 16, 16)
    centers = SmallSpaces(jnp.ones((2, 10, 10)), jnp.full((2, 10), 0.1))

    def function(weights, labels, distances):
        moved = dataclasses.replace(centers, distances=distances)
        known = MeasureSpaces(weights, spaces.factors, 16, 16)
        couplings = starting_from(jnp.full((64, 10, 256), 1 / 2560))
        real = jnp.ones(64, bool)
        return gw_round(known, real, labels, moved, couplings, EntropicGW())[2].values

    labels = jnp.zeros(64, jnp.int32)
    module = lowered(function, platform, spaces.weights, labels, centers.distances)
    # Not the platform's rounded products, with which no coupling would converge.
    products = [line for line in module.splitlines() if "stablehlo.dot_general" in line]
    assert len(products) > 10
    assert all("precision = [HIGHEST, HIGHEST]" in line for line in products)
