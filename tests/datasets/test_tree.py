"""What a folder or zip holds beside images in the expected places."""

import errno
import io
import os
import stat
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jaxpoison import load_folder
from jaxpoison.datasets.tree import open_tree


def encoded(value, kind="png"):
    data = io.BytesIO()
    Image.new("RGB", (8, 8), (value, 255 - value, 7)).save(data, kind)
    return data.getvalue()


def fill(root, files):
    for name, content in files.items():
        place = root / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(content)
    return root


def photos(*splits, count=6):
    return {
        f"{split}/{c}/{k}.png": encoded(20 * k + s)
        for s, split in enumerate(splits)
        for c in ("cat", "dog")
        for k in range(count)
    }


def zipped(path, files):
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def linked_validation(root):
    fill(root.parent / "elsewhere", {n[4:]: c for n, c in photos("val").items()})
    (root / "val").symlink_to(root.parent / "elsewhere", target_is_directory=True)


def linked_classes(root):
    fill(root.parent / "elsewhere", photos("val"))
    (root / "val").mkdir()
    for name in ("cat", "dog"):
        (root / "val" / name).symlink_to(root.parent / "elsewhere" / "val" / name)


def linked_images(root):
    fill(root.parent / "elsewhere", photos("val"))
    for name in photos("val"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).symlink_to(root.parent / "elsewhere" / name)


@pytest.mark.parametrize("link", [linked_validation, linked_classes, linked_images])
def test_links_are_followed(link, tmp_path):
    root = fill(tmp_path / "data", photos("train", "test"))
    link(root)
    expected = load_folder(fill(tmp_path / "plain", photos("train", "test") | photos("val")))
    assert load_folder(root).fingerprint == expected.fingerprint


def test_links_in_a_circle_and_into_nothing_are_counted(tmp_path, capfd):
    root = fill(tmp_path / "data", photos("train", "val", "test"))
    (root / "train" / "cat" / "again").symlink_to(root)
    (root / "val" / "dog" / "up").symlink_to(root / "val" / "dog")
    (root / "train" / "dog" / "lost.png").symlink_to(root / "nowhere.png")
    os.mkfifo(root / "train" / "dog" / "pipe.png")
    splits = load_folder(root, progress=True)
    assert [len(part) for part in (splits.train, splits.validation, splits.test)] == [12] * 3
    said = " ".join(capfd.readouterr().err.split())
    assert "2 links back to a folder above skipped" in said
    assert "1 links that lead nowhere skipped" in said
    assert "1 no regular files skipped" in said


HIDDEN = {
    ".ipynb_checkpoints/0-checkpoint.png": encoded(1),
    "train/cat/.ipynb_checkpoints/0-checkpoint.png": encoded(1),
    ".git/objects/ab.png": encoded(1),
    "train/.thumbnails/x/1.png": encoded(1),
    "train/cat/.hidden.png": encoded(1),
}


@pytest.mark.parametrize("packed", [False, True])
def test_hidden_files_and_folders_are_no_classes(packed, tmp_path, capfd):
    files = photos("train", "val", "test")
    expected = load_folder(fill(tmp_path / "plain", files))
    if packed:
        place = zipped(tmp_path / "data.zip", {**HIDDEN, **files})
    else:
        place = fill(tmp_path / "data", {**HIDDEN, **files})
    found = load_folder(place, progress=True)
    assert found.fingerprint == expected.fingerprint
    assert f"{len(HIDDEN)} hidden files skipped" in " ".join(capfd.readouterr().err.split())


def test_a_hidden_root_is_read(tmp_path):
    root = fill(tmp_path / ".data", photos("train", "val", "test"))
    assert len(load_folder(root).train) == 12


def test_every_suffix_is_read_or_said(tmp_path):
    kinds = {"tif": "tiff", "gif": "gif", "jfif": "jpeg", "webp": "webp", "BMP": "bmp"}
    kinds |= {"png": "png", "jpg": "jpeg", "ppm": "ppm", "tga": "tga", "jp2": "jpeg2000"}
    files = {
        f"{c}/{k}.{suffix}": encoded(20 * k, kind)
        for c in ("cat", "dog")
        for k, (suffix, kind) in enumerate(kinds.items())
    }
    splits = load_folder(fill(tmp_path / "read", files))
    assert len(splits.train) + len(splits.validation) + len(splits.test) == 20
    others = {f"cat/{k}.heic": b"heic" for k in range(3)} | {"cat/readme": b"", "dog/a.TXT": b""}
    fill(tmp_path / "read", others)
    with pytest.warns(
        UserWarning, match=r"5 files of .* not read as images: 3 \.heic, 1 without suffix, 1 \.txt"
    ):
        load_folder(tmp_path / "read")


def test_all_faulty_images_are_named_at_once(tmp_path):
    files = photos("train", "val", "test", count=20)
    for k in range(8):
        files[f"train/cat/{k}.png"] = b"no image"
    files["val/dog/3.png"] = files["val/dog/3.png"][:40]
    for k in range(4):
        files[f"test/dog/{k}.png"] = b""
    with pytest.raises(ValueError, match="13 of 120 images in .* cannot be used: ") as caught:
        load_folder(fill(tmp_path / "data", files))
    message = str(caught.value)
    assert "\n" not in message
    unknown = [f"test/dog/{k}.png" for k in range(4)] + [f"train/cat/{k}.png" for k in range(6)]
    assert f": {', '.join(unknown)}: cannot be read as an image: unknown format" in message
    assert message.endswith("; and 3 more")


