import os
from pathlib import Path

import jax
import numpy as np
import pytest
from hypothesis import settings

from jaxpoison import Dataset, Splits, synthetic

# Two devices, so that everything that is split over devices is split in tests.
jax.config.update("jax_num_cpu_devices", 2)
# Shapes and types are brought together by hand, or it is a mistake: see `strict` below.
jax.config.update("jax_numpy_rank_promotion", "raise")

# `--hypothesis-profile=thorough` tries more.
settings.register_profile("default", max_examples=25, deadline=None)
settings.register_profile("thorough", max_examples=500, deadline=None)
settings.load_profile("default")

GTSRB = Path(os.environ.get("JAXPOISON_GTSRB", "../shared/data/gtsrb32.zip"))


# Files whose tests train networks or compile much; those of all others are `fast`.
SLOW = frozenset(
    f"test_{name}.py"
    for name in (
        "balance",
        "cli",
        "devices",
        "docs",
        "end_to_end",
        "examples",
        "explain",
        "fit",
        "gw",
        "kmeans",
        "lowering",
        "models",
        "package",
        "pages",
        "pairs",
        "placement",
        "propagation",
        "readme",
        "run",
        "scan",
        "site",
        "zennit",
    )
)


# Long tests of what others test on smaller networks, or of another estimator: for the night.
NIGHTLY = (
    "test_relevance_is_zennits[resnet18-Paper]",
    "test_relevance_is_zennits[resnet18-EpsilonGammaBox]",
    "test_logits_are_torchvisions_and_relevance_is_zennits[resnet50-EpsilonAlpha2Beta1]",
    "test_the_network_is_differentiated_forwards",
    "test_derivatives_of_any_kind_are_laxs",
    "test_relevance_is_linear_in_its_start",
    "test_scikit_learns_checks_pass[HeatmapClusteringOnRows",
    "test_two_jobs_in_one_directory_take_turns",
    "test_any_number_of_devices[8]",
    "test_a_clustering_takes_the_memory_it_says[2048-30]",
    "test_a_clustering_takes_the_memory_it_says[16384-10]",
    "test_memory_does_not_grow_with_the_number_of_images",
)
# Files that take minutes come first: no worker has one left when the others have ended. What the
# first compiles the last need not.
LONGEST = ("test_docs.py", "test_site.py", "test_package.py", "test_end_to_end.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks the tests to run while working: ``pytest -m fast`` ends within two minutes."""
    for item in items:
        if item.path.name not in SLOW:
            item.add_marker("fast")
    if not os.environ.get("JAXPOISON_NIGHTLY"):
        skip = pytest.mark.skip(reason="takes long beside others like it: JAXPOISON_NIGHTLY=1")
        for item in items:
            if any(name in item.nodeid for name in NIGHTLY):
                item.add_marker(skip)
    place = {name: k for k, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.name, len(place)))


def pytest_configure(config: pytest.Config) -> None:
    """Compiled functions are shared by all workers, and kept: ``--cache-clear`` clears them."""
    if config.pluginmanager.hasplugin("cacheprovider") and config.cache is not None:
        settings = {
            "jax_compilation_cache_dir": str(config.cache.mkdir("xla")),
            "jax_persistent_cache_min_compile_time_secs": 0.1,
            "jax_persistent_cache_min_entry_size_bytes": -1,
        }
        for name, value in settings.items():
            jax.config.update(name, value)
            os.environ[name.upper()] = str(value)  # For the processes that tests start.


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    """No test reads or writes the user's cache."""
    monkeypatch.setenv("JAXPOISON_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(autouse=True)
def strict(request):
    """The package's own code mixes no types.

    Flax's layers and Optax do, and OTT mixes shapes as well; tests that run them are marked
    ``mixes_types`` or ``mixes_shapes``.
    """
    shapes = request.node.get_closest_marker("mixes_shapes") is not None
    types = shapes or request.node.get_closest_marker("mixes_types") is not None
    with (
        jax.numpy_rank_promotion("allow" if shapes else "raise"),
        jax.numpy_dtype_promotion("standard" if types else "strict"),
    ):
        yield


@pytest.fixture(scope="session")
def gtsrb_zip() -> Path:
    if not GTSRB.is_file():
        pytest.skip(f"the GTSRB zip is not at {GTSRB}; set JAXPOISON_GTSRB to its path")
    return GTSRB


@pytest.fixture(scope="session")
def signs() -> Splits:
    return synthetic(train=200, validation=40, test=60, seed=1)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture
def noise(rng) -> Dataset:
    """Forty images of noise in four classes."""
    images = rng.integers(0, 256, (40, 32, 32, 3)).astype(np.uint8)
    return Dataset.from_arrays(images, np.arange(40, dtype=np.int32) % 4)


@pytest.fixture(scope="session")
def heatmaps() -> np.ndarray:
    """Sixteen poisoned and sixteen clean relevance maps of a real run, poisoned first."""
    with np.load(Path(__file__).parent / "golden" / "heatmaps.npz") as file:
        return file["heatmaps"].astype(np.float32)
