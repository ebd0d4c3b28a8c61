import jax
import jax.numpy as jnp
import numpy as np
import ot
import pytest
from reference import entropic_gw, space
from scipy.spatial.distance import cdist
from scipy.special import logsumexp

from jaxpoison import (
    EntropicGW,
    SmallSpaces,
    all_distances,
    distances_to_centers,
    measure_spaces,
    pair_distances,
    quantised,
)
from jaxpoison.gw import pairs as module
from jaxpoison.gw.layouts import ProblemsFirst, ProblemsLast
from jaxpoison.gw.solver import solve
from jaxpoison.gw.steps import Problems, arranged, product_plans, step

SIZE = 6


@pytest.fixture(scope="module")
def spaces(heatmaps):
    return measure_spaces(heatmaps)


def pot(first, second, epsilon):
    (a, c), (b, d) = first, second
    plan, log = ot.gromov.entropic_gromov_wasserstein(
        c, d, a, b, "square_loss", epsilon=epsilon, max_iter=1000, tol=1e-9, log=True
    )
    held = plan > 0
    information = (plan[held] * np.log(plan[held] / np.outer(a, b)[held])).sum()
    return log["gw_dist"], information


@pytest.mark.parametrize("epsilon", [0.1, 0.05])
def test_distances_between_heatmaps_are_pots(spaces, heatmaps, epsilon):
    pairs = np.array([[0, 1], [0, 20], [17, 25]])
    found = pair_distances(spaces, pairs, EntropicGW(epsilon))
    assert found.converged.all()
    for k, pair in enumerate(pairs):
        value, information = pot(*(space(heatmaps[i])[1:] for i in pair), epsilon)
        assert found.values[k] == pytest.approx(value, rel=1e-4)
        assert found.information[k] == pytest.approx(information, rel=0.02)


@pytest.mark.parametrize("epsilon", [0.1, 0.02])
def test_distances_between_small_spots_are_pots(rng, epsilon):
    """Most pixels hold no mass, and lie farther apart than those that do."""
    maps = np.zeros((3, 32, 32))
    maps[0, 3:8, 4:9] = rng.uniform(0.5, 1, (5, 5))
    maps[1, 20:28, 10:18] = rng.uniform(0.5, 1, (8, 8))
    maps[2, 12:17, 12:20] = rng.uniform(0.5, 1, (5, 8))
    pairs = np.array([[0, 1], [0, 2], [2, 2]])
    found = pair_distances(measure_spaces(maps), pairs, EntropicGW(epsilon))
    assert found.converged.all()
    whole = [space(heatmap)[1:] for heatmap in maps]
    for k, (i, j) in enumerate(pairs):
        value, information = pot(whole[i], whole[j], epsilon)
        assert found.values[k] == pytest.approx(value, rel=2e-3)
        assert found.information[k] == pytest.approx(information, rel=0.02, abs=1e-3)


def float64_iteration(first, second, epsilon):
    """The same iteration in float64, with potentials taken out of the kernel again and again."""
    (a, c), (b, d) = first, second
    plan, g = np.outer(a, b), np.zeros(len(b))
    for _ in range(80):
        exponent = 4 / epsilon * (c @ plan @ d)
        scalings, error = 0, 1.0
        while error > 1e-5 and scalings < 500:
            f = np.log(a) - logsumexp(exponent + g[None], axis=1)
            g = np.log(b) - logsumexp(exponent + f[:, None], axis=0)
            kernel = np.exp(exponent + f[:, None] + g[None])
            u, v = np.ones(len(a)), np.ones(len(b))
            while error > 1e-5 and max(np.abs(np.log(u)).max(), np.abs(np.log(v)).max()) < 100:
                u = a / (kernel @ v)
                v = b / (u @ kernel)
                error, scalings = np.abs(u * (kernel @ v) - a).sum(), scalings + 1
                if scalings == 500:
                    break
            f, g = f + np.log(u), g + np.log(v)
        new = u[:, None] * kernel * v[None]
        change, plan = np.abs(new - plan).sum(), new
        if change < 1e-5:
            break
    return a @ c**2 @ a + b @ d**2 @ b - 2 * ((c @ plan @ d) * plan).sum()


def smooth_maps(side, rng, count=3):
    """Sums of a few spots, on all of the grid."""
    rows, columns = np.mgrid[:side, :side]
    maps = np.zeros((count, side, side))
    for each in maps:
        for _ in range(4):
            y, x = rng.uniform(0, side, 2)
            width = rng.uniform(side / 10, side / 4)
            each += rng.uniform(0.3, 1) * np.exp(-((rows - y) ** 2 + (columns - x) ** 2) / width**2)
    return (maps * rng.uniform(0.7, 1, maps.shape)).astype(np.float32)


@pytest.mark.parametrize("side", [10, 16])
@pytest.mark.parametrize("epsilon", [2e-3, 1e-3, 5e-4])
def test_small_epsilons_are_those_of_float64(side, epsilon):
    """Where a kernel of float32 underflows."""
    maps = smooth_maps(side, np.random.default_rng(0))
    spaces = measure_spaces(maps)
    pairs = np.array([[0, 0], [0, 1], [1, 2]])
    found = pair_distances(spaces, pairs, EntropicGW(epsilon))
    assert found.converged.all()
    sides = []
    for k in range(3):
        weights = np.asarray(spaces.weights[k], np.float64)
        places = np.argwhere(weights.reshape(side, side) > 0).astype(float)
        kept = weights[weights > 0]
        sides.append((kept / kept.sum(), cdist(places, places) * float(spaces.factors[k])))
    expected = [float64_iteration(sides[i], sides[j], epsilon) for i, j in pairs]
    np.testing.assert_allclose(found.values, expected, rtol=5e-3, atol=1.5e-4)


