"""Residual networks with torchvision's weights against torchvision and zennit."""

from ast import literal_eval
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import save_file

from experiments.seeded import seeded_arrays
from jaxpoison import ResNet18, ResNet34, ResNet50, load_weights, relevance_function
from jaxpoison.lrp.composites import COMPOSITES

pytestmark = pytest.mark.mixes_types

GOLDEN = Path(__file__).parent.parent / "golden" / "torchvision.npz"
NETWORKS = {"resnet18": ResNet18, "resnet50": ResNet50}
# Of torchvision's models with a thousand classes, as its documentation gives them.
PARAMETERS = ((ResNet18, 11_689_512), (ResNet34, 21_797_672), (ResNet50, 25_557_032))


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN) as arrays:
        return dict(arrays)


def state_dict(golden, name):
    shapes = map(literal_eval, golden[f"{name}, shapes"])
    return seeded_arrays(dict(zip(golden[f"{name}, names"], shapes, strict=True)), 0)


def loaded(golden, name, tmp_path):
    path = tmp_path / "weights.safetensors"
    save_file(state_dict(golden, name), path)
    model = NETWORKS[name](10, stem="imagenet", rngs=nnx.Rngs(0))
    load_weights(path, model)
    return model


@pytest.mark.parametrize(
    ("name", "title"),
    [("resnet18", "Paper"), ("resnet50", "EpsilonPlusFlat"), ("resnet50", "EpsilonAlpha2Beta1")],
)
def test_logits_are_torchvisions_and_relevance_is_zennits(name, title, golden, tmp_path):
    model = loaded(golden, name, tmp_path)
    images = np.random.default_rng(0).uniform(size=(1, 64, 64, 3)).astype(np.float32)
    function = jax.jit(relevance_function(model, COMPOSITES[title]()))
    relevance, logits = function(jnp.asarray(images), jnp.array([3]))
    expected = golden[f"{name}, logits"]
    assert np.abs(logits - expected).max() < 1e-4 * np.abs(expected).max()
    expected = golden[f"{name}, {title}"]
    error = np.linalg.norm(relevance[0].sum(-1) - expected) / np.linalg.norm(expected)
    assert error < 1e-4


@pytest.mark.parametrize(("network", "parameters"), PARAMETERS)
def test_they_are_as_large_as_torchvisions(network, parameters):
    model = nnx.eval_shape(lambda: network(1000, stem="imagenet", rngs=nnx.Rngs(0)))
    assert sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param))) == parameters


def test_what_torchvisions_file_lacks_is_named(golden, tmp_path):
    arrays = state_dict(golden, "resnet18")
    path = tmp_path / "weights.safetensors"
    save_file({k: v for k, v in arrays.items() if k != "layer2.0.downsample.1.weight"}, path)
    model = ResNet18(10, stem="imagenet", rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=r"lacks 1 of .*blocks\.2\.shortcut\.norm\.scale"):
        load_weights(path, model)
    save_file(arrays, path)
    with pytest.raises(ValueError, match=r"dense\.bias of the network has the shape \(4,\)"):
        load_weights(path, ResNet18(4, stem="imagenet", rngs=nnx.Rngs(0)))
    # The other stem is another network.
    with pytest.raises(ValueError, match=r"stem\.conv\.kernel .*\(3, 3, 3, 64\), in .*\(7, 7"):
        load_weights(path, ResNet18(10, rngs=nnx.Rngs(0)))


def test_stems_are_named(noise):
    with pytest.raises(ValueError, match="stem must be small or imagenet, found 'large'"):
        ResNet18(10, stem="large", rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="takes images of 3 channels, found 1"):
        ResNet18(10, stem="imagenet", channels=1, rngs=nnx.Rngs(0))
