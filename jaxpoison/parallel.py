"""Work split over the batch axis of this process's devices.

On a CPU, two devices of one core each are faster than one device of two
cores: only matrix products of one device use several cores, all other
operations run on one. ``jax.config.update("jax_num_cpu_devices", 2)``, called
before anything is computed, makes two.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, PyTree

BATCH = "batch"


def mesh_for(rows: int, devices: Sequence[Any] | None = None) -> Mesh:
    """The largest mesh of devices, by default this process's, that divides a batch evenly."""
    devices = jax.local_devices() if devices is None else devices
    count = next(k for k in range(min(len(devices), rows), 0, -1) if rows % k == 0)
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
