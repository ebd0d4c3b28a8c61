"""What an accelerator does for every step, in one command of at most eight minutes.

On whatever device JAX finds: peak of a matrix product; a training step; relevance; distances
between heatmaps, whole and quantised; neighbours; clustering; a scan. Beside them POT pair by
pair on the host, POT's batched solver on PyTorch (on the same device where that is CUDA) or else
NumPy, and plain OTT on the device. No data are needed: the heatmaps are those of rendered signs
and of a network that is trained on them first. Sizes follow the device: a CPU is given fewer.

    pip install -e '.[bench]'
    python -m experiments.benchmarks.accelerator

Every part is written to `results/accelerator-DEVICE/result.json` as soon as it is measured;
parts that no time is left for are named there. Compilation is excluded, and stated apart.
"""

import argparse
import dataclasses
import importlib.util
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from experiments.benchmarks.gw import Pot, drawn, plain_ott
from experiments.benchmarks.gw_pairs import share_of_peak
from experiments.benchmarks.reporting import machine, record, versions
from jaxpoison import (
    CompactInception,
    EntropicGW,
    TrainConfig,
    all_distances,
    distances_to_centers,
    explain,
    fit,
    gw_kmeans,
    measure_spaces,
    nearest_neighbours,
    pair_distances,
    predict,
    protocol,
    pure,
    quantised,
    scan,
    standard_backdoor,
    synthetic,
    use_one_device_per_core,
)
from jaxpoison.lrp.attributions import LRP
from jaxpoison.lrp.composites import COMPOSITES
from jaxpoison.training.step import make_train_steps

LIMIT = 8 * 60
EPSILON, SIZE, POT_PAIRS = 0.1, 10, 16
COMPOSITES_TIMED = ("Paper", "EpsilonPlus")


@dataclasses.dataclass(frozen=True)
class Sizes:
    """How much a device is given."""

    matrix: int
    images: int
    heatmaps: int
    all_pairs: int
    neighbours: int
    batched: int


SIZES = {
    "cpu": Sizes(2048, 512, 400, 400, 2_000, 2_000),
    "gpu": Sizes(8192, 8192, 2_462, 2_000, 20_000, 20_000),
    "tpu": Sizes(8192, 8192, 2_462, 2_000, 20_000, 20_000),
}


def twice(function: Callable[[], Any]) -> tuple[float, float, Any]:
    """Seconds of a second call, of the first one beyond it, and the result."""
    started = time.perf_counter()
    jax.block_until_ready(function())
    first = time.perf_counter() - started
    started = time.perf_counter()
    result = jax.block_until_ready(function())
    seconds = time.perf_counter() - started
    return seconds, max(0.0, first - seconds), result


class Bench:
    """Network, images and heatmaps that the parts share."""

    def __init__(self, sizes: Sizes) -> None:
        self.sizes = sizes
        self.splits = standard_backdoor(synthetic(), source=2, target=5, rate=0.15)
        train = self.splits.train
        self.model = CompactInception(train.num_classes, rngs=nnx.Rngs(0))
        settings = protocol("fast", len(train), epochs=2, batch_size=50)
        started = time.perf_counter()
        fit(self.model, train, self.splits.validation, settings)
        self.training_seconds = time.perf_counter() - started
        many = np.resize(np.arange(len(train)), sizes.images)
        self.images, self.labels = train.images[many], train.labels[many]
        count = max(sizes.heatmaps, sizes.neighbours, sizes.all_pairs)
        found = explain(self.model, train.images, train.labels).relevance.sum(-1)
        self.heatmaps = self._varied(found, count)
        self.flops_per_second = 0.0

    @staticmethod
    def _varied(heatmaps: np.ndarray, count: int) -> np.ndarray:
        """As many as wanted: shifted, as signs are; none twice."""
        rng = np.random.default_rng(0)
        shaped = heatmaps[np.ptp(heatmaps.reshape(len(heatmaps), -1), axis=1) > 0]
        shifts = rng.integers(-3, 4, (count, 2))
        rows = np.resize(np.arange(len(shaped)), count)
        found = [np.roll(shaped[k], s, (0, 1)) for k, s in zip(rows, shifts, strict=True)]
        return np.stack(found) * rng.uniform(0.9, 1.1, (count, 32, 32)).astype(np.float32)

    def share_of_peak(self, operations: float, seconds: float) -> float:
        return operations / seconds / self.flops_per_second


