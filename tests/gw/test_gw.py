import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import ot
import pytest
from ott.geometry import geometry
from ott.problems.quadratic import quadratic_problem
from ott.solvers.linear import sinkhorn
from ott.solvers.quadratic import gromov_wasserstein
from reference import entropic_gw, space
from sklearn.cluster import KMeans

from jaxpoison import (
    EntropicGW,
    SmallSpaces,
    barycenters,
    distances_to_centers,
    measure_spaces,
    quantised,
)
from jaxpoison.gw import barycenters as gw_barycenters
from jaxpoison.gw import distances as gw_distances
from jaxpoison.gw import solver as gw_solver
from jaxpoison.gw.barycenters import barycenters_of_rows
from jaxpoison.gw.distances import center_spread, moments, perturbation_gain, product_change
from jaxpoison.gw.grid import GridGeometry
from jaxpoison.gw.placement import place
from jaxpoison.gw.products import grid_product, laid_out, pixel_distances
from jaxpoison.gw.solver import measure, solve
from jaxpoison.gw.steps import Problems

SIZE = 10


@pytest.fixture(scope="module")
def spaces(heatmaps):
    return measure_spaces(heatmaps)


@pytest.fixture(scope="module")
def plain(heatmaps):
    return [space(h)[1:] for h in heatmaps]


def random_center(seed):
    points = np.random.default_rng(seed).normal(size=(SIZE, 2))
    distances = np.linalg.norm(points[:, None] - points, axis=-1)
    return distances / distances.max()


def normalised(weights):
    weights = np.asarray(weights, float)
    return weights / weights.sum()


def pot(center, center_weights, weights, distances, epsilon):
    return ot.gromov.entropic_gromov_wasserstein(
        center,
        distances,
        center_weights,
        weights,
        "square_loss",
        epsilon=epsilon,
        max_iter=1000,
        tol=1e-9,
        log=True,
    )


def test_grid_is_an_ott_geometry(rng):
    grid = pixel_distances(4, 3)
    ours = GridGeometry(4, 3, jnp.float32(0.25))
    dense = geometry.Geometry(grid * 0.25)
    matrix = jnp.asarray(rng.normal(size=(12, 5)), jnp.float32)
    assert ours.shape == dense.shape == (12, 12)
    np.testing.assert_allclose(ours.cost_matrix, dense.cost_matrix)
    with pytest.raises(ValueError, match="scale_cost must be 1, found mean"):
        GridGeometry(4, 3, jnp.float32(0.25), scale_cost="mean")
    for arr in (matrix, matrix[:, 0]):
        for axis in (0, 1):
            pairs = [
                (ours.apply_cost(arr, axis), dense.apply_cost(arr, axis)),
                (
                    ours.apply_cost(arr, axis, fn=lambda c: 3 * c, is_linear=True),
                    dense.apply_cost(arr, axis, fn=lambda c: 3 * c),
                ),
                (
                    ours.apply_cost(arr, axis, fn=jnp.sqrt),
                    dense.apply_cost(arr, axis, fn=jnp.sqrt),
                ),
                (ours.apply_square_cost(arr, axis), dense.apply_square_cost(arr, axis)),
            ]
            for a, b in pairs:
                np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
    leaves, tree = jax.tree.flatten(ours)
    np.testing.assert_allclose(jax.tree.unflatten(tree, leaves).cost_matrix, ours.cost_matrix)


@pytest.mark.parametrize("size", [(8, 8), (5, 4), (7, 3), (1, 6)])
@pytest.mark.parametrize("power", [1, 2])
def test_grid_product_is_the_dense_one(size, power, rng):
    x = rng.normal(size=(2, 3, size[0] * size[1])).astype(np.float32)
    dense = x @ np.asarray(pixel_distances(*size), float) ** power
    np.testing.assert_allclose(
        grid_product(jnp.asarray(x), *size, power), dense, rtol=1e-4, atol=1e-5 * dense.max()
    )


@pytest.mark.mixes_shapes
def test_otts_solver_takes_the_grid(spaces):
    """OTT's own solver on the grid's geometry, at half of POT's epsilon, agrees with ours."""
    center = random_center(1)
    uniform = jnp.full(SIZE, 1 / SIZE)
    found = distances_to_centers(
        spaces.take(np.arange(2)),
        SmallSpaces(jnp.asarray(center, jnp.float32)[None], uniform[None]),
        EntropicGW(0.1),
    )
    problem = quadratic_problem.QuadraticProblem(
        geometry.Geometry(jnp.asarray(center, jnp.float32)),
        GridGeometry(spaces.height, spaces.width, spaces.factors[0]),
        a=uniform,
        b=spaces.weights[0],
    )
    linear = sinkhorn.Sinkhorn(threshold=1e-5, max_iterations=2000)
    solver = gromov_wasserstein.GromovWasserstein(linear, epsilon=0.05, max_iterations=100)
    solution = solver(problem)
    assert float(solution.primal_cost) == pytest.approx(float(found.values[0, 0]), rel=1e-4)


