import numpy as np
import pytest
from sklearn.metrics import silhouette_samples

from jaxpoison import (
    EntropicGW,
    all_distances,
    debiased_distances,
    measure_spaces,
    quantised,
    separation,
)
from jaxpoison.evidence.separation import sample, spectrum


def between(points):
    return np.linalg.norm(points[:, None] - points, axis=-1)


@pytest.mark.parametrize("groups", [1, 2, 3])
def test_eigenvalues_near_zero_count_the_groups(rng, groups):
    points = rng.normal(size=(90, 3)) + 100 * (np.arange(90) % groups)[:, None]
    found = spectrum(between(points))
    assert (found < 1e-10).sum() == groups
    assert (np.diff(found) >= 0).all()
    assert len(found) == 10


def test_spectrum_is_that_of_the_random_walk(rng):
    """Eigenvalues of the normalised Laplacian are one less those of the walk on the graph."""
    distances = between(rng.normal(size=(30, 2)))
    joined = np.zeros((30, 30))
    for i, row in enumerate(distances):
        joined[i, [j for j in np.argsort(row) if j != i][:4]] = 1
    joined = np.maximum(joined, joined.T)
    walk = np.linalg.eigvals(joined / joined.sum(1, keepdims=True))
    expected = np.sort(1 - walk.real)[:10]
    np.testing.assert_allclose(spectrum(distances, 4), expected, atol=1e-9)


def test_few_suspects_are_among_those_compared(rng):
    clusters = np.zeros(1650, int)
    clusters[[3, 500, 1000, 1641]] = 1
    chosen = sample(clusters)
    assert clusters[chosen].sum() == 4
    assert len(chosen) == len(set(chosen)) == 256
    assert np.diff(chosen).max() < 10
    crowd = (np.arange(1650) < 40).astype(int)
    chosen = sample(crowd)
    assert (len(chosen), crowd[chosen].sum()) == (256, 16)
    # With many suspects, or none, members evenly over the class.
    for clusters in ((rng.random(1650) < 0.3).astype(int), np.zeros(1650, int)):
        np.testing.assert_array_equal(sample(clusters), np.linspace(0, 1649, 256).astype(int))
    np.testing.assert_array_equal(sample(crowd[:200]), np.arange(200))


def test_poisoned_and_clean_heatmaps_lie_apart(heatmaps):
    small = quantised(measure_spaces(heatmaps), 10)
    truth = np.arange(32) < 16
    solver = EntropicGW(0.02)
    distances = debiased_distances(small, solver)
    matrix = all_distances(small, solver).astype(float)
    debiased = matrix - (np.diag(matrix)[:, None] + np.diag(matrix)) / 2
    np.fill_diagonal(debiased, 0)
    np.testing.assert_allclose(distances, np.maximum(debiased, 0), atol=1e-6)
    found = separation(distances, truth)
    expected = silhouette_samples(distances, truth, metric="precomputed").mean()
    assert found.silhouette == pytest.approx(expected)
    assert found.silhouette > 0.3
    by_chance = separation(distances, np.arange(32) % 2)
    assert by_chance.silhouette < 0.05
    np.testing.assert_array_equal(found.eigenvalues, by_chance.eigenvalues)
    assert found.eigengap == found.eigenvalues[2] - found.eigenvalues[1]
    assert separation(distances, np.zeros(32, int)).silhouette is None


def test_what_cannot_be_measured_is_refused(rng):
    distances = between(rng.normal(size=(20, 2)))
    with pytest.raises(ValueError, match=r"one cluster per point \(20\), found 3"):
        separation(distances, np.zeros(3, int))
    with pytest.raises(ValueError, match=r"at least three points, found shape \(2, 2\)"):
        separation(distances[:2, :2], np.zeros(2, int))
    with pytest.raises(ValueError, match=r"a square of distances .* found shape \(20, 5\)"):
        separation(distances[:, :5], np.zeros(20, int))
    with pytest.raises(ValueError, match="neighbors must be at least 1, found 0"):
        separation(distances, np.zeros(20, int), neighbors=0)
