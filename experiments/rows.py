"""Rows of the paper's tables: runs, and what the paper printed of them."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PRINTED = json.loads((Path(__file__).parent / "paper_tables.json").read_text())
# The same for all rows.
SCHEDULE = {"protocol": "fast", "epochs": 2, "batch_size": 64}


@dataclass(frozen=True)
class Row:
    """One run and what the paper printed of it.

    Attributes:
        name: Of the row, and of its work directory.
        options: What differs from the defaults of :class:`RunConfig`.
        title: What the table calls it.
        printed: The paper's figures, percent.
        doubt: Why a printed figure does not add up, where it does not.
        doubted: The paper's detectors that this concerns.
    """

    name: str
    options: dict[str, Any]
    title: str
    printed: dict[str, Any] = field(default_factory=dict)
    doubt: str = ""
    doubted: Sequence[str] = ("ac", "hc")


def standard(share: float, size: int = 3, seed: int = 0) -> tuple[str, dict[str, Any]]:
    """Name and options of a run with the standard attack; the share in percent."""
    name = f"standard-s{size}-p{share:g}-seed{seed}"
    return name, {
        "attack": "standard",
        "rate": share / 100,
        "sticker_size": size,
        "seed": seed,
    }


def label_consistent(share: float, amplitude: int | None = None) -> tuple[str, dict[str, Any]]:
    """Name and options of a run with the label-consistent attack; a sticker without amplitude."""
    options: dict[str, Any] = {"attack": "label-consistent", "rate": share / 100}
    if amplitude is None:
        return f"label-consistent-s3-p{share:g}-seed0", options
    options |= {"trigger": "amplitude", "amplitude": amplitude}
    return f"label-consistent-a{amplitude}-p{share:g}-seed0", options
