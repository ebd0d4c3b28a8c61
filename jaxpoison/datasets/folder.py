"""Any folder of images, or a zip of one, read without unpacking.

Two layouts are understood: ``split/class/file``, where the splits are named
train(ing), val(idation) and test(ing) in any case, and ``class/file``, which
is split here, class by class. One leading folder that holds everything is
ignored, and so are the files that macOS and Windows put beside others.
"""

from __future__ import annotations

import io
import os
import re
import warnings
import zipfile
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image, UnidentifiedImageError

from jaxpoison._code import hash_of_code
from jaxpoison._progress import Bar, console
from jaxpoison.datasets.archive import is_system_file, open_archive, read_member
from jaxpoison.datasets.cache import cached_arrays
from jaxpoison.datasets.dataset import Dataset, Splits

IMAGE_SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".webp"})
SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
    "testing": "test",
}


def natural_key(name: str) -> list[tuple[int, int, str]]:
    """Sorting key that orders ``2.png`` before ``10.png``."""
    return [
        (0, int(part), "") if part.isdigit() else (1, 0, part) for part in re.split(r"(\d+)", name)
    ]


def load_folder(
    path: str | os.PathLike[str],
    *,
    num_classes: int | None = None,
    image_size: int | None = None,
    validation_share: float = 1 / 9,
    test_share: float = 0.2,
    seed: int = 0,
    progress: bool = False,
) -> Splits:
    """Reads an image folder, or a zip of one.

    Decoded images are cached: the second call takes seconds whatever the size.

    Args:
        path: A folder, or a ``.zip`` file, in one of the two layouts above.
        num_classes: If given, the number of classes that must be found.
        image_size: If given, every image is resized to this side (bilinear,
            antialiased); otherwise all images must already have one size.
        validation_share: Share of the training images held out where the data
            brings no validation split.
        test_share: Share of all images held out where the data brings no test split.
        seed: Seed of the splits made here.
        progress: Show a progress bar while decoding.

    Raises:
        FileNotFoundError: There is nothing at ``path``.
        ValueError: A file is not an image or has another size, a class is
            empty, or the number of classes is wrong; the message names it.
    """
    root = Path(path)
    if not root.exists():
        raise FileNotFoundError(f"no image folder or zip at {root}")
    if root.is_dir():
        names = [p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file()]
        listing = [(n, (root / n).stat().st_size, (root / n).stat().st_mtime_ns) for n in names]
        folders = [p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_dir()]
        splits = _arrange(
            root, listing, folders, lambda n: (root / n).read_bytes(), image_size, progress
        )
    elif zipfile.is_zipfile(root):
        with open_archive(root) as archive:
            entries = archive.infolist()
            listing = [(i.filename, i.file_size, i.CRC) for i in entries if not i.is_dir()]
            folders = [i.filename.rstrip("/") for i in entries if i.is_dir()]
            splits = _arrange(
                root, listing, folders, lambda n: read_member(archive, n), image_size, progress
            )
    else:
        raise ValueError(f"{root} is neither a folder nor a zip file")
    class_names = splits[next(iter(splits))].class_names
    if num_classes is not None and len(class_names) != num_classes:
        raise ValueError(f"expected {num_classes} classes in {root}, found {len(class_names)}")
    return _complete(root, splits, validation_share, test_share, seed)


def _arrange(
    root: Path,
    listing: list[tuple[str, int, int]],
    folders: list[str],
    read: Callable[[str], bytes],
    image_size: int | None,
    progress: bool,
) -> dict[str, Dataset]:
    """Sorts files into splits and classes, decodes them, or takes them from the cache."""
    found = len(listing)
    listing = [entry for entry in listing if not is_system_file(entry[0])]
    folders = [name for name in folders if not is_system_file(name)]
    if progress and len(listing) < found:
        console.print(f"{found - len(listing)} files of the operating system skipped in {root}")
    images = [n for n, _, _ in listing if PurePosixPath(n).suffix.lower() in IMAGE_SUFFIXES]
    if not images:
        raise ValueError(
            f"no images in {root}: expected split/class/file or class/file with "
            f"{', '.join(sorted(IMAGE_SUFFIXES))}, found {len(listing)} other files"
        )
    parts = {n: PurePosixPath(n).parts for n in images}
    shared = min(len(p) for p in parts.values())
    while shared > 2 and len({p[0] for p in parts.values()}) == 1:
        if next(iter(parts.values()))[0].lower() in SPLIT_NAMES:
            break
        parts = {n: p[1:] for n, p in parts.items()}
        shared -= 1
    by_split: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for name, p in parts.items():
        if len(p) == 3 and p[0].lower() in SPLIT_NAMES:
            by_split[SPLIT_NAMES[p[0].lower()]][p[1]].append(name)
        elif len(p) == 2:
            by_split["all"][p[0]].append(name)
        else:
            raise ValueError(
                f"{name} in {root} is neither split/class/file (splits: "
                f"{', '.join(sorted(SPLIT_NAMES))}) nor class/file"
            )
    if "all" in by_split and len(by_split) > 1:
        raise ValueError(f"{root} mixes the layouts split/class/file and class/file")
    if "all" not in by_split and "train" not in by_split:
        raise ValueError(f"{root} has the splits {', '.join(by_split)} but none for training")
    class_names = sorted({c for classes in by_split.values() for c in classes}, key=natural_key)
    _refuse_empty_classes(root, by_split, class_names, folders)

    order = {
        split: [
            (n, k)
            for k, c in enumerate(class_names)
            for n in sorted(classes.get(c, []), key=natural_key)
        ]
        for split, classes in by_split.items()
    }
    pixels = cached_arrays(
        (str(root.resolve()), image_size, sorted(listing), hash_of_code(load_folder)),
        lambda: _decode(root, order, read, image_size, progress),
    )
    return {
        split: Dataset(
            pixels[split],
            np.array([k for _, k in files], np.int32),
            tuple(class_names),
            tuple(n for n, _ in files),
        )
        for split, files in order.items()
    }


