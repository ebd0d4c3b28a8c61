"""What stages make and leave; the functions that make them import nothing more of the jobs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np


@dataclass(frozen=True, eq=False)
class Artefact:
    """What a stage left.

    Attributes:
        key: Hash of everything the stage depends on.
        folder: Where its files stand.
        values: JSON values.
        arrays: Arrays.
        seconds: Time the stage took when it ran.
        versions: Of Python and packages when it ran, and JAX's platform and devices.
    """

    key: str
    folder: Path
    values: dict[str, Any]
    arrays: dict[str, np.ndarray]
    seconds: float
    versions: dict[str, str]


@dataclass(frozen=True)
class Made:
    """What a stage's function returns: JSON values and arrays."""

    values: dict[str, Any]
    arrays: dict[str, np.ndarray]
    seconds: float | None = None
