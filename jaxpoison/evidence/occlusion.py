"""Occlusion: what the network makes of images whose explaining region is filled in.

That the decision changes says little, for clean images change theirs as well. *To what* it
changes says more: without their trigger, images of a dirty-label attack go back to the class
they were taken from.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, UInt8

from jaxpoison._checks import check_class, check_images
from jaxpoison._precision import in_full_precision
from jaxpoison.models.inference import class_count, predict
from jaxpoison.parallel import map_batches, over_devices

# Of Jacobi's iteration: a hole of five by five pixels in a corner is then right to a grey level.
_ROUNDS = 256


def filled(
    images: UInt8[np.ndarray, "n h w c"], masks: Bool[np.ndarray, "n h w"]
) -> UInt8[np.ndarray, "n h w c"]:
    """Fills a region of every image from its surroundings, as a soap film would.

    Every pixel of the region becomes the mean of its four neighbours (Laplace's equation);
    beyond the border of the image, the border goes on.

    Args:
        images: At rest.
        masks: True in the region.

    Raises:
        TypeError: The images are not ``uint8``.
        ValueError: The shapes do not fit, there are no images, or a mask leaves nothing.

    Examples:
        >>> image = np.full((1, 8, 8, 3), 50, np.uint8)
        >>> image[0, 3, 3] = 255
        >>> int(filled(image, image[..., 0] == 255)[0, 3, 3, 0])
        50
    """
    check_images("images", images)
    if masks.shape != images.shape[:3]:
        raise ValueError(f"expected one mask per image, found {images.shape} and {masks.shape}")
    if masks.all((1, 2)).any():
        raise ValueError("a mask covers a whole image: there is nothing to fill it from")
    return map_batches(_filled, (), images, masks)


@jax.jit
@in_full_precision
def _filled(shared: tuple[()], images: Array, masks: Array) -> Array:
    def fill(_: tuple[()], images: Array, masks: Array) -> Array:
        hole = masks[..., None]
        values = images.astype(jnp.float32)
        around = jnp.where(hole, 0, values).sum((1, 2), keepdims=True)
        mean = around / (~hole).sum((1, 2), keepdims=True, dtype=jnp.float32)

        def relax(_: int, current: Array) -> Array:
            wide = jnp.pad(current, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
            above, below = wide[:, :-2, 1:-1], wide[:, 2:, 1:-1]
            left, right = wide[:, 1:-1, :-2], wide[:, 1:-1, 2:]
            return jnp.where(hole, (above + below + left + right) / 4, values)

        film = jax.lax.fori_loop(0, _ROUNDS, relax, jnp.where(hole, mean, values))
        return jnp.round(film).astype(jnp.uint8)

    return over_devices(fill)(shared, images, masks)


@dataclass(frozen=True, eq=False)
class Occlusion:
    """Where images go without the region that explains them.

    Attributes:
        label: The class they are labelled with.
        classes: What each is classified as with its region filled in.

    Examples:
        >>> found = jp.Occlusion(5, np.array([2, 2, 5, 7]))
        >>> found.changed, found.likely_source, found.source_share
        (0.75, 2, 0.5)
    """

    label: int
    classes: Int[np.ndarray, " n"]

    @property
    def changed(self) -> float:
        """Share of the images that are not classified as their label."""
        return float((self.classes != self.label).mean())

    @property
    def likely_source(self) -> int | None:
        """The other class that most of them go to; ``None`` if none goes anywhere."""
        others = self.classes[self.classes != self.label]
        return int(np.bincount(others).argmax()) if len(others) else None

    @property
    def source_share(self) -> float:
        """Share of all images that go to the likely source class."""
        source = self.likely_source
        return 0.0 if source is None else float((self.classes == source).mean())


def occlusion(
    model: Any,
    images: UInt8[np.ndarray, "n h w c"],
    masks: Bool[np.ndarray, "n h w"],
    label: int,
) -> Occlusion:
    """Fills the region that explains every image, and asks the network again.

    After Zeiler and Fergus 2014 (section 4.2), with the surroundings in place of grey.

    Args:
        model: Takes images in [0, 1], gives logits.
        images: Of one class.
        masks: Their regions, of :func:`relevant_windows` or :func:`relevant_pixels`.
        label: The class.

    Raises:
        TypeError: ``label`` is not an integer.
        ValueError: The shapes do not fit, there are no images, or ``label`` is no class of the
            model.

    Examples:
        >>> masks = jp.relevant_windows(heatmaps, 3)
        >>> jp.occlusion(model, images, masks, 5).classes.shape
        (20,)
    """
    label = check_class("label", label, class_count(model, images))
    return Occlusion(label, predict(model, filled(images, masks)).argmax(-1))
