"""Large arrays stand in files that are mapped; whatever is made of them is the same."""

import numpy as np
import pytest
from flax import nnx
from PIL import Image
from small_runs import Small

import jaxpoison as jp
from jaxpoison import _storage
from jaxpoison.datasets import cache


@pytest.fixture
def large(monkeypatch):
    """Arrays count as large from one kilobyte on, and are copied four kilobytes at once."""
    monkeypatch.setattr(_storage, "_MAPPED_FROM", 2**10)
    monkeypatch.setattr(_storage, "_AT_ONCE", 2**12)


def numbers(rows, side=8):
    return np.random.default_rng(0).integers(0, 256, (rows, side, side, 3), np.uint8)


@pytest.mark.parametrize(
    "index",
    [np.arange(40), np.arange(3, 30), np.arange(40)[::-1], np.array([5, 5, 39, 0, 17, 2, 8])],
    ids=["all", "adjacent", "reversed", "some"],
)
def test_rows_of_large_arrays_are_those_of_small_ones(index, large):
    images = numbers(40)
    found = _storage.rows_of(images, index)
    np.testing.assert_array_equal(found, images[index])
    adjacent = (np.diff(index) == 1).all()
    assert np.shares_memory(found, images) == adjacent
    assert isinstance(found, np.memmap) != adjacent


def test_no_rows_and_few_are_in_memory(large):
    images = numbers(40)
    for count in (0, 1, 5):
        found = _storage.rows_of(images, np.arange(count))
        np.testing.assert_array_equal(found, images[:count])
        assert not np.shares_memory(found, images)
        assert not isinstance(found, np.memmap)


def test_a_copy_can_be_written_to(large):
    images = numbers(40)
    images.setflags(write=False)
    found = _storage.copy_of(images)
    np.testing.assert_array_equal(found, images)
    found[3] = 0
    assert images[3].any()
    assert isinstance(found, np.memmap)


def test_files_without_a_name_leave_nothing(large):
    found = _storage.empty_array((100, 8), np.float32)
    assert isinstance(found, np.memmap)
    assert list(_storage.cache_directory().iterdir()) == []


@pytest.mark.parametrize("what", [lambda: _storage.empty_array((2**44,), np.uint8), None])
def test_no_room_is_said_before_anything_is_written(what, monkeypatch, tmp_path):
    monkeypatch.setenv("JAXPOISON_CACHE", str(tmp_path))
    if what is None:

        def what():
            cache.cached_images("key", lambda: {"train": (2**44, 1, 1, 1)}, lambda arrays: None)

    message = r"16384.0 GiB of arrays need room in .*, found .* GiB free: set JAXPOISON_CACHE"
    with pytest.raises(OSError, match=message):
        what()
    assert [path.suffix for path in tmp_path.iterdir()] in ([], [".lock"])


def test_large_folders_are_decoded_into_files_once(large, tmp_path, monkeypatch):
    folder = tmp_path / "photos"
    images = numbers(48)
    for k, image in enumerate(images):
        place = folder / "ab"[k % 2] / f"{k}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(place)
    found = jp.load_folder(folder)
    monkeypatch.setattr(_storage, "_MAPPED_FROM", 2**30)
    expected = jp.load_folder(folder)
    assert isinstance(found.train.images, np.memmap)
    assert not isinstance(expected.train.images, np.memmap)
    assert found.fingerprint == expected.fingerprint
    assert (found.train.ids, found.test.ids) == (expected.train.ids, expected.test.ids)

    monkeypatch.setattr(_storage, "_MAPPED_FROM", 2**10)
    from jaxpoison.datasets import folder as reading

    monkeypatch.setattr(reading, "_decode", None)
    assert jp.load_folder(folder).fingerprint == expected.fingerprint


def test_what_was_not_decoded_to_its_end_is_not_taken(large, tmp_path, monkeypatch):
    monkeypatch.setenv("JAXPOISON_CACHE", str(tmp_path))
    shapes = {"train": (40, 8, 8, 3)}

    def interrupted(arrays):
        arrays["train"][:20] = 1
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cache.cached_images("key", lambda: shapes, interrupted)
    assert [path.suffix for path in tmp_path.iterdir()] == [".lock"]

    # A process that was killed leaves its folder; one that still decodes holds the lock.
    killed, working = tmp_path / "images-1.partial", tmp_path / "images-2.partial"
    killed.mkdir()
    working.mkdir()
    with cache.FileLock(tmp_path / "images-2.lock"):
        found = cache.cached_images("key", lambda: shapes, lambda arrays: arrays["train"].fill(7))
    assert (found["train"] == 7).all()
    assert not killed.exists()
    assert working.exists()
    with pytest.raises(ValueError, match="read-only"):
        found["train"][0] = 0


def test_attacks_and_exclusions_of_large_data_are_those_of_small_data(tmp_path, monkeypatch):
    splits = jp.synthetic(train=200, validation=40, test=40)
    table = tmp_path / "suspects.csv"
    table.write_text("part,id\ntrain,train/0\ntrain,train/7\n")

    def made():
        attacked = jp.standard_backdoor(splits, source=2, target=5, rate=0.2)
        return attacked.fingerprint, jp.without_listed(attacked, table).fingerprint

    expected = made()
    monkeypatch.setattr(_storage, "_MAPPED_FROM", 2**10)
    assert made() == expected


@pytest.mark.mixes_types
def test_training_on_mapped_images_is_that_on_images_in_memory(tmp_path, monkeypatch):
    splits = jp.synthetic(train=200, validation=40, test=40)
    np.save(tmp_path / "images.npy", splits.train.images)
    mapped = jp.Dataset(
        np.load(tmp_path / "images.npy", mmap_mode="r"),
        splits.train.labels,
        splits.train.class_names,
        splits.train.ids,
    )
    # More steps than one block, and a last block that is not full.
    settings = jp.protocol("fast", 200, epochs=2, batch_size=16)
    courses = []
    for data, limit in ((splits.train, 2**30), (mapped, 2**10)):
        monkeypatch.setattr(_storage, "_MAPPED_FROM", limit)
        history = jp.fit(Small(10, rngs=nnx.Rngs(0)), data, splits.validation, settings)
        courses.append([(e.train_loss, e.validation_loss) for e in history.epochs])
    assert courses[0] == courses[1]