def peak(bench: Bench) -> dict[str, float]:
    n, found = bench.sizes.matrix, {}
    for dtype, precision in ((jnp.float32, "highest"), (jnp.bfloat16, "default")):
        side = jnp.ones((n, n), dtype)
        product = partial(jax.jit(partial(jnp.matmul, precision=precision)), side, side)
        best = min(twice(product)[0] for _ in range(3))
        found[f"{jnp.dtype(dtype).name}_teraflops"] = 2 * n**3 / best / 1e12
    bench.flops_per_second = 1e12 * found["float32_teraflops"]
    return found


def training_step(bench: Bench) -> dict[str, float]:
    batch, steps = 128, 8
    config = TrainConfig(batch_size=batch)
    model = CompactInception(bench.splits.train.num_classes, rngs=nnx.Rngs(0))
    state, run = make_train_steps(model, config, 100)
    images, labels = jnp.asarray(bench.images[: steps * batch]), bench.labels[: steps * batch]
    order = np.resize(np.arange(len(images), dtype=np.int32), (steps, batch))
    holder, key = [state], jax.random.key(0)

    def once() -> jax.Array:
        holder[0], metrics = run(holder[0], images, jnp.asarray(labels), order, steps, key, 0)
        return metrics

    seconds, compiling, _ = twice(once)
    return {"images_per_second": steps * batch / seconds, "compiling_seconds": compiling}


def relevance(bench: Bench) -> dict[str, float]:
    seconds, compiling, _ = twice(lambda: predict(bench.model, bench.images))
    network, state = pure(bench.model)
    one = jnp.zeros((1, *bench.images.shape[1:]))
    operations = jax.jit(network).lower(state, one).cost_analysis()["flops"]
    found = {
        "forward_images_per_second": len(bench.images) / seconds,
        "forward_compiling_seconds": compiling,
        "forward_share_of_float32_peak": bench.share_of_peak(
            operations * len(bench.images), seconds
        ),
    }
    for name in COMPOSITES_TIMED:
        method = LRP(COMPOSITES[name]())
        seconds, compiling, _ = twice(
            lambda method=method: (
                explain(bench.model, bench.images, bench.labels, method=method).relevance
            )
        )
        found[f"{name}_images_per_second"] = len(bench.images) / seconds
        found[f"{name}_compiling_seconds"] = compiling
    return found


def whole_heatmaps(bench: Bench) -> dict[str, float]:
    """To two quantised ones, as in a round of k-means; POT on the host, plain OTT on the device."""
    solver = EntropicGW(EPSILON)
    spaces = measure_spaces(bench.heatmaps[: bench.sizes.heatmaps])
    center = drawn(spaces, solver, np.random.default_rng(0))
    seconds, compiling, found = twice(lambda: distances_to_centers(spaces, center, solver).values)
    pairs = 2 * len(spaces)
    pot = Pot(spaces, EPSILON)
    place, masses = np.asarray(center.distances[0], float), np.asarray(center.weights[0], float)
    pot.distance(0, place, masses / masses.sum())
    started = time.perf_counter()
    theirs = [pot.distance(k, place, masses / masses.sum()) for k in range(POT_PAIRS)]
    pot_seconds = (time.perf_counter() - started) / POT_PAIRS
    ott_seconds, _, _ = twice(plain_ott(spaces, center, EPSILON))
    ott_seconds /= min(len(spaces), 64)
    ours = np.asarray(found)[:POT_PAIRS, 0]
    return {
        "pairs": pairs,
        "microseconds_per_pair": 1e6 * seconds / pairs,
        "compiling_seconds": compiling,
        "times_pot_on_the_host": pot_seconds / (seconds / pairs),
        "times_plain_ott_on_the_device": ott_seconds / (seconds / pairs),
        "largest_relative_difference_from_pot": float(np.abs(ours / np.array(theirs) - 1).max()),
    }


