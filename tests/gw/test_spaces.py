import numpy as np
import pytest
from reference import space

from jaxpoison import measure_spaces
from jaxpoison.gw.grid import pixel_distances


@pytest.fixture
def maps(rng):
    return rng.gamma(0.5, size=(6, 9, 7, 3)).astype(np.float32)


@pytest.mark.parametrize("mass", [0.5, 0.9, 0.99, 1.0])
def test_agrees_with_the_plain_version(maps, mass):
    spaces = measure_spaces(maps, mass=mass)
    grid = np.asarray(pixel_distances(9, 7))
    for k, heatmap in enumerate(maps):
        pixels, weights, distances = space(heatmap, mass)
        found = np.asarray(spaces.weights[k])
        # At a mass of 1 rounding decides about the last pixels, which hold nothing.
        if mass < 1:
            assert np.flatnonzero(found).tolist() == pixels.tolist()
            scaled = grid[np.ix_(pixels, pixels)] * float(spaces.factors[k])
            np.testing.assert_allclose(scaled, distances, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(found[pixels], weights, rtol=1e-4, atol=1e-7)


def test_weights_hold_one_and_keep_the_mass(maps):
    spaces = measure_spaces(maps, mass=0.9)
    np.testing.assert_allclose(spaces.weights.sum(-1), 1, rtol=1e-5)
    whole = measure_spaces(maps, mass=1.0)
    kept = np.where(np.asarray(spaces.weights) > 0, whole.weights, 0).sum(-1)
    assert ((kept >= 0.9) & (kept < 0.95)).all()
    assert (spaces.support_sizes < 63).all()


def test_diameter_is_one_for_odd_supports(rng):
    masks = rng.random((50, 8, 11)) < 0.05
    masks[:, 3, 4:6] = True
    spaces = measure_spaces(masks.astype(np.float32))
    grid = np.asarray(pixel_distances(8, 11))
    for mask, factor in zip(masks.reshape(50, -1), np.asarray(spaces.factors), strict=True):
        assert grid[np.ix_(mask, mask)].max() * factor == pytest.approx(1, rel=1e-6)


def test_single_pixel_has_a_finite_factor():
    one = np.zeros((1, 5, 5), np.float32)
    one[0, 2, 2] = 1
    spaces = measure_spaces(one)
    assert spaces.support_sizes.tolist() == [1]
    assert spaces.factors.tolist() == [1]


def test_fine_grids_are_summed_over_blocks(rng):
    fine = rng.random((2, 130, 96)).astype(np.float32)
    spaces = measure_spaces(fine, mass=1.0)
    assert (spaces.height, spaces.width) == (44, 48)
    padded = np.pad(fine, ((0, 0), (0, 2), (0, 0)))
    coarse = padded.reshape(2, 44, 3, 48, 2).sum((2, 4))
    # The last blocks have one row of three.
    coarse[:, -1] *= 3
    same = measure_spaces(coarse, mass=1.0)
    np.testing.assert_allclose(spaces.weights, same.weights, rtol=1e-5, atol=1e-9)


def test_edges_of_fine_grids_hold_no_mass_of_their_own():
    fine = np.full((1, 65, 65), -1, np.float32)
    fine[0, 20:24, 20:24] = 1
    spaces = measure_spaces(fine)
    held = np.asarray(spaces.weights[0]).reshape(spaces.height, spaces.width)
    assert held[10:12, 10:12].sum() == pytest.approx(1)


def test_constant_and_infinite_maps_are_named(maps):
    maps[3] = 1
    with pytest.raises(ValueError, match="1 of 6 heatmaps are constant, .* first is number 3"):
        measure_spaces(maps)
    maps[2, 0, 0, 0] = np.nan
    with pytest.raises(ValueError, match="2 of 6 heatmaps .* first is number 2"):
        measure_spaces(maps)


def test_bad_arguments(maps):
    with pytest.raises(ValueError, match=r"shape \[n, h, w\].*found \(9, 7\)"):
        measure_spaces(maps[0, :, :, 0])
    with pytest.raises(ValueError, match="not percent"):
        measure_spaces(maps, mass=99)