@pytest.mark.parametrize("epsilon", [0.1, 0.05])
def test_distances_and_plans_are_pots(spaces, plain, heatmaps, epsilon):
    """Epsilon means what it means in POT: OTT's own is half of it."""
    first = quantised(spaces.take(np.arange(1)), SIZE)
    centers = SmallSpaces(
        jnp.stack([jnp.asarray(random_center(1), jnp.float32), first.distances[0]]),
        jnp.stack([jnp.full(SIZE, 1 / SIZE), first.weights[0]]),
    )
    solver = EntropicGW(epsilon)
    found = distances_to_centers(spaces, centers, solver)
    values, information = found.values, found.information
    assert found.converged.all()
    assert not found.product.any()
    for n in (0, 5, 20, 31):
        for k in range(2):
            weights, distances = plain[n]
            plan, log = pot(
                np.asarray(centers.distances[k], float),
                normalised(centers.weights[k]),
                weights,
                distances,
                epsilon,
            )
            # The iterations stop at tolerances of their own, and ours run in float32.
            assert float(values[n, k]) == pytest.approx(log["gw_dist"], rel=1e-4)
            product = normalised(centers.weights[k])[:, None] * weights
            kl = (plan * np.log(plan / product)).sum()
            assert float(information[n, k]) == pytest.approx(kl, rel=0.02, abs=1e-4)


@pytest.mark.parametrize("epsilon", [0.02, 0.005, 0.002, 5e-4])
def test_small_epsilons_in_float32_are_the_float64_iteration(epsilon, rng):
    """Below 0.005 POT's own scaling fails."""
    rows, columns = np.mgrid[:7, :7]
    places = [(2, 3, 4), (4, 3, 8), (1, 5, 6)]
    maps = [np.exp(-((rows - r) ** 2 + (columns - c) ** 2) / s) for r, c, s in places]
    spaces = measure_spaces(np.array(maps) + 0.05 * rng.random((3, 7, 7)))
    center = quantised(spaces.take(np.array([0])), 5)
    found = distances_to_centers(spaces, center, EntropicGW(epsilon))
    assert found.converged.all()
    grid = np.asarray(pixel_distances(7, 7), float)
    for k in range(3):
        held = np.asarray(spaces.weights[k]) > 0
        value, information = entropic_gw(
            center.distances[0],
            grid[np.ix_(held, held)] * float(spaces.factors[k]),
            normalised(center.weights[0]),
            normalised(np.asarray(spaces.weights[k])[held]),
            epsilon,
        )
        # The exponent is 4 / epsilon times distances that are known to 1e-7.
        assert float(found.values[k, 0]) == pytest.approx(value, rel=1e-3)
        assert float(found.information[k, 0]) == pytest.approx(information, rel=1e-3)


def solved(spaces, solver):
    """Plans of all spaces with one centre, laid out as the solver wants them."""
    laid = laid_out(spaces)
    n = len(laid)
    center = jnp.broadcast_to(random_center(5).astype(np.float32), (n, SIZE, SIZE))
    problems = Problems(laid, SmallSpaces(center, jnp.full((n, SIZE), 1 / SIZE)))
    return problems, jax.jit(lambda: solve(problems, solver, n))()


@pytest.mark.parametrize("few", [False, True])
def test_extrapolation_ends_where_plain_linearisations_do_and_sooner(spaces, few, monkeypatch):
    if few:
        spaces = quantised(spaces, SIZE)
    solver = EntropicGW(0.01, tolerance=1e-5)
    problems, sooner = solved(spaces, solver)
    monkeypatch.setattr(gw_solver, "_further", lambda change, _: jnp.zeros_like(change))
    _, plain = solved(spaces, solver)
    assert sooner.converged.all()
    assert plain.converged.all()
    assert sooner.iterations.mean() < 0.8 * plain.iterations.mean()
    values = [
        np.asarray(measure(problems, found.couplings.plans, 4).values) for found in (sooner, plain)
    ]
    np.testing.assert_allclose(*values, rtol=1e-4)


