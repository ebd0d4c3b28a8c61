"""The main computations lower for GPUs and TPUs, and multiply in float32 but in training."""

import dataclasses
import re
from functools import partial

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxpoison import (
    PGD,
    CompactInception,
    EntropicGW,
    ResNet18,
    SmallSpaces,
    TrainConfig,
    projected_gradient_ascent,
    pure,
    relevance_function,
)
from jaxpoison.attacks import pgd
from jaxpoison.gw import barycenters, distances, pairs, quantisation, spaces
from jaxpoison.gw.kmeans import gw_round
from jaxpoison.gw.products import grid_product
from jaxpoison.gw.solver import starting_from
from jaxpoison.gw.spaces import MeasureSpaces
from jaxpoison.lrp import attributions, balance
from jaxpoison.lrp.attributions import ATTRIBUTIONS
from jaxpoison.lrp.composites import COMPOSITES
from jaxpoison.models import inference
from jaxpoison.training.step import make_train_steps

pytestmark = [
    pytest.mark.parametrize("platform", ["cuda", "tpu"]),
    pytest.mark.mixes_types,
]


def lowered(function, platform, *arguments):
    # Random keys cannot be exported as arguments; they are made inside.
    exported = jax.export.export(jax.jit(function), platforms=[platform])(*arguments)
    assert exported.platforms == (platform,)
    return exported.mlir_module()


def products(module):
    """Lines of all matrix products and convolutions."""
    kinds = ("stablehlo.dot_general", "stablehlo.convolution", "stablehlo.dot ")
    return [line for line in module.splitlines() if any(kind in line for kind in kinds)]


def in_float32(line):
    precision = re.search(r"precision(?:_config)? = \[([^\]]*)\]", line)
    named = re.findall(r"HIGHEST", precision.group(1)) if precision else []
    return len(named) == 2


@pytest.fixture(scope="module")
def model():
    return CompactInception(4, rngs=nnx.Rngs(0))


IMAGES = jnp.zeros((4, 32, 32, 3), jnp.uint8)
PIXELS = jnp.zeros((4, 32, 32, 3))
CLASSES = jnp.zeros(4, jnp.int32)
HEATMAPS = MeasureSpaces(jnp.full((64, 256), 1 / 256), jnp.ones(64), 16, 16)
SMALL = SmallSpaces(jnp.ones((64, 10, 10)), jnp.full((64, 10), 0.1))
CENTERS = SMALL.take(np.arange(2))
REAL = jnp.ones(64, bool)
PAIRS = jnp.zeros((16, 2), jnp.int32)
SOLVER = EntropicGW()


def networks_computations(model):
    """What is computed with a network, by name: a function and its arguments."""
    graphdef, state = nnx.split(inference.evaluation_view(model))
    network, _ = pure(model)
    found = {
        "logits": (partial(inference._logits, network), state, IMAGES),
        "pure": (network, state, PIXELS),
        "layer outputs": (
            partial(inference._values_at, graphdef, ("dense2",), False),
            state,
            IMAGES,
        ),
        "at layers": (
            partial(balance._at_layers, COMPOSITES["Paper"](), graphdef, ("pool1",)),
            state,
            IMAGES,
            CLASSES,
        ),
        "perturbation": (partial(pgd._perturbed, network, PGD()), state, IMAGES, CLASSES),
        "ascent": (
            lambda x, y: projected_gradient_ascent(partial(network, state), x, y, PGD()),
            PIXELS,
            CLASSES,
        ),
        "relevance function": (relevance_function(model), PIXELS, CLASSES),
    }
    for name, composite in COMPOSITES.items():
        rules = composite()
        found[f"balance, {name}"] = (
            partial(balance._ledger, rules, graphdef),
            state,
            IMAGES,
            CLASSES,
        )
    for name, method in ATTRIBUTIONS.items():
        attribute = partial(attributions._attribute, method(), graphdef)
        found[f"attribution, {name}"] = (attribute, state, IMAGES, CLASSES)
    return found


