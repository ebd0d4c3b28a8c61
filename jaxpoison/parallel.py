"""Work split over the batch axis of devices.

On a CPU, two devices of one core each are faster than one device of two
cores: only matrix products of one device use several cores, all other
operations run on one. :func:`use_one_device_per_core` makes them.
"""

from __future__ import annotations

import math
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, PyTree

from jaxpoison._progress import Bar
from jaxpoison._storage import empty_array

BATCH = "batch"
_CGROUPS, _OWN_CGROUP = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
# Images of a batch that a device is given in training at the least.
_FEWEST_IMAGES = 8


def use_one_device_per_core() -> None:
    """Lets batches be split over the cores of a CPU; without effect on accelerators.

    To be called before anything is computed.

    Examples:
        >>> jp.use_one_device_per_core()  # doctest: +SKIP
        >>> jax.device_count()  # doctest: +SKIP
        2
    """
    jax.config.update("jax_num_cpu_devices", usable_cores())


def usable_cores(cgroups: Path = _CGROUPS) -> int:
    """Cores this process may keep busy: of its affinity, and of its control group's quota.

    Args:
        cgroups: Where Linux shows control groups; of both versions the root is read, of the
            second the process's own group and those around it, too.
    """
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    own = [line.partition("::")[2] for line in _lines(_OWN_CGROUP) if line.startswith("0::")]
    group = cgroups / own[0].strip("/") if own else cgroups
    around = [group, *(parent for parent in group.parents if parent.is_relative_to(cgroups))]
    for quota, period in (
        *(_words(each / "cpu.max") for each in around),
        (
            *_words(cgroups / "cpu" / "cpu.cfs_quota_us")[:1],
            *_words(cgroups / "cpu" / "cpu.cfs_period_us")[:1],
        ),
    ):
        # "max", or -1, is no quota.
        if quota.isdigit() and period.isdigit():
            cores = min(cores, math.ceil(int(quota) / int(period)))
    return max(1, cores)


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.is_file() else []


def _words(path: Path) -> tuple[str, ...]:
    found = " ".join(_lines(path)).split()
    return tuple(found) if len(found) > 1 else (*found, *[""] * (2 - len(found)))


def mesh_of(devices: Sequence[Any] | None = None) -> Mesh:
    """All devices, by default this process's, along the batch axis."""
    devices = jax.local_devices() if devices is None else devices
    return jax.make_mesh((len(devices),), (BATCH,), (AxisType.Auto,), devices=devices)


def training_mesh(batch_size: int) -> Mesh:
    """The most of this process's devices that divide a batch evenly, eight images or more each.

    With fewer, devices would mostly wait for each other at batch statistics. A step is that of
    the whole batch, whose images cannot be padded: what a padded image would add to batch
    statistics would have to be taken out again.

    Warns:
        UserWarning: Devices are left over.
    """
    devices = jax.local_devices()
    most = min(len(devices), max(1, batch_size // _FEWEST_IMAGES))
    count = max(k for k in range(1, most + 1) if batch_size % k == 0)
    if count < most:
        warnings.warn(
            f"batches of {batch_size} images use {count} of {len(devices)} devices: a batch size "
            f"that is a multiple of {most} uses {most}",
            stacklevel=3,
        )
    return mesh_of(devices[:count])


def shardings_on(mesh: Mesh) -> tuple[NamedSharding, NamedSharding]:
    """Where a batch's shared arrays belong, on every device, and its own, split."""
    return NamedSharding(mesh, P()), NamedSharding(mesh, P(BATCH))


def bucket(count: int, devices: int, *, least: int = 1, most: int | None = None) -> int:
    """Rows to compute with for ``count`` of them: arrays of many lengths share few compilations.

    Args:
        count: Rows there are.
        devices: Devices that they are split over; the result is a multiple.
        least: Rows of the smallest bucket on every device.
        most: Rows on all devices at the most.

    Returns:
        A power of two for each device that holds all rows, or ``most`` rounded up.
    """
    wanted = count if most is None else min(count, most)
    each = max(least, -(-wanted // devices))
    each = 1 << (each - 1).bit_length()
    if most is not None:
        each = min(each, -(-most // devices))
    return each * devices


def padded(rows: Any, size: int) -> Any:
    """Host rows up to a length, the last one repeated where rows are missing."""
    missing = size - len(rows)
    return np.concatenate([rows, np.repeat(rows[-1:], missing, 0)]) if missing else rows


def over_devices(function: Callable[..., PyTree]) -> Callable[..., PyTree]:
    """Lets every device of this process do its part of a batch.

    Args:
        function: Takes shared arrays and any number of arrays whose first
            axis is the batch; treats every row alone; gives a pytree of arrays
            whose first axis is the batch.

    Returns:
        A function of the same arguments and results. The length of a batch must be a
        multiple of the number of devices.
    """

    def split(shared: PyTree, *batched: Array) -> PyTree:
        specs = (P(), *(P(BATCH) for _ in batched))
        mapped = jax.shard_map(
            function, mesh=mesh_of(), in_specs=specs, out_specs=P(BATCH), check_vma=False
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
    power of two on each device, so that arrays of many lengths share a few compilations.

    Args:
        function: Made by :func:`over_devices`, and jitted.
        shared: Its first argument.
        *arrays: Arrays of equal length, at least 1.
        batch_size: Rows per call, rounded up to a multiple of the number of devices.
        progress: Title of a progress bar; none is shown without it.

    Raises:
        ValueError: The arrays are empty.
    """
    n = len(arrays[0])
    if n == 0:
        raise ValueError("expected at least one image, found none")
    everywhere, split = shardings_on(mesh_of())
    size = bucket(n, split.mesh.size, most=batch_size)
    shared = jax.device_put(shared, everywhere)
    results: PyTree | None = None
    with Bar(progress or "", n, unit="images", show=progress is not None) as bar:

        def keep(found: PyTree, start: int) -> None:
            nonlocal results
            found = jax.tree.map(np.asarray, found)
            if results is None:
                # All at once: gathered at the end, they would stand in memory twice.
                results = jax.tree.map(lambda a: empty_array((n, *a.shape[1:]), a.dtype), found)
            stop = min(start + size, n)
            jax.tree.map(lambda all_, some: _put(all_, some, start, stop), results, found)
            bar.advance(stop - start)

        pending: tuple[PyTree, int] | None = None
        for start in range(0, n, size):
            parts = [padded(a[start : start + size], size) for a in arrays]
            # One batch is computed while the one before it is copied to the host.
            following = function(shared, *(jax.device_put(p, split) for p in parts))
            if pending is not None:
                keep(*pending)
            pending = following, start
        if pending is not None:
            keep(*pending)
    return results


def _put(results: np.ndarray, found: np.ndarray, start: int, stop: int) -> None:
    results[start:stop] = found[: stop - start]
