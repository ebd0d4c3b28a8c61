"""Gromov-Wasserstein distances, barycentres and clustering of real heatmaps beside POT and OTT.

The heatmaps are those of a run's searched class (2,463 of GTSRB at p = 33 %).
Both sides start from the same two heatmaps quantised to 10 points, drawn as
k-means++ does; compilation is excluded, and so is seeding, which is timed
apart. POT's times are measured on stated parts where all would take hours.
About ten minutes on two cores:

    pip install -e '.[bench]'
    jaxpoison run --data gtsrb32.zip --rate 0.33 --workdir runs/p33
    python -m experiments.benchmarks.gw runs/p33

Expected: at epsilon 0.1 the whole clustering at least 100 times as fast as
POT's, at 0.01 a distance at least 30 times; the same labels for 99.9 % of the
images; distances within 1e-4.
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
import ot
from ott.geometry import geometry
from ott.problems.quadratic import quadratic_problem
from ott.solvers.linear import sinkhorn
from ott.solvers.quadratic import gromov_wasserstein

from experiments.benchmarks.reporting import finished, machine, record, versions
from jaxpoison import (
    EntropicGW,
    MeasureSpaces,
    SmallSpaces,
    barycenters,
    distances_to_centers,
    gw_kmeans,
    measure_spaces,
    quantised,
)

EPSILONS = (0.1, 0.01)
SIZE = 10
# What POT is timed on: pairs, members of one barycentre, images of a whole clustering.
PAIRS, MEMBERS, CLUSTERED, PLAIN_OTT = 24, 24, {0.1: 160, 0.01: 24}, 64
ROUNDS = 20


def timed(function: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds of a second call, and its result."""
    jax.block_until_ready(function())
    started = time.perf_counter()
    result = jax.block_until_ready(function())
    return time.perf_counter() - started, result


