import numpy as np
import pytest

from jaxpoison import synthetic


def test_same_seed_same_pixels(signs):
    again = synthetic(train=200, validation=40, test=60, seed=1)
    assert again.fingerprint == signs.fingerprint
    other = synthetic(train=200, validation=40, test=60, seed=2)
    assert other.fingerprint != signs.fingerprint


def test_classes_are_balanced_and_parts_differ(signs):
    assert np.bincount(signs.train.labels).tolist() == [20] * 10
    assert not np.isin(signs.train.images.sum((1, 2, 3)), signs.test.images.sum((1, 2, 3))).any()


def test_speed_limits_are_not_told_apart_by_their_mean(signs):
    """A nearest-mean classifier fails where only the glyph differs."""
    train, test = signs.train, signs.test
    means = np.stack([train.images[train.labels == k].mean(0) for k in range(10)])
    limits = test.take(test.labels < 6)
    errors = ((limits.images[:, None] - means[:6]) ** 2).mean((2, 3, 4))
    assert (errors.argmin(1) == limits.labels).mean() < 0.5


def test_too_few_images_are_refused():
    with pytest.raises(ValueError, match="number of test images must be at least 10, found 9"):
        synthetic(test=9)
