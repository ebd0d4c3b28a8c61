"""Any number of heatmaps: few compilations, all devices, bounded memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpoison import (
    EntropicGW,
    HeatmapClustering,
    SmallSpaces,
    barycenters,
    distances_to_centers,
    gw_kmeans,
    measure_spaces,
    pair_distances,
    quantised,
)
from jaxpoison.gw import barycenters as gw_barycenters
from jaxpoison.gw import distances as gw_distances
from jaxpoison.gw import pairs as gw_pairs
from jaxpoison.gw import quantisation as gw_quantisation
from jaxpoison.gw import spaces as gw_spaces
from jaxpoison.gw.placement import place
from jaxpoison.gw.products import QuadrantSpaces
from jaxpoison.gw.solver import Couplings
from jaxpoison.parallel import bucket, map_batches, usable_cores

SIZE = 6


@pytest.fixture(scope="module")
def maps():
    return np.random.default_rng(0).gamma(0.5, size=(90, 8, 8)).astype(np.float32)


@pytest.fixture(scope="module")
def small(maps):
    return quantised(measure_spaces(maps), SIZE)


def test_buckets_hold_all_rows_and_are_few():
    for devices in (1, 2, 3, 6, 8):
        sizes = {n: bucket(n, devices) for n in range(1, 5000)}
        assert all(size >= n and size % devices == 0 for n, size in sizes.items())
        assert len(set(sizes.values())) <= 14
        assert all(size < 2 * n + 2 * devices for n, size in sizes.items())
        # No more than a batch, on every device alike.
        assert bucket(10_000, devices, most=100) == -(-100 // devices) * devices
        assert bucket(1, devices, least=16) == 16 * devices


def test_spaces_are_dealt_out_and_come_back(small):
    for n in (1, 2, 63, 90):
        placed = place(small.take(np.arange(n)))
        assert len(placed.spaces.weights.sharding.device_set) == len(jax.devices())
        np.testing.assert_array_equal(placed.of_spaces(placed.spaces.weights), small.weights[:n])
        labels = np.arange(n, dtype=np.int32)
        np.testing.assert_array_equal(placed.of_spaces(placed.of_rows(labels)), labels)
        # Devices have the same number of spaces, up to one.
        shares = np.asarray(placed.real).reshape(len(jax.devices()), -1).sum(1)
        assert shares.sum() == n
        assert shares.max() - shares.min() <= 1


def test_any_number_of_heatmaps_shares_a_compilation(maps, small):
    """Distances, barycentres, pairs, and a clustering as a whole."""
    solver = EntropicGW(0.05)
    centers = small.take(np.arange(2))
    compiled = {
        gw_distances._distances: 3,  # Also with couplings, and with one centre in seeding.
        gw_barycenters.barycenters_of_rows: 2,  # Also from couplings.
        gw_pairs._small_pairs: 1,
        gw_spaces._measured: 1,
        gw_quantisation._quantised: 1,
        gw_distances._mean_distances: 1,
    }
    jax.clear_caches()
    for n in (33, 50, 64):
        some = small.take(np.arange(n))
        labels = np.arange(n) % 2
        found = distances_to_centers(some, centers, solver)
        assert found.values.shape == (n, 2)
        barycenters(some, labels, np.ones(n, np.float32), centers.distances, solver)
        pair_distances(some, np.stack([np.arange(n), np.arange(n)[::-1]], 1), solver)
        gw_distances.mean_distances(some)
        spaces = measure_spaces(maps[:n])
        gw_kmeans(quantised(spaces, SIZE), solver=solver, max_rounds=2)
    for function, most in compiled.items():
        assert function._cache_size() <= most, function
    jax.clear_caches()


def test_what_is_found_does_not_depend_on_how_many_there_are(small):
    solver = EntropicGW(0.02)
    centers = small.take(np.array([0, 50]))
    everyone = distances_to_centers(small, centers, solver)
    some = distances_to_centers(small.take(np.arange(7)), centers, solver)
    np.testing.assert_allclose(some.values, everyone.values[:7], rtol=1e-5)
    labels, start = np.arange(7) % 2, centers.distances
    seven, _ = barycenters(small.take(np.arange(7)), labels, np.ones(7, np.float32), start, solver)
    weights = (np.arange(90) < 7).astype(np.float32)
    padded, _ = barycenters(small, np.arange(90) % 2, weights, start, solver)
    np.testing.assert_allclose(seven.distances, padded.distances, atol=1e-4)
    none = small.take(np.arange(0))
    for function in (
        lambda: distances_to_centers(none, centers, solver),
        lambda: gw_distances.mean_distances(none),
        lambda: barycenters(none, labels[:0], np.ones(0, np.float32), start, solver),
    ):
        with pytest.raises(ValueError, match="at least one heatmap, found none"):
            function()


def test_a_detector_works_on_no_more_rows_than_it_must(maps, monkeypatch):
    """A scan's cost follows its images: a class of twelve is not padded to the largest one."""
    rows = []
    place_spaces = place

    def counted(spaces):
        placed = place_spaces(spaces)
        rows.append(len(placed.real))
        return placed

    monkeypatch.setattr("jaxpoison.gw.kmeans.place", counted)
    HeatmapClustering(mode="quick", n_init=1, max_rounds=1).fit(maps[:12])
    assert rows == [32 * len(jax.devices())]
    assert "padded_to" not in HeatmapClustering().get_params()


