import numpy as np
import pytest
from sklearn.metrics import silhouette_samples

from jaxpoison import EntropicGW, all_distances, measure_spaces, quantised, separation
from jaxpoison.separation import spectrum


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


def test_poisoned_and_clean_heatmaps_lie_apart(heatmaps):
    spaces = measure_spaces(heatmaps)
    truth = np.arange(32) < 16
    solver = EntropicGW(0.02)
    found = separation(spaces, truth, solver, sample=32)
    matrix = all_distances(quantised(spaces, 10), solver).astype(float)
    debiased = matrix - (np.diag(matrix)[:, None] + np.diag(matrix)) / 2
    np.fill_diagonal(debiased, 0)
    expected = silhouette_samples(np.maximum(debiased, 0), truth, metric="precomputed").mean()
    assert found.silhouette == pytest.approx(expected, abs=1e-3)
    assert found.silhouette > 0.3
    by_chance = separation(spaces, np.arange(32) % 2, solver, sample=32)
    assert by_chance.silhouette < 0.05
    np.testing.assert_array_equal(found.eigenvalues, by_chance.eigenvalues)
    assert found.eigengap == found.eigenvalues[2] - found.eigenvalues[1]
    # A larger sample than there are heatmaps changes nothing.
    filled = separation(spaces, truth, solver, sample=40)
    assert filled.silhouette == pytest.approx(found.silhouette, abs=1e-4)
    assert separation(spaces, np.zeros(32, int), solver, sample=32).silhouette is None


def test_what_cannot_be_measured_is_refused(heatmaps):
    spaces = measure_spaces(heatmaps)
    with pytest.raises(ValueError, match=r"one label per heatmap \(32\), found 3"):
        separation(spaces, np.zeros(3, int))
    with pytest.raises(ValueError, match="at least three heatmaps, found 2"):
        separation(spaces.take(np.arange(2)), np.zeros(2, int))
    with pytest.raises(ValueError, match="sample must be at least 3, found 2"):
        separation(spaces, np.zeros(32, int), sample=2)