class Pot:
    """The same heatmaps in POT: only pixels with mass, float64."""

    def __init__(self, spaces: MeasureSpaces, epsilon: float) -> None:
        self.spaces = spaces
        self.epsilon = epsilon
        self.grid = grid_of(spaces)
        self.uniform = np.full(SIZE, 1 / SIZE)

    def space(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        weights = np.asarray(self.spaces.weights[index], float)
        held = weights > 0
        distances = self.grid[np.ix_(held, held)] * float(self.spaces.factors[index])
        return distances, weights[held] / weights[held].sum()

    def distance(self, index: int, center: np.ndarray, masses: np.ndarray) -> float:
        distances, weights = self.space(index)
        _, log = ot.gromov.entropic_gromov_wasserstein(
            center, distances, masses, weights, "square_loss", epsilon=self.epsilon, log=True
        )
        return float(log["gw_dist"])

    def between(
        self, first: tuple[np.ndarray, np.ndarray], second: tuple[np.ndarray, np.ndarray]
    ) -> float:
        """Distance of two whole heatmaps, as :meth:`space` gives them."""
        _, log = ot.gromov.entropic_gromov_wasserstein(
            first[0],
            second[0],
            first[1],
            second[1],
            "square_loss",
            epsilon=self.epsilon,
            log=True,
        )
        return float(log["gw_dist"])

    def barycenter(self, members: np.ndarray, start: np.ndarray, rounds: int) -> np.ndarray:
        """As POT's ``entropic_gromov_barycenters``, whose ``max_iter`` ends couplings too.

        With few rounds as its ``max_iter`` it would give couplings as few iterations,
        and end them far from their end: here they have the 1,000 of its default.
        """
        spaces = [self.space(k) for k in members]
        structures, shares = [d for d, _ in spaces], [1 / len(members)] * len(members)
        center = start
        for _ in range(rounds):
            plans = [
                ot.gromov.entropic_gromov_wasserstein(
                    center, d, self.uniform, w, "square_loss", self.epsilon, True, None, 1000, 1e-4
                )
                for d, w in spaces
            ]
            before = center
            center = ot.gromov.update_barycenter_structure(
                plans, structures, shares, self.uniform, target=False, check_zeros=False
            )
            if np.linalg.norm(center - before) <= 2e-5:
                break
        return center

    def kmeans(self, centers: SmallSpaces) -> tuple[np.ndarray, int]:
        """Rounds of assignment and update from given centres until no label changes."""
        spaces = [np.asarray(c, float) for c in centers.distances]
        masses = [np.asarray(w, float) / float(w.sum()) for w in centers.weights]
        labels = np.full(len(self.spaces), -1)
        for done in range(ROUNDS + 1):
            pairs = list(zip(spaces, masses, strict=True))
            found = [[self.distance(k, c, w) for c, w in pairs] for k in range(len(self.spaces))]
            new = np.argmin(found, 1)
            if done == 0 and len(np.unique(new)) < 2:
                raise RuntimeError("one of the drawn centres attracts every heatmap")
            if (new == labels).all() or done == ROUNDS:
                return new, done
            labels = new
            masses = [self.uniform] * 2
            spaces = [
                self.barycenter(np.flatnonzero(labels == k), spaces[k], ROUNDS) for k in range(2)
            ]
        raise RuntimeError("unreachable")


def grid_of(spaces: MeasureSpaces) -> np.ndarray:
    """Distances between the pixels of the grid, row by row."""
    places = np.stack(np.divmod(np.arange(spaces.height * spaces.width), spaces.width), -1)
    return np.linalg.norm((places[:, None] - places).astype(float), axis=-1)


def drawn(spaces: MeasureSpaces, solver: EntropicGW, rng: np.random.Generator) -> SmallSpaces:
    """Two quantised heatmaps, drawn as k-means++ does."""
    first = quantised(spaces.take(rng.integers(len(spaces), size=1)), SIZE)
    nearest = np.maximum(distances_to_centers(spaces, first, solver).values[:, 0], 0)
    second = rng.choice(len(spaces), size=1, p=nearest / nearest.sum())
    both = first, quantised(spaces.take(second), SIZE)
    return jax.tree.map(lambda *parts: np.concatenate(parts), *both)


def plain_ott(spaces: MeasureSpaces, center: SmallSpaces, epsilon: float) -> Callable[[], Any]:
    """OTT-JAX as one would use it first: dense geometries, mapped over heatmaps."""
    grid = jnp.asarray(grid_of(spaces), jnp.float32)
    linear = sinkhorn.Sinkhorn(threshold=1e-5, max_iterations=2000)
    solver = gromov_wasserstein.GromovWasserstein(
        linear, epsilon=epsilon / 2, threshold=1e-6, max_iterations=100
    )

    @jax.jit
    def function(weights: jax.Array, factors: jax.Array) -> jax.Array:
        def one(p: jax.Array, factor: jax.Array) -> jax.Array:
            problem = quadratic_problem.QuadraticProblem(
                geometry.Geometry(center.distances[0]),
                geometry.Geometry(grid * factor),
                a=center.weights[0],
                b=p,
            )
            return solver(problem).primal_cost

        return jax.vmap(one)(weights, factors)

    return lambda: function(spaces.weights[:PLAIN_OTT], spaces.factors[:PLAIN_OTT])


def measure(spaces: MeasureSpaces, epsilon: float) -> dict[str, Any]:
    solver = EntropicGW(epsilon)
    n = len(spaces)
    rng = np.random.default_rng(0)
    start = drawn(spaces, solver, rng)
    pot = Pot(spaces, epsilon)
    sample = rng.choice(n, PAIRS, replace=False)

    def pot_pairs(centers: SmallSpaces) -> tuple[float, np.ndarray]:
        center, masses = np.asarray(centers.distances[0], float), np.asarray(centers.weights[0])
        masses = masses.astype(float) / masses.sum(dtype=float)
        for k in sample[:2]:
            pot.distance(int(k), center, masses)
        started = time.perf_counter()
        values = np.array([pot.distance(int(k), center, masses) for k in sample])
        return (time.perf_counter() - started) / len(sample), values

    result: dict[str, Any] = {"epsilon": epsilon, "heatmaps": n}
    seconds, found = timed(lambda: distances_to_centers(spaces, start, solver))
    theirs, values = pot_pairs(start)
    ours = np.asarray(found.values)[sample, 0]
    result["distance_to_quantised_heatmap"] = {
        "seconds_per_pair": seconds / n / 2,
        "pot_seconds_per_pair": theirs,
        "ratio": theirs / (seconds / n / 2),
        "largest_relative_difference": float(np.abs(ours / values - 1).max()),
        "information_nats": float(found.information.mean()),
        "unsolved_share": float(1 - found.converged.mean()),
    }
    print(epsilon, result["distance_to_quantised_heatmap"], flush=True)

    labels = jnp.asarray(np.asarray(found.values).argmin(1), jnp.int32)
    rounds = partial(barycenters, spaces, labels, jnp.ones(n), start.distances, solver)
    seconds, (centers, taken) = timed(rounds)
    members = np.flatnonzero(np.asarray(labels) == 0)[:MEMBERS]
    begin = np.asarray(start.distances[0], float)
    started = time.perf_counter()
    pot.barycenter(members, begin, 2)
    theirs = (time.perf_counter() - started) / len(members) / 2
    expected = pot.barycenter(members, begin, ROUNDS)
    few, _ = barycenters(
        spaces.take(members),
        jnp.zeros(len(members), jnp.int32),
        jnp.ones(len(members)),
        start.distances[:1],
        solver,
    )
    result["barycentre_round"] = {
        "rounds": int(taken),
        "seconds_per_member_and_round": seconds / n / int(taken),
        "pot_seconds_per_member_and_round": theirs,
        "ratio": theirs / (seconds / n / int(taken)),
        "largest_difference": float(np.abs(few.distances[0] - expected).max()),
        # Where neither side has come to rest, its distance from rest says more.
        "moved_by_one_more_pot_round": {
            side: float(np.abs(pot.barycenter(members, center, 1) - center).max())
            for side, center in (
                ("ours", np.asarray(few.distances[0], float)),
                ("pots", expected),
            )
        },
    }
    print(epsilon, result["barycentre_round"], flush=True)

    seconds, found = timed(lambda: distances_to_centers(spaces, centers, solver))
    theirs, values = pot_pairs(centers)
    ours = np.asarray(found.values)[sample, 0]
    result["distance_to_barycentre"] = {
        "seconds_per_pair": seconds / n / 2,
        "pot_seconds_per_pair": theirs,
        "ratio": theirs / (seconds / n / 2),
        "largest_relative_difference": float(np.abs(ours / values - 1).max()),
        "information_nats": float(found.information.mean()),
        "product_share": float(found.product.mean()),
    }
    print(epsilon, result["distance_to_barycentre"], flush=True)

    seconds, _ = timed(plain_ott(spaces, start, epsilon))
    rate = result["distance_to_quantised_heatmap"]["seconds_per_pair"]
    result["plain_ott"] = {
        "seconds_per_pair": seconds / PLAIN_OTT,
        "ratio": seconds / PLAIN_OTT / rate,
    }
    print(epsilon, result["plain_ott"], flush=True)

    part = spaces.take(np.sort(rng.choice(n, CLUSTERED[epsilon], replace=False)))
    started = time.perf_counter()
    expected, rounds_taken = Pot(part, epsilon).kmeans(start)
    theirs = time.perf_counter() - started
    clustering = partial(gw_kmeans, part, solver=solver, start=start)
    clustering()
    started = time.perf_counter()
    clusters = clustering()
    seconds = time.perf_counter() - started
    whole = partial(gw_kmeans, spaces, solver=solver, start=start)
    whole()
    started = time.perf_counter()
    all_clusters = whole()
    all_seconds = time.perf_counter() - started
    started = time.perf_counter()
    gw_kmeans(spaces, solver=solver, max_rounds=1)
    result["clustering"] = {
        "part": len(part),
        "part_seconds": seconds,
        "pot_part_seconds": theirs,
        "part_ratio": theirs / seconds,
        "same_labels": float((clusters.labels == expected).mean()),
        "rounds": clusters.rounds,
        "pot_rounds": rounds_taken,
        "whole_seconds": all_seconds,
        "whole_rounds": all_clusters.rounds,
        "pot_whole_seconds_by_proportion": theirs / len(part) * n,
        "whole_ratio_by_proportion": theirs / len(part) * n / all_seconds,
        "seeding_and_one_round_seconds": time.perf_counter() - started,
        "information_nats": all_clusters.information,
    }
    print(epsilon, result["clustering"], flush=True)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="work directory of a run")
    options = parser.parse_args()
    jax.config.update("jax_num_cpu_devices", os.cpu_count())
    spaces = measure_spaces(finished(options.run).explained.relevance)
    results = [measure(spaces, epsilon) for epsilon in EPSILONS]
    result = {
        "by_epsilon": results,
        "machine": machine(),
        "versions": versions("jax", "ott-jax", "POT"),
    }
    lines = [
        "# Gromov-Wasserstein clustering of real heatmaps beside POT",
        "",
        f"`{result['machine']['cpu']}`, {result['machine']['cores']} cores; JAX "
        f"{result['versions']['jax']}, POT {result['versions']['POT']}. Times in milliseconds, of "
        "one pair, or of one member and round.",
        "",
        "| ε | | here | POT | ratio | agreement |",
        "|---|---|---:|---:|---:|---|",
    ]
    for row in results:
        for name, title in (
            ("distance_to_quantised_heatmap", "distance to a quantised heatmap"),
            ("distance_to_barycentre", "distance to a barycentre"),
        ):
            d = row[name]
            lines.append(
                f"| {row['epsilon']} | {title} | {1e3 * d['seconds_per_pair']:.3g} | "
                f"{1e3 * d['pot_seconds_per_pair']:.3g} | {d['ratio']:.0f} | largest relative "
                f"difference {d['largest_relative_difference']:.0e} |"
            )
        b = row["barycentre_round"]
        moved = b["moved_by_one_more_pot_round"]
        lines.append(
            f"| {row['epsilon']} | barycentre, {b['rounds']} rounds | "
            f"{1e3 * b['seconds_per_member_and_round']:.3g} | "
            f"{1e3 * b['pot_seconds_per_member_and_round']:.3g} | {b['ratio']:.0f} | largest "
            f"difference {b['largest_difference']:.0e}; one more round of POT moves ours by "
            f"{moved['ours']:.0e}, its own by {moved['pots']:.0e} |"
        )
    lines += [
        "",
        "| ε | whole clustering | here, s | POT, s | ratio | same labels |",
        "|---|---|---:|---:|---:|---:|",
    ]
    for row in results:
        c = row["clustering"]
        lines += [
            f"| {row['epsilon']} | {c['part']} heatmaps | {c['part_seconds']:.2f} | "
            f"{c['pot_part_seconds']:.0f} | {c['part_ratio']:.0f} | {c['same_labels']:.2%} |",
            f"| {row['epsilon']} | {row['heatmaps']} heatmaps | {c['whole_seconds']:.1f} | "
            f"{c['pot_whole_seconds_by_proportion']:.0f}, by proportion | "
            f"{c['whole_ratio_by_proportion']:.0f} | – |",
        ]
    lines += ["", "Plain OTT-JAX (dense geometries under `vmap`): "]
    for row in results:
        o = row["plain_ott"]
        lines.append(
            f"ε = {row['epsilon']}: {1e3 * o['seconds_per_pair']:.3g} ms a pair, "
            f"{o['ratio']:.0f} times as long."
        )
    record("gw", result, "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