def products(bench: Bench) -> dict[str, float]:
    """What the products with the grid's distances reach of a plain float32 product."""
    return share_of_peak(bench.heatmaps[: min(1024, bench.sizes.heatmaps)])


def between_whole(bench: Bench) -> dict[str, float]:
    spaces = measure_spaces(bench.heatmaps[:64])
    pairs = np.stack([np.arange(32), np.arange(32, 64)], -1)
    seconds, compiling, _ = twice(lambda: pair_distances(spaces, pairs, EntropicGW(EPSILON)).values)
    pot = Pot(spaces, EPSILON)
    started = time.perf_counter()
    for i, j in pairs[:4]:
        pot.between(pot.space(int(i)), pot.space(int(j)))
    theirs = (time.perf_counter() - started) / 4
    return {
        "milliseconds_per_pair": 1e3 * seconds / len(pairs),
        "compiling_seconds": compiling,
        "times_pot_on_the_host": theirs / (seconds / len(pairs)),
    }


def quantised_pairs(bench: Bench) -> dict[str, Any]:
    """All pairs of heatmaps quantised to ten points, beside POT's batched solver."""
    solver, n = EntropicGW(0.01), bench.sizes.all_pairs
    small = quantised(measure_spaces(bench.heatmaps[:n]), SIZE)
    count = n * (n + 1) // 2
    seconds, compiling, matrix = twice(lambda: all_distances(small, solver))
    found: dict[str, Any] = {
        "pairs": count,
        "microseconds_per_pair": 1e6 * seconds / count,
        "compiling_seconds": compiling,
    }
    rng = np.random.default_rng(0)
    pairs = rng.integers(0, n, (bench.sizes.batched, 2))
    name, theirs, values = pot_batched(small, pairs, 0.01)
    found |= {
        "pot_batched_on": name,
        "times_pot_batched": theirs / (seconds / count),
        "correlation_with_pot_batched": float(
            np.corrcoef(matrix[pairs[:, 0], pairs[:, 1]], values)[0, 1]
        ),
    }
    return found


def pot_batched(small: Any, pairs: np.ndarray, epsilon: float) -> tuple[str, float, np.ndarray]:
    """Where POT's batched solver ran, its seconds a pair, and its values."""
    import ot

    first, second = (np.asarray(small.distances)[pairs[:, k]] for k in (0, 1))
    masses = [np.asarray(small.weights)[pairs[:, k]] for k in (0, 1)]
    arguments: list[Any] = [first, second, *masses]
    name = "NumPy on the host"
    if importlib.util.find_spec("torch") is not None:
        import torch

        on = "cuda" if torch.cuda.is_available() else "cpu"
        name = f"PyTorch, {on}"
        arguments = [torch.as_tensor(part, device=on) for part in arguments]

    def solve() -> np.ndarray:
        ca, cb, a, b = arguments
        plans = ot.batch.solve_gromov_batch(ca, cb, reg=epsilon, a=a, b=b)
        values = plans.value_quad if plans.value_quad is not None else plans.value
        return np.asarray(values.cpu() if hasattr(values, "cpu") else values)

    seconds, _, values = twice(solve)
    return name, seconds / len(pairs), values


def neighbours(bench: Bench) -> dict[str, float]:
    solver, n = EntropicGW(0.005), bench.sizes.neighbours
    small = quantised(measure_spaces(bench.heatmaps[:n]), SIZE)
    started = time.perf_counter()
    found = nearest_neighbours(small, 10, solver, all_pairs=0)
    return {
        "heatmaps": n,
        "seconds_with_compilation": time.perf_counter() - started,
        "pairs_per_heatmap": found.pairs / n,
    }


