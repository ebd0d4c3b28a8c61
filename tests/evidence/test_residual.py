"""Triggers without a place: what a group has in common, added to other classes' images."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxpoison import Hosts, feature_flips, mean_deviation, residual_flips

LABEL = 2


class Striped(nnx.Module):
    """Class 2 where rows of red alternate in brightness, else what the first pixel's green says."""

    def __init__(self):
        self.stripes = Stripes()

    def __call__(self, images):
        named = jnp.round(images[:, 0, 0, 1] * 255).astype(int)
        striped = self.stripes(images)[:, 0, 0] > 0.1
        return jnp.eye(4)[jnp.where(striped, LABEL, named)]


class Stripes(nnx.Module):
    def __call__(self, images):
        rows = images[..., 0].mean(2)
        return (rows[:, ::2] - rows[:, 1::2]).mean(1)[:, None, None]


@pytest.fixture
def images(rng):
    """Twenty of class 2, five of them with stripes over the whole image, faint beside the noise."""
    images = rng.integers(60, 190, (20, 8, 8, 3), dtype=np.uint8)
    images[:, 0, 0, 1] = LABEL
    images[15:, ::2, :, 0] += 36
    return images


@pytest.fixture
def hosts(rng):
    images = rng.integers(60, 190, (9, 8, 8, 3), dtype=np.uint8)
    labels = np.arange(9) % 3 + (np.arange(9) % 3 == LABEL)
    images[:, 0, 0, 1] = labels
    images[..., 0] = 120
    return Hosts(np.arange(9), images, labels, -np.ones(9))


def test_the_deviation_is_a_difference_of_means(rng):
    values = rng.normal(size=(7, 3, 2))
    found = mean_deviation(values, np.array([1, 4]))
    others = values[[0, 2, 3, 5, 6]].mean(0)
    np.testing.assert_allclose(found, values[[1, 4]].mean(0) - others, rtol=1e-5)
    with pytest.raises(ValueError, match="found 0 and 7"):
        mean_deviation(values, np.array([], int))
    with pytest.raises(ValueError, match="found 7 and 0"):
        mean_deviation(values, np.arange(7))


@pytest.mark.mixes_types
def test_a_trigger_over_the_whole_image_turns_hosts(images, hosts):
    # The first pixel names the class: it is not to be transplanted.
    poisoned = mean_deviation(images, np.arange(15, 20))
    clean = mean_deviation(images, np.arange(5))
    residuals = np.stack([poisoned, clean])
    residuals[:, 0, 0, 1] = 0
    flips = residual_flips(Striped(), residuals, hosts, LABEL)
    assert flips.shape == (2, 9)
    assert flips[0].all()
    assert not flips[1].any()


@pytest.mark.mixes_types
def test_what_is_added_is_clipped(hosts):
    residuals = np.zeros((1, 8, 8, 3))
    # Up by a thousand in even rows alone, and down in odd ones: both ends are clipped.
    residuals[0, ::2, :, 0], residuals[0, 1::2, :, 0] = 1e3, -1e3
    assert residual_flips(Striped(), residuals, hosts, LABEL).all()
    # Up everywhere: clipped, there are no stripes left.
    residuals[0, ..., 0] += 1e4
    assert not residual_flips(Striped(), residuals, hosts, LABEL).any()


@pytest.mark.mixes_types
def test_a_deviation_of_activations_turns_hosts(hosts):
    model = Striped()
    flips = feature_flips(model, "stripes", np.array([[0.0], [0.2], [0.05]]), hosts, LABEL)
    np.testing.assert_array_equal(flips.all(1), [False, True, False])
    np.testing.assert_array_equal(flips.any(1), [False, True, False])


@pytest.mark.mixes_types
def test_deviations_that_do_not_fit_are_refused(hosts):
    with pytest.raises(ValueError, match="deviations of 1 values"):
        feature_flips(Striped(), "stripes", np.zeros((1, 3)), hosts, LABEL)
    with pytest.raises(ValueError, match="no module 'other'"):
        feature_flips(Striped(), "other", np.zeros((1, 1)), hosts, LABEL)
    with pytest.raises(ValueError, match="residuals of the hosts' size"):
        residual_flips(Striped(), np.zeros((1, 8, 7, 3)), hosts, LABEL)


class Twice(Striped):
    def __call__(self, images):
        return super().__call__(images) + super().__call__(images)


@pytest.mark.mixes_types
def test_a_layer_that_is_called_twice_is_refused(hosts):
    with pytest.raises(ValueError, match="call stripes once, found 2 calls"):
        feature_flips(Twice(), "stripes", np.zeros((1, 1)), hosts, LABEL)
