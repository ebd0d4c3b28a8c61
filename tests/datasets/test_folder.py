import io
import shutil
import zipfile

import numpy as np
import pytest
from PIL import Image

from jaxpoison import load_data, load_folder
from jaxpoison.datasets import folder, loading


def encoded(color, size=(8, 8), kind="png"):
    data = io.BytesIO()
    Image.new("RGB", size, color).save(data, kind)
    return data.getvalue()


@pytest.fixture
def split_tree(tmp_path):
    """Three splits of two classes; file k of class c in split s has colour (s, c, k)."""
    root = tmp_path / "data"
    for s, split in enumerate(("Training", "Validation", "Testing")):
        for c, name in enumerate(("cat", "dog")):
            place = root / split / name
            place.mkdir(parents=True)
            for k in range(12):
                (place / f"{k}.png").write_bytes(encoded((s, c, k)))
    return root


def zipped(root, path):
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(root.rglob("*")):
            archive.write(file, file.relative_to(root.parent))
    return path


def test_splits_classes_and_natural_order(split_tree):
    splits = load_folder(split_tree)
    for s, part in enumerate((splits.train, splits.validation, splits.test)):
        assert part.class_names == ("cat", "dog")
        expected = [(s, c, k) for c in range(2) for k in range(12)]
        assert part.images[:, 0, 0].tolist() == [list(e) for e in expected]
        assert part.labels.tolist() == [0] * 12 + [1] * 12
    assert splits.train.ids[10] == "Training/cat/10.png"


def test_zip_and_folder_give_the_same_images(split_tree, tmp_path):
    a = load_folder(split_tree)
    b = load_folder(zipped(split_tree, tmp_path / "data.zip"))
    assert a.fingerprint == b.fingerprint


def test_class_folders_are_split_by_class_and_seed(split_tree):
    root = split_tree / "Training"
    splits = load_folder(root, test_share=0.25, validation_share=1 / 9)
    assert [len(p) for p in (splits.train, splits.validation, splits.test)] == [16, 2, 6]
    assert np.bincount(splits.validation.labels).tolist() == [1, 1]
    names = [set(p.ids) for p in (splits.train, splits.validation, splits.test)]
    assert len(set.union(*names)) == 24
    assert load_folder(root, test_share=0.25).test.ids == splits.test.ids
    assert load_folder(root, test_share=0.25, seed=1).test.ids != splits.test.ids


def test_second_call_decodes_nothing(split_tree, monkeypatch):
    first = load_folder(split_tree)

    def fail(*_):
        raise AssertionError("decoded again")

    monkeypatch.setattr(folder, "decode_image", fail)
    assert load_folder(split_tree).fingerprint == first.fingerprint
    (split_tree / "Training" / "cat" / "0.png").write_bytes(encoded((9, 9, 9), (8, 8), "bmp"))
    with pytest.raises(AssertionError, match="decoded again"):
        load_folder(split_tree)


@pytest.mark.parametrize("content", [b"not a cache", b""])
def test_damaged_cache_is_replaced(split_tree, cache, content):
    import os
    from pathlib import Path

    first = load_folder(split_tree)
    (cached,) = Path(os.environ["JAXPOISON_CACHE"]).glob("*.npz")
    cached.write_bytes(content)
    assert load_folder(split_tree).fingerprint == first.fingerprint
    assert zipfile.is_zipfile(cached)


def test_resizes_to_one_side(split_tree):
    (split_tree / "Training" / "cat" / "0.png").write_bytes(encoded((1, 2, 3), (20, 10)))
    assert load_folder(split_tree, image_size=16).train.image_shape == (16, 16, 3)


def test_images_of_another_size_than_expected_are_named_before_others_are_decoded(
    split_tree, monkeypatch
):
    decoded = []
    decode = folder.decode_image

    def counted(data, name, *how):
        decoded.append(name)
        return decode(data, name, *how)

    monkeypatch.setattr(folder, "decode_image", counted)
    message = (
        r"expected images of 32x32, found 8x8 \(Testing/cat/0.png in .*: give the image size 32"
    )
    with pytest.raises(ValueError, match=message):
        load_folder(split_tree, expected_side=32)
    assert set(decoded) == {f"Testing/cat/0.png in {split_tree}"}
    # Nor is what is cached for others taken.
    assert load_folder(split_tree, expected_side=8).train.images.shape[1:] == (8, 8, 3)
    for expected in (32, 16):
        with pytest.raises(ValueError, match=f"expected images of {expected}x{expected}, found"):
            load_folder(split_tree, expected_side=expected)
    assert load_data(str(split_tree), image_size=16, expected_side=16).train.images.shape[1] == 16
    with pytest.raises(ValueError, match="network takes images of 32x32, found the image size 16"):
        load_data(str(split_tree), image_size=16, expected_side=32)


