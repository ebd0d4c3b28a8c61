"""Any folder of images, or a zip of one, read without unpacking.

Three layouts are understood: ``split/class/file``, where the splits are named
train(ing), val(idation) and test(ing) in any case; ``class/file``, which
is split here, class by class; and GTSRB's as Kaggle has it, where ``Test.csv`` beside
``Test/file`` names the classes. Leading folders that hold everything are ignored, and so are
hidden files and those that macOS and Windows put beside others.
"""

from __future__ import annotations

import os
import warnings
from collections import defaultdict
from pathlib import Path, PurePosixPath

import numpy as np

from jaxpoison._code import hash_of_code
from jaxpoison._names import errors_shown, shown
from jaxpoison._progress import Bar, console
from jaxpoison.datasets.cache import cached_arrays
from jaxpoison.datasets.dataset import Dataset, Splits
from jaxpoison.datasets.decoding import decode_image, image_suffixes
from jaxpoison.datasets.labels import by_suffix, natural_key, placed
from jaxpoison.datasets.tree import Tree, open_tree

# Faulty images that a message names.
_NAMED = 10


def load_folder(
    path: str | os.PathLike[str],
    *,
    num_classes: int | None = None,
    image_size: int | None = None,
    expected_side: int | None = None,
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
        expected_side: If given, the side that all images must have; the first that has
            another is named before others are decoded.
        validation_share: Share of the training images held out where the data
            brings no validation split.
        test_share: Share of all images held out where the data brings no test split.
        seed: Seed of the splits made here.
        progress: Show a progress bar while decoding.

    Raises:
        FileNotFoundError: There is nothing at ``path``.
        ValueError: A file is not an image or has another size, a class is
            empty, or the number of classes is wrong; the message names it.

    Examples:
        >>> import pathlib
        >>> from PIL import Image
        >>> for kind in ("cat", "dog"):
        ...     pathlib.Path("pets", kind).mkdir(parents=True, exist_ok=True)
        ...     for k in range(10):
        ...         Image.fromarray(images[k]).save(f"pets/{kind}/{k}.png")
        >>> loaded = jp.load_folder("pets")
        >>> loaded.train.class_names, len(loaded.train), len(loaded.validation), len(loaded.test)
        (('cat', 'dog'), 14, 2, 4)
    """
    root = Path(path)
    with errors_shown(), open_tree(root) as tree:
        splits = _arrange(tree, image_size, expected_side, progress)
    class_names = splits[next(iter(splits))].class_names
    if num_classes is not None and len(class_names) != num_classes:
        raise ValueError(f"expected {num_classes} classes in {root}, found {len(class_names)}")
    with errors_shown():
        found = _complete(root, splits, validation_share, test_share, seed)
    if progress and not {"test", "validation"} <= splits.keys():
        console.print(
            f"held out of {root}: {len(found.validation)} images for validation, "
            f"{len(found.test)} for testing; trained on: {len(found.train)}",
            soft_wrap=True,
        )
    return found


def class_names_of(path: str | os.PathLike[str]) -> tuple[str, ...]:
    """Names of the classes of an image folder, or a zip of one, by number; nothing is decoded.

    Args:
        path: As :func:`load_folder` takes it.

    Raises:
        FileNotFoundError: There is nothing at ``path``.
        ValueError: It holds no images, or in another layout.
    """
    with errors_shown(), open_tree(Path(path)) as tree:
        return _sorted_out(tree)[1]


def _sorted_out(tree: Tree) -> tuple[dict[str, dict[str, list[str]]], tuple[str, ...], list[str]]:
    """Names of images by split and class, names of all classes, and the files that are no images.

    Raises:
        ValueError: There are no images, or in another layout.
    """
    suffixes = image_suffixes()
    images = [n for n in tree.files if PurePosixPath(n).suffix.lower() in suffixes]
    others = [n for n in tree.files if PurePosixPath(n).suffix.lower() not in suffixes]
    if not images:
        raise ValueError(
            f"no images in {tree.root}: expected split/class/file or class/file in a format that "
            f"Pillow reads, found {by_suffix(others) or 'no file'}"
        )
    by_split = placed(tree, images)
    if "all" not in by_split and "train" not in by_split:
        raise ValueError(f"{tree.root} has the splits {', '.join(by_split)} but none for training")
    class_names = sorted({c for classes in by_split.values() for c in classes}, key=natural_key)
    for name in class_names:
        if "train" in by_split and name not in by_split["train"]:
            raise ValueError(f"class {name!r} in {tree.root} has no training images")
    return by_split, tuple(class_names), others


def _arrange(
    tree: Tree, image_size: int | None, expected_side: int | None, progress: bool
) -> dict[str, Dataset]:
    """Sorts files into splits and classes, decodes them, or takes them from the cache."""
    by_split, class_names, others = _sorted_out(tree)
    _say_what_is_left_out(tree, others, progress)
    order = {
        split: [
            (n, k)
            for k, c in enumerate(class_names)
            for n in sorted(classes.get(c, []), key=natural_key)
        ]
        for split, classes in by_split.items()
    }
    listing = sorted((name, *marks) for name, marks in tree.files.items())
    pixels = cached_arrays(
        (str(tree.root.resolve()), image_size, listing, hash_of_code(load_folder)),
        lambda: _decode(tree, order, image_size, expected_side, progress),
    )
    for split, files in order.items():
        # Where they were decoded for a network that takes another size.
        _check_side(pixels[split][0], expected_side, files[0][0], tree.root)
    return {
        split: Dataset(
            pixels[split],
            np.array([k for _, k in files], np.int32),
            class_names,
            tuple(n for n, _ in files),
        )
        for split, files in order.items()
    }


def _say_what_is_left_out(tree: Tree, others: list[str], progress: bool) -> None:
    """In a search for poison, an image that was not read is one that was not searched."""
    tables = [name for name in others if PurePosixPath(name).suffix.lower() == ".csv"]
    unread = sorted(set(others) - set(tables))
    if unread:
        warnings.warn(
            f"{len(unread)} files of {tree.root} are not read as images: "
            f"{shown(by_suffix(unread))}",
            stacklevel=4,
        )
    for reason, count in sorted(tree.skipped.items()):
        if count and progress:
            console.print(f"{count} {reason} skipped in {tree.root}", soft_wrap=True)


def _decode(
    tree: Tree,
    order: dict[str, list[tuple[str, int]]],
    image_size: int | None,
    expected_side: int | None,
    progress: bool,
) -> dict[str, np.ndarray]:
    total = sum(map(len, order.values()))
    size, first = "", ""
    pixels, faults = {}, {}
    with Bar("decoding images", total, unit="images", show=progress) as bar:
        for split, files in order.items():
            rows = []
            for name, _ in files:
                bar.advance(1)
                try:
                    image = decode_image(tree.read(name), f"{name} in {tree.root}", image_size)
                except ValueError as error:
                    # All are named at once.
                    faults[name] = error
                    continue
                found = f"{image.shape[1]}x{image.shape[0]}"
                if not size:
                    _check_side(image, expected_side, name, tree.root)
                    size, first = found, name
                elif found != size and not faults:
                    raise ValueError(
                        f"all images in {tree.root} must have one size: {first} is {size}, "
                        f"{name} is {found}; give an image size to resize them"
                    )
                rows.append(image)
            if not faults:
                pixels[split] = np.stack(rows)
    if faults:
        raise ValueError(_said_of(faults, total, tree.root))
    return pixels


def _check_side(image: np.ndarray, expected: int | None, name: str, root: Path) -> None:
    if expected is not None and image.shape[:2] != (expected, expected):
        raise ValueError(
            f"expected images of {expected}x{expected}, found {image.shape[1]}x{image.shape[0]} "
            f"({name} in {root}): give the image size {expected} to resize them (--image-size "
            f"{expected} on the command line)"
        )


def _said_of(faults: dict[str, ValueError], total: int, root: Path) -> str:
    """All faulty images in one line: the first by name, those of one fault together."""
    if len(faults) == 1:
        return str(next(iter(faults.values())))
    names: dict[str, list[str]] = defaultdict(list)
    for name, fault in list(faults.items())[:_NAMED]:
        names[str(fault).removeprefix(name).replace(f" in {root}", "").strip()].append(name)
    said = "; ".join(f"{', '.join(some)}: {why}" for why, some in names.items())
    more = "" if len(faults) <= _NAMED else f"; and {len(faults) - _NAMED} more"
    return f"{len(faults)} of {total} images in {root} cannot be used: {said}{more}"


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
