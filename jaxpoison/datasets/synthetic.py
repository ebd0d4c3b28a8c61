"""Rendered traffic-sign-like classes: the default data, needing no network.

A class is a shape, a rim and face colour and a glyph. Every image is one of
these signs drawn at four times the resolution in random perspective before a
random background, then blurred, lit unevenly and made noisy. Some are partly
covered by a coloured spot, so that a spot of colour alone betrays nothing.
"""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from jaxpoison._checks import check_integer
from jaxpoison._progress import Bar
from jaxpoison.datasets.dataset import Dataset, Splits

_Color = tuple[int, int, int]
_SCALE = 4
_RED, _BLUE, _WHITE, _YELLOW, _BLACK = (
    (190, 30, 40),
    (30, 70, 160),
    (225, 225, 220),
    (225, 180, 40),
    (30, 30, 30),
)
# Name, corners of the shape (0 for a disc), first angle in degrees, rim, face, glyph, its colour.
_SIGNS: tuple[tuple[str, int, float, _Color, _Color, str, _Color], ...] = (
    ("limit 20", 0, 0, _RED, _WHITE, "20", _BLACK),
    ("limit 30", 0, 0, _RED, _WHITE, "30", _BLACK),
    ("limit 50", 0, 0, _RED, _WHITE, "50", _BLACK),
    ("limit 60", 0, 0, _RED, _WHITE, "60", _BLACK),
    ("limit 70", 0, 0, _RED, _WHITE, "70", _BLACK),
    ("limit 80", 0, 0, _RED, _WHITE, "80", _BLACK),
    ("warning", 3, -90, _RED, _WHITE, "!", _BLACK),
    ("priority", 4, 0, _WHITE, _YELLOW, "", _BLACK),
    ("ahead only", 0, 0, _BLUE, _BLUE, "arrow", _WHITE),
    ("stop", 8, 22.5, _WHITE, _RED, "-", _WHITE),
)
# Seven segments: top, upper right, lower right, bottom, lower left, upper left, middle.
_SEGMENTS = {
    "0": "012345",
    "2": "01643",
    "3": "01236",
    "5": "05623",
    "6": "054326",
    "7": "012",
    "8": "0123456",
}
_SEGMENT_LINES = (
    ((0, 0), (1, 0)),
    ((1, 0), (1, 1)),
    ((1, 1), (1, 2)),
    ((1, 2), (0, 2)),
    ((0, 2), (0, 1)),
    ((0, 1), (0, 0)),
    ((0, 1), (1, 1)),
)

SYNTHETIC_CLASSES = tuple(sign[0] for sign in _SIGNS)


def synthetic(
    *,
    train: int = 2000,
    validation: int = 400,
    test: int = 1000,
    size: int = 32,
    seed: int = 0,
    progress: bool = False,
) -> Splits:
    """Renders the data set; the same seed gives the same pixels.

    Args:
        train: Number of training images, over ten equal classes.
        validation: Number of validation images.
        test: Number of test images.
        size: Side of an image in pixels.
        seed: Seed.
        progress: Show a progress bar.

    Raises:
        TypeError: A number is not an integer.
        ValueError: A part has fewer images than classes, or images are smaller
            than 16 pixels.

    Examples:
        >>> jp.synthetic(train=100, validation=20, test=20).train.class_names[5]
        'limit 80'
    """
    check_integer("size", size, at_least=16)
    counts = {"train": train, "validation": validation, "test": test}
    for name, count in counts.items():
        check_integer(f"number of {name} images", count, at_least=len(_SIGNS))
    streams = np.random.SeedSequence(seed).spawn(3)
    parts = []
    with Bar("rendering signs", sum(counts.values()), unit="images", show=progress) as bar:
        for (name, count), stream in zip(counts.items(), streams, strict=True):
            rng = np.random.default_rng(stream)
            labels = rng.permutation(np.arange(count) % len(_SIGNS)).astype(np.int32)
            images = np.stack([_render(label, size, rng, bar) for label in labels])
            ids = tuple(f"{name}/{i}" for i in range(count))
            parts.append(Dataset(images, labels, SYNTHETIC_CLASSES, ids))
    return Splits(*parts)


def _render(label: int, size: int, rng: np.random.Generator, bar: Bar) -> np.ndarray:
    side = size * _SCALE
    image = _background(side, rng)
    sign = _draw_sign(label, side)
    warped = sign.transform(
        (side, side),
        Image.Transform.PERSPECTIVE,
        _perspective(side, rng),
        Image.Resampling.BILINEAR,
    )
    image.paste(warped, (0, 0), warped.getchannel("A"))
    if rng.random() < 0.15:
        _cover(image, side, rng)
    image = image.filter(ImageFilter.GaussianBlur(_SCALE * rng.uniform(0.1, 0.9)))
    image = image.resize((size, size), Image.Resampling.BOX)
    bar.advance(1)
    return _light(np.asarray(image, np.float64), rng)