def test_classes_have_names_and_numbers(split_tree, monkeypatch):
    monkeypatch.setattr(folder, "decode_image", None)
    data = str(split_tree)
    assert [loading.class_number(name, data) for name in ("cat", "dog", "1", "7")] == [0, 1, 1, 7]
    assert loading.class_number("stop", "synthetic") == 9
    with pytest.raises(
        ValueError,
        match=r"no class of .* is called 'dogs' \(did you mean 'dog'\?\): there are cat, dog$",
    ):
        loading.class_number("dogs", data)
    with pytest.raises(ValueError, match=r"there are 00000, 00001, .*, …$"):
        loading.class_number("stop", "gtsrb")
    with pytest.raises(FileNotFoundError, match="no data at 'nowhere'"):
        loading.class_number("stop", "nowhere")


def test_every_data_set_is_asked_for_its_size(monkeypatch):
    monkeypatch.setattr(loading, "synthetic", lambda size, **_: size)
    assert load_data("synthetic") == 32
    assert load_data("synthetic", image_size=64) == 64
    with pytest.raises(ValueError, match="GTSRB is read at 32x32 pixels, found image size 64"):
        load_data("gtsrb", image_size=64)


def test_missing_directory(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no image folder or zip at .*nowhere"):
        load_folder(tmp_path / "nowhere")


def test_corrupt_image_is_named(split_tree):
    (split_tree / "Testing" / "dog" / "7.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"Testing/dog/7\.png in .* cannot be read as an image"):
        load_folder(split_tree)


def test_truncated_image_is_named(split_tree):
    data = encoded((1, 2, 3), (64, 64))
    (split_tree / "Training" / "dog" / "3.png").write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match=r"Training/dog/3\.png in .* cannot be read"):
        load_folder(split_tree)


def test_mixed_sizes_name_both_files(split_tree):
    (split_tree / "Training" / "dog" / "3.png").write_bytes(encoded((0, 0, 0), (9, 8)))
    with pytest.raises(ValueError, match=r"0\.png is 8x8, Training/dog/3\.png is 9x8"):
        load_folder(split_tree)


def test_empty_class_is_named(split_tree):
    (split_tree / "Training" / "emu").mkdir()
    with pytest.raises(ValueError, match=r"class 'Training/emu' .* is empty"):
        load_folder(split_tree)


def test_class_without_training_images_is_named(split_tree):
    shutil.rmtree(split_tree / "Training" / "dog")
    with pytest.raises(ValueError, match=r"class 'dog' .* no training images"):
        load_folder(split_tree)


def test_wrong_number_of_classes(split_tree):
    with pytest.raises(ValueError, match=r"expected 43 classes in .*, found 2"):
        load_folder(split_tree, num_classes=43)


def test_no_images(tmp_path):
    (tmp_path / "notes.txt").write_text("nothing")
    with pytest.raises(ValueError, match="no images in .* format that Pillow reads, found 1 .txt"):
        load_folder(tmp_path)


def test_unknown_layout_names_the_file(tmp_path):
    place = tmp_path / "a" / "b" / "c"
    place.mkdir(parents=True)
    (place / "0.png").write_bytes(encoded((0, 0, 0)))
    (tmp_path / "1.png").write_bytes(encoded((0, 0, 0)))
    with pytest.raises(ValueError, match="is neither split/class/file"):
        load_folder(tmp_path)


def test_class_too_small_to_split(tmp_path):
    for name, count in (("a", 3), ("b", 1)):
        (tmp_path / name).mkdir()
        for k in range(count):
            (tmp_path / name / f"{k}.png").write_bytes(encoded((0, 0, 0)))
    with pytest.raises(ValueError, match="class 'b' needs at least 2 images"):
        load_folder(tmp_path)


def test_real_data(gtsrb_zip):
    splits = load_folder(gtsrb_zip, num_classes=43)
    assert [len(p) for p in (splits.train, splits.validation, splits.test)] == [
        34_799,
        4_410,
        12_630,
    ]
    assert splits.train.image_shape == (32, 32, 3)
    assert splits.train.ids[10] == "Training/00000/10.jpeg"
    assert (splits.train.labels == 5).sum() == 1650
