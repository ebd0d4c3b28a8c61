"""What is behind a region, filled in from around it."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxpoison import occlusion
from jaxpoison.evidence.occlusion import Occlusion, filled


def soap_film(image, mask):
    """Laplace's equation in the mask, the border going on beyond the image; solved densely."""
    height, width = mask.shape
    inside = np.argwhere(mask)
    number = {tuple(place): k for k, place in enumerate(inside)}
    matrix, right = np.zeros((len(inside),) * 2), np.zeros((len(inside), image.shape[-1]))
    for k, (r, c) in enumerate(inside):
        matrix[k, k] += 4
        for dr, dc in ((-1, 0), (1, 0), (0, -1), (0, 1)):
            place = min(max(r + dr, 0), height - 1), min(max(c + dc, 0), width - 1)
            if place in number:
                matrix[k, number[place]] -= 1
            else:
                right[k] += image[place]
    solved = image.astype(float)
    solved[mask] = np.linalg.solve(matrix, right)
    return solved


def test_a_hole_is_filled_as_by_a_soap_film(rng):
    images = rng.integers(0, 256, (5, 9, 11, 3), dtype=np.uint8)
    masks = np.zeros((5, 9, 11), bool)
    masks[0, 3:6, 4:7] = True  # inside
    masks[1, :5, :5] = True  # in a corner
    masks[2, 4:9, 2] = True  # a line to the border
    masks[3] = rng.random((9, 11)) < 0.15  # scattered
    found = filled(images, masks)
    for image, mask, result in zip(images, masks, found, strict=True):
        np.testing.assert_array_equal(result[~mask], image[~mask])
        # Half for rounding; the rest is what the iteration leaves in the hole in the corner.
        np.testing.assert_allclose(result, soap_film(image, mask), atol=0.75)


def test_masks_that_do_not_fit_are_refused(rng):
    images = rng.integers(0, 256, (2, 4, 4, 1), dtype=np.uint8)
    with pytest.raises(ValueError, match="one mask per image"):
        filled(images, np.zeros((2, 4, 5), bool))
    with pytest.raises(ValueError, match="covers a whole image"):
        filled(images, np.ones((2, 4, 4), bool))


class RedWins(nnx.Module):
    """Class 3 where a pixel is bright red, and otherwise what the first pixel's green says."""

    def __call__(self, images):
        named = jnp.round(images[:, 0, 0, 1] * 255).astype(int)
        return jnp.eye(4)[jnp.where(images[..., 0].max((1, 2)) > 0.9, 3, named)]


@pytest.mark.mixes_types
def test_without_its_trigger_an_image_goes_back_to_its_source():
    images = np.zeros((10, 6, 6, 3), np.uint8)
    images[:, 0, 0, 1] = [1, 1, 1, 1, 1, 1, 2, 0, 3, 3]
    masks = np.zeros((10, 6, 6), bool)
    masks[:, 4, 4] = True
    images[masks, 0] = 255
    found = occlusion(RedWins(), images, masks, 3)
    np.testing.assert_array_equal(found.classes, images[:, 0, 0, 1])
    assert found.changed == 0.8
    assert found.likely_source == 1
    assert found.source_share == 0.6


def test_images_that_stay_have_no_source():
    stays = Occlusion(2, np.array([2, 2]))
    assert stays.changed == 0
    assert stays.likely_source is None
    assert stays.source_share == 0
