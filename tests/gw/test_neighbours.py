"""Nearest neighbours: exact where all pairs are measured, and nearly so elsewhere."""

import numpy as np
import pytest

from jaxpoison import debiased_distances, measure_spaces, nearest_neighbours, quantised
from jaxpoison.gw import neighbours
from jaxpoison.gw.solver import EntropicGW

SOLVER = EntropicGW(0.01)


@pytest.fixture(scope="module")
def spaces():
    """Three hundred and twenty blobs of many shapes, quantised."""
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:16, :16]
    maps = np.zeros((320, 16, 16))
    for each in maps:
        for _ in range(rng.integers(1, 4)):
            (r, c), (a, b) = rng.uniform(3, 13, 2), rng.uniform(1, 4, 2)
            each += rng.uniform(0.3, 1) * np.exp(
                -((rows - r) ** 2 / a**2 + (columns - c) ** 2 / b**2) / 2
            )
    return quantised(measure_spaces(maps.astype(np.float32)), 10)


@pytest.fixture(scope="module")
def truth(spaces):
    distances = np.sqrt(debiased_distances(spaces, SOLVER))
    np.fill_diagonal(distances, np.inf)
    return distances


def recall(found, truth, k):
    exact = np.argsort(truth, 1)[:, :k]
    return np.mean([len(set(a) & set(b)) / k for a, b in zip(exact, found.index, strict=True)])


def test_few_spaces_have_exact_neighbours(spaces, truth):
    found = nearest_neighbours(spaces, 7, SOLVER)
    assert found.pairs == 320 * 319 // 2
    np.testing.assert_allclose(found.distances, np.sort(truth, 1)[:, :7], atol=1e-6)
    assert recall(found, truth, 7) == 1
    assert found.landmarks.size == 0


def test_many_have_nearly_all_of_them(spaces, truth, monkeypatch):
    monkeypatch.setattr(neighbours, "_LANDMARKS", 12)
    monkeypatch.setattr(neighbours, "_CANDIDATES", 15)
    # Parts of rows, so that seams would show.
    monkeypatch.setattr(neighbours, "_ROWS", 100)
    found = nearest_neighbours(spaces, 5, SOLVER, all_pairs=100)
    assert recall(found, truth, 5) >= 0.98
    assert found.pairs < 0.75 * 320 * 319 / 2
    np.testing.assert_array_equal(np.sort(found.distances, 1), found.distances)
    rows = np.arange(320)[:, None]
    assert (found.index != rows).all()
    np.testing.assert_allclose(found.distances, truth[rows, found.index], atol=1e-6)
    np.fill_diagonal(truth, 0)
    np.testing.assert_allclose(found.to_landmarks, truth[:, found.landmarks], atol=1e-6)
    np.fill_diagonal(truth, np.inf)
    again = nearest_neighbours(spaces, 5, SOLVER, all_pairs=100)
    np.testing.assert_array_equal(found.index, again.index)


def test_measured_pairs_are_not_measured_again(spaces, tmp_path, monkeypatch):
    monkeypatch.setattr(neighbours, "_BLOCK", 3000)
    some = spaces.take(np.arange(120))
    once, calls = neighbours.pair_distances, []

    def counted(spaces, pairs, *args, **options):
        calls.append(len(pairs))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return once(spaces, pairs, *args, **options)

    monkeypatch.setattr(neighbours, "pair_distances", counted)
    with pytest.raises(KeyboardInterrupt):
        nearest_neighbours(some, 4, SOLVER, folder=tmp_path)
    # What was measured before the interruption is there; the rest is made now.
    found = nearest_neighbours(some, 4, SOLVER, folder=tmp_path)
    assert sum(calls) == 120 + 120 * 119 // 2 + calls[2]
    nearest_neighbours(some, 4, SOLVER, folder=tmp_path)
    assert len(calls) == 3 + 2
    # Other spaces, or another solver, are other files.
    other = nearest_neighbours(some, 4, EntropicGW(0.02), folder=tmp_path)
    assert not np.allclose(other.distances, found.distances)


def test_what_is_no_number_of_neighbours_is_refused(spaces):
    some = spaces.take(np.arange(6))
    for k in (0, 6):
        with pytest.raises(ValueError, match=r"k must be at (least 1|most .* 5), found"):
            nearest_neighbours(some, k)