@pytest.mark.parametrize("few", [False, True])
def test_plans_are_plans_wherever_the_iteration_is_cut(spaces, few, monkeypatch):
    """What is extrapolated may be negative; it is where a linearisation is made, not an answer."""
    if few:
        spaces = quantised(spaces, SIZE)
    monkeypatch.setattr(gw_solver, "_further", lambda change, _: jnp.full_like(change, 5))
    for most in (4, 8):
        problems, found = solved(spaces, EntropicGW(0.01, max_iterations=most))
        plans = np.asarray(found.couplings.plans)
        assert plans.min() >= 0
        np.testing.assert_allclose(plans.sum(1), problems.spaces.weights, atol=1e-6)


def test_epsilons_share_a_compilation_and_differ(spaces):
    center = SmallSpaces(random_center(6)[None], np.full((1, SIZE), 1 / SIZE))
    first = distances_to_centers(spaces, center, EntropicGW(0.03))
    compiled = gw_distances._distances._cache_size()
    second = distances_to_centers(spaces, center, EntropicGW(0.04, 1e-4, 300))
    assert gw_distances._distances._cache_size() == compiled
    assert (np.abs(first.values / second.values - 1) > 1e-3).all()


def test_wrong_epsilon_would_be_seen(spaces, plain):
    """The agreement above is not for want of an effect of epsilon."""
    center = random_center(1)
    weights, distances = plain[0]
    uniform = np.full(SIZE, 1 / SIZE)
    values = [pot(center, uniform, weights, distances, e)[1]["gw_dist"] for e in (0.05, 0.1)]
    assert abs(values[0] / values[1] - 1) > 0.01


@pytest.mark.parametrize("epsilon", [0.1, 0.05, 0.02])
def test_barycenters_are_pots(spaces, plain, epsilon):
    labels = np.array([0, 0, 0, 1, 1, 1])
    # Of these, both converge in fewer rounds than they may take; a centre of flatter heatmaps
    # drifts to a constant one at 0.02, and where it is after 50 rounds depends on rounding.
    index = np.array([0, 1, 2, 8, 9, 10])
    start = np.stack([random_center(1), random_center(2)])
    found, _ = barycenters(
        spaces.take(index),
        jnp.asarray(labels),
        jnp.ones(6),
        jnp.asarray(start, jnp.float32),
        EntropicGW(epsilon),
        tolerance=1e-6,
        max_rounds=50,
    )
    for k in range(2):
        members = [plain[i] for i in index[labels == k]]
        expected = ot.gromov.entropic_gromov_barycenters(
            SIZE,
            [d for _, d in members],
            [w for w, _ in members],
            np.full(SIZE, 1 / SIZE),
            [1 / 3] * 3,
            "square_loss",
            epsilon,
            init_C=start[k],
            max_iter=50,
            tol=1e-6,
        )
        np.testing.assert_allclose(found.distances[k], expected, rtol=1e-4, atol=1e-4)


def test_constant_center_gives_the_product_and_its_closed_form(spaces, plain):
    constant = SmallSpaces(jnp.full((1, SIZE, SIZE), 0.4), jnp.full((1, SIZE), 1 / SIZE))
    found = distances_to_centers(spaces, constant, EntropicGW(0.1))
    assert found.product.all()
    np.testing.assert_array_equal(found.information, 0)
    for k in (0, 9, 31):
        weights, distances = plain[k]
        plan, log = pot(
            np.full((SIZE, SIZE), 0.4), np.full(SIZE, 1 / SIZE), weights, distances, 0.1
        )
        np.testing.assert_allclose(plan, np.tile(weights / SIZE, (SIZE, 1)), rtol=1e-6)
        assert float(found.values[k, 0]) == pytest.approx(log["gw_dist"], rel=1e-5)


def test_certificate_holds_what_it_says(spaces):
    """Just beyond it the coupling differs from the product, but by no more than it bounds."""
    spread = jnp.asarray(random_center(3), jnp.float32)
    uniform = jnp.full(SIZE, 1 / SIZE)
    for size in (3e-3, 1e-2, 3e-2):
        centers = SmallSpaces((0.4 + size * spread)[None], uniform[None])
        bound = product_change(
            moments(spaces).spread, center_spread(centers.distances[0], uniform), 0.1
        )
        found = distances_to_centers(spaces, centers, EntropicGW(0.1, tolerance=1e-6))
        assert not found.product.any()
        # A small divergence is about half of the squared change; float32 adds 1e-7 to it.
        assert (found.information <= bound[:, None] ** 2 + 1e-7).all()
        assert (bound > size / 10).all()


