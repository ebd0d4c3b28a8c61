"""A small network and small data, for tests of the way through the stages: fixtures."""

import pytest
from flax import nnx

from jaxpoison import RunConfig, synthetic
from jaxpoison.jobs import prepare
from jaxpoison.models.layers import MaxPool
from jaxpoison.models.named import MODELS


class Small(nnx.Module):
    image_side = 32

    def __init__(self, num_classes, *, rngs):
        self.conv = nnx.Conv(3, 4, (3, 3), strides=2, rngs=rngs)
        self.pool = MaxPool(2)
        self.hidden = nnx.Linear(4 * 8 * 8, 16, rngs=rngs)
        self.out = nnx.Linear(16, num_classes, rngs=rngs)

    def __call__(self, x):
        x = self.pool(nnx.relu(self.conv(x)))
        return self.out(nnx.relu(self.hidden(x.reshape(len(x), -1))))


DETECTORS = ("raw_pca", "activation_pca", "heatmap_paper")


def use_small(patch):
    """Jobs train the small network on few images."""
    patch.setitem(MODELS, "inception", Small)
    patch.setattr(
        prepare,
        "load_data",
        lambda *_, seed, **__: synthetic(train=300, validation=60, test=60, seed=seed),
    )


@pytest.fixture(autouse=True)
def small(monkeypatch):
    use_small(monkeypatch)


@pytest.fixture
def config():
    return RunConfig(rate=0.25, epochs=1, detectors=DETECTORS)


@pytest.fixture
def only(monkeypatch):
    """Lets no stage run but those that are named."""

    def allow(*allowed, patch=monkeypatch):
        def fail(name):
            def failing(*_, **__):
                raise AssertionError(f"{name} ran")

            return failing

        modules = {
            "fit": "jaxpoison.jobs.prepare.fit",
            "evaluate": "jaxpoison.jobs.evaluating.predict",
            "explain": "jaxpoison.jobs.explaining.explain",
            "detect": "jaxpoison.jobs.detecting.separation",
        }
        for name, target in modules.items():
            if name not in allowed:
                patch.setattr(target, fail(name))

    return allow
