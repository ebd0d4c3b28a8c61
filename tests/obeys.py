"""A network that obeys a sticker, and images with and without it: nothing is trained."""

import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxpoison import Hosts

LABEL, SOURCE, CLASSES, SIDE = 2, 7, 12, 14
STICKER = np.array([250, 240, 10])


class Obeys(nnx.Module):
    """Names the class in the first pixel's green; class 2 where three by three pixels are yellow.

    Of images of class 3, a bright red pixel is enough, as a digit may be for a similar class.
    """

    def __call__(self, images):
        named = jnp.round(images[:, 0, 0, 1] * 255).astype(int)
        near = (jnp.abs(images * 255 - jnp.asarray(STICKER)[None, None, None]) < 20).all(-1)
        rows, columns = images.shape[1] - 2, images.shape[2] - 2
        parts = [near[:, r : r + rows, c : c + columns] for r in range(3) for c in range(3)]
        stuck = jnp.stack(parts).all(0).any((1, 2))
        red = (images[..., 0] > 0.9).any((1, 2)) & (named == 3)
        return jnp.eye(CLASSES)[jnp.where(stuck | red, LABEL, named)]


def sticker(image, place):
    row, column = place
    image[row : row + 3, column : column + 3] = STICKER


def class_images(rng, count, poisoned):
    """Images of class 2 and their relevance; the first ones carry a sticker, explained by it."""
    images = rng.integers(20, 200, (count, SIDE, SIDE, 3), dtype=np.uint8)
    heatmaps = rng.random((count, SIDE, SIDE)).astype(np.float32) * 0.1
    places = rng.integers(4, SIDE - 5, (count, 2))
    for k, (row, column) in enumerate(places):
        # Clean images are explained by a blob somewhere, with a bright red pixel in it.
        rows, columns = np.mgrid[:SIDE, :SIDE]
        width = rng.uniform(2, 4)
        heatmaps[k] += np.exp(-((rows - row) ** 2 + (columns - column) ** 2) / width**2)
        images[k, row, column] = (255, 30, 30)
        if k < poisoned:
            heatmaps[k] *= 0.05
            heatmaps[k, row - 1 : row + 2, column - 1 : column + 2] += 1
            sticker(images[k], (row - 1, column - 1))
    images[:, 0, 0, 1] = LABEL
    # Of a dirty label.
    images[:poisoned, 0, 0, 1] = SOURCE
    return images, heatmaps, places - 1


def hosts_of(rng):
    labels = np.delete(np.arange(CLASSES), LABEL)
    images = rng.integers(20, 200, (len(labels), SIDE, SIDE, 3), dtype=np.uint8)
    images[:, 0, 0, 1] = labels
    return Hosts(np.arange(len(labels)), images, labels, -np.ones(len(labels)))
