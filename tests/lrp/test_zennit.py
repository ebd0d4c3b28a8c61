"""Whole networks against zennit, from a golden file that a committed script made."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from experiments.seeded import seeded
from jaxpoison import CompactInception, ResNet18, relevance_function
from jaxpoison.lrp.canonizers import MergeBatchNorm
from jaxpoison.lrp.composites import COMPOSITES, epsilon_plus

pytestmark = pytest.mark.mixes_types

GOLDEN = Path(__file__).parent.parent / "golden" / "zennit.npz"
NETWORKS = {"inception": CompactInception, "resnet18": ResNet18}
TABLES = {
    **{name: make() for name, make in COMPOSITES.items()},
    "EpsilonPlus, merged": epsilon_plus(canonizers=(MergeBatchNorm(),)),
}


# The larger network takes a minute to compile per table: the two that differ most.
CASES = [("inception", title) for title in TABLES] + [
    ("resnet18", title) for title in ("Paper", "EpsilonGammaBox")
]


def error(name, title, of):
    """How far our relevance is from what the golden file holds."""
    model = seeded(NETWORKS[name](10, rngs=nnx.Rngs(0)), 0)
    images = np.random.default_rng(0).uniform(size=(1, 32, 32, 3)).astype(np.float32)
    function = jax.jit(relevance_function(model, TABLES[title]))
    relevance = function(jnp.asarray(images), jnp.array([3]))[0][0].sum(-1)
    with np.load(GOLDEN) as golden:
        expected = golden[f"{name}, {of}"]
    return np.linalg.norm(relevance - expected) / np.linalg.norm(expected)


@pytest.mark.parametrize(("name", "title"), CASES)
def test_relevance_is_zennits(name, title):
    # zennit in float64; float32 sums over up to 4,608 terms, through 18 layers.
    assert error(name, title, title) < 1e-4


def test_the_papers_rules_written_out():
    assert error("inception", "Paper", "plain PyTorch") < 1e-5