@pytest.mark.parametrize("epsilon", [0.1, 0.005, 5e-4, 1e-5])
def test_no_distance_is_negative(epsilon, rng):
    """Between equal spaces it is nothing but rounding at small epsilons, and roots are taken."""
    maps = smooth_maps(12, rng, 4)
    maps = np.concatenate([maps, maps])
    solver = EntropicGW(epsilon, max_iterations=40)
    whole = measure_spaces(maps)
    small = quantised(whole, 5)
    pairs = np.stack([np.arange(4), np.arange(4) + 4], -1)
    for spaces in (whole, small):
        assert (pair_distances(spaces, pairs, solver).values >= 0).all()
    for spaces in (whole, small):
        assert (distances_to_centers(spaces, small, solver).values >= 0).all()
    assert (all_distances(small, solver) >= 0).all()


def test_where_float32_tells_nothing_apart_nothing_counts_as_solved(spaces):
    small = quantised(spaces, SIZE).take(np.arange(4))
    assert not pair_distances(small, np.array([[0, 1]]), EntropicGW(1e-8)).converged.any()


def test_distances_between_quantised_heatmaps_are_the_plain_iterations(spaces):
    small = quantised(spaces, SIZE).take(np.array([0, 1, 20]))
    found = all_distances(small, EntropicGW(0.03))
    assert found.shape == (3, 3)
    np.testing.assert_array_equal(found, found.T)
    for i in range(3):
        for j in range(3):
            masses = [np.asarray(small.weights[k], float) for k in (i, j)]
            value, _ = entropic_gw(
                small.distances[i], small.distances[j], *(w / w.sum() for w in masses), 0.03
            )
            # Not 0 on the diagonal: the entropy spreads every coupling.
            assert found[i, j] == pytest.approx(value, rel=1e-3)


def test_pairs_are_distances_to_centers(spaces):
    """The same problems by the other way in, in another order."""
    small = quantised(spaces, SIZE)
    solver = EntropicGW(0.02)
    matrix = np.asarray(distances_to_centers(small, small.take(np.arange(3)), solver).values)
    pairs = np.stack(np.meshgrid(np.arange(32), np.arange(3), indexing="ij"), -1).reshape(-1, 2)
    found = pair_distances(small, pairs, solver)
    np.testing.assert_allclose(found.values, matrix.ravel(), rtol=1e-4)


def test_a_step_with_problems_last_is_the_one_with_problems_first(spaces):
    small = quantised(spaces, SIZE)
    problems = Problems(small.take(np.arange(8)), small.take(np.arange(8, 16)))
    plan, potential = product_plans(problems), jnp.zeros((8, SIZE))
    last = ProblemsLast()
    there = last.arranged(plan), last.arranged(potential)
    for _ in range(3):
        plan, potential, error = step(arranged(problems, 0.02, ProblemsFirst()), plan, potential)
        *there, error_there = step(arranged(problems, 0.02, last), *there)
        np.testing.assert_allclose(last.restored(there[0]), plan, rtol=1e-3, atol=1e-6)
        np.testing.assert_allclose(last.restored(there[1]), potential, rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(error_there, error, atol=1e-5)


def test_small_problems_end_where_they_are_told(spaces):
    """Several steps are made before slots change; no problem takes more than its own."""
    small = quantised(spaces, SIZE)
    problems = Problems(small.take(np.arange(8)), small.take(np.arange(8, 16)))
    found = solve(problems, EntropicGW(0.005, max_iterations=5), 8)
    assert (found.iterations <= 5).all()
    assert not found.converged.all()


def test_small_systems_are_solved(rng):
    roots = rng.normal(size=(5, SIZE, SIZE))
    matrices = np.einsum("bik,bjk->bij", roots, roots) + 0.1 * np.eye(SIZE)
    right = rng.normal(size=(5, SIZE))
    expected = np.linalg.solve(matrices, right[:, :, None])[:, :, 0]
    for layout in (ProblemsFirst(), ProblemsLast()):
        given = [layout.arranged(x.astype(np.float32)) for x in (matrices, right)]
        found = layout.restored(layout.solved(*given))
        np.testing.assert_allclose(found, expected, rtol=1e-2, atol=1e-3)


def test_blocks_change_nothing(spaces, monkeypatch):
    small = quantised(spaces, SIZE)
    pairs = np.stack(np.triu_indices(7), -1)
    one = pair_distances(small, pairs, EntropicGW(0.05))
    jax.clear_caches()
    monkeypatch.setattr(module, "_SMALL_BLOCK", 4)
    monkeypatch.setattr(module, "_SMALL_GROUP", 3)
    many = pair_distances(small, pairs, EntropicGW(0.05))
    np.testing.assert_allclose(one.values, many.values, rtol=1e-5)
    jax.clear_caches()


def test_no_pairs_give_nothing(spaces):
    found = pair_distances(spaces, np.zeros((0, 2), int))
    assert len(found.values) == len(found.converged) == 0


def test_wrong_pairs_are_refused():
    small = SmallSpaces(np.ones((3, 2, 2), np.float32), np.full((3, 2), 0.5, np.float32))
    with pytest.raises(ValueError, match=r"shape \[k, 2\], found int64 \(3,\)"):
        pair_distances(small, np.arange(3))
    with pytest.raises(ValueError, match="indices from 0 to 2, found 0 to 3"):
        pair_distances(small, np.array([[0, 3]]))
