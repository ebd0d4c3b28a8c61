import numpy as np
import pytest

from jaxpoison import Dataset, Splits


def test_arrays_get_names_and_ids(noise):
    assert noise.class_names == ("0", "1", "2", "3")
    assert noise.ids[:2] == ("0", "1")
    assert noise.image_shape == (32, 32, 3)


def test_take_by_mask_and_by_index_agree(noise):
    mask = noise.labels == 2
    a, b = noise.take(mask), noise.take(np.flatnonzero(mask))
    assert a.ids == b.ids == tuple(str(i) for i in range(2, 40, 4))
    assert (a.images == b.images).all()
    assert (a.labels == 2).all()


def test_fingerprint_sees_pixels_labels_and_names(noise):
    same = Dataset(noise.images.copy(), noise.labels.copy(), noise.class_names, noise.ids)
    assert same.fingerprint == noise.fingerprint
    other = noise.images.copy()
    other[3, 4, 5, 0] ^= 1
    for changed in (
        Dataset(other, noise.labels, noise.class_names, noise.ids),
        Dataset(noise.images, noise.labels[::-1], noise.class_names, noise.ids),
        Dataset(noise.images, noise.labels, ("a", "b", "c", "d"), noise.ids),
    ):
        assert changed.fingerprint != noise.fingerprint


def test_floats_are_refused_with_the_remedy(noise):
    with pytest.raises(TypeError, match=r"must be uint8.*found float64.*255 \* images"):
        Dataset(noise.images / 255, noise.labels, noise.class_names, noise.ids)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": np.zeros((40, 32, 32), np.uint8)}, r"shape \[n, height, width, channels\]"),
        ({"labels": np.zeros(39, int)}, r"shape \(40,\), found \(39,\)"),
        ({"labels": np.full(40, 4)}, r"lie in 0\.\.3 \(4 class names\), found 4\.\.4"),
        ({"ids": ("a",)}, "name all 40 images, found 1"),
    ],
)
def test_parts_that_do_not_fit_are_refused(noise, change, message):
    parts = {
        "images": noise.images,
        "labels": noise.labels,
        "class_names": noise.class_names,
        "ids": noise.ids,
    }
    with pytest.raises(ValueError, match=message):
        Dataset(**{**parts, **change})


def test_float_labels_are_refused(noise):
    with pytest.raises(TypeError, match="labels must be integers, found float"):
        Dataset(noise.images, noise.labels / 1, noise.class_names, noise.ids)


def test_splits_of_different_classes_are_refused(noise):
    other = Dataset(noise.images, noise.labels, (*noise.class_names, "more"), noise.ids)
    with pytest.raises(ValueError, match="test images must have .* 4 classes, found 5"):
        Splits(noise, noise, other)
