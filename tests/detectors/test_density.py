"""Groups of heatmaps by density, with a small group in a wide family."""

import importlib

import numpy as np
import pytest
from sklearn.base import clone

from jaxpoison import DETECTORS, HeatmapDensity, measure_spaces, quantised
from jaxpoison.detectors.density import critical_epsilon
from jaxpoison.gw.pairs import debiased_distances
from jaxpoison.gw.solver import EntropicGW


def blobs(rng, count):
    """A wide family: blobs of many sizes and shapes."""
    rows, columns = np.mgrid[:16, :16]
    maps = []
    for _ in range(count):
        (r, c), (a, b) = rng.uniform(6, 10, 2), rng.uniform(2, 5, 2)
        maps.append(np.exp(-((rows - r) ** 2 / a**2 + (columns - c) ** 2 / b**2) / 2))
    return np.array(maps) * rng.uniform(0.8, 1.2, (count, 16, 16))


@pytest.fixture(scope="module")
def family():
    """Ninety blobs, nine of them with one very bright spot somewhere."""
    rng = np.random.default_rng(0)
    maps = blobs(rng, 90)
    spotted = np.arange(90) % 10 == 4
    for k in np.flatnonzero(spotted):
        r, c = rng.integers(3, 12, 2)
        maps[k, r : r + 2, c : c + 2] += 60
    return maps.astype(np.float32), spotted


@pytest.fixture(scope="module")
def fitted(family):
    return HeatmapDensity().fit(family[0])


def test_a_small_group_is_found_whole_and_pure(family, fitted):
    maps, spotted = family
    assert any(np.array_equal(group, np.flatnonzero(spotted)) for group in fitted.groups_[1:])
    assert not spotted[fitted.groups_[0]].any()
    assert fitted.labels_[spotted].all()
    # The score orders them, whatever else is proposed.
    scores = fitted.detection_.scores
    assert scores[spotted].min() > np.quantile(scores[~spotted], 0.95)


def test_groups_and_noise_are_all_heatmaps_once(family, fitted):
    sizes = [len(group) for group in fitted.groups_]
    assert sizes == sorted(sizes, reverse=True)
    assert min(sizes) >= 8
    everyone = np.sort(np.concatenate([*fitted.groups_, fitted.noise_]))
    np.testing.assert_array_equal(everyone, np.arange(len(family[0])))
    assert fitted.labels_.sum() == sum(sizes[1:])
    assert fitted.detection_.notes["groups"] == len(sizes)
    assert fitted.detection_.notes["noise"] == len(fitted.noise_)


def test_scores_are_differences_of_mean_distances(family, fitted):
    spaces = quantised(measure_spaces(family[0]), 10)
    distances = np.sqrt(debiased_distances(spaces, EntropicGW(fitted.epsilon_)))
    np.testing.assert_allclose(
        fitted.sample_distances(np.arange(20)), distances[:20, :20] ** 2, atol=1e-5
    )
    for k in (4, 0, 33):
        means = [
            np.sort([distances[k, i] for i in group if i != k])[:5].mean()
            for group in fitted.groups_
        ]
        expected = means[0] - min(means[1:])
        assert fitted.detection_.scores[k] == pytest.approx(expected, abs=1e-3)


def test_epsilon_follows_from_the_heatmaps(family, fitted):
    spaces = quantised(measure_spaces(family[0]), 10)
    assert fitted.epsilon_ == pytest.approx(critical_epsilon(spaces) / 2)
    assert HeatmapDensity(epsilon=0.01).fit(family[0][:20]).epsilon_ == 0.01


def test_heatmaps_of_one_kind_propose_nothing_or_noise():
    """Without a group at all, the score is the distance to the others."""
    alike = blobs(np.random.default_rng(1), 12)
    found = HeatmapDensity(min_cluster_size=12).fit(alike)
    assert not found.labels_.any()
    assert np.isfinite(found.detection_.scores).all()
    assert len(found.noise_) + sum(map(len, found.groups_)) == 12


def test_real_heatmaps_of_two_kinds(heatmaps):
    """Sixteen poisoned and sixteen clean ones of a real run."""
    found = HeatmapDensity(min_cluster_size=5, min_samples=3).fit(heatmaps)
    poisoned = np.arange(32) < 16
    for group in found.groups_:
        assert poisoned[group].mean() in (0, 1)
    assert sum(len(group) for group in found.groups_ if poisoned[group].all()) >= 12


def test_it_is_an_estimator_and_refuses_what_it_cannot_do(family):
    detector = clone(HeatmapDensity(points=8, min_samples=3))
    assert detector.get_params()["points"] == 8
    assert isinstance(DETECTORS["heatmap_density"].make(3), HeatmapDensity)
    with pytest.raises(ValueError, match="groups of 8 and densities of 5 .* found 7"):
        HeatmapDensity().fit(family[0][:7])
    with pytest.raises(TypeError, match="min_samples must be an integer, found 2.5"):
        HeatmapDensity(min_samples=2.5).fit(family[0])
    with pytest.raises(ValueError, match="min_cluster_size must be at least 2, found 1"):
        HeatmapDensity(min_cluster_size=1).fit(family[0])
    black = np.concatenate([family[0][:10], np.zeros((1, 16, 16), np.float32)])
    with pytest.raises(ValueError, match="1 of 11 heatmaps are constant"):
        HeatmapDensity().fit(black)


def test_many_heatmaps_are_grouped_by_their_neighbours(family, fitted, monkeypatch):
    """Groups are those of all pairs, and scores order as before."""
    maps, spotted = family
    module = importlib.import_module("jaxpoison.detectors.density")
    monkeypatch.setattr(module, "_ALL_PAIRS", 50)
    found = HeatmapDensity().fit(maps)
    assert any(np.array_equal(group, np.flatnonzero(spotted)) for group in found.groups_[1:])
    assert not spotted[found.groups_[0]].any()
    scores = found.detection_.scores
    assert scores[spotted].min() > np.quantile(scores[~spotted], 0.95)
    chosen = np.array([4, 14, 30, 71])
    np.testing.assert_allclose(
        found.sample_distances(chosen), fitted.sample_distances(chosen), atol=1e-4
    )


def test_heatmaps_without_structure_are_grouped_by_nothing():
    """Of two pixels each, that see each other alike: no epsilon follows from them."""
    heatmaps = np.zeros((20, 8, 8), np.float32)
    heatmaps[:, 2, 3] = heatmaps[:, 5, 5] = 1
    found = HeatmapDensity().fit(heatmaps)
    assert found.epsilon_ == 1e-3
    assert found.detection_.suspects.sum() == 0
