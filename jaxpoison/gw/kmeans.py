"""k-means++ of heatmaps under the entropic Gromov-Wasserstein distance."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int
from sklearn.exceptions import ConvergenceWarning

from jaxpoison._checks import check_choice, check_integer
from jaxpoison._progress import Bar
from jaxpoison._sampling import evenly
from jaxpoison.gw.barycenters import ROUNDS, barycenters_of_rows
from jaxpoison.gw.distances import (
    Distances,
    distances_of_placed,
    nearest_couplings,
    perturbation_gain,
)
from jaxpoison.gw.placement import Placed, on_host, place
from jaxpoison.gw.products import LaidOut
from jaxpoison.gw.quantisation import quantised
from jaxpoison.gw.solver import Couplings, EntropicGW
from jaxpoison.gw.spaces import MeasureSpaces, SmallSpaces, Spaces, measure_spaces

MODES = ("exact", "quick")
# Nats below which couplings count as products.
_NOTHING = 1e-4
# Couplings that are started again elsewhere; gains, in shares, that are not rounding.
_SAMPLE = 64
_GAIN = 1e-3


@dataclass(frozen=True, eq=False)
class GWClusters:
    """Result of :func:`gw_kmeans`.

    Attributes:
        labels: Cluster of every heatmap.
        distances: Distance of every heatmap to every centre (squared).
        centers: The centres.
        inertia: Sum of the distances to the own centre.
        rounds: Rounds of assignment and update.
        converged: Whether labels stopped changing.
        settled: Whether the last barycentres came to rest within their own rounds; where
            not, their entries still move by some thousandths.
        unsolved: Share of the last round's problems that did not converge.
        information: Mean divergence, in nats, of the last couplings from the
            product of their marginals; about 0 means they carry no geometry.
        product: Share of the last couplings that are that product by certificate.
        improvable: Share of a sample of the couplings to the own centre for which the
            iteration ends lower from a perturbed start: they are no global minima.

    Examples:
        >>> spaces = jp.quantised(jp.measure_spaces(heatmaps), 10)
        >>> found = jp.gw_kmeans(spaces, solver=jp.EntropicGW(epsilon=0.005), random_state=0)
        >>> found.labels.shape, found.distances.shape, len(found.centers)
        ((20,), (20, 2), 2)
    """

    labels: Int[np.ndarray, " n"]
    distances: Float[np.ndarray, "n k"]
    centers: SmallSpaces
    inertia: float
    rounds: int
    converged: bool
    settled: bool
    unsolved: float
    information: float
    product: float
    improvable: float


class UninformativeCouplingsWarning(UserWarning):
    """The couplings of a clustering are products: distances compare mean distances only.

    Examples:
        >>> import warnings
        >>> spaces = jp.measure_spaces(heatmaps)
        >>> with warnings.catch_warnings():
        ...     warnings.simplefilter("error", jp.UninformativeCouplingsWarning)
        ...     try:
        ...         found = jp.gw_kmeans(spaces, solver=jp.EntropicGW(epsilon=1.0), random_state=0)
        ...     except jp.UninformativeCouplingsWarning as warning:
        ...         print("take a smaller epsilon")
        take a smaller epsilon
    """


def gw_kmeans(
    spaces: Spaces,
    *,
    n_clusters: int = 2,
    center_size: int | None = None,
    solver: EntropicGW | None = None,
    max_rounds: int = 20,
    n_init: int = 1,
    random_state: int = 0,
    start: SmallSpaces | None = None,
    progress: bool = False,
) -> GWClusters:
    """k-means++ with entropic Gromov-Wasserstein distances and barycentres.

    As in Schulth, Berghoff, Neu: the first centre is a heatmap drawn uniformly
    at random, the next drawn with a probability proportional to the squared
    distance; then rounds of assignment and update until no label changes.
    Their seeding measures distances between whole heatmaps; here a drawn
    heatmap is first quantised to ``center_size`` points.

    Clustering ``quantised(spaces, size)`` instead of the heatmaps is much
    quicker, and approximate. Any number of heatmaps shares a few compilations. On a
    device, plans take 1.5 GiB at the most, whatever the number of heatmaps and of a centre's
    points, and a pixel of each heatmap 20 bytes (twice that where their number is just above a
    power of two).

    Args:
        spaces: Heatmaps to cluster, or quantised ones.
        n_clusters: Number of clusters.
        center_size: Points of a centre; 10 by default. Of quantised heatmaps it
            is their number of points.
        solver: How distances are computed; at epsilon 0.02 by default, the paper's is 0.1.
        max_rounds: Most rounds of assignment and update.
        n_init: Runs from different seeds; the one of least inertia is kept. Those of whole
            heatmaps compete quantised, where each takes seconds, and the best one's
            labels start the run on the whole ones. Its centres do not, since one that has
            become constant would stay so: barycentres are sought from the members
            nearest to them.
        random_state: Seed.
        start: Centres to start from, instead of drawn ones; one run is made.
        progress: Show a progress bar.

    Raises:
        TypeError: A count is not an integer.
        ValueError: There are fewer heatmaps than clusters, a count is too small, or
            ``center_size`` is not that of quantised heatmaps.

    Examples:
        >>> spaces = jp.quantised(jp.measure_spaces(heatmaps), 10)
        >>> solver = jp.EntropicGW(epsilon=0.005)
        >>> found = jp.gw_kmeans(spaces, n_clusters=2, solver=solver, n_init=3, random_state=0)
        >>> np.bincount(found.labels).sum()
        np.int64(20)
    """
    check_integer("n_clusters", n_clusters, at_least=1)
    center_size = _center_size(spaces, center_size)
    check_integer("max_rounds", max_rounds, at_least=1)
    check_integer("n_init", n_init, at_least=1)
    if len(spaces) < n_clusters:
        raise ValueError(f"{n_clusters} clusters need as many heatmaps, found {len(spaces)}")
    solver = EntropicGW() if solver is None else solver
    if start is not None:
        n_clusters, n_init = len(start.weights), 1
    key = jax.random.key(random_state)
    seeds = np.random.SeedSequence(random_state).spawn(n_init)

    def least(
        spaces: Spaces, start: SmallSpaces | None, labels: np.ndarray | None, runs: int
    ) -> GWClusters:
        """Of several runs, the one of least inertia."""
        placed = place(spaces)
        found = []
        with Bar("GW clustering", runs * (max_rounds + 1), unit="rounds", show=progress) as bar:
            for seed in seeds[:runs]:
                first = start
                if first is None:
                    rng = np.random.default_rng(seed)
                    first = _seed(spaces, placed, n_clusters, center_size, solver, rng)
                bar.advance(1, "seeded")
                found.append(_run(spaces, placed, first, labels, solver, max_rounds, key, bar))
        return min(found, key=lambda clusters: clusters.inertia)

    labels = None
    if isinstance(spaces, MeasureSpaces) and n_init > 1:
        small = quantised(spaces, center_size)
        winner = least(small, None, None, n_init)
        start, labels, n_init = _nearest_members(small, winner), winner.labels, 1
    best = least(spaces, start, labels, n_init)
    if (used := len(np.unique(best.labels))) < n_clusters:
        warnings.warn(
            f"only {used} of {n_clusters} clusters have members",
            ConvergenceWarning,
            stacklevel=2,
        )
    if best.information < _NOTHING:
        warnings.warn(
            f"the couplings say nothing ({best.information:.1e} nats): at epsilon "
            f"{solver.epsilon} the barycentres are constant, and clusters differ in their mean "
            "distance alone; a smaller epsilon lets the geometry in",
            UninformativeCouplingsWarning,
            stacklevel=2,
        )
    return best


def spaces_in_mode(
    heatmaps: Float[Array | np.ndarray, "n h w"] | Float[Array | np.ndarray, "n h w c"],
    mode: str,
    mass: float,
    center_size: int,
) -> Spaces:
    """Heatmaps as an estimator clusters them.

    Args:
        heatmaps: Relevance of every pixel.
        mode: ``exact``, or ``quick`` for heatmaps quantised to ``center_size`` points.
        mass: Share of a heatmap's mass whose pixels are kept.
        center_size: Points of a centre.

    Raises:
        TypeError: An option has the wrong type.
        ValueError: There is no such mode, or a heatmap is constant, NaN or infinite.
    """
    check_choice("mode", mode, MODES)
    spaces = measure_spaces(heatmaps, mass=mass)
    return spaces if mode == "exact" else quantised(spaces, center_size)


def _center_size(spaces: Spaces, asked: int | None) -> int:
    own = spaces.weights.shape[1] if isinstance(spaces, SmallSpaces) else None
    size = asked if asked is not None else own or 10
    check_integer("center_size", size, at_least=2)
    if own is not None and size != own:
        raise ValueError(f"center_size must be that of the quantised heatmaps, {own}, found {size}")
    return size


def _run(
    spaces: Spaces,
    placed: Placed,
    centers: SmallSpaces,
    given: Int[np.ndarray, " n"] | None,
    solver: EntropicGW,
    max_rounds: int,
    key: Array,
    bar: Bar,
) -> GWClusters:
    """Rounds from given centres, and from given labels in place of a first assignment."""
    rounds, converged, settled = 0, False, True
    # Later centres are there, too: a function compiles once for all rounds.
    centers = jax.device_put(on_host(centers), placed.everywhere)
    labels = np.full(len(placed.rows), -1) if given is None else given
    if given is None:
        found, couplings = nearest_couplings(placed.spaces, centers, solver, placed.real)
    else:
        centers, settled, found, couplings = gw_round(
            placed.spaces,
            placed.real,
            placed.of_rows(labels.astype(np.int32)),
            centers,
            None,
            solver,
        )
        rounds = 1
        bar.advance(1)
    while True:
        distances = placed.of_spaces(found.values)
        new = distances.argmin(1)
        if rounds == 0:
            new = _fill_empty(new, distances)
        moved = int((new != labels).sum())
        labels = new
        if moved == 0 or rounds == max_rounds:
            converged = moved == 0
            break
        centers, settled, found, couplings = gw_round(
            placed.spaces,
            placed.real,
            placed.of_rows(labels.astype(np.int32)),
            centers,
            couplings,
            solver,
        )
        rounds += 1
        bar.advance(1, f"{moved} moved")
    bar.advance(max_rounds - rounds)
    sample = evenly(len(labels), _SAMPLE)
    own = on_host(centers).take(labels[sample])
    gain = np.asarray(perturbation_gain(on_host(spaces).take(sample), own, solver, key))
    return GWClusters(
        labels=labels,
        distances=distances,
        centers=centers,
        inertia=float(distances[np.arange(len(labels)), labels].sum()),
        rounds=rounds,
        converged=converged,
        settled=bool(settled),
        unsolved=float(1 - placed.of_spaces(found.converged).mean()),
        information=float(placed.of_spaces(found.information).mean()),
        product=float(placed.of_spaces(found.product).mean()),
        improvable=float((gain > _GAIN).mean()),
    )


def _fill_empty(
    labels: Int[np.ndarray, " n"], distances: Float[np.ndarray, "n k"]
) -> Int[np.ndarray, " n"]:
    """Gives each cluster that no image chose the image farthest from its own centre.

    A quantised heatmap can attract fewer images than another, even not itself;
    its barycentre can. Images that are all equally far stay where they are.
    """
    labels = labels.copy()
    for cluster in np.setdiff1d(np.arange(distances.shape[1]), labels):
        own = distances[np.arange(len(labels)), labels]
        if own.max() - own.min() > 1e-5 * np.abs(own).max():
            labels[own.argmax()] = cluster
    return labels


def gw_round(
    spaces: LaidOut,
    real: Bool[Array, " n"],
    labels: Int[Array, " n"],
    centers: SmallSpaces,
    couplings: Couplings | None,
    solver: EntropicGW,
) -> tuple[SmallSpaces, Bool[Array, ""], Distances, Couplings]:
    """One round of k-means: barycentres of the clusters, then distances to them.

    Args:
        spaces: Rows on all devices.
        real: Which of them hold a heatmap; on every device they come first.
        labels: Cluster of every row.
        centers: Centres before; the barycentres are sought from here.
        couplings: With the nearest of these; by default products.
        solver: How distances are computed.

    Returns:
        The new centres, whether they came to rest, the distances to them, and the couplings
        with the nearest.
    """
    weights = real.astype(jnp.asarray(spaces.weights).dtype)
    start = jnp.asarray(centers.distances)
    found, taken = barycenters_of_rows(spaces, labels, weights, couplings, start, solver)
    return found, taken < ROUNDS, *nearest_couplings(spaces, found, solver, real)


def _seed(
    spaces: Spaces,
    placed: Placed,
    n_clusters: int,
    center_size: int,
    solver: EntropicGW,
    rng: np.random.Generator,
) -> SmallSpaces:
    chosen = [int(rng.integers(len(spaces)))]
    drawn = [_as_center(spaces, chosen[0], center_size)]
    nearest = np.full(len(spaces), np.inf)
    while len(chosen) < n_clusters:
        found = distances_of_placed(placed, drawn[-1], solver).values[:, 0]
        nearest = np.minimum(nearest, np.maximum(found, 0))
        nearest[chosen] = 0
        if nearest.sum() > 0:
            chosen.append(int(rng.choice(len(spaces), p=nearest / nearest.sum())))
        else:
            rest = np.setdiff1d(np.arange(len(spaces)), chosen)
            chosen.append(int(rng.choice(rest)))
        drawn.append(_as_center(spaces, chosen[-1], center_size))
    return jax.tree.map(lambda *parts: np.concatenate(parts), *drawn)


def _nearest_members(small: SmallSpaces, found: GWClusters) -> SmallSpaces:
    """Of every cluster the member nearest to its centre; of an empty one, any space's."""
    of_others = found.labels[:, None] != np.arange(found.distances.shape[1])
    chosen = np.where(of_others, found.distances + found.distances.max(), found.distances)
    return on_host(small).take(chosen.argmin(0))


def _as_center(spaces: Spaces, index: int, size: int) -> SmallSpaces:
    # Host arrays: every process may give them to its devices.
    one = on_host(spaces).take(np.array([index]))
    return quantised(one, size) if isinstance(one, MeasureSpaces) else one
