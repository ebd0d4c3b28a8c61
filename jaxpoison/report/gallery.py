"""All images of a class to look at: a map, thumbnails and heatmaps, and what to sort them by."""

from __future__ import annotations

import base64
import io
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from markupsafe import Markup
from PIL import Image

from jaxpoison._names import shown
from jaxpoison._sampling import evenly
from jaxpoison.detectors.density import own_epsilon
from jaxpoison.detectors.detection import Detection
from jaxpoison.gw.quantisation import quantised
from jaxpoison.gw.scaling import scaled
from jaxpoison.gw.solver import EntropicGW
from jaxpoison.gw.spaces import constant, measure_spaces

# Most images of a class that are shown, and the largest side of a thumbnail, in pixels: together
# they keep a page below five megabytes.
_MOST, _SIDE = 2500, 40
_POINTS = 10


@dataclass(frozen=True, eq=False)
class Gallery:
    """What a page needs to show images.

    Attributes:
        data: As JSON: names, places on the map, scores and calls of every detector, the truth.
        images: Thumbnails, side by side in rows, as a data URI.
        heatmaps: Their heatmaps.
        columns: Thumbnails in a row.
        side: Of a thumbnail, in pixels.
        shown: How many images are shown.
        of: How many there are.
    """

    data: Markup
    images: str
    heatmaps: str
    columns: int
    side: int
    shown: int
    of: int


def gallery(
    images: UInt8[np.ndarray, "m h w c"],
    heatmaps: Float[np.ndarray, "m h w"],
    names: Sequence[str],
    detections: Mapping[str, Detection],
    poisoned: Bool[np.ndarray, " n"] | None,
    chosen: Int[np.ndarray, " m"],
) -> Gallery:
    """Images of one class with what was found in them.

    Args:
        images: Those that are shown.
        heatmaps: Their relevance towards the class.
        names: Of all images of the class.
        detections: By the detectors' names.
        poisoned: The truth about all, where it is known.
        chosen: Which are shown, of :func:`shown_images`.
    """
    size = min(_SIDE, max(images.shape[1:3]))
    columns = math.ceil(math.sqrt(len(chosen)))
    data: dict[str, Any] = {
        "names": [shown(names[int(k)]) for k in chosen],
        "places": places(heatmaps).round(5).tolist(),
        "detectors": {
            name: {
                "scores": [float(f"{score:.5g}") for score in found.scores[chosen]],
                "called": found.suspects[chosen].astype(int).tolist(),
            }
            for name, found in detections.items()
        },
        "poisoned": None if poisoned is None else poisoned[chosen].astype(int).tolist(),
    }
    # Nothing in it may end the script that holds it.
    text = json.dumps(data, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    return Gallery(
        Markup(text),  # noqa: S704 (escaped the line before)
        _sheet(images, len(images), columns, size),
        _sheet(_coloured(heatmaps), len(heatmaps), columns, size),
        columns,
        size,
        len(chosen),
        len(names),
    )


def shown_images(n: int, detections: Mapping[str, Detection]) -> Int[np.ndarray, " m"]:
    """Which images of a class are shown: all, up to 2,500.

    Of more, those with the highest scores of every detector, and some of the others.

    Args:
        n: How many there are.
        detections: By the detectors' names.
    """
    if n <= _MOST:
        return np.arange(n)
    per_detector = _MOST // (2 * max(1, len(detections)))
    first = [np.argsort(-found.scores)[:per_detector] for found in detections.values()]
    kept = np.unique(np.concatenate([np.zeros(0, int), *first]))
    others = np.setdiff1d(np.arange(n), kept)
    return np.union1d(kept, others[evenly(len(others), _MOST - len(kept))])


def places(heatmaps: Float[np.ndarray, "n h w"]) -> Float[np.ndarray, "n 2"]:
    """Where images stand on the map of a class, by the distances between their heatmaps.

    Constant heatmaps, which have no geometry, stand in the middle.

    Args:
        heatmaps: Of all images of the class.
    """
    found = np.zeros((len(heatmaps), 2))
    told = np.flatnonzero(~constant(heatmaps))
    if len(told) > 1:
        spaces = quantised(measure_spaces(heatmaps[told]), _POINTS)
        found[told] = scaled(spaces, EntropicGW(own_epsilon(spaces)))
    return found


def _coloured(heatmaps: Float[np.ndarray, "n h w"]) -> Iterator[UInt8[np.ndarray, "h w 3"]]:
    """Bright for much relevance; with negative one, red for and blue against."""
    signed = heatmaps.min() < 0
    colors = mpl.colormaps["seismic" if signed else "inferno"]
    for heatmap in heatmaps:
        high = max(float(np.quantile(np.abs(heatmap), 0.998)), np.finfo(np.float32).tiny)
        values = heatmap / (2 * high) + 0.5 if signed else heatmap / high
        yield colors(values, bytes=True)[..., :3]


def _sheet(
    images: Iterable[UInt8[np.ndarray, "h w c"]], count: int, columns: int, side: int
) -> str:
    """Thumbnails side by side, as a data URI."""
    sheet = Image.new("RGB", (columns * side, -(-count // columns) * side))
    for k, image in enumerate(images):
        pixels = image.squeeze(-1) if image.shape[-1] == 1 else image
        small = Image.fromarray(pixels).convert("RGB")
        if small.size != (side, side):
            small = small.resize((side, side), Image.Resampling.BILINEAR)
        sheet.paste(small, (k % columns * side, k // columns * side))
    data = io.BytesIO()
    sheet.save(data, "webp", quality=80, method=4)
    return f"data:image/webp;base64,{base64.b64encode(data.getvalue()).decode()}"