def couplings_computations():
    """What is computed of heatmaps."""
    laid_out = distances.laid_out(HEATMAPS)
    start = starting_from(jnp.full((64, 10, 256), 1 / 2560))
    labels = jnp.zeros(64, jnp.int32)
    pixels = jnp.zeros((256, 2))
    return {
        "clustering round": (
            lambda weights, labels, d: (
                gw_round(
                    dataclasses.replace(laid_out, weights=weights),
                    REAL,
                    labels,
                    dataclasses.replace(CENTERS, distances=d),
                    start,
                    SOLVER,
                )[2].values
            ),
            laid_out.weights,
            labels,
            CENTERS.distances,
        ),
        "distances, quantised": (
            lambda small: distances._distances(small, REAL, CENTERS, SOLVER, True)[0].values,
            SMALL,
        ),
        "barycentres, quantised": (
            lambda small: (
                barycenters.barycenters_of_rows(
                    small, labels, jnp.ones(64), None, CENTERS.distances, SOLVER
                )[0].distances
            ),
            SMALL,
        ),
        "perturbed start": (
            lambda h, c: distances._perturbation_gain(h, c, SOLVER, jax.random.key(0)),
            HEATMAPS,
            SMALL,
        ),
        "mean distances": (distances._mean_distances, laid_out),
        "quantisation": (
            partial(quantisation._quantised, 10),
            pixels,
            HEATMAPS.weights,
            HEATMAPS.factors,
        ),
        "spaces": (spaces._measured, jnp.float32(0.99), jnp.zeros((64, 16, 16))),
        "pairs, quantised": (
            lambda small: pairs._small_pairs(small, PAIRS, jnp.ones(16, bool), SOLVER).values,
            SMALL,
        ),
        "pairs, whole": (
            lambda whole: pairs._whole_pairs(whole, PAIRS, jnp.ones(16, bool), SOLVER).values,
            HEATMAPS,
        ),
        "grid, as OTT asks": (lambda x: grid_product(x, 16, 16), jnp.zeros((3, 256))),
    }


def test_whatever_a_network_computes_is_in_float32(model, platform):
    for name, (function, *arguments) in networks_computations(model).items():
        found = products(lowered(function, platform, *arguments))
        assert len(found) >= 3, name
        # The platform's own convolutions, not the CPU's matrix products.
        assert any("stablehlo.convolution" in line for line in found), name
        wrong = [line.strip() for line in found if not in_float32(line)]
        assert not wrong, f"{name}: {wrong[:3]}"


def test_a_network_with_strides_and_sums_too(platform):
    network = ResNet18(4, rngs=nnx.Rngs(0))
    explained = relevance_function(network)
    found = products(lowered(explained, platform, PIXELS, CLASSES))
    assert len(found) > 30
    assert all(map(in_float32, found))


def test_whatever_is_computed_of_heatmaps_is_in_float32(platform):
    for name, (function, *arguments) in couplings_computations().items():
        found = products(lowered(function, platform, *arguments))
        assert found or name == "spaces", name
        wrong = [line.strip() for line in found if not in_float32(line)]
        assert not wrong, f"{name}: {wrong[:3]}"


def test_training_takes_the_platforms_products(model, platform):
    """The one exception: bfloat16 there, and the platform's own precision."""
    config = TrainConfig(batch_size=8)
    state, run_steps = make_train_steps(model, config, 10)
    leaves, tree = jax.tree.flatten(state)
    keys = [i for i, x in enumerate(leaves) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key)]
    leaves = [jax.random.key_data(x) if i in keys else x for i, x in enumerate(leaves)]

    def function(leaves, images, labels, batches):
        typed = [jax.random.wrap_key_data(x) if i in keys else x for i, x in enumerate(leaves)]
        new, metrics = run_steps(
            jax.tree.unflatten(tree, typed), images, labels, batches, 2, jax.random.key(0), 0
        )
        return new.parameters, metrics

    images = jnp.zeros((16, 32, 32, 3), jnp.uint8)
    batches = jnp.arange(16, dtype=jnp.int32).reshape(2, 8)
    module = lowered(function, platform, leaves, images, jnp.zeros(16, jnp.int32), batches)
    found = products(module)
    assert sum("stablehlo.convolution" in line for line in found) > 20
    assert not any(map(in_float32, found))
