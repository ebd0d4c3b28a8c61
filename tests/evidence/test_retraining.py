import numpy as np
import pytest

from jaxpoison import ExclusiveRetraining, exclusive_retraining, widened_suspects
from jaxpoison.evidence.retraining import like_suspects


def test_images_that_look_like_another_class_are_poisoned():
    logits = np.eye(4)[[2, 2, 2, 1, 1, 3]]
    assert exclusive_retraining(logits, 1) == ExclusiveRetraining(2, 3, 2)
    assert exclusive_retraining(logits, 1).poisoned
    # As many one way as the other: not below 1.
    assert not exclusive_retraining(logits[1:], 1).poisoned
    assert exclusive_retraining(np.eye(4)[[1, 1]], 1) == ExclusiveRetraining(2, 0, None)
    with pytest.raises(ValueError, match="at least one image, found none"):
        exclusive_retraining(np.zeros((0, 4)), 1)
    for label in (-1, 4):
        with pytest.raises(ValueError, match="label must be"):
            exclusive_retraining(logits, label)


def test_suspects_are_widened_by_activations(rng):
    truth = np.arange(300) < 60
    activations = rng.normal(size=(300, 4, 2)) + 6 * truth[:, None, None]
    missed, false = (np.arange(300) % 20 == 7) & truth, np.arange(300) == 250
    found = widened_suspects(truth & ~missed | false, activations)
    np.testing.assert_array_equal(found, truth | false)
    # Without a word from the activations, the suspects.
    for suspects in (np.zeros(300, bool), np.arange(300) == 3, np.ones(300, bool)):
        np.testing.assert_array_equal(widened_suspects(suspects, activations), suspects)


def test_validation_images_like_the_suspects_are_told(rng):
    truth = np.arange(300) < 60
    activations = rng.normal(size=(300, 8)) + 6 * truth[:, None]
    others = rng.normal(size=(50, 8)) + 6 * (np.arange(50) < 10)[:, None]
    found = like_suspects(truth, activations, others)
    np.testing.assert_array_equal(found, np.arange(50) < 10)
    for suspects in (np.zeros(300, bool), np.arange(300) == 3, np.ones(300, bool)):
        assert not like_suspects(suspects, activations, others).any()
    assert like_suspects(truth, activations, others[:0]).shape == (0,)
