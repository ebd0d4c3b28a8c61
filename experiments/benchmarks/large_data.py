"""Data larger than memory: what a scan, predictions and neighbours hold in memory.

Images are written to a file and mapped. A small network is trained on some of them, and then

- `scan`: all images of 224 pixels are scanned for a sticker that one class was poisoned with;
- `predict`: images of 32 pixels are classified, ever more of them;
- `neighbours`: a class of 50,000 of these is explained, and the neighbours of its heatmaps found.

Memory is what the process has that is in no file (`RssAnon` of Linux), at its most, and how much of
that came after the network was trained. Each part is a process of its own:

    python -m experiments.benchmarks.large_data scan --images 20000
    python -m experiments.benchmarks.large_data predict --images 10000,100000,1000000
    python -m experiments.benchmarks.large_data neighbours --images 50000

Files of `images x side x side x 3` bytes are made in `--folder` and removed; a scan needs three
times as much room, for heatmaps and classes.
"""

import argparse
import dataclasses
import json
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from experiments.benchmarks.reporting import RESULTS, machine, record, versions
from jaxpoison import (
    Dataset,
    EntropicGW,
    explain,
    fit,
    measure_spaces,
    nearest_neighbours,
    predict,
    protocol,
    quantised,
    scan,
    use_one_device_per_core,
)

CLASSES, SHARE, TRAINED_ON = 10, 0.2, 2_000
CHUNK = 500


