import numpy as np
import pytest
from sklearn.base import clone

from jaxpoison import (
    ActivationClustering,
    HeatmapClustering,
    MeanDistanceClustering,
    RawClustering,
)
from jaxpoison.detectors.detection import two_way_detection


@pytest.fixture
def activations(rng):
    """A large and a small group, in 40 dimensions."""
    points = rng.normal(size=(80, 40))
    points[60:, 3] += 12
    return points


@pytest.mark.parametrize("projection", ["pca", "ica"])
def test_activation_clustering_suspects_the_smaller_group(activations, projection):
    # Independent components all have variance 1: noise among them hides the groups.
    detector = ActivationClustering(projection, 10 if projection == "pca" else 2)
    assert detector.fit(activations) is detector
    found = detector.detection_
    assert found.suspects.tolist() == [False] * 60 + [True] * 20
    assert found.cluster_sizes == (60, 20)
    assert (detector.labels_ == found.labels).all()
    assert ((found.scores > 0) == found.suspects).all()
    assert found.seconds > 0
    assert found.converged


def test_unfinished_ica_is_reported(activations, monkeypatch):
    from jaxpoison.detectors import projection

    monkeypatch.setattr(projection, "_ICA_ITERATIONS", 1)
    assert not ActivationClustering("ica").fit(activations).detection_.converged


def test_raw_clustering_sees_grey_values(rng):
    images = rng.integers(0, 30, (40, 8, 8, 3)).astype(np.uint8)
    images[30:] += 150
    assert RawClustering().fit(images).labels_.tolist() == [0] * 30 + [1] * 10
    # Colours of equal luma look the same.
    same = np.zeros((40, 8, 8, 3), np.uint8)
    same[:, :, :, 0], same[:, ::2, :, 0] = 100, 0
    other = same.copy()
    other[..., 1], other[..., 0] = same[..., 0] * 0.299 / 0.587, 0
    features = RawClustering().features(np.concatenate([same[:1], other[:1]]))
    np.testing.assert_allclose(features[0], features[1], atol=3e-3)


def test_heatmap_clustering_reports_its_couplings(heatmaps):
    detector = HeatmapClustering(epsilon=0.1, random_state=1).fit(heatmaps)
    found = detector.detection_
    assert found.notes["coupling_information_nats"] < 1e-3
    assert found.notes["epsilon"] == 0.1
    assert ((found.scores > 0) == found.suspects).all()
    smaller = found.suspects if found.suspects.sum() <= 16 else ~found.suspects
    # Half the maps are poisoned, so either may be the smaller part; the parts are right.
    assert smaller[:16].mean() > 0.9 or smaller[:16].mean() < 0.1
    assert abs(smaller[:16].mean() - smaller[16:].mean()) > 0.8


def test_a_split_and_its_distances_agree(heatmaps):
    some = heatmaps[:28]  # Sixteen of one kind, twelve of the other.
    detector = HeatmapClustering(mode="quick", n_init=2).fit(some)
    assert detector.labels_.sum() == 12
    distances = detector.sample_distances(np.array([27, 3, 14]))
    assert distances[0, 1] > 2 * distances[1, 2]


def test_mean_distance_is_that_of_the_mass(heatmaps):
    detector = MeanDistanceClustering().fit(heatmaps)
    pixels = np.stack(np.divmod(np.arange(1024), 32), -1).astype(float)
    distances = np.linalg.norm(pixels[:, None] - pixels, axis=-1)
    for k in (0, 20):
        mass = np.sort((heatmaps[k] - heatmaps[k].min()).ravel().astype(float))[::-1]
        least = mass[np.searchsorted(np.cumsum(mass), 0.99 * mass.sum())]
        mass = (heatmaps[k] - heatmaps[k].min()).ravel().astype(float)
        held = mass >= least
        mass = mass * held / mass[held].sum()
        expected = mass @ distances @ mass / distances[held][:, held].max()
        assert detector.mean_distances_[k] == pytest.approx(expected, rel=1e-4)
    found = detector.detection_
    assert ((found.scores > 0) == found.suspects).all()
    with pytest.raises(ValueError, match="1 sample.* while a minimum of 2 is required"):
        MeanDistanceClustering().fit(heatmaps[:1])


@pytest.mark.parametrize(
    "detector",
    [
        ActivationClustering("ica", 7),
        RawClustering(n_init=3),
        HeatmapClustering(0.05, 6),
        MeanDistanceClustering(0.9),
    ],
)
def test_detectors_are_estimators(detector):
    copy = clone(detector)
    assert copy is not detector
    assert copy.get_params() == detector.get_params()


def test_smaller_cluster_is_suspected_and_scores_follow():
    clusters = np.array([1, 1, 1, 0])
    distances = np.array([[3.0, 1.0], [2.0, 1.0], [4.0, 0.0], [1.0, 5.0]])
    found = two_way_detection(clusters, distances, seconds=1.0, converged=True)
    assert found.labels.tolist() == [0, 0, 0, 1]
    assert found.scores.tolist() == [-2, -1, -4, 4]


def test_bad_input_is_refused(activations):
    with pytest.raises(ValueError, match="projection must be one of pca, ica; found 'tsne'"):
        ActivationClustering("tsne").fit(activations)
    with pytest.raises(
        ValueError, match="10 components need .* found n_samples = 5, n_features = 40"
    ):
        ActivationClustering().fit(activations[:5])
    activations[0, 0] = np.nan
    with pytest.raises(ValueError, match="must be finite, found NaN"):
        ActivationClustering().fit(activations)
    with pytest.raises(ValueError, match=r"takes images \[n, h, w, c\].*found \(80, 40\)"):
        RawClustering().fit(activations)
