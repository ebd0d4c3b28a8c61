"""Archives as other systems make them, and damaged ones."""

import io
import zipfile

import numpy as np
import pytest
from PIL import Image

from jaxpoison import load_folder
from jaxpoison.cli import main
from jaxpoison.datasets.archive import is_system_file


def png(value, side=8):
    data = io.BytesIO()
    Image.fromarray(np.full((side, side, 3), value, np.uint8)).save(data, "png")
    return data.getvalue()


def photos():
    """Twelve images in two classes, by name."""
    return {f"photos/{c}/{k}.png": png(20 * k) for c in ("cat", "dog") for k in range(6)}


def zipped(path, files, **options):
    with zipfile.ZipFile(path, "w", **options) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


SYSTEM = {
    "__MACOSX/photos/cat/._0.png": b"resource fork",
    "__MACOSX/._photos": b"resource fork",
    "photos/cat/._1.png": b"resource fork",
    "photos/.DS_Store": b"finder",
    "photos/dog/.DS_Store": b"finder",
    "photos/dog/Thumbs.db": b"explorer",
    "photos/desktop.ini": b"explorer",
}


def test_files_of_the_system_are_no_images(tmp_path, capfd):
    plain = load_folder(zipped(tmp_path / "plain.zip", photos()))
    mac = load_folder(zipped(tmp_path / "mac.zip", {**SYSTEM, **photos()}), progress=True)
    assert mac.fingerprint == plain.fingerprint
    assert "7 files of the operating system skipped" in capfd.readouterr().err.replace("\n", " ")
    folder = tmp_path / "folder"
    for name, content in {**photos(), **SYSTEM}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    assert load_folder(folder).fingerprint == plain.fingerprint
    assert not is_system_file("photos/cat/_0.png")


def with_bad_crc(path):
    zipped(path, photos())
    data = bytearray(path.read_bytes())
    # The first pixel data of the third image.
    place = data.find(b"IDAT", data.find(b"photos/cat/2.png")) + 8
    data[place] ^= 0xFF
    path.write_bytes(data)


def with_flag(path, place_in_header, value):
    """Sets two bytes in every local and central header."""
    zipped(path, photos())
    data = bytearray(path.read_bytes())
    for mark, shift in ((b"PK\x03\x04", 0), (b"PK\x01\x02", 2)):
        place = data.find(mark)
        while place >= 0:
            at = place + place_in_header + shift
            data[at : at + 2] = value.to_bytes(2, "little")
            place = data.find(mark, place + 4)
    path.write_bytes(data)


def with_a_bomb(path):
    bomb = io.BytesIO()
    Image.new("1", (20_000, 20_000)).save(bomb, "png")
    zipped(path, {**photos(), "photos/cat/bomb.png": bomb.getvalue()})


def with_an_empty_file(path):
    zipped(path, {**photos(), "photos/dog/empty.png": b""})


def with_half_a_directory(path):
    zipped(path, photos())
    data = path.read_bytes()
    place = data.find(b"PK\x01\x02")
    path.write_bytes(data[: place + 20] + data[place + 60 :])


def with_damaged(kind):
    def make(path):
        zipped(path, photos(), compression=kind)
        data = bytearray(path.read_bytes())
        place = data.find(b"photos/cat/0.png") + len(b"photos/cat/0.png")
        data[place + 12 : place + 40] = bytes(28)
        path.write_bytes(data)

    return make


DAMAGED = {
    "directory": (with_half_a_directory, "photos.zip is damaged .*copy or load the archive again"),
    "LZMA": (with_damaged(zipfile.ZIP_LZMA), "photos/cat/0.png in .* is damaged"),
    "bzip2": (with_damaged(zipfile.ZIP_BZIP2), "photos/cat/0.png in .* is damaged"),
    "bad CRC": (with_bad_crc, "photos/cat/2.png in .* is damaged .*copy or load the archive again"),
    "encrypted": (
        lambda path: with_flag(path, 6, 1),
        "12 of 12 images in .*photos.zip cannot be used: photos/cat/0.png, photos/cat/1.png, .*"
        "photos/dog/3.png: is encrypted: unzip the archive and give the folder; and 2 more$",
    ),
    "Deflate64": (
        lambda path: with_flag(path, 8, 9),
        "12 of 12 .*photos/cat/0.png, .*: is compressed in a way that cannot be read .*and 2 more",
    ),
    "bomb": (with_a_bomb, "photos/cat/bomb.png in .* is too large to be decoded"),
    "empty file": (
        with_an_empty_file,
        "photos/dog/empty.png in .* cannot be read as an image: unk",
    ),
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_what_cannot_be_read_takes_one_line(kind, tmp_path, capsys):
    make, message = DAMAGED[kind]
    path = tmp_path / "photos.zip"
    make(path)
    with pytest.raises(ValueError, match=message):
        load_folder(path)
    options = ["--attack", "none", "--quiet", "--data", str(path)]
    assert main(["run", "--workdir", str(tmp_path / "run"), *options]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "BytesIO" not in error


def unreadable(files):
    return {**files, "photos/dog/a\nb.png": b"no image"}


LINE_FEEDS = {
    "layout": ({"0\nb.png": None}, r"0\nb.png in "),
    "image": (unreadable(photos()), r"photos/dog/a\nb.png in "),
    "sizes": ({**photos(), "photos/dog/a\nb.png": None}, r"a\nb.png is 16x16"),
    "few": ({"photos/a\nb/1.png": None, "photos/cat/1.png": None}, r"class 'a\nb'"),
}


@pytest.mark.parametrize("kind", LINE_FEEDS)
def test_line_feeds_in_names_do_not_break_errors(kind, tmp_path):
    files, said = LINE_FEEDS[kind]
    other = io.BytesIO()
    Image.new("RGB", (16, 16)).save(other, "png")
    zipped(
        tmp_path / "photos.zip",
        {name: other.getvalue() if data is None else data for name, data in files.items()},
    )
    with pytest.raises(ValueError, match="photos.zip") as error:
        load_folder(tmp_path / "photos.zip")
    assert "\n" not in str(error.value)
    assert said.replace("'", "") in str(error.value).replace("\\\\", "\\").replace("'", "")
