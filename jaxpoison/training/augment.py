"""Random crop, rotation, colour and grey scale, on the device, inside a jitted step.

The transformations and their ranges are the paper's. Its crop, rotation and
affine rotation are three resamplings there (two of them nearest neighbour);
here they are composed into one map that is sampled once, bilinearly, with
zeros outside the image. Colour runs in a fixed order where torchvision's
ColorJitter draws it.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax.scipy.ndimage import map_coordinates
from jaxtyping import Array, Float, PRNGKeyArray

_LUMA = (0.2989, 0.587, 0.114)


@dataclass(frozen=True)
class Augmentation:
    """Ranges of the random transformations.

    Attributes:
        min_scale: Smallest share of the image's area a crop keeps.
        aspect: Largest ratio of a crop's sides.
        rotation: Largest angle of either of the two rotations, in degrees.
        jitter: Largest change of brightness, contrast, saturation (relative)
            and hue (turns of the colour circle).
        grey: Share of images made grey.

    Examples:
        >>> jp.TrainConfig(augmentation=jp.Augmentation(rotation=5, grey=0)).augmentation.rotation
        5
    """

    min_scale: float = 0.6
    aspect: float = 4 / 3
    rotation: float = 15.0
    jitter: float = 0.1
    grey: float = 0.1

    def __call__(
        self, keys: PRNGKeyArray, images: Float[Array, "n h w c"]
    ) -> Float[Array, "n h w c"]:
        """Transforms every image of a batch at random; values stay in [0, 1].

        Args:
            keys: A key for all images, or one for each.
            images: Images in [0, 1].
        """
        if not keys.ndim:
            keys = jax.random.split(keys, len(images))
        return jax.vmap(self._one)(keys, images)

    def _one(self, key: PRNGKeyArray, image: Float[Array, "h w c"]) -> Float[Array, "h w c"]:
        geometry, colour = jax.random.split(key)
        image = self._warp(geometry, image)
        return self._recolour(colour, image) if image.shape[-1] == 3 else image

    def _warp(self, key: PRNGKeyArray, image: Float[Array, "h w c"]) -> Float[Array, "h w c"]:
        h, w, _ = image.shape
        area, ratio, top, left, first, second = jax.random.split(key, 6)
        scale = jnp.sqrt(jax.random.uniform(area, minval=self.min_scale))
        log_aspect = jnp.log(self.aspect)
        root = jnp.exp(jax.random.uniform(ratio, minval=-log_aspect, maxval=log_aspect) / 2)
        # A side longer than the image is cut to it, as torchvision's fallback does.
        sides = jnp.minimum(jnp.stack([scale / root, scale * root]), 1.0)
        offset = jnp.stack([jax.random.uniform(top), jax.random.uniform(left)]) * (1 - sides)
        angle = jnp.deg2rad(
            jax.random.uniform(first, minval=-self.rotation, maxval=self.rotation)
            + jax.random.uniform(second, minval=-self.rotation, maxval=self.rotation)
        )
        size = jnp.array([[[h, w]]], image.dtype)
        rows, columns = jnp.arange(h, dtype=image.dtype), jnp.arange(w, dtype=image.dtype)
        grid = jnp.stack(jnp.meshgrid(rows, columns, indexing="ij"), -1)
        centred = grid - (size - 1) / 2
        turn = jnp.array([[jnp.cos(angle), -jnp.sin(angle)], [jnp.sin(angle), jnp.cos(angle)]])
        turned = centred @ turn.T + size / 2
        y, x = jnp.moveaxis(turned * sides[None, None] + offset[None, None] * size - 0.5, -1, 0)
        # Crops are taken inside the image: half a pixel at its rim is not "outside".
        y = jnp.where((y > -0.5) & (y < h - 0.5), jnp.clip(y, 0, h - 1), y)
        x = jnp.where((x > -0.5) & (x < w - 0.5), jnp.clip(x, 0, w - 1), x)
        return jax.vmap(
            lambda channel: map_coordinates(channel, [y, x], order=1, mode="constant"),
            in_axes=-1,
            out_axes=-1,
        )(image)

    def _recolour(self, key: PRNGKeyArray, image: Float[Array, "h w 3"]) -> Float[Array, "h w 3"]:
        brightness, contrast, saturation, hue, grey = jax.random.split(key, 5)

        def factor(key: PRNGKeyArray) -> Array:
            return jax.random.uniform(key, minval=1 - self.jitter, maxval=1 + self.jitter)

        image = jnp.clip(image * factor(brightness), 0, 1)
        mean = _luma(image).mean()
        image = jnp.clip(mean + factor(contrast) * (image - mean), 0, 1)
        luminance = _luma(image)
        image = jnp.clip(luminance + factor(saturation) * (image - luminance), 0, 1)
        turn = jax.random.uniform(hue, minval=-self.jitter, maxval=self.jitter)
        image = jnp.clip(_with_hue_turned(image, turn), 0, 1)
        return jnp.where(
            jax.random.bernoulli(grey, float(self.grey)),
            jnp.broadcast_to(_luma(image), image.shape),
            image,
        )


def _luma(image: Float[Array, "h w 3"]) -> Float[Array, "h w 1"]:
    """Brightness by Recommendation 601 of the ITU."""
    return (image * jnp.array(_LUMA, image.dtype)[None, None]).sum(-1, keepdims=True)


def _with_hue_turned(image: Float[Array, "h w 3"], turn: Array) -> Float[Array, "h w 3"]:
    """The hue in HSV turned, in turns of the colour circle.

    By the usual formulas, but for how the largest channel is known. Asked which one
    *equals* the maximum, XLA may answer none: it computes a channel again where it is needed, and
    rounds it another time. Asked which one is no smaller than the others, it is right up to
    rounding, and where two are as large both give the same.
    """
    red, green, blue = (image[..., c] for c in range(3))
    value = jnp.maximum(jnp.maximum(red, green), blue)
    chroma = value - jnp.minimum(jnp.minimum(red, green), blue)
    of_grey = jnp.where(chroma > 0, chroma, 1)
    hue = jnp.where(
        (red >= green) & (red >= blue),
        (green - blue) / of_grey,
        jnp.where(green >= blue, (blue - red) / of_grey + 2, (red - green) / of_grey + 4),
    )
    # In sixths of a turn; every channel falls off linearly from its own, over two sixths.
    places = (hue + 6 * turn)[..., None] + jnp.array([5, 3, 1], image.dtype)[None, None]
    away = places % 6
    darker = jnp.clip(jnp.minimum(away, 4 - away), 0, 1)
    return value[..., None] - chroma[..., None] * darker
