"""One encoded image to 8-bit RGB, whatever format, orientation and depth it has."""

from __future__ import annotations

import io
import warnings

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps, UnidentifiedImageError

# How an image of other proportions becomes square: its sides are scaled each by its own factor;
# or both by one, and what stands over is cut off on both sides, or what lacks is black.
RESIZES = ("stretch", "crop", "pad")

# Pillow recognises these formats, and cannot decode them by itself.
_ONLY_RECOGNISED = frozenset({"BUFR", "EPS", "GRIB", "HDF5", "IPTC", "MPEG", "WMF"})


def image_suffixes() -> frozenset[str]:
    """Suffixes of the formats that are read: all that Pillow, with its plugins, decodes."""
    return frozenset(
        suffix
        for suffix, kind in Image.registered_extensions().items()
        if kind in Image.OPEN and kind not in _ONLY_RECOGNISED
    )


def decode_image(
    data: bytes, name: str, image_size: int | None = None, resize: str = "stretch"
) -> UInt8[np.ndarray, "h w 3"]:
    """Decodes one encoded image to ``uint8`` RGB.

    It stands as its EXIF orientation says. What is transparent shows white; of 16 bits, the upper
    eight are kept, rounded; of several frames, the first.

    Args:
        data: The file's bytes.
        name: For messages.
        image_size: If given, the side to which the image is resized (bilinear, antialiased).
        resize: What becomes of one that is not square: ``stretch``; ``crop``, its middle is
            kept; or ``pad``, with black.

    Raises:
        ValueError: ``data`` is no image that can be read, has pixels without an 8-bit range, or is
            too large; the message names it.

    Examples:
        >>> jaxpoison.datasets.decoding.decode_image(path.read_bytes(), path.name, 32).shape
        (32, 32, 3)
    """
    try:
        with warnings.catch_warnings():
            # Others are of metadata that play no part.
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data)) as file:
                image = _rgb(ImageOps.exif_transpose(file))
    except MemoryError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ValueError(f"{name} is too large to be decoded ({error}): make it smaller") from error
    except _NoRangeError as error:
        raise ValueError(
            f"{name} has {error}, which have no range: save it with 8 or 16 bits a channel"
        ) from error
    # For bytes that are no image, the formats' readers raise what they happen to.
    except Exception as error:
        # Pillow names the bytes it was given, not the file.
        why = "unknown format" if isinstance(error, UnidentifiedImageError) else str(error)
        why = why.partition("<_io.BytesIO")[0].strip() or type(error).__name__
        raise ValueError(
            f"{name} cannot be read as an image: {why} (repair it or move it out)"
        ) from error
    if image_size is not None and image.size != (image_size, image_size):
        image = _resized(image, (image_size, image_size), resize)
    return np.asarray(image, np.uint8)


def _resized(image: Image.Image, size: tuple[int, int], resize: str) -> Image.Image:
    bilinear = Image.Resampling.BILINEAR
    if resize == "crop":
        return ImageOps.fit(image, size, bilinear)
    if resize == "pad":
        return ImageOps.pad(image, size, bilinear, color="black")
    return image.resize(size, bilinear)


class _NoRangeError(ValueError):
    """Pixels of which nobody says what is black and what is white."""


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise _NoRangeError("floating point pixels")
    if image.mode == "I":
        raise _NoRangeError("pixels of 32-bit integers")
    if image.mode.startswith("I;16"):
        values = np.asarray(image).astype(np.uint32)
        return Image.fromarray(((values + 128) // 257).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")