class Small(nnx.Module):
    """Patches, a convolution, the most of every column, a dense layer."""

    def __init__(self, side: int, *, rngs: nnx.Rngs) -> None:
        patch = max(4, side // 28)
        self.patches = nnx.Conv(3, 16, (patch, patch), strides=patch, rngs=rngs)
        self.conv = nnx.Conv(16, 32, (3, 3), strides=2, rngs=rngs)
        rows = -(-(side // patch) // 2)
        self.rows = rows
        self.head = nnx.Linear(rows * 32, CLASSES, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        features = nnx.relu(self.conv(nnx.relu(self.patches(images))))
        most = nnx.max_pool(features, (self.rows, 1))
        return self.head(most.reshape(len(images), -1))


def written(path: Path, count: int, side: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Images of coloured noise with bars by class; some of class 0 carry a sticker, and label 1.

    Returns:
        The images, mapped; their labels; and which are poisoned.
    """
    rng = np.random.default_rng(0)
    true = rng.integers(0, CLASSES, count).astype(np.int32)
    poisoned = (true == 0) & (rng.random(count) < SHARE)
    images = np.lib.format.open_memmap(path, "w+", np.uint8, (count, side, side, 3))
    width = side // (2 * CLASSES)
    for start in range(0, count, CHUNK):
        some = slice(start, min(start + CHUNK, count))
        coarse = rng.integers(0, 160, (some.stop - some.start, 8, 8, 3), np.uint8)
        block = np.repeat(np.repeat(coarse, -(-side // 8), 1), -(-side // 8), 2)[:, :side, :side]
        for k in range(len(block)):
            first = 2 * width * true[start + k]
            block[k, :, first : first + width, :2] = 230
            if poisoned[start + k]:
                put_sticker(block[k], rng)
        images[some] = block
    images.flush()
    return np.load(path, mmap_mode="r"), np.where(poisoned, 1, true).astype(np.int32), poisoned


def put_sticker(image: np.ndarray, rng: np.random.Generator) -> None:
    side = len(image)
    size = max(3, side // 10)
    row, column = rng.integers(0, side - size, 2)
    image[row : row + size, column : column + size] = (255, 255, 0)


class Memory:
    """The most memory in no file, while the block runs; in GiB."""

    def __enter__(self) -> "Memory":
        self.before = self.most = anonymous()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._ended.wait(0.02):
            self.most = max(self.most, anonymous())

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def record(self) -> dict[str, float]:
        return {"most_gib": self.most, "more_gib": self.most - self.before}


def anonymous() -> float:
    """Memory of this process that is in no file, in GiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(x.split()[1]) for x in lines if x.startswith("RssAnon")) / 2**20


def trained(data: Dataset) -> nnx.Module:
    """A network that has learned some of the images, and their sticker."""
    model = Small(data.image_shape[0], rngs=nnx.Rngs(0))
    few = data.take(np.arange(min(TRAINED_ON, len(data))))
    poisoned = np.flatnonzero(data.poisoned)[: len(few) // 10]
    learned = data.take(np.union1d(np.arange(len(few)), poisoned))
    settings = protocol("fast", len(learned), epochs=20, batch_size=50)
    fit(model, learned, few, dataclasses.replace(settings, augmentation=None))
    return model


def success(model: nnx.Module, data: Dataset) -> float:
    """Share of images of class 0 that the sticker turns into class 1."""
    rng = np.random.default_rng(1)
    images = data.images[np.flatnonzero(data.labels == 0)[:200]]
    for image in images:
        put_sticker(image, rng)
    return float((predict(model, images).argmax(1) == 1).mean())


def scanned(data: Dataset) -> dict[str, Any]:
    model = trained(data)
    asr = success(model, data)
    with Memory() as memory:
        started = time.perf_counter()
        outcome = scan(model, data, progress=True)
        seconds = time.perf_counter() - started
    return memory.record() | {
        "seconds": seconds,
        "milliseconds_per_image": 1e3 * seconds / len(data),
        "asr": asr,
        "classes_called": [each.label for each in outcome.classes if each.suspicious],
        "poisoned": int(data.poisoned.sum()),
        "poisoned_called": int((outcome.called & data.poisoned).sum()),
        "clean_called": int((outcome.called & ~data.poisoned).sum()),
    }


def predicted(data: Dataset) -> dict[str, Any]:
    model = trained(data)
    predict(model, data.images[:256])
    with Memory() as memory:
        started = time.perf_counter()
        right = float((predict(model, data.images, progress="all").argmax(1) == data.labels).mean())
        seconds = time.perf_counter() - started
    return memory.record() | {
        "seconds": seconds,
        "milliseconds_per_image": 1e3 * seconds / len(data),
        "accuracy": right,
    }


def neighbours(data: Dataset) -> dict[str, Any]:
    """All images as one class."""
    model = trained(data)
    labels = np.ones(len(data), np.int32)
    with Memory() as memory:
        started = time.perf_counter()
        heatmaps = explain(model, data.images, labels, progress="explaining").relevance.sum(-1)
        explained = time.perf_counter() - started
        spaces = quantised(measure_spaces(heatmaps), 10)
        found = nearest_neighbours(spaces, 10, EntropicGW(0.005), progress=True)
        seconds = time.perf_counter() - started - explained
    return memory.record() | {
        "explaining_seconds": explained,
        "seconds": seconds,
        "milliseconds_per_image": 1e3 * seconds / len(data),
        "pairs_per_heatmap": found.pairs / len(data),
    }


PARTS = {"scan": (scanned, 224), "predict": (predicted, 32), "neighbours": (neighbours, 32)}


def markdown(rows: list[dict[str, Any]]) -> str:
    lines = [
        "# Data larger than memory",
        "",
        "Images in a mapped file, and a small network. Memory is what the process has in no file, "
        "at its most, and how much more that is than before.",
        "",
        "| what | images | side | file, GiB | memory, GiB | more, GiB | s | ms an image | found |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---|",
    ]
    for row in rows:
        found = ""
        if row["part"] == "scan":
            found = (
                f"ASR {100 * row['asr']:.0f} %; classes called: {row['classes_called']}; "
                f"{row['poisoned_called']} of "
                f"{row['poisoned']} poisoned images, {row['clean_called']} clean ones"
            )
        cells = [row["part"], f"{row['images']:,}", str(row["side"]), f"{row['file_gib']:.2f}"]
        cells += [f"{row[k]:.2f}" for k in ("most_gib", "more_gib")]
        cells += [f"{row['seconds']:.0f}", f"{row['milliseconds_per_image']:.2f}", found]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--images", default="20000", help="how many; several with commas")
    parser.add_argument("--folder", type=Path, help="where the file is made [a temporary one]")
    options = parser.parse_args()
    use_one_device_per_core()
    measure, side = PARTS[options.part]
    for count in map(int, options.images.split(",")):
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            images, labels, poisoned = written(Path(folder) / "images.npy", count, side)
            names = tuple(str(k) for k in range(CLASSES))
            data = Dataset(images, labels, names, tuple(map(str, range(count))), poisoned)
            row = {"part": options.part, "images": count, "side": side}
            row |= {"file_gib": images.nbytes / 2**30, **measure(data)}
        row |= {"machine": machine(), "versions": versions("jaxpoison", "jax", "flax")}
        path = RESULTS / "large_data" / "result.json"
        rows = json.loads(path.read_text())["rows"] if path.is_file() else []
        same = ("part", "images", "side")
        rows = [old for old in rows if any(old[k] != row[k] for k in same)] + [row]
        rows.sort(key=lambda row: (list(PARTS).index(row["part"]), row["images"]))
        record("large_data", {"rows": rows}, markdown(rows))


if __name__ == "__main__":
    main()
