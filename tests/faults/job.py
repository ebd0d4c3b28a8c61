"""A command of jaxpoison on small data and with a small network, as a process of its own."""

import sys

import jax
from flax import nnx

from jaxpoison import synthetic
from jaxpoison.cli import main
from jaxpoison.jobs import prepare
from jaxpoison.models.layers import MaxPool
from jaxpoison.models.named import MODELS


class Small(nnx.Module):
    feature_layer = "hidden"

    def __init__(self, num_classes, *, rngs):
        self.conv = nnx.Conv(3, 4, (3, 3), strides=2, rngs=rngs)
        self.pool = MaxPool(2)
        self.hidden = nnx.Linear(4 * 8 * 8, 16, rngs=rngs)
        self.out = nnx.Linear(16, num_classes, rngs=rngs)

    def __call__(self, x):
        x = self.pool(nnx.relu(self.conv(x)))
        return self.out(nnx.relu(self.hidden(x.reshape(len(x), -1))))


if __name__ == "__main__":
    jax.config.update("jax_num_cpu_devices", 2)
    MODELS["inception"] = Small  # pyright: ignore[reportArgumentType]
    prepare.load_data = lambda *_, seed, **__: synthetic(
        train=400, validation=60, test=60, seed=seed
    )
    raise SystemExit(main(sys.argv[1:]))