def bytes_needed(compiled):
    found = compiled.memory_analysis()
    sizes = (
        found.argument_size_in_bytes,
        found.temp_size_in_bytes,
        found.output_size_in_bytes,
    )
    return sum(sizes)


@pytest.mark.parametrize(("rows", "points"), [(2048, 10), (2048, 30), (16384, 10)])
def test_a_clustering_takes_the_memory_it_says(rows, points):
    """On a grid of 64x64, compiled and not run: at most 1.5 GiB and 20 bytes a pixel."""
    pixels, devices, number = 64 * 64, len(jax.devices()), jnp.float32
    rows *= devices

    def array(*shape, dtype=number):
        return jax.ShapeDtypeStruct(shape, dtype)

    spaces = QuadrantSpaces(array(rows, pixels), array(rows), 64, 64)
    centers = SmallSpaces(array(2, points, points), array(2, points))
    kept = devices * gw_distances.kept_rows(rows // devices, points, pixels)
    couplings = Couplings(array(kept, points, pixels), array(kept, points))
    solver = EntropicGW(0.02)
    distances = gw_distances._distances.lower(
        spaces, array(rows, dtype=bool), centers, solver, True
    )
    barycentres = gw_barycenters.barycenters_of_rows.lower(
        spaces,
        array(rows, dtype=jnp.int32),
        array(rows),
        couplings,
        array(2, points, points),
        solver,
    )
    for lowered in (distances, barycentres):
        assert bytes_needed(lowered.compile()) < 1.5 * 2**30 + 20 * pixels * rows / devices


@pytest.mark.parametrize("step", ["distances", "barycentres"])
def test_memory_of_plans_is_bounded_whatever_the_number_of_heatmaps(step, monkeypatch):
    """Beyond what keeps its plan, a heatmap takes its own weights, not ten times as much."""
    points, pixels, devices = 10, 256, len(jax.devices())
    monkeypatch.setattr(gw_distances, "_GROUP", 64)
    monkeypatch.setattr(gw_distances, "_KEPT_BYTES", 256 * devices * 4 * points * pixels)
    jax.clear_caches()
    solver = EntropicGW(0.02)
    centers = SmallSpaces(jnp.zeros((2, points, points)), jnp.full((2, points), 1 / points))

    def needed(rows):
        spaces = gw_distances.laid_out(
            gw_spaces.MeasureSpaces(np.zeros((rows, pixels), np.float32), np.ones(rows), 16, 16)
        )
        spaces = jax.tree.map(lambda x: x.astype(jnp.float32), spaces)
        real = jnp.ones(rows, bool)
        if step == "distances":
            lowered = gw_distances._distances.lower(spaces, real, centers, solver, True)
        else:
            kept = gw_distances.kept_rows(rows // devices, points, pixels)
            couplings = gw_barycenters.Couplings(
                jnp.zeros((kept * devices, points, pixels)), jnp.zeros((kept * devices, points))
            )
            lowered = gw_barycenters.barycenters_of_rows.lower(
                spaces,
                jnp.zeros(rows, jnp.int32),
                jnp.ones(rows),
                couplings,
                centers.distances,
                solver,
            )
        return bytes_needed(lowered.compile())

    few, many, more = (needed(rows * devices) for rows in (128, 1024, 2048))
    plan, own = 4 * points * pixels, 4 * pixels
    # While plans are kept, a row takes some of them ...
    assert (many - few) / (1024 - 128) / devices < 8 * plan
    # ... and beyond, copies of its own weights and a few numbers.
    assert (more - many) / 1024 / devices < 8 * own < plan
    jax.clear_caches()


def test_rows_without_a_kept_plan_end_where_the_others_do(heatmaps, monkeypatch):
    spaces = quantised(measure_spaces(heatmaps), 10)
    start = spaces.take(np.array([0, 20]))
    usual = gw_kmeans(spaces, solver=EntropicGW(0.005), start=start)
    monkeypatch.setattr(gw_distances, "_GROUP", 4)
    monkeypatch.setattr(gw_distances, "_KEPT_BYTES", 1)
    jax.clear_caches()
    assert gw_distances.kept_rows(32, 10, 10) == 1
    bounded = gw_kmeans(spaces, solver=EntropicGW(0.005), start=start)
    jax.clear_caches()
    assert (bounded.labels == usual.labels).all()
    # Barycentres are sought from other couplings, and end within some thousandths.
    np.testing.assert_allclose(bounded.distances, usual.distances, rtol=0.03)


def test_heatmaps_become_spaces_in_chunks_of_one_size(monkeypatch):
    """The memory beside the result does not grow with the number of heatmaps."""
    monkeypatch.setattr(gw_spaces, "CHUNK", 16)
    monkeypatch.setattr(gw_quantisation, "CHUNK", 16)
    jax.clear_caches()
    maps = np.random.default_rng(1).random((50, 6, 6), np.float32)
    whole = measure_spaces(maps)
    small = quantised(whole, 4)
    assert gw_spaces._measured._cache_size() == gw_quantisation._quantised._cache_size() == 1
    jax.clear_caches()
    for k in (0, 17, 49):
        alone = measure_spaces(maps[k : k + 1])
        np.testing.assert_allclose(alone.weights[0], whole.weights[k], rtol=1e-6)
        np.testing.assert_allclose(quantised(alone, 4).distances[0], small.distances[k], rtol=1e-5)
    assert all(isinstance(x, np.ndarray) for x in jax.tree.leaves((whole, small)))


def test_any_batch_size_uses_all_devices():
    seen = []

    @jax.jit
    def double(shared, x):
        seen.append(len(x))
        return 2 * x

    rows = np.arange(23, dtype=np.float32)
    np.testing.assert_array_equal(map_batches(double, (), rows, batch_size=7), 2 * rows)
    assert seen == [8]


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({}, 8),
        ({"cpu.max": "max 100000"}, 8),
        ({"cpu.max": "250000 100000"}, 3),
        ({"cpu.max": "50000 100000"}, 1),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 8),
        ({"cpu/cpu.cfs_quota_us": "400000", "cpu/cpu.cfs_period_us": "100000"}, 4),
        ({"cpu.max": "6400000 100000"}, 8),
        # A group inside a group; that of the process says nothing, the one around it does.
        ({"slice/job/cpu.max": "max 100000", "slice/cpu.max": "200000 100000"}, 2),
        ({"slice/job/cpu.max": "300000 100000"}, 3),
        ({"other/cpu.max": "100000 100000"}, 8),
    ],
)
def test_cores_are_those_of_the_quota(files, cores, tmp_path, monkeypatch):
    own = tmp_path / "own"
    own.write_text("12:cpu:/elsewhere\n0::/slice/job\n")
    monkeypatch.setattr("jaxpoison.parallel._OWN_CGROUP", own)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: range(8))
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).write_text(content)
    assert usable_cores(tmp_path) == cores
    monkeypatch.setattr("os.sched_getaffinity", lambda _: range(96))
    assert usable_cores(tmp_path / "none") == 96


def test_which_plans_are_kept_does_not_depend_on_the_devices(monkeypatch):
    for devices in (1, 2, 8):
        monkeypatch.setattr(jax, "device_count", lambda devices=devices: devices)
        assert abs(devices * gw_distances.kept_rows(10**6, 10, 1024) - 6553) < 8
        assert abs(devices * gw_distances.kept_rows(10**6, 10, 4096) - 1638) < 8
    assert gw_distances.kept_rows(100, 10, 1024) == 100
    assert gw_distances.group_rows(10, 1024) == 1024
    assert gw_distances.group_rows(64, 4096) == 64