def test_members_without_weight_do_not_count(spaces):
    labels = jnp.zeros(32, jnp.int32)
    weights = jnp.asarray(np.arange(32) < 5, jnp.float32)
    start = jnp.asarray(random_center(1)[None], jnp.float32)
    solver = EntropicGW(0.05)
    some, _ = barycenters(spaces, labels, weights, start, solver)
    five, _ = barycenters(spaces.take(np.arange(5)), labels[:5], jnp.ones(5), start, solver)
    np.testing.assert_allclose(some.distances, five.distances, rtol=1e-4)


def test_groups_without_heatmaps_change_nothing(spaces, monkeypatch):
    monkeypatch.setattr(gw_distances, "_GROUP", 4)
    center = SmallSpaces(
        random_center(1)[None].astype(np.float32), np.full((1, SIZE), 0.1, np.float32)
    )
    # Slots of its own: groups are a constant of the compiled function.
    solver = EntropicGW(0.05, slots=15)
    some = distances_to_centers(spaces.take(np.arange(12)), center, solver)
    placed = place(spaces.take(np.arange(12)))
    assert len(placed.real) == 64
    raw, _ = gw_distances._distances(placed.spaces, placed.real, center, solver, False)
    assert (np.asarray(raw.values) == 0).sum() == 64 - 2 * 8
    everyone = distances_to_centers(spaces, center, solver)
    np.testing.assert_allclose(some.values, everyone.values[:12], rtol=1e-5)


def test_extrapolated_barycentres_settle_sooner_and_where_plain_rounds_do(spaces, monkeypatch):
    labels, start = jnp.zeros(32, jnp.int32), jnp.asarray(random_center(3)[None], jnp.float32)

    def settled(solver):
        return barycenters(spaces, labels, jnp.ones(32), start, solver, max_rounds=200)

    sooner, few = settled(EntropicGW(0.02))
    monkeypatch.setattr(gw_barycenters, "_STEADY", 0.0)
    # Another number of slots, so that it is compiled again.
    plain, many = settled(EntropicGW(0.02, slots=15))
    assert int(few) < 0.8 * int(many) < 160
    np.testing.assert_allclose(sooner.distances, plain.distances, atol=5e-4)


def test_a_cluster_that_settles_first_waits_for_the_others(spaces):
    labels = jnp.asarray(np.arange(32) % 4 == 0, jnp.int32)
    start = jnp.asarray(np.stack([random_center(3), random_center(4)]), jnp.float32)
    solver = EntropicGW(0.02)
    both, taken = barycenters(spaces, labels, jnp.ones(32), start, solver, max_rounds=200)
    alone = []
    for k in range(2):
        members = np.flatnonzero(np.asarray(labels) == k)
        own = jnp.zeros(len(members), jnp.int32), jnp.ones(len(members)), start[k][None]
        alone.append(barycenters(spaces.take(members), *own, solver, max_rounds=200))
        np.testing.assert_allclose(both.distances[k], alone[k][0].distances[0], atol=5e-4)
    assert sorted(int(found[1]) for found in alone)[0] < int(taken) < 200


def test_couplings_of_an_assignment_start_barycentres(spaces):
    """They lead to the same barycentres as products do."""
    start = jnp.asarray(np.stack([random_center(1), random_center(2)]), jnp.float32)
    centers = SmallSpaces(start, jnp.full((2, SIZE), 1 / SIZE))
    solver = EntropicGW(0.05)
    placed = place(spaces)
    found, couplings = gw_distances.nearest_couplings(placed.spaces, centers, solver, placed.real)
    usual = distances_to_centers(spaces, centers, solver)
    np.testing.assert_allclose(placed.of_spaces(found.values), usual.values, rtol=1e-6)
    labels = usual.values.argmin(1)
    plans = placed.of_spaces(couplings.plans)
    np.testing.assert_allclose(plans.sum((1, 2)), 1, rtol=1e-5)
    np.testing.assert_allclose(plans.sum(2), 1 / SIZE, rtol=1e-3)
    rows, ones = placed.of_rows(labels.astype(np.int32)), placed.of_rows(np.ones(32, np.float32))
    warm, _ = barycenters_of_rows(placed.spaces, rows, ones, couplings, start, solver)
    cold, _ = barycenters(spaces, labels, jnp.ones(32), start, solver)
    # Rounds end when no entry moves by 2e-5.
    np.testing.assert_allclose(warm.distances, cold.distances, atol=1e-4)


