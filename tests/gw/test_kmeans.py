import jax
import numpy as np
import pytest
from reference import space, two_means
from sklearn.exceptions import ConvergenceWarning

from jaxpoison import EntropicGW, gw_kmeans, measure_spaces, quantised
from jaxpoison.gw import barycenters as gw_barycenters
from jaxpoison.gw import distances as gw_distances
from jaxpoison.gw.distances import moments
from jaxpoison.gw.kmeans import UninformativeCouplingsWarning

# At this epsilon most distances have a closed form.
PAPERS = EntropicGW(0.1)


def discs(rng, count, radius):
    rows, columns = np.mgrid[:16, :16]
    maps = []
    for _ in range(count):
        r, c = rng.uniform(6, 10, 2)
        maps.append(np.exp(-((rows - r) ** 2 + (columns - c) ** 2) / 2 / radius**2))
    return np.array(maps) * rng.uniform(0.8, 1.2, (count, 16, 16))


@pytest.fixture
def families(rng):
    """Broad blobs, and blobs with one very bright spot."""
    broad = discs(rng, 30, 4.0)
    spotted = discs(rng, 12, 4.0)
    for k, heatmap in enumerate(spotted):
        heatmap[3 + k % 8, 4:6] += 150
    return measure_spaces(np.concatenate([broad, spotted]))


@pytest.mark.parametrize("epsilon", [0.1, 0.02])
def test_families_are_told_apart(families, epsilon):
    found = gw_kmeans(families, solver=EntropicGW(epsilon), n_init=2)
    assert found.converged
    assert len(set(found.labels[:30])) == len(set(found.labels[30:])) == 1
    assert found.labels[0] != found.labels[-1]
    nearest = found.distances.argmin(1)
    assert (nearest == found.labels).all()
    assert found.inertia == pytest.approx(found.distances.min(1).sum(), rel=1e-5)


def test_papers_epsilon_is_two_means_of_the_mean_distance(heatmaps):
    """With constant barycentres the distance compares one number per heatmap."""
    with pytest.warns(UninformativeCouplingsWarning, match="at epsilon 0.1 the barycentres are"):
        found = gw_kmeans(measure_spaces(heatmaps), solver=EntropicGW(0.1))
    assert found.information == 0
    assert found.product == 1
    numbers = np.array([w @ d @ w for _, w, d in map(space, heatmaps)])
    assert (two_means(numbers, found.labels) == found.labels).all()


def test_seed_decides(families):
    a, b = (gw_kmeans(families, solver=PAPERS, random_state=3) for _ in range(2))
    assert (a.labels == b.labels).all()
    assert a.inertia == b.inertia


def test_given_start_is_taken(families):
    drawn = gw_kmeans(families, solver=PAPERS)
    centers = drawn.centers.take(np.array([1, 0]))
    swapped = gw_kmeans(families, solver=PAPERS, start=centers, n_init=5, random_state=9)
    assert (swapped.labels == 1 - drawn.labels).all()


def test_runs_compete_quantised(families):
    """The labels of the best of several quick runs start the one on whole heatmaps."""
    small = quantised(families, 10)
    one, several = (gw_kmeans(small, solver=PAPERS, n_init=k, max_rounds=1) for k in (1, 4))
    assert several.inertia <= one.inertia
    whole = gw_kmeans(families, solver=PAPERS, n_init=4, max_rounds=1)
    # After one round these are the barycentres of the quick labels: constant, and so
    # their members' mean distance. Rounds end when no entry moves by 2e-5.
    means = np.asarray(moments(families).mean)
    for k, center in enumerate(whole.centers.distances):
        np.testing.assert_allclose(center, means[several.labels == k].mean(), atol=1e-4)


def test_more_clusters_and_centre_points(families):
    found = gw_kmeans(families, n_clusters=3, solver=PAPERS, center_size=6, max_rounds=3)
    assert found.centers.distances.shape == (3, 6, 6)
    assert found.distances.shape == (42, 3)


def test_equal_heatmaps_make_one_cluster_and_a_warning():
    one = np.random.default_rng(0).gamma(0.5, size=(1, 8, 8))
    with pytest.warns(ConvergenceWarning, match="only 1 of 2 clusters have members"):
        found = gw_kmeans(measure_spaces(np.repeat(one, 5, 0)), solver=PAPERS)
    assert (found.labels == found.labels[0]).all()


def test_rings_keep_their_structure(rng):
    """All points of a ring see the same mean distance, as those of a constant centre do."""
    rows, columns = np.mgrid[:16, :16] - 7.5
    ring = np.exp(-((np.hypot(rows, columns) - 6) ** 2) / 0.5)
    spaces = measure_spaces(ring * rng.uniform(0.9, 1.1, (6, 16, 16)))
    found = gw_kmeans(spaces, n_clusters=1, solver=EntropicGW(0.02))
    assert np.asarray(found.centers.distances).std() > 0.2
    # From a constant centre it would be the variance of the distances, 0.07.
    assert found.inertia / 6 < 0.02
    assert found.information > 0.5


def test_barycentres_that_do_not_come_to_rest_are_told_of(heatmaps):
    small = quantised(measure_spaces(heatmaps), 10)
    assert not gw_kmeans(small, solver=EntropicGW(0.01), max_rounds=2).settled
    assert gw_kmeans(small, solver=PAPERS, max_rounds=2).settled


def test_rounds_share_one_compilation(families):
    small = quantised(families, 10)
    jax.clear_caches()
    found = gw_kmeans(small, solver=EntropicGW(0.02), start=small.take(np.array([0, 1])))
    assert found.rounds > 1
    assert gw_barycenters.barycenters_of_rows._cache_size() == 1
    assert gw_distances._distances._cache_size() == 1


def test_bad_numbers_are_refused(families):
    with pytest.raises(ValueError, match="50 clusters need as many heatmaps, found 42"):
        gw_kmeans(families, n_clusters=50)
    with pytest.raises(TypeError, match="n_init must be an integer, found 1.5"):
        gw_kmeans(families, n_init=1.5)
