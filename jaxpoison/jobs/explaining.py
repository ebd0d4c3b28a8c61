"""The images of a class, explained: their relevance and activations."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from flax import nnx
from jaxtyping import Float, Int, UInt8

from jaxpoison._sampling import evenly
from jaxpoison.jobs.artefact import Artefact, Made
from jaxpoison.lrp.attributions import ATTRIBUTIONS, LRP, explain
from jaxpoison.lrp.balance import conservation
from jaxpoison.lrp.graph import last_dense_layer
from jaxpoison.models.inference import layer_inputs, layer_outputs

_BALANCED_IMAGES = 64
# What a layer did with relevance, of LayerBalance.
_BOOKED = ("given", "handed", "bias", "stabilizer")


@dataclass(frozen=True)
class LayerRow:
    """What one layer did with relevance: means over images, as shares of the start.

    Attributes:
        layer: The layer's path.
        kind: Its class.
        rule: Its rule's class.
        given: Relevance of its output.
        handed: Relevance it handed to its inputs.
        bias: Relevance its bias absorbed.
        stabilizer: Relevance its stabiliser absorbed.
    """

    layer: str
    kind: str
    rule: str
    given: float
    handed: float
    bias: float
    stabilizer: float


@dataclass(frozen=True, eq=False)
class ExplainedClass:
    """The images of one class, and what the network makes of them.

    Attributes:
        label: The class.
        members: Indices of its training images.
        relevance: Their relevance towards the class.
        activations: Of a layer, by default what the last dense one gets.
        negative_logits: In how many of them the class' logit is negative.
        largest_absorbed_share: Most that LRP kept of an image's starting relevance;
            ``None`` for other methods.
        balance: What every layer did with relevance, over a sample; empty for other methods.
        seconds: Time taken.
    """

    label: int
    members: Int[np.ndarray, " n"]
    relevance: Float[np.ndarray, "n h w c"]
    activations: Float[np.ndarray, "n d"]
    negative_logits: int
    largest_absorbed_share: float | None
    balance: tuple[LayerRow, ...]
    seconds: float


def explain_images(
    model: nnx.Module,
    images: UInt8[np.ndarray, "n h w c"],
    label: int,
    attribution: str,
    layer: str | None,
    progress: bool,
    _: Path,
) -> Made:
    """Relevance towards a class, activations, and the balance of layers.

    Read by :func:`explained_class`.
    """
    method = ATTRIBUTIONS[attribution]()
    is_lrp = isinstance(method, LRP)
    classes = np.full(len(images), label)
    title = "explaining" if progress else None
    found = explain(model, images, classes, method=method, progress=title)
    shares = found.absorbed / np.where(found.start > 0, found.start, 1)
    return Made(
        {
            "negative_logits": int(found.negative.sum()),
            "largest_absorbed_share": float(shares.max()) if is_lrp else None,
            "balance": _balance(model, images, classes) if is_lrp else [],
        },
        {
            "relevance": found.relevance,
            "activations": activations(model, images, layer, "activations" if progress else None),
        },
    )


def explained_class(stage: Artefact, label: int, members: Int[np.ndarray, " n"]) -> ExplainedClass:
    """What :func:`explain_images` made."""
    return ExplainedClass(
        label,
        members,
        stage.arrays["relevance"],
        stage.arrays["activations"],
        stage.values["negative_logits"],
        stage.values["largest_absorbed_share"],
        tuple(LayerRow(**row) for row in stage.values["balance"]),
        stage.seconds,
    )


def explain_part(
    model: nnx.Module,
    images: UInt8[np.ndarray, "n h w c"],
    label: int,
    attribution: str,
    _: Path,
) -> Made:
    """Heatmaps alone, summed over channels."""
    classes = np.full(len(images), label)
    found = explain(model, images, classes, method=ATTRIBUTIONS[attribution]())
    return Made({}, {"heatmaps": found.relevance.sum(-1)})


def activations(
    model: nnx.Module,
    images: UInt8[np.ndarray, "n h w c"],
    layer: str | None,
    title: str | None,
) -> Float[np.ndarray, "n d"]:
    """Outputs of a layer; of none in particular, what the last dense layer gets."""
    if layer is not None:
        return layer_outputs(model, images, layer, progress=title)
    return layer_inputs(model, images, last_dense_layer(model, images), progress=title)


def _balance(
    model: nnx.Module, images: UInt8[np.ndarray, "n h w c"], classes: Int[np.ndarray, " n"]
) -> list[dict[str, str | float]]:
    """What every layer did with relevance, over a sample of the images."""
    few = evenly(len(images), _BALANCED_IMAGES)
    rows = [
        LayerRow(
            row.layer.path,
            row.layer.kind,
            type(row.layer.rule).__name__,
            *(getattr(row, name) for name in _BOOKED),
        )
        for row in conservation(model, images[few], classes[few])
    ]
    return [dataclasses.asdict(row) for row in rows]
