"""Images per second of LRP, batch 128, float32, beside zennit in the same run.

Compilation excluded. For both networks: this package's forward pass and
relevance, zennit's forward pass and relevance with the same weights, and how
far the relevance of the two lies apart. About fifteen minutes on two cores:

    pip install torch==2.13.0 && pip install --no-deps zennit==0.5.1
    python -m experiments.benchmarks.relevance [--weights runs/p15]

Without ``--weights`` (the work directory of a run with the Inception) weights
are random. Expected: at least 2 times zennit's throughput on the Inception,
relevance at most 4 forward passes, no compilation on a second call.
"""

import argparse
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

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
from jaxpoison import load_model, relevance_function
from jaxpoison.lrp.composites import COMPOSITES

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


def _wait(function: Callable[..., tuple[jax.Array, ...]], *arguments: jax.Array) -> None:
    function(*arguments)[0].block_until_ready()


def measure(name: str, weights: Path | None) -> dict[str, object]:
    ours, theirs = NETWORKS[name]
    model = ours(CLASSES, rngs=nnx.Rngs(0))
    if weights is not None and name == "inception":
        load_model(weights / "stages" / "train" / "model", model)
    else:
        seeded(model, 0)
    network = with_weights_of(model, theirs(CLASSES))
    rng = np.random.default_rng(0)
    images = rng.uniform(size=(BATCH, 32, 32, 3)).astype(np.float32)
    classes = rng.integers(0, CLASSES, BATCH)
    x, targets = jnp.asarray(images), jnp.asarray(classes)
    graphdef, state = nnx.split(model)
    forward = jax.jit(lambda x: nnx.merge(graphdef, state)(x))
    pixels = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())

    def torch_forward() -> None:
        with torch.no_grad():
            network(pixels)

    result: dict[str, object] = {
        "weights": "trained" if weights is not None and name == "inception" else "random",
        "forward_per_second": BATCH / seconds(lambda: forward(x).block_until_ready()),
        "zennit_forward_per_second": BATCH / seconds(torch_forward),
        "composites": {},
    }
    tables = zennit_composites(network.first)
    for title, make in COMPOSITES.items():
        function = jax.jit(relevance_function(model, make()))
        few = function(x[:2], targets[:2])[0]
        expected = zennit_relevance(network.double(), tables[title], images[:2], classes[:2])
        network.float()
        difference = np.linalg.norm(few - expected) / np.linalg.norm(expected)
        row = {"relative_difference": float(difference)}
        if title in TIMED:
            took = seconds(partial(_wait, function, x, targets))
            compiled = function._cache_size()
            _wait(function, x + 0, targets + 0)
            rival = seconds(partial(zennit_relevance, network, tables[title], images, classes))
            row |= {
                "images_per_second": BATCH / took,
                "zennit_images_per_second": BATCH / rival,
                "ratio_to_zennit": rival / took,
                "forward_passes": took * result["forward_per_second"] / BATCH,
                "compiled_again": function._cache_size() - compiled,
            }
        result["composites"][title] = row
        print(name, title, row, flush=True)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", type=Path)
    options = parser.parse_args()
    networks = {name: measure(name, options.weights) for name in NETWORKS}
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
        "The difference is that of two images' relevance from zennit's in float64.",
        "",
        "| network | composite | images/s | zennit | ratio | forward passes | difference |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for name, found in networks.items():
        for title, row in found["composites"].items():
            timed = (
                f"{row['images_per_second']:.0f} | {row['zennit_images_per_second']:.0f} | "
                f"{row['ratio_to_zennit']:.2f} | {row['forward_passes']:.1f}"
                if "images_per_second" in row
                else "– | – | – | –"
            )
            lines.append(
                f"| {name} ({found['weights']}) | {title} | {timed} | "
                f"{row['relative_difference']:.1e} |"
            )
    record("relevance", result, "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
