"""Images per second of LRP, batch 128, float32, beside zennit in the same run.

Compilation excluded. For both networks: this package's forward pass and
relevance, split over one device per core as the command line does it, zennit's
forward pass and relevance with the same weights, and how far the relevance of
the two lies apart, with random weights and with those of a run. About fifteen
minutes on two cores:

    pip install torch==2.13.0 && pip install --no-deps zennit==0.5.1
    python -m experiments.benchmarks.relevance --inception runs/p33 --resnet18 runs/resnet18

The options name the work directories of runs with the network; a network's name
alone measures it alone. Expected: at
least 2 times zennit's throughput on the Inception and not less than it on
ResNet-18, differences below 1e-4, relevance at most 4 forward passes on the
Inception, no compilation on a second call.
"""

import argparse
import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx

from experiments.benchmarks.reporting import machine, record, versions
from experiments.seeded import seeded
from experiments.zennit_networks import (
    NETWORKS,
    with_weights_of,
    zennit_composites,
    zennit_relevance,
)
from jaxpoison import trained_network
from jaxpoison.lrp.composites import COMPOSITES, Composite
from jaxpoison.lrp.propagation import propagate
from jaxpoison.parallel import mesh_of, over_devices, shardings_on

BATCH, CLASSES, ROUNDS = 128, 43, 3
TIMED = ("Paper", "EpsilonPlus")


def seconds(step: Callable[[], object]) -> float:
    """The fastest of several calls after one that warms up; machines are noisy."""
    step()
    best = float("inf")
    for _ in range(ROUNDS):
        started = time.perf_counter()
        step()
        best = min(best, time.perf_counter() - started)
    return best


Relevance = Callable[[Any, jax.Array, jax.Array], jax.Array]


def relevance_of(graphdef: nnx.GraphDef[Any], composite: Composite) -> Relevance:
    def one(state: Any, images: jax.Array, classes: jax.Array) -> jax.Array:
        return propagate(graphdef, composite, state, images, classes).relevance

    return jax.jit(over_devices(one))


def difference(
    relevance: Relevance, state: Any, composite: Any, network: torch.nn.Module, data: Any
) -> float:
    """Relative difference of two images' relevance from zennit's in float64."""
    images, classes = (part[:2] for part in data)
    state = jax.device_put(state, shardings_on(mesh_of())[0])
    ours = relevance(state, jnp.asarray(images), jnp.asarray(classes))
    theirs = zennit_relevance(network.double(), composite, images, classes)
    network.float()
    return float(np.linalg.norm(ours - theirs) / np.linalg.norm(theirs))


def measure(name: str, run: Path | None) -> dict[str, Any]:
    ours, theirs = NETWORKS[name]
    model = seeded(ours(CLASSES, rngs=nnx.Rngs(0)), 0)
    graphdef, state = nnx.split(model)
    network = with_weights_of(model, theirs(CLASSES))
    rng = np.random.default_rng(0)
    images = rng.uniform(size=(BATCH, 32, 32, 3)).astype(np.float32)
    data = images, rng.integers(0, CLASSES, BATCH)
    tables = zennit_composites(network.first)

    everywhere, split = shardings_on(mesh_of())
    x, targets = (jax.device_put(part, split) for part in data)
    shared = jax.device_put(state, everywhere)
    forward = jax.jit(over_devices(lambda state, x: nnx.merge(graphdef, state)(x)))
    pixels = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())

    def torch_forward() -> None:
        with torch.no_grad():
            network(pixels)

    once = seconds(lambda: forward(shared, x).block_until_ready())
    rows: dict[str, dict[str, Any]] = {}
    for title, make in COMPOSITES.items():
        relevance = relevance_of(graphdef, make())
        row: dict[str, Any] = {
            "difference_random_weights": difference(relevance, state, tables[title], network, data)
        }
        if title in TIMED:

            def again(relevance: Relevance = relevance) -> None:
                relevance(shared, x, targets).block_until_ready()

            took = seconds(again)
            compiled = relevance._cache_size()  # pyright: ignore[reportFunctionMemberAccess]
            again()
            rival = seconds(partial(zennit_relevance, network, tables[title], *data))
            row |= {
                "images_per_second": BATCH / took,
                "zennit_images_per_second": BATCH / rival,
                "ratio_to_zennit": rival / took,
                "forward_passes": took / once,
                "compiled_again": relevance._cache_size() - compiled,  # pyright: ignore
            }
        rows[title] = row
        print(name, title, row, flush=True)
    if run is not None:
        model = trained_network(run)
        _, trained = nnx.split(model)
        with_weights_of(model, network)
        for title, make in COMPOSITES.items():
            found = difference(
                relevance_of(graphdef, make()), trained, tables[title], network, data
            )
            rows[title]["difference_trained_weights"] = found
            print(name, title, "trained", found, flush=True)
    return {
        "forward_per_second": BATCH / once,
        "zennit_forward_per_second": BATCH / seconds(torch_forward),
        "composites": rows,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("networks", nargs="*", default=list(NETWORKS), help="which; both")
    for name in NETWORKS:
        parser.add_argument(f"--{name}", type=Path, metavar="WORKDIR")
    options = parser.parse_args()
    jax.config.update("jax_num_cpu_devices", os.cpu_count())
    networks = {name: measure(name, getattr(options, name)) for name in options.networks}
    result = {
        "batch": BATCH,
        "networks": networks,
        "machine": machine(),
        "versions": versions("jax", "flax", "torch", "zennit"),
    }
    lines = [
        f"# Relevance of a batch of {BATCH}, float32, beside zennit",
        "",
        f"`{result['machine']['cpu']}`, {result['machine']['cores']} cores, "
        f"{', '.join(result['machine']['units'])}; JAX {result['versions']['jax']}, "
        f"zennit {result['versions']['zennit']} on PyTorch {result['versions']['torch']}.",
        "Differences are those of two images' relevance from zennit's in float64.",
        "",
        "| network | composite | images/s | zennit | ratio | forward passes "
        "| difference, random weights | trained |",
        "|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    for name, found in networks.items():
        for title, row in found["composites"].items():
            timed = (
                f"{row['images_per_second']:.0f} | {row['zennit_images_per_second']:.0f} | "
                f"{row['ratio_to_zennit']:.2f} | {row['forward_passes']:.1f}"
                if "images_per_second" in row
                else "– | – | – | –"
            )
            trained = row.get("difference_trained_weights")
            lines.append(
                f"| {name} | {title} | {timed} | {row['difference_random_weights']:.1e} | "
                f"{'–' if trained is None else f'{trained:.1e}'} |"
            )
    record("relevance", result, "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