def _refuse_empty_classes(
    root: Path,
    by_split: dict[str, dict[str, list[str]]],
    class_names: list[str],
    folders: list[str],
) -> None:
    for folder in folders:
        path = PurePosixPath(folder)
        inside_split = path.parent.name.lower() in SPLIT_NAMES
        on_top = "all" in by_split and len(path.parts) == 1 and path.name.lower() not in SPLIT_NAMES
        holds_folders = any(other.startswith(folder + "/") for other in folders)
        if (inside_split or on_top) and not holds_folders and path.name not in class_names:
            raise ValueError(f"class {folder!r} in {root} is empty")
    for name in class_names:
        if "train" in by_split and name not in by_split["train"]:
            raise ValueError(f"class {name!r} in {root} has no training images")


def _decode(
    root: Path,
    order: dict[str, list[tuple[str, int]]],
    read: Callable[[str], bytes],
    image_size: int | None,
    progress: bool,
) -> dict[str, np.ndarray]:
    total = sum(map(len, order.values()))
    size, first = "", ""
    pixels = {}
    with Bar("decoding images", total, unit="images", show=progress) as bar:
        for split, files in order.items():
            rows = []
            for name, _ in files:
                image = decode_image(read(name), f"{name} in {root}", image_size)
                found = f"{image.shape[1]}x{image.shape[0]}"
                if not size:
                    size, first = found, name
                elif found != size:
                    raise ValueError(
                        f"all images in {root} must have one size: {first} is {size}, "
                        f"{name} is {found}; "
                        "give an image size to resize them"
                    )
                rows.append(image)
                bar.advance(1)
            pixels[split] = np.stack(rows)
    return pixels


def decode_image(data: bytes, name: str, image_size: int | None = None) -> np.ndarray:
    """Decodes one encoded image to ``uint8`` RGB ``[h, w, 3]``.

    Raises:
        ValueError: ``data`` is not an image that can be read; the message names it.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data)) as file:
                image = file.convert("RGB")
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ValueError(f"{name} is too large to be decoded ({error}): make it smaller") from error
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        # Pillow names the bytes it was given, not the file.
        why = "unknown format" if isinstance(error, UnidentifiedImageError) else error
        raise ValueError(f"{name} cannot be read as an image: {why}") from error
    if image_size is not None and image.size != (image_size, image_size):
        image = image.resize((image_size, image_size), Image.Resampling.BILINEAR)
    return np.asarray(image, np.uint8)


def _complete(
    root: Path,
    splits: dict[str, Dataset],
    validation_share: float,
    test_share: float,
    seed: int,
) -> Splits:
    rng = np.random.default_rng(seed)
    train = splits.get("train", splits.get("all"))
    if train is None:
        raise ValueError(f"{root} has no training images")
    test = splits.get("test")
    if test is None:
        train, test = hold_out(train, test_share, rng, what=f"test split of {root}")
    validation = splits.get("validation")
    if validation is None:
        train, validation = hold_out(
            train, validation_share, rng, what=f"validation split of {root}"
        )
    return Splits(train, validation, test)


def hold_out(
    data: Dataset, share: float, rng: np.random.Generator, *, what: str
) -> tuple[Dataset, Dataset]:
    """Splits off a share of every class at random, at least one image of each.

    Raises:
        ValueError: A class has fewer than two images.
    """
    held = np.zeros(len(data), bool)
    for k, name in enumerate(data.class_names):
        members = np.flatnonzero(data.labels == k)
        if len(members) < 2:
            raise ValueError(
                f"class {name!r} needs at least 2 images to make a {what}, found {len(members)}"
            )
        count = min(max(1, round(share * len(members))), len(members) - 1)
        held[rng.choice(members, count, replace=False)] = True
    return data.take(~held), data.take(held)