def _background(side: int, rng: np.random.Generator) -> Image.Image:
    patch = rng.uniform(40, 200, (4, 4, 1)) + rng.normal(0, 25, (4, 4, 3))
    small = Image.fromarray(np.clip(patch, 0, 255).astype(np.uint8))
    return small.resize((side, side), Image.Resampling.BICUBIC)


def _draw_sign(label: int, side: int) -> Image.Image:
    _, corners, angle, rim, face, glyph, ink = _SIGNS[label]
    image = Image.new("RGBA", (side, side), (*face, 0))
    draw = ImageDraw.Draw(image)
    centre = side / 2

    def outline(radius: float, color: _Color) -> None:
        if corners:
            draw.regular_polygon((centre, centre, radius), corners, -angle - 90, (*color, 255))
        else:
            box = (centre - radius, centre - radius, centre + radius, centre + radius)
            draw.ellipse(box, (*color, 255))

    outline(side * 0.46, rim)
    outline(side * 0.36, face)
    _draw_glyph(draw, glyph, side, (*ink, 255))
    return image


def _draw_glyph(
    draw: ImageDraw.ImageDraw, glyph: str, side: int, ink: tuple[int, int, int, int]
) -> None:
    unit = side / 32
    if glyph.isdigit():
        for place, digit in enumerate(glyph):
            left, top = side / 2 + (place * 6.5 - 6) * unit, side / 2 - 5.5 * unit
            for segment in _SEGMENTS[digit]:
                line = [
                    (left + x * 5 * unit, top + y * 5.5 * unit)
                    for x, y in _SEGMENT_LINES[int(segment)]
                ]
                draw.line(line, ink, round(1.7 * unit))
    elif glyph == "!":
        draw.rectangle((15 * unit, 10 * unit, 17 * unit, 18 * unit), ink)
        draw.rectangle((15 * unit, 20 * unit, 17 * unit, 22 * unit), ink)
    elif glyph == "arrow":
        draw.rectangle((14.8 * unit, 13 * unit, 17.2 * unit, 24 * unit), ink)
        draw.polygon([(16 * unit, 7 * unit), (11 * unit, 14 * unit), (21 * unit, 14 * unit)], ink)
    elif glyph == "-":
        draw.rectangle((8 * unit, 14 * unit, 24 * unit, 18 * unit), ink)


def _perspective(side: int, rng: np.random.Generator) -> list[float]:
    """Coefficients of the map from image to sign: moved, turned, scaled, tilted corners."""
    corners = np.array([[0, 0], [1, 0], [1, 1], [0, 1]], float) - 0.5
    turn = np.deg2rad(rng.normal(0, 5))
    rotation = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    placed = corners @ rotation.T * rng.uniform(0.75, 1.0) + rng.normal(0, 0.03, 2)
    placed = (placed + rng.normal(0, 0.04, (4, 2)) + 0.5) * side
    wanted = (corners + 0.5) * side
    rows = []
    for (x, y), (u, v) in zip(placed, wanted, strict=True):
        rows.append([x, y, 1, 0, 0, 0, -u * x, -u * y])
        rows.append([0, 0, 0, x, y, 1, -v * x, -v * y])
    return np.linalg.solve(np.array(rows), wanted.ravel()).tolist()


def _cover(image: Image.Image, side: int, rng: np.random.Generator) -> None:
    """A sticker-like spot of any colour and place: dirt, leaves, real stickers."""
    x, y = rng.uniform(0.1, 0.9, 2) * side
    w, h = rng.uniform(0.05, 0.15, 2) * side
    r, g, b = (int(v) for v in rng.integers(0, 256, 3))
    ImageDraw.Draw(image).ellipse((x - w, y - h, x + w, y + h), (r, g, b))


def _light(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    h, w, _ = image.shape
    slope = rng.normal(0, 0.2, 2)
    ramp = 1 + slope[0] * np.linspace(-1, 1, h)[:, None] + slope[1] * np.linspace(-1, 1, w)
    lit = image * (rng.uniform(0.35, 1.15) * ramp)[..., None] * rng.normal(1, 0.04, 3)
    return (
        np.clip(lit + rng.normal(0, rng.uniform(2, 8), lit.shape), 0, 255).round().astype(np.uint8)
    )
