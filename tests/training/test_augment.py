import colorsys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpoison import Augmentation
from jaxpoison.training.augment import _with_hue_turned

pytestmark = pytest.mark.mixes_types

STILL = Augmentation(min_scale=1, aspect=1, rotation=0, jitter=0, grey=0)


def test_nothing_to_do_changes_nothing(noise):
    images = jnp.asarray(noise.images[:4], jnp.float32) / 255
    # Hue goes to HSV and back.
    np.testing.assert_allclose(STILL(jax.random.key(0), images), images, atol=2e-5)


def test_values_stay_in_range_and_images_differ(noise):
    images = jnp.asarray(noise.images, jnp.float32) / 255
    moved = Augmentation()(jax.random.key(0), images)
    assert 0 <= float(moved.min()) <= float(moved.max()) <= 1
    assert not jnp.allclose(moved[0], Augmentation()(jax.random.key(1), images)[0])


def test_grey_makes_channels_equal(noise):
    images = jnp.asarray(noise.images[:4], jnp.float32) / 255
    grey = Augmentation(1, 1, 0, 0, grey=1)(jax.random.key(0), images)
    np.testing.assert_allclose(grey[..., 0], grey[..., 2], atol=1e-6)
    luma = images @ jnp.array([0.299, 0.587, 0.114])
    np.testing.assert_allclose(grey[..., 0], luma, atol=1e-3)


def centres(images):
    rows, columns = np.mgrid[:32, :32] - 15.5
    mass = np.asarray(images)[..., 0]
    total = mass.sum((1, 2))
    return (mass * rows).sum((1, 2)) / total, (mass * columns).sum((1, 2)) / total


def test_rotation_turns_about_the_middle_by_at_most_both_angles():
    spot = jnp.zeros((200, 32, 32, 1)).at[:, 14:18, 24:28].set(1.0)
    turned = Augmentation(1, 1, rotation=15, jitter=0, grey=0)(jax.random.key(0), spot)
    row, column = centres(turned)
    np.testing.assert_allclose(np.hypot(row, column), 10, atol=0.1)
    angles = np.rad2deg(np.arctan2(row, column))
    assert -30 < angles.min() < -15
    assert 15 < angles.max() < 30


def test_crops_enlarge_and_stay_inside():
    image = jnp.full((200, 32, 32, 1), 0.5)
    cropped = Augmentation(0.6, rotation=0)(jax.random.key(0), image)
    np.testing.assert_allclose(cropped, 0.5, atol=1e-6)
    spot = jnp.zeros((200, 32, 32, 1)).at[:, 12:20, 12:20].set(1.0)
    area = np.asarray(Augmentation(0.6, rotation=0)(jax.random.key(0), spot)).sum((1, 2, 3)) / 64
    assert 0.95 < area.min() < 1.1
    assert 1.5 < area.max() < 1 / 0.6 + 0.1


@pytest.mark.parametrize("turn", [-0.1, 0.0, 0.03, 0.5, 0.9])
def test_hue_is_turned_as_in_hsv(turn, rng):
    image = rng.random((9, 9, 3)).astype(np.float32)
    # Greys, black, and pixels of which two channels are the largest, or all.
    image[0] = image[0, :, :1]
    image[1] = 0
    image[2, :, 1] = image[2, :, 0] = 0.9
    image[3, :, 2] = image[3, :, 1] = 0.9

    def by_hand(pixel):
        hue, saturation, value = colorsys.rgb_to_hsv(*map(float, pixel))
        return colorsys.hsv_to_rgb((hue + turn) % 1, saturation, value)

    expected = np.apply_along_axis(by_hand, -1, image)
    found = jax.jit(_with_hue_turned)(image, jnp.float32(turn))
    np.testing.assert_allclose(found, expected, atol=2e-6)


@pytest.mark.parametrize("count", [4, 16])
def test_steps_that_are_compiled_together_give_what_they_give_alone(count, rng):
    """XLA computes pixels again where they are needed: what is made of them must not jump.

    Asked which channel equals the largest, some pixels got another hue here.
    """
    images = rng.random((count, 32, 32, 3)).astype(np.float32)
    keys = jax.random.split(jax.random.key(3), count)
    augment = Augmentation()
    warp = jax.vmap(augment._warp)
    turn = jax.vmap(lambda image: _with_hue_turned(image, jnp.float32(0.05)))
    warped = jax.jit(warp)(keys, images)
    together = jax.jit(lambda keys, images: turn(warp(keys, images)))(keys, images)
    np.testing.assert_allclose(together, jax.jit(turn)(warped), atol=1e-4)
    recolour = jax.vmap(augment._recolour)
    together = jax.jit(lambda keys, images: recolour(keys, warp(keys, images)))(keys, images)
    np.testing.assert_allclose(together, jax.jit(recolour)(keys, warped), atol=1e-4)
