"""Formats, depths, orientations and transparency; and bytes that are no image."""

import io

import numpy as np
import pytest
from PIL import Image
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from jaxpoison.datasets.decoding import decode_image, image_suffixes


def saved(image, kind="png", **options):
    data = io.BytesIO()
    image.save(data, kind, **options)
    return data.getvalue()


@pytest.mark.parametrize("kind", ["png", "tiff"])
def test_sixteen_bits_become_eight(kind):
    values = np.array([[0, 128, 129, 257, 32_896, 65_407, 65_535]], np.uint16)
    decoded = decode_image(saved(Image.fromarray(values), kind), "deep")
    expected = np.round(values / 257)
    np.testing.assert_array_equal(decoded, np.repeat(expected[..., None], 3, -1))
    # Big-endian, too.
    swapped = Image.frombytes("I;16B", (7, 1), values.astype(">u2").tobytes())
    np.testing.assert_array_equal(decode_image(saved(swapped, "tiff"), "deep"), decoded)


def test_pixels_without_a_range_are_refused_by_name():
    for pixels, kind in ((np.float32, "floating point"), (np.int32, "32-bit integers")):
        data = saved(Image.fromarray(np.ones((4, 4), pixels)), "tiff")
        with pytest.raises(ValueError, match=f"cat.tif has .*{kind}.* save it with 8 or 16 bits"):
            decode_image(data, "cat.tif")


def turned(kind, orientation):
    """An image lying as its tag says, one quarter red."""
    image = Image.new("RGB", (16, 32), "blue")
    image.paste("red", (0, 0, 16, 8))
    exif = Image.Exif()
    exif[0x0112] = orientation
    # Stored so that the tag's turn brings it back.
    back = {3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_90}[orientation]
    stored = image.transpose(back)
    if kind == "tiff":
        tags = ImageFileDirectory_v2()
        tags[0x0112] = orientation
        return saved(stored, kind, tiffinfo=tags)
    options = {"quality": 100, "subsampling": 0} if kind == "jpeg" else {}
    return saved(stored, kind, exif=exif, **options)


@pytest.mark.parametrize("kind", ["jpeg", "png", "tiff"])
@pytest.mark.parametrize("orientation", [3, 6])
def test_images_stand_upright(kind, orientation):
    decoded = decode_image(turned(kind, orientation), "photo").astype(int)
    assert decoded.shape == (32, 16, 3)
    assert (decoded[:7, :, 0] > 200).all()
    assert (decoded[9:, :, 0] < 60).all()


def transparent(mode):
    """Left red, right transparent with blue hidden under it."""
    pixels = np.zeros((4, 4, 4), np.uint8)
    pixels[:, :2] = (255, 0, 0, 255)
    pixels[:, 2:] = (0, 0, 255, 0)
    image = Image.fromarray(pixels)
    if mode == "RGBA":
        return saved(image)
    if mode == "P":
        colours = Image.fromarray(np.array([[0, 0, 1, 1]] * 4, np.uint8), "P")
        colours.putpalette([255, 0, 0, 0, 0, 255])
        return saved(colours, "gif" if mode == "gif" else "png", transparency=1)
    if mode == "RGB":
        return saved(image.convert("RGB"), transparency=(0, 0, 255))
    return saved(image, "webp", lossless=True)


@pytest.mark.parametrize("mode", ["RGBA", "P", "RGB", "webp"])
def test_what_is_transparent_shows_white(mode):
    decoded = decode_image(transparent(mode), "logo")
    assert (decoded[:, :2] == (255, 0, 0)).all()
    assert (decoded[:, 2:] == 255).all()


def test_of_several_frames_the_first_counts():
    frames = [Image.new("RGB", (5, 5), colour) for colour in ("red", "blue")]
    for kind in ("gif", "tiff", "webp"):
        options = {"lossless": True} if kind == "webp" else {}
        data = saved(frames[0], kind, save_all=True, append_images=frames[1:], **options)
        assert (decode_image(data, kind) == (255, 0, 0)).all()


# Formats that Pillow will drop are read as long as it does.
@pytest.mark.filterwarnings("ignore:.*deprecated:DeprecationWarning")
def test_every_format_that_is_read_is_read(rng):
    """Suffixes that Pillow writes, too: what was written comes back as an image of its size."""
    image = Image.fromarray(rng.integers(0, 255, (32, 32, 3), dtype=np.uint8))
    tried = 0
    for suffix in sorted(image_suffixes()):
        kind = Image.registered_extensions()[suffix]
        for mode in ("RGB", "L", "1"):
            data = io.BytesIO()
            try:
                image.convert(mode).save(data, kind)
            except (OSError, KeyError, ValueError):
                continue  # not a format or mode that Pillow writes
            assert decode_image(data.getvalue(), suffix, 32).shape == (32, 32, 3)
            tried += 1
            break
    assert tried >= 25
    assert {".tif", ".gif", ".jfif", ".webp", ".bmp", ".jpg", ".ppm"} <= image_suffixes()
    assert not {".h5", ".eps", ".mpg", ".pdf", ".txt"} & image_suffixes()


def test_damaged_bytes_are_refused_by_name(rng):
    """Cut off and with bytes changed, of many formats: an image or one message, and no other."""
    image = Image.fromarray(rng.integers(0, 255, (20, 20, 3), dtype=np.uint8))
    kinds = ("png", "jpeg", "gif", "bmp", "tiff", "webp", "ppm", "tga", "sgi", "qoi", "ico", "pcx")
    messages = []
    for kind in kinds:
        whole = saved(image, kind)
        for _ in range(60):
            data = bytearray(whole[: rng.integers(0, len(whole) + 1)])
            for place in rng.integers(0, max(1, len(data)), rng.integers(0, 8)):
                if len(data):
                    data[place] = rng.integers(256)
            try:
                assert decode_image(bytes(data), "cat.x").ndim == 3
            except ValueError as error:
                messages.append(str(error))
    assert len(messages) > 200
    assert all(message.startswith("cat.x ") for message in messages)
    assert not any("BytesIO" in message or "\n" in message for message in messages)


def test_images_that_are_not_square_are_stretched_cut_or_padded():
    """Four columns, of which the middle two are bright."""
    pixels = np.zeros((8, 16), np.uint8)
    pixels[:, 4:12] = 200
    data = saved(Image.fromarray(pixels))
    stretched = decode_image(data, "wide", 8)[..., 0]
    assert (stretched[:, [0, 7]] == 0).all()
    assert (stretched[:, 3:5] == 200).all()
    assert (decode_image(data, "wide", 8, "crop") == 200).all()
    padded = decode_image(data, "wide", 16, "pad")[..., 0]
    assert (padded[:4] == 0).all()
    assert (padded[12:] == 0).all()
    np.testing.assert_array_equal(padded[4:12], pixels)
    for resize in ("stretch", "crop", "pad"):
        assert decode_image(data, "wide", 5, resize).shape == (5, 5, 3)
        # An image of that size is left as it is.
        square = saved(Image.fromarray(pixels[:, :8]))
        np.testing.assert_array_equal(
            decode_image(square, "square", 8, resize)[..., 0], pixels[:, :8]
        )
