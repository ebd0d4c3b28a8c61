"""Figures 1 to 6 of the paper.

    python -m experiments.figures --data gtsrb32.zip

Figures 1, 2 and 5 show the data and the triggers. 3 and 4 show a run: that of
Table 1 at p = 33 %, which is made where it is not there (some fifteen minutes
on two CPU cores). 6 is drawn from the recorded rows of Table 4. Pictures go to
``runs/figures``; those of the data belong to their publishers and not into
this repository. 6 shows no data and goes beside its table.
"""

import argparse
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from experiments import table4
from experiments.benchmarks.reporting import RESULTS
from experiments.command import command, outcome_of
from experiments.records import read
from experiments.rows import standard
from jaxpoison import (
    AmplitudePattern,
    Dataset,
    Sticker,
    examples,
    load_data,
    use_one_device_per_core,
)

SOURCE, TARGET, SHOWN = 2, 5, 4


def pictures(images: np.ndarray, titles: Sequence[str], columns: int) -> Figure:
    """Images in rows."""
    rows = -(-len(images) // columns)
    figure = Figure(figsize=(1.1 * columns, 1.3 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis in axes:
        axis.set_axis_off()
    for axis, image, title in zip(axes, images, titles, strict=False):
        axis.imshow(image)
        axis.set_title(title, fontsize=7)
    return figure


def evenly(index: np.ndarray, count: int) -> np.ndarray:
    """At most so many of some indices, evenly over them."""
    places = np.linspace(0, len(index) - 1, min(count, len(index)))
    return index[places.astype(int)]


def few_of(data: Dataset, label: int, count: int) -> np.ndarray:
    """Images of one class, evenly over the data."""
    index = np.flatnonzero(data.labels == label)
    return data.images[evenly(index, count)]


def figure1(data: Dataset) -> Figure:
    """Poisoned examples: stickers of every size."""
    signs = few_of(data, SOURCE, SHOWN)
    marked = [Sticker(size)(signs, np.random.default_rng(size)) for size in (1, 2, 3)]
    titles = [f"s = {size}" for size in (1, 2, 3) for _ in signs]
    return pictures(np.concatenate(marked), titles, SHOWN)


def figure2(data: Dataset) -> Figure:
    """Patterns of amplitude 32, 64 and 255 on the same signs."""
    signs = few_of(data, TARGET, 2)
    amplitudes = (32, 64, 255)
    images = [AmplitudePattern(a)(signs[k : k + 1]) for k in range(2) for a in amplitudes]
    return pictures(np.concatenate(images), [f"amplitude {a}" for a in amplitudes] * 2, 3)


def figures3and4(options: argparse.Namespace) -> tuple[Figure, Figure]:
    """Poisoned signs, their relevance towards the target, and the pixels that hold 99 % of it."""
    outcome = outcome_of(options, *standard(33))
    if outcome.poisoned is None:
        raise RuntimeError("the run has no poisoned images")
    chosen = np.flatnonzero(outcome.poisoned)[:2]
    images = outcome.data.train.images[outcome.explained.members[chosen]]
    relevance, titles = outcome.explained.relevance[chosen], ["poisoned"] * 2
    return examples(images[:1], relevance[:1], titles[:1]), examples(images, relevance, titles)


def figure5(data: Dataset) -> Figure:
    """One image of every class, neither dark nor glaring."""
    labels = np.unique(data.labels)
    several = [few_of(data, label, 40) for label in labels]
    best = [few[np.abs(few.mean((1, 2, 3)) - 120).argmin()] for few in several]
    return pictures(np.array(best), [str(label) for label in labels], 11)


def figure6(recorded: dict[str, Any]) -> Figure:
    """Attack success by class and amplitude, without the target."""
    rows = [row for row in table4.TABLE.rows if row.name in recorded]
    if not rows:
        raise FileNotFoundError(
            "Figure 6 needs rows of Table 4: run python -m experiments.table4 first"
        )
    figure = Figure(figsize=(9, 2.6), layout="constrained")
    axis = figure.subplots()
    width = 0.8 / len(rows)
    classes: list[int] = []
    for k, row in enumerate(rows):
        shares = recorded[row.name]["attack"]["per_class_asr"]
        classes = sorted(map(int, shares))
        heights = [100 * shares[str(c)] for c in classes]
        axis.bar(np.arange(len(classes)) + (k - (len(rows) - 1) / 2) * width, heights, width)
    axis.set_xticks(range(len(classes)), [str(c) for c in classes], fontsize=6)
    axis.set(xlabel="class", ylabel="ASR, %", ylim=(0, 100))
    axis.margins(x=0.01)
    # Above the bars, which reach 100.
    titles = [row.title for row in rows]
    axis.legend(titles, fontsize=7, ncols=3, loc="lower left", bbox_to_anchor=(0, 1), frameon=False)
    return figure


def main() -> None:
    parser = command(__doc__)
    add = parser.add_argument
    add("--only", default="1,2,3,4,5,6", help="numbers of figures [%(default)s]")
    options = parser.parse_args()
    wanted = options.only.split(",")
    if unknown := set(wanted) - set("123456"):
        parser.error(f"figures are 1 to 6, found {', '.join(sorted(unknown))}")
    use_one_device_per_core()
    found: dict[str, Figure] = {}
    if set(wanted) & set("125"):
        data = load_data(options.data, progress=True).train
        found |= {"1": figure1(data), "2": figure2(data), "5": figure5(data)}
    if set(wanted) & set("34"):
        found["3"], found["4"] = figures3and4(options)
    if "6" in wanted:
        try:
            found["6"] = figure6(read(table4.TABLE.name))
        except FileNotFoundError as error:
            print(error)
    folder = options.workdir / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    for number, figure in found.items():
        if number in wanted:
            beside = RESULTS / table4.TABLE.name if number == "6" else folder
            figure.savefig(beside / f"figure{number}.png", dpi=160)
            print(beside / f"figure{number}.png")


if __name__ == "__main__":
    main()