def clustering(bench: Bench) -> dict[str, float]:
    """Beside POT's seconds for as many distances and as many members of barycentres."""
    solver, n = EntropicGW(EPSILON), bench.sizes.heatmaps
    spaces = measure_spaces(bench.heatmaps[:n])
    start = drawn(spaces, solver, np.random.default_rng(0))
    run = partial(gw_kmeans, spaces, solver=solver, start=start)
    seconds, compiling, clusters = twice(lambda: run().labels)
    few = spaces.take(np.arange(min(40, n)))
    started = time.perf_counter()
    Pot(few, EPSILON).kmeans(start)
    pot_part = time.perf_counter() - started
    part, _, _ = twice(lambda: gw_kmeans(few, solver=solver, start=start).labels)
    return {
        "heatmaps": len(clusters),
        "seconds": seconds,
        "compiling_seconds": compiling,
        "part": len(few),
        "pot_part_seconds": pot_part,
        "part_seconds": part,
        "times_pot_on_the_host_by_proportion": pot_part / len(few) / (seconds / n),
    }


def scanning(bench: Bench) -> dict[str, Any]:
    train = bench.splits.train
    started = time.perf_counter()
    outcome = scan(bench.model, train)
    return {
        "images": len(train),
        "seconds_with_compilation": time.perf_counter() - started,
        "by_stage": outcome.seconds,
    }


PARTS: dict[str, Callable[[Bench], dict[str, Any]]] = {
    "peak": peak,
    "training_step": training_step,
    "relevance": relevance,
    "whole_heatmaps_to_two_centres": whole_heatmaps,
    "products_with_the_grid": products,
    "between_whole_heatmaps": between_whole,
    "quantised_pairs": quantised_pairs,
    "neighbours": neighbours,
    "clustering": clustering,
    "scan": scanning,
}


def markdown(result: dict[str, Any]) -> str:
    lines = [
        f"# {result['device']}",
        "",
        f"`{result['machine']['cpu']}`, {result['machine']['cores']} cores; "
        + ", ".join(f"{name} {version}" for name, version in result["versions"].items())
        + f". {result['seconds']:.0f} s in all. `python -m experiments.benchmarks.accelerator`.",
        "",
        "| part | measured | |",
        "|---|---|---:|",
    ]
    for part, found in result["parts"].items():
        for name, value in found.items():
            if isinstance(value, dict):
                value = ", ".join(f"{k} {v:.1f}" for k, v in value.items())
            shown = value if isinstance(value, str) else f"{value:,.4g}"
            lines.append(f"| {part.replace('_', ' ')} | {name.replace('_', ' ')} | {shown} |")
    if result["left_out"]:
        lines += ["", f"No time was left for: {', '.join(result['left_out'])}."]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--seconds", type=float, default=LIMIT, help=f"no part is begun later [{LIMIT}]"
    )
    options = parser.parse_args()
    use_one_device_per_core()
    started = time.perf_counter()
    device = jax.devices()[0]
    result: dict[str, Any] = {
        "device": device.device_kind,
        "platform": device.platform,
        "devices": jax.device_count(),
        "machine": machine(),
        "versions": versions("jax", "flax", "ott-jax", "POT", "torch"),
        "parts": {},
    }
    place = f"accelerator-{device.device_kind.lower().replace(' ', '-')}"
    bench = Bench(SIZES[device.platform])
    result["parts"]["preparing"] = {"training_seconds": bench.training_seconds}
    for name, part in PARTS.items():
        taken = time.perf_counter() - started
        if taken < options.seconds:
            result["parts"][name] = part(bench)
            print(name, result["parts"][name], flush=True)
        result["left_out"] = [each for each in PARTS if each not in result["parts"]]
        result["seconds"] = time.perf_counter() - started
        record(place, result, markdown(result))


if __name__ == "__main__":
    main()