def test_files_that_must_not_be_read_are_named(tmp_path, monkeypatch):
    root = fill(tmp_path / "data", photos("train", "val", "test"))
    once = Path.read_bytes

    def refused(path):
        if path.parent == root / "train" / "cat" and path.stem in "01":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return once(path)

    monkeypatch.setattr(Path, "read_bytes", refused)
    with pytest.raises(
        ValueError, match=r"2 of 36 .*train/cat/0\.png, train/cat/1\.png: .*Permission denied"
    ):
        load_folder(root)


def kaggle(prefix=""):
    """GTSRB as Kaggle has it: tables, the test images without folders, and all of it twice."""
    rows = {"Train": [], "Test": []}
    files = {f"{prefix}Meta/{k}.png": encoded(k) for k in range(2)}
    files[f"{prefix}Meta.csv"] = b"Path,ClassId\r\nMeta/0.png,0\r\nMeta/1.png,1\r\n"
    for k in range(24):
        # Labels of test images follow no order.
        for split, name in (("Train", f"{k % 3}/0000{k % 3}_{k:05d}.png"), ("Test", f"{k}.png")):
            label = k % 3 if split == "Train" else (k * 7 + 1) % 3
            files[f"{prefix}{split}/{name}"] = encoded(10 * k + (split == "Test"))
            rows[split].append((f"{split}/{name}", label))
    for split, some in rows.items():
        text = "Width,Height,ClassId,Path\r\n"
        text += "".join(f"8,8,{label},{path}\r\n" for path, label in some)
        files[f"{prefix}{split}.csv"] = text.encode()
    twins = {n.replace("Train/", "train/").replace("Test/", "test/"): c for n, c in files.items()}
    return {**twins, **files}


@pytest.mark.parametrize("prefix", ["", "archive/", "a/b/"])
@pytest.mark.parametrize("packed", [False, True])
def test_gtsrb_of_kaggle(prefix, packed, tmp_path, capfd):
    files = kaggle(prefix)
    place = zipped(tmp_path / "archive.zip", files) if packed else fill(tmp_path / "archive", files)
    splits = load_folder(place, progress=True)
    assert splits.test.class_names == ("0", "1", "2")
    assert (len(splits.train) + len(splits.validation), len(splits.test)) == (24, 24)
    for part, shift in ((splits.train, 0), (splits.test, 1)):
        numbers = (part.images[:, 0, 0, 0].astype(int) - shift) // 10
        expected = numbers % 3 if shift == 0 else (numbers * 7 + 1) % 3
        np.testing.assert_array_equal(part.labels, expected)
    # The pictures of the classes, and the second copy.
    assert "50 images outside the folders" in " ".join(capfd.readouterr().err.split())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda files: files.pop("Test/3.png"), r"Test/3\.png in .* is named in a table"),
        (
            lambda files: files.update({"Test/99.png": encoded(3)}),
            r"1 images of .* stand in no table, Test/99\.png first",
        ),
        (
            lambda files: files.update(
                {"Test.csv": files["Test.csv"].replace(b"8,8,1,", b"8,8,57,")}
            ),
            "class '57' in .* has no training images",
        ),
    ],
)
def test_tables_that_do_not_fit_are_refused(change, message, tmp_path):
    files = kaggle()
    change(files)
    with pytest.raises(ValueError, match=message):
        load_folder(fill(tmp_path / "data", files))


def test_a_table_of_something_else_is_no_table_of_labels(tmp_path):
    root = fill(tmp_path / "data", {**photos("train", "val", "test"), "test.csv": b"a,b\n1,2\n"})
    assert len(load_folder(root).test) == 12


def test_mixed_layouts_say_where(tmp_path):
    root = fill(tmp_path / "data", {**photos("train"), "test/0.png": encoded(0)})
    with pytest.raises(ValueError, match="mixes the layouts .* class folder are in test"):
        load_folder(root)


NAMES = [
    "100 % [b] <i>.png",
    "a\nb.png",
    "\udce9t\udce9.png",
    "²٣.png",
    "q'\"\\.png",
    "\x1b[31m.png",
]


def test_any_name_of_a_file_is_one(tmp_path):
    files = photos("train", "val", "test")
    files |= {f"train/[b]cat <i>&/{name}": encoded(k) for k, name in enumerate(NAMES)}
    files |= {f"{split}/[b]cat <i>&/0.png": encoded(9) for split in ("val", "test")}
    root = fill(tmp_path / "data", files)
    found = load_folder(root).train
    assert "[b]cat <i>&" in found.class_names
    assert {f"train/[b]cat <i>&/{name}" for name in NAMES} <= set(found.ids)
    again = load_folder(root).train
    assert again.fingerprint == found.fingerprint


def test_zips_of_old_programs_and_with_links(tmp_path):
    files = photos("train", "val", "test")
    expected = load_folder(fill(tmp_path / "plain", files)).fingerprint
    windows = zipped(tmp_path / "windows.zip", {n.replace("/", "\\"): c for n, c in files.items()})
    assert load_folder(windows).fingerprint == expected
    path = tmp_path / "links.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
        link = zipfile.ZipInfo("train/cat/link.png")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, "../dog/0.png")
    assert load_folder(path).fingerprint == expected
    with open_tree(path) as tree:
        assert sum(tree.skipped.values()) == 1
