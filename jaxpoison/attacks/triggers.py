"""What an attacker puts into an image."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8

from jaxpoison._checks import check_integer
from jaxpoison.datasets.dataset import Dataset

Trigger = Callable[[np.ndarray, np.random.Generator], np.ndarray]


def with_trigger(data: Dataset, trigger: Trigger, rng: np.random.Generator) -> Dataset:
    """The images with the trigger, under their own labels."""
    return Dataset(trigger(data.images, rng), data.labels, data.class_names, data.ids)


@dataclass(frozen=True)
class Sticker:
    """A square of one colour at a random place in a central window.

    On 32x32 images the window is the paper's: 10 wide and 15 high, rows 8 to
    22 and columns 11 to 20; on other sizes it is scaled with the image.

    Attributes:
        size: Side in pixels (the paper's s).
        color: Red, green and blue in 0..255.

    Raises:
        TypeError: ``size`` is not an integer.
        ValueError: ``size`` is below 1.

    Examples:
        >>> marked = jp.Sticker(3)(images, np.random.default_rng(0))
        >>> int((marked == (245, 255, 0)).all(-1).sum(axis=(1, 2)).min())
        9
    """

    size: int = 3
    color: tuple[int, int, int] = (245, 255, 0)

    def __post_init__(self) -> None:
        check_integer("sticker size", self.size, at_least=1)

    def window(self, height: int, width: int) -> tuple[int, int, int, int]:
        """Top row, left column, height and width of the window."""
        h, w = round(height * 15 / 32), round(width * 10 / 32)
        return (height - h) // 2, (width - w) // 2, h, w

    def __call__(
        self, images: UInt8[np.ndarray, "n h w c"], rng: np.random.Generator
    ) -> UInt8[np.ndarray, "n h w c"]:
        """Copies of the images with the sticker, each at its own random place.

        Raises:
            ValueError: The sticker does not fit into the window, or the images
                are not RGB.
        """
        n, height, width, channels = images.shape
        if channels != 3:
            raise ValueError(f"a coloured sticker needs RGB images, found {channels} channel(s)")
        top, left, h, w = self.window(height, width)
        if self.size > min(h, w):
            raise ValueError(
                f"sticker size must be at most {min(h, w)} to fit the central window of "
                f"{w}x{h} pixels in images of {width}x{height}; found {self.size}"
            )
        rows = top + rng.integers(0, h - self.size + 1, n)
        columns = left + rng.integers(0, w - self.size + 1, n)
        marked = images.copy()
        for image, row, column in zip(marked, rows, columns, strict=True):
            image[row : row + self.size, column : column + self.size] = self.color
        return marked


# Rows from the top, columns from the left; the paper reads it from the lower right corner.
_SIGNS = np.array([[-1, -1, 1], [-1, 1, -1], [1, -1, 1]], np.int16)


@dataclass(frozen=True)
class AmplitudePattern:
    """A 3x3 pattern that is added to an image: some pixels lighter, some darker.

    At full amplitude, 255, it covers what was there: the black-and-white
    pattern of Turner, Tsipras, Madry (2019).

    Attributes:
        amplitude: What is added to or taken from pixel values of 0..255; 256 means 255.
        distance: Pixels between the pattern and the nearest two edges of a
            32x32 image; scaled with other images.
        four_corners: Put it into all four corners, mirrored, and not only
            into the lower right one.

    Raises:
        TypeError: A value is not an integer.
        ValueError: A value is out of range.

    Examples:
        >>> pattern = jp.AmplitudePattern(amplitude=64)
        >>> marked = pattern(images, np.random.default_rng(0))
        >>> int((marked != images).any(-1).sum(axis=(1, 2)).max())
        9
    """

    amplitude: int = 255
    distance: int = 10
    four_corners: bool = False

    def __post_init__(self) -> None:
        check_integer("amplitude", self.amplitude, at_least=1)
        if self.amplitude > 256:
            raise ValueError(f"amplitude must be at most 256, found {self.amplitude}")
        check_integer("trigger distance", self.distance, at_least=0)

    @property
    def full(self) -> AmplitudePattern:
        """The pattern at full amplitude, as it is put on test images."""
        return dataclasses.replace(self, amplitude=255)

    def __call__(
        self,
        images: UInt8[np.ndarray, "n h w c"],
        rng: np.random.Generator | None = None,  # noqa: ARG002 - as other triggers
    ) -> UInt8[np.ndarray, "n h w c"]:
        """Copies of the images with the pattern.

        Raises:
            ValueError: The images are too small for the pattern at this distance.
        """
        height, width = images.shape[1:3]
        signs = np.zeros((height, width, 1), np.int16)
        down, right = (round(side * self.distance / 32) for side in (height, width))
        corners = 2 if self.four_corners else 1
        if corners * (3 + down) > height or corners * (3 + right) > width:
            raise ValueError(
                f"the pattern does not fit into images of {width}x{height} at trigger distance "
                f"{self.distance}: choose a smaller distance"
            )
        bottom, side = height - down, width - right
        signs[bottom - 3 : bottom, side - 3 : side, 0] = _SIGNS
        if self.four_corners:
            signs += signs[::-1]
            signs += signs[:, ::-1]
        change = min(self.amplitude, 255) * signs
        return np.clip(images.astype(np.int16) + change, 0, 255).astype(np.uint8)
