"""Spaces on all devices, in one of few sizes: any number of them shares a few compilations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding
from jaxtyping import Array, Bool, Int

from jaxpoison.gw.products import LaidOut, laid_out
from jaxpoison.gw.spaces import MeasureSpaces, SmallSpaces, Spaces
from jaxpoison.parallel import bucket, mesh_of, shardings_on

# Rows of the smallest size on each device.
_LEAST = 32


@dataclass(frozen=True, eq=False)
class Placed:
    """Spaces on all devices of all processes, laid out for products.

    Attributes:
        spaces: The rows; those without a space repeat the first, and cost nothing.
        real: Which rows hold a space. On every device they come first.
        rows: The row of every space.
        everywhere: How to give something to all of these devices.
        split: How to give each of these devices its rows.
    """

    spaces: LaidOut
    real: Bool[Array, " m"]
    rows: Int[np.ndarray, " n"]
    everywhere: NamedSharding
    split: NamedSharding

    def __len__(self) -> int:
        return len(self.rows)

    def of_spaces(self, of_rows: Array) -> np.ndarray:
        """What belongs to the spaces, in their order."""
        return np.asarray(of_rows)[self.rows]

    def of_rows(self, of_spaces: np.ndarray) -> Array:
        """The other way round, on the devices; rows without a space get zeros."""
        spread = np.zeros((len(self.real), *of_spaces.shape[1:]), of_spaces.dtype)
        spread[self.rows] = of_spaces
        return jax.device_put(spread, self.split)


def place(spaces: Spaces) -> Placed:
    """Deals spaces out to the devices like cards, in a power of two of rows each.

    Neighbours are often alike, and equally hard. By way of the host, since every process
    holds all spaces and keeps its part.

    Raises:
        ValueError: There are no spaces.
    """
    if not len(spaces):
        raise ValueError("expected at least one heatmap, found none")
    everywhere, split = shardings_on(mesh_of(jax.devices()))
    devices = split.mesh.size
    n = len(spaces)
    size = bucket(n, devices, least=_LEAST)
    rows = np.arange(n) % devices * (size // devices) + np.arange(n) // devices
    index, real = np.zeros(size, int), np.zeros(size, bool)
    index[rows], real[rows] = np.arange(n), True
    on_devices, real = jax.device_put((on_host(spaces).take(index), real), split)
    return Placed(_laid_out(on_devices), real, rows, everywhere, split)


def on_host(spaces: Any) -> Any:
    """Spaces whose arrays are NumPy's: what is picked from them costs no compilation."""
    return jax.tree.map(np.asarray, spaces)


@jax.jit
def _laid_out(spaces: MeasureSpaces | SmallSpaces) -> LaidOut:
    return laid_out(spaces)