def test_barycentres_rest_only_with_exact_couplings(spaces):
    """The first round's couplings are loose: one that moves nothing does not end the rounds."""
    labels, ones, solver = jnp.zeros(32, jnp.int32), jnp.ones(32), EntropicGW(0.02)
    start = jnp.asarray(random_center(3)[None], jnp.float32)
    rest, _ = barycenters(spaces, labels, ones, start, solver, tolerance=2e-6, max_rounds=200)
    placed = place(spaces)
    _, couplings = gw_distances.nearest_couplings(placed.spaces, rest, solver, placed.real)
    rows = placed.of_rows(np.zeros(32, np.int32)), placed.of_rows(np.ones(32, np.float32))
    again, taken = barycenters_of_rows(placed.spaces, *rows, couplings, rest.distances, solver)
    assert taken == 2
    np.testing.assert_allclose(again.distances, rest.distances, atol=2e-5)


def test_a_better_coupling_than_the_product_is_found():
    """Two far groups, coupled with two far groups: the iteration from the product stays there."""
    groups = np.repeat([0, 1], 5)
    center = (groups[:, None] != groups).astype(np.float32)[None]
    heatmap = np.zeros((1, 16, 16), np.float32)
    heatmap[0, 4:6, 3], heatmap[0, 4:6, 13] = 1, 1
    centers = SmallSpaces(center, np.full((1, 10), 0.1, np.float32))
    solver = EntropicGW(0.02)
    for spaces in (centers, measure_spaces(heatmap)):
        assert distances_to_centers(spaces, centers, solver).product.all()
        gain = perturbation_gain(spaces, centers, solver, jax.random.key(0))
        # Group to group: nearly no distance, log 2 nats, in place of a distance of 1/2.
        assert gain[0] == pytest.approx(1 - 0.02 * np.log(2) / 0.5, abs=0.01)
    constant = dataclasses.replace(centers, distances=np.full_like(center, 0.3))
    gain = perturbation_gain(measure_spaces(heatmap), constant, solver, jax.random.key(0))
    assert abs(gain[0]) < 1e-3


def test_empty_clusters_keep_their_start(spaces):
    start = jnp.asarray(np.stack([random_center(1), random_center(2)]), jnp.float32)
    found, _ = barycenters(spaces, jnp.zeros(32, jnp.int32), jnp.ones(32), start, EntropicGW())
    np.testing.assert_array_equal(found.distances[1], start[1])


def test_quantised_heatmaps_keep_mass_and_size(spaces):
    small = quantised(spaces, SIZE)
    np.testing.assert_allclose(small.weights.sum(1), 1, rtol=1e-5)
    assert (small.weights > 0).all()
    assert ((small.distances.max((1, 2)) > 0.3) & (small.distances.max((1, 2)) <= 1)).all()
    np.testing.assert_allclose(small.distances, small.distances.swapaxes(1, 2))


def test_quantising_is_as_good_as_scikit_learns(spaces):
    """The mean squared distance of mass to its point, beside weighted k-means with ten starts."""
    pixels = np.stack(np.divmod(np.arange(1024), 32), -1).astype(float)
    small = quantised(spaces, SIZE)
    for k in (0, 7, 25):
        weights = np.asarray(spaces.weights[k], float)
        factor = float(spaces.factors[k])
        best = KMeans(SIZE, n_init=10, random_state=0).fit(pixels, sample_weight=weights)
        p = np.asarray(small.weights[k], float)
        # The mean squared distance of a point from itself is twice the spread of its mass.
        spread = np.diag(np.asarray(small.distances[k], float)) ** 2 / 2
        assert p @ spread <= 1.15 * best.inertia_ / weights.sum() * factor**2


def test_quantised_distances_are_root_mean_squares(spaces):
    small = quantised(spaces, SIZE)
    p, distances = np.asarray(small.weights, float), np.asarray(small.distances, float)
    kept = np.einsum("ni,nij,nj->n", p, distances**2, p)
    np.testing.assert_allclose(kept, moments(spaces).squares, rtol=1e-4)


def test_quantising_fewer_pixels_than_points_is_exact():
    maps = np.zeros((1, 6, 6), np.float32)
    maps[0, 1, 1], maps[0, 4, 5], maps[0, 2, 2] = 1, 2, 3
    few = measure_spaces(maps, mass=1.0)
    small = quantised(few, SIZE)
    # The heaviest of three pixels is split into eight.
    expected = sorted([1 / 6, 1 / 3, *[0.5 / 8] * 8])
    np.testing.assert_allclose(sorted(np.asarray(small.weights[0])), expected, rtol=1e-5)
    found = distances_to_centers(few, small, EntropicGW(0.01))
    assert found.converged.all()
    assert float(found.values[0, 0]) == pytest.approx(0, abs=1e-3)
    assert float(found.information[0, 0]) > 0.9


def test_epsilon_must_be_positive():
    with pytest.raises(ValueError, match="epsilon must be above 0"):
        EntropicGW(epsilon=0)
