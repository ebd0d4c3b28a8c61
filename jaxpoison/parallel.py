"""Work split over the batch axis of this process's devices.

On a CPU, two devices of one core each are faster than one device of two
cores: only matrix products of one device use several cores, all other
operations run on one. :func:`use_one_device_per_core` makes them.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, PyTree

from jaxpoison._progress import Bar

BATCH = "batch"
_MOST_CPU_DEVICES = 8


def use_one_device_per_core() -> None:
    """Lets batches be split over the cores of a CPU; without effect on accelerators.

    To be called before anything is computed.
    """
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    jax.config.update("jax_num_cpu_devices", min(cores, _MOST_CPU_DEVICES))


def mesh_for(rows: int, devices: Sequence[Any] | None = None) -> Mesh:
    """The largest mesh of devices, by default this process's, that divides a batch evenly.

    Raises:
        ValueError: A process would be left without a part.
    """
    devices = jax.local_devices() if devices is None else devices
    count = next(k for k in range(min(len(devices), rows), 0, -1) if rows % k == 0)
    if {d.process_index for d in devices} - {d.process_index for d in devices[:count]}:
        raise ValueError(
            f"the number of rows must be a multiple of that of the devices of all processes, "
            f"{len(devices)}, found {rows}"
        )
    return jax.make_mesh((count,), (BATCH,), (AxisType.Auto,), devices=devices[:count])


def shardings_for(
    rows: int, devices: Sequence[Any] | None = None
) -> tuple[NamedSharding, NamedSharding]:
    """Where a batch's shared arrays belong, on every device, and its own, split."""
    mesh = mesh_for(rows, devices)
    return NamedSharding(mesh, P()), NamedSharding(mesh, P(BATCH))


def over_devices(function: Callable[..., PyTree]) -> Callable[..., PyTree]:
    """Lets every device do its part of a batch.

    Args:
        function: Takes shared arrays and any number of arrays whose first
            axis is the batch; treats every row alone; gives a pytree of arrays
            whose first axis is the batch.

    Returns:
        A function of the same arguments and results.
    """

    def split(shared: PyTree, *batched: Array) -> PyTree:
        specs = (P(), *(P(BATCH) for _ in batched))
        mesh = mesh_for(len(batched[0]))
        mapped = jax.shard_map(
            function, mesh=mesh, in_specs=specs, out_specs=P(BATCH), check_vma=False
        )
        return mapped(shared, *batched)

    return split


def map_batches(
    function: Callable[..., PyTree],
    shared: PyTree,
    *arrays: np.ndarray,
    batch_size: int = 128,
    progress: str | None = None,
) -> PyTree:
    """Applies a function batch by batch; results come back as NumPy arrays.

    Every batch is split over this process's devices. The last one is filled up
    by repeating its last row, so that every call has the same shape; the
    surplus is cut off the result. Fewer rows than a batch are filled up to a
    power of two, so that arrays of many lengths share a few compilations.

    Args:
        function: Made by :func:`over_devices`, and jitted.
        shared: Its first argument.
        *arrays: Arrays of equal length, at least 1.
        batch_size: Rows per call.
        progress: Title of a progress bar; none is shown without it.

    Raises:
        ValueError: The arrays are empty.
    """
    n = len(arrays[0])
    if n == 0:
        raise ValueError("expected at least one image, found none")
    size = min(batch_size, 1 << (n - 1).bit_length())
    everywhere, split = shardings_for(size)
    shared = jax.device_put(shared, everywhere)
    results = []
    pending: PyTree | None = None
    with Bar(progress or "", n, unit="images", show=progress is not None) as bar:
        for start in range(0, n, size):
            parts = [a[start : start + size] for a in arrays]
            missing = size - len(parts[0])
            if missing:
                parts = [np.concatenate([p, np.repeat(p[-1:], missing, 0)]) for p in parts]
            # One batch is computed while the one before it is copied to the host.
            following = function(shared, *(jax.device_put(p, split) for p in parts))
            if pending is not None:
                results.append(jax.tree.map(np.asarray, pending))
                bar.advance(size)
            pending = following
        results.append(jax.tree.map(np.asarray, pending))
        bar.advance(n - (len(results) - 1) * size)
    return jax.tree.map(lambda *rows: np.concatenate(rows)[:n], *results)
