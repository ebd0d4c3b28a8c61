"""Pictures of a run, drawn with matplotlib."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import IO

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from jaxpoison._names import shown
from jaxpoison.detectors.detection import Detection
from jaxpoison.evidence.class_evidence import ClassEvidence
from jaxpoison.gw.spaces import constant, measure_spaces
from jaxpoison.jobs.outcome import ScannedClass
from jaxpoison.lrp.balance import LayerBalance
from jaxpoison.training.fit import Epoch

_CLEAN, _SUSPECT = "#3b6fb6", "#d1495b"


def examples(
    images: UInt8[np.ndarray, "m h w c"],
    relevance: Float[np.ndarray, "m h w c"],
    titles: Sequence[str],
) -> Figure:
    """Images over their heatmaps and the pixels holding 99 % of the relevance.

    As Figures 1, 3 and 4 of Schulth, Berghoff, Neu. Constant heatmaps have no such pixels.

    Examples:
        >>> picture = jp.examples(images[:2], explained.relevance[:2], ["first", "second"])
        >>> picture.savefig("examples.png")
    """
    told = np.flatnonzero(~constant(relevance))
    spaces = measure_spaces(relevance[told]) if len(told) else None
    figure = Figure(figsize=(1.25 * len(images), 4.0), layout="constrained")
    axes = figure.subplots(3, len(images), squeeze=False)
    for k, title in enumerate(titles):
        axes[0, k].imshow(images[k].squeeze(), cmap="grey")
        axes[0, k].set_title(shown(title), fontsize=8, parse_math=False)
        heat = relevance[k].sum(-1)
        high = max(float(np.quantile(np.abs(heat), 0.998)), np.finfo(np.float32).tiny)
        if heat.min() < 0:  # Red for, blue against.
            axes[1, k].imshow(heat, cmap="seismic", vmin=-high, vmax=high)
        else:
            axes[1, k].imshow(heat, cmap="inferno", vmin=0, vmax=high)
        if spaces is not None and k in told:
            cloud = np.asarray(spaces.weights[np.searchsorted(told, k)])
            cloud = cloud.reshape(spaces.height, spaces.width)
            rows, columns = np.nonzero(cloud)
            sizes = 1500 * cloud[rows, columns]
            axes[2, k].scatter(columns, rows, s=sizes, c=_SUSPECT, linewidths=0)
            axes[2, k].set(xlim=(-1, spaces.width), ylim=(spaces.height, -1), aspect="equal")
        for axis in axes[:, k]:
            axis.set(xticks=[], yticks=[])
    for axis, label in zip(axes[:, 0], ("image", "relevance", "99 % of it"), strict=True):
        axis.set_ylabel(label, fontsize=8)
    return figure


def balance_chart(rows: Sequence[LayerBalance]) -> Figure:
    """What every layer did with relevance, from the input (top) to the output."""
    figure = Figure(figsize=(7.0, 0.22 * len(rows) + 1.0), layout="constrained")
    axis = figure.subplots()
    left = np.zeros(len(rows))
    parts = (
        ("handed on", _CLEAN, [row.handed for row in rows]),
        ("bias", "#e0a030", [row.bias for row in rows]),
        ("stabiliser", _SUSPECT, [row.stabilizer for row in rows]),
    )
    for label, color, values in parts:
        axis.barh(range(len(rows)), values, left=left, color=color, label=label)
        left += np.asarray(values)
    names = [f"{row.layer.path} ({type(row.layer.rule).__name__})" for row in rows]
    axis.set_yticks(range(len(rows)), names, fontsize=7)
    axis.invert_yaxis()
    axis.set_xlabel("share of the starting relevance", fontsize=8)
    axis.legend(fontsize=8)
    return figure


def cluster_map(
    detections: dict[str, Detection], poisoned: Bool[np.ndarray, " n"] | None
) -> Figure:
    """How each detector's score spreads, suspects apart, and the truth where it is known."""
    names = list(detections)
    columns = min(3, len(names))
    rows = -(-len(names) // columns)
    figure = Figure(figsize=(3.4 * columns, 2.3 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis, name in zip(axes, names, strict=False):
        _scores(axis, detections[name], poisoned)
        axis.set_title(name, fontsize=9)
    for axis in axes[len(names) :]:
        axis.set_axis_off()
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=8)
    return figure


def _scores(axis: Axes, found: Detection, poisoned: Bool[np.ndarray, " n"] | None) -> None:
    low, high = np.quantile(found.scores, [0.001, 0.999])
    bins = np.linspace(low, high, 41)
    clipped = np.clip(found.scores, low, high)
    if poisoned is None:
        groups = [(~found.suspects, _CLEAN, "called clean"), (found.suspects, _SUSPECT, "suspects")]
    else:
        groups = [(~poisoned, _CLEAN, "clean"), (poisoned, _SUSPECT, "poisoned")]
    for where, color, label in groups:
        axis.hist(clipped[where], bins, color=color, alpha=0.65, label=label)
    if found.called_from is not None:
        line = {"color": "black", "linewidth": 0.8, "linestyle": ":"}
        axis.axvline(found.called_from, label="called poisoned right of it", **line)
    axis.set_yscale("symlog")
    axis.tick_params(labelsize=7)
    axis.set_xlabel("score", fontsize=8)


def class_ranking(classes: Sequence[ScannedClass], names: Sequence[str]) -> Figure:
    """How suspicious every class is, most suspicious first; suspicious from 1 on.

    Args:
        classes: What a scan found in each.
        names: Names of all classes.
    """
    figure = Figure(figsize=(7.0, 0.16 * len(classes) + 0.8), layout="constrained")
    axis = figure.subplots()
    colors = [_SUSPECT if scanned.suspicious else _CLEAN for scanned in classes]
    axis.barh(range(len(classes)), [scanned.suspicion for scanned in classes], color=colors)
    titles = [f"{scanned.label} {shown(names[scanned.label])}" for scanned in classes]
    axis.set_yticks(range(len(classes)), titles, fontsize=6, parse_math=False)
    axis.set_ylim(len(classes) - 0.5, -0.5)
    axis.axvline(1, color="black", linewidth=0.8, linestyle=":")
    axis.set_xlabel("suspicion", fontsize=8)
    axis.tick_params(axis="x", labelsize=7)
    return figure


def trigger_picture(evidence: ClassEvidence, names: Sequence[str]) -> Figure:
    """What called images have in common, and which classes it turns.

    Args:
        evidence: Of an attacked class.
        names: Names of all classes.

    Raises:
        ValueError: No image of the class is called.

    Examples:
        >>> jp.trigger_picture(evidence, train.class_names).savefig("trigger.png")
    """
    trigger, turned = evidence.trigger, evidence.turned()
    if trigger is None or not turned:
        raise ValueError(f"no image of class {evidence.label} is called: there is no trigger")
    figure = Figure(figsize=(7.0, 0.13 * len(turned) + 1.2), layout="constrained")
    mosaic = figure.subplot_mosaic([["values", "classes"], ["weights", "classes"]])
    values = trigger.values / 255
    values = values.squeeze(-1) if values.shape[-1] == 1 else values
    mosaic["values"].imshow(values, cmap="grey", vmin=0, vmax=1)
    mosaic["values"].set_title("median of the windows", fontsize=9)
    mosaic["weights"].imshow(trigger.weights.sum(-1), cmap="viridis", vmin=0)
    mosaic["weights"].set_title("where they agree", fontsize=9)
    for name in ("values", "weights"):
        mosaic[name].set(xticks=[], yticks=[])
    axis = mosaic["classes"]
    axis.barh(range(len(turned)), [100 * share for share in turned.values()], color=_SUSPECT)
    titles = [f"{k} {shown(names[k])}" for k in turned]
    axis.set_yticks(range(len(turned)), titles, fontsize=5, parse_math=False)
    axis.set_ylim(len(turned) - 0.5, -0.5)
    axis.set_xlim(0, 100)
    said = f"% of their images that become {shown(names[evidence.label])}"
    axis.set_xlabel(said, fontsize=8, parse_math=False)
    axis.tick_params(axis="x", labelsize=7)
    return figure


def carriers_sheet(
    images: UInt8[np.ndarray, "m h w c"],
    places: Int[np.ndarray, "m 2"],
    size: int,
    titles: Sequence[str],
) -> Figure:
    """Images with a frame around the trigger that each carries.

    Args:
        images: At least one.
        places: Row and column of the trigger's upper left corner.
        size: Side of the trigger.
        titles: One for each.
    """
    columns = min(6, len(images))
    rows = -(-len(images) // columns)
    figure = Figure(figsize=(1.6 * columns, 1.8 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis in axes:
        axis.set_axis_off()
    for axis, image, (row, column), title in zip(axes, images, places, titles, strict=False):
        axis.imshow(image.squeeze(), cmap="grey")
        corner = float(column) - 1, float(row) - 1
        frame = Rectangle(corner, size + 1, size + 1, fill=False, edgecolor=_SUSPECT, linewidth=2)
        axis.add_patch(frame)
        axis.set_title(shown(title), fontsize=8, parse_math=False)
    return figure


def training_course(epochs: Sequence[Epoch]) -> Figure:
    """Losses and accuracies by epoch."""
    figure = Figure(figsize=(6.8, 2.3), layout="constrained")
    axes = figure.subplots(1, 2)
    numbers = np.arange(1, len(epochs) + 1)
    for axis, what in zip(axes, ("loss", "accuracy"), strict=True):
        for part, color in (("train", _CLEAN), ("validation", _SUSPECT)):
            values = [getattr(epoch, f"{part}_{what}") for epoch in epochs]
            axis.plot(numbers, values, marker="o", markersize=3, color=color, label=part)
        axis.set_xlabel("epoch", fontsize=8)
        axis.set_title(what, fontsize=9)
        axis.tick_params(labelsize=7)
    axes[0].legend(fontsize=8)
    return figure


def save_png(figure: Figure, file: IO[bytes]) -> None:
    """Writes a figure; letters that no font has stand as boxes."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from")
        figure.savefig(file, format="png", dpi=130)
