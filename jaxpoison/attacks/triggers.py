"""What an attacker puts into an image."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8

from jaxpoison._checks import check_integer


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
