"""Any folder of images, or a zip of one, read without unpacking.

Three layouts are understood: ``split/class/file``, where the splits are named
train(ing), val(idation) and test(ing) in any case; ``class/file``, which
is split here, class by class; and GTSRB's as Kaggle has it, where ``Test.csv`` beside
``Test/file`` names the classes. Leading folders that hold everything are ignored, and so are
hidden files and those that macOS and Windows put beside others.
"""

from __future__ import annotations

import contextlib
import os
import warnings
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from jaxtyping import UInt8

from jaxpoison._checks import check_choice
from jaxpoison._code import hash_of_code
from jaxpoison._names import errors_shown, shown
from jaxpoison._progress import Bar, console
from jaxpoison.datasets.cache import cached_images
from jaxpoison.datasets.dataset import Dataset, Splits
from jaxpoison.datasets.decoding import RESIZES, decode_image, image_suffixes
from jaxpoison.datasets.labels import by_suffix, natural_key, placed
from jaxpoison.datasets.splitting import completed
from jaxpoison.datasets.tree import Tree, open_tree

# Faulty images that a message names.
_NAMED = 10


def load_folder(
    path: str | os.PathLike[str],
    *,
    num_classes: int | None = None,
    image_size: int | None = None,
    resize: str = "stretch",
    expected_side: int | None = None,
    validation_share: float = 1 / 9,
    test_share: float = 0.2,
    seed: int = 0,
    progress: bool = False,
) -> Splits:
    """Reads an image folder, or a zip of one.

    Decoded images are cached: the second call takes seconds. From one gibibyte of pixels on they
    are decoded into files that are mapped, and memory holds what is being looked at.

    Args:
        path: A folder, or a ``.zip`` file, in one of the two layouts above.
        num_classes: If given, the number of classes that must be found.
        image_size: If given, every image is resized to this side (bilinear,
            antialiased); otherwise all images must already have one size.
        resize: What becomes of an image that is not square: ``stretch``; ``crop``, its middle is
            kept; or ``pad``, with black.
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
    check_choice("resize", resize, RESIZES)
    root = Path(path)
    with errors_shown(), open_tree(root) as tree:
        splits = _arrange(tree, _Wanted(image_size, resize, expected_side), progress)
    class_names = splits[next(iter(splits))].class_names
    if num_classes is not None and len(class_names) != num_classes:
        raise ValueError(f"expected {num_classes} classes in {root}, found {len(class_names)}")
    with errors_shown():
        return completed(
            str(root),
            splits,
            validation_share=validation_share,
            test_share=test_share,
            seed=seed,
            progress=progress,
        )


def load_images(
    path: str | os.PathLike[str],
    *,
    image_size: int | None = None,
    resize: str = "stretch",
    progress: bool = False,
) -> Dataset:
    """Reads all images of a folder, or a zip of one, whatever its layout; they have no labels.

    Args:
        path: A folder, or a ``.zip`` file.
        image_size: If given, the side to which every image is resized.
        resize: What becomes of an image that is not square; see :func:`load_folder`.
        progress: Show a progress bar while decoding.

    Returns:
        The images by their names, all of one class without a meaning.

    Raises:
        FileNotFoundError: There is nothing at ``path``.
        ValueError: There are no images, or a file is none or has another size.

    Examples:
        >>> import pathlib
        >>> from PIL import Image
        >>> pathlib.Path("new").mkdir(exist_ok=True)
        >>> Image.fromarray(images[0]).save("new/first.png")
        >>> jp.load_images("new").ids
        ('first.png',)
    """
    check_choice("resize", resize, RESIZES)
    with errors_shown(), open_tree(Path(path)) as tree:
        names, others = _images_of(tree)
        _say_what_is_left_out(tree, others, progress)
        order = {"all": [(name, 0) for name in sorted(names, key=natural_key)]}
        wanted = _Wanted(image_size, resize, None)
        return _read(tree, order, ("all",), wanted, progress)["all"]


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
    images, others = _images_of(tree)
    by_split = placed(tree, images)
    if "all" not in by_split and "train" not in by_split:
        raise ValueError(f"{tree.root} has the splits {', '.join(by_split)} but none for training")
    class_names = sorted({c for classes in by_split.values() for c in classes}, key=natural_key)
    for name in class_names:
        if "train" in by_split and name not in by_split["train"]:
            raise ValueError(f"class {name!r} in {tree.root} has no training images")
    return by_split, tuple(class_names), others


def _images_of(tree: Tree) -> tuple[list[str], list[str]]:
    """Names of the images, and of the other files.

    Raises:
        ValueError: There are no images.
    """
    suffixes = image_suffixes()
    images = [n for n in tree.files if PurePosixPath(n).suffix.lower() in suffixes]
    others = [n for n in tree.files if PurePosixPath(n).suffix.lower() not in suffixes]
    if not images:
        raise ValueError(
            f"no images in {tree.root}: expected split/class/file or class/file in a format that "
            f"Pillow reads, found {by_suffix(others) or 'no file'}"
        )
    return images, others


@dataclass(frozen=True)
class _Wanted:
    """What images are to be: :func:`load_folder`'s options."""

    image_size: int | None
    resize: str
    expected_side: int | None


def _arrange(tree: Tree, wanted: _Wanted, progress: bool) -> dict[str, Dataset]:
    """Sorts files into splits and classes, and reads them."""
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
    return _read(tree, order, class_names, wanted, progress)


def _read(
    tree: Tree,
    order: dict[str, list[tuple[str, int]]],
    class_names: tuple[str, ...],
    wanted: _Wanted,
    progress: bool,
) -> dict[str, Dataset]:
    """Decodes images, or takes them from the cache."""
    listing = sorted((name, *marks) for name, marks in tree.files.items())
    place, how = str(tree.root.resolve()), (wanted.image_size, wanted.resize)
    pixels = cached_images(
        (place, how, sorted(order), listing, hash_of_code(load_folder)),
        lambda: _shapes(tree, order, wanted),
        lambda arrays: _decode(tree, order, wanted, arrays, progress),
    )
    for split, files in order.items():
        # Where they were decoded for a network that takes another size.
        check_side(pixels[split][0], wanted.expected_side, files[0][0], tree.root)
    return {
        split: Dataset(
            pixels[split],
            np.array([k for _, k in files], np.int32),
            class_names,
            tuple(n for n, _ in files),
        )
        for split, files in order.items()
    }


def _shapes(
    tree: Tree, order: dict[str, list[tuple[str, int]]], wanted: _Wanted
) -> dict[str, tuple[int, ...]]:
    """The shapes of the splits: images are to be as asked for, or as the first."""
    shape = (1, 1, 3)
    if wanted.image_size is not None:
        shape = wanted.image_size, wanted.image_size, 3
    else:
        for name in (name for files in order.values() for name, _ in files):
            # One that cannot be read is named later, with all others.
            with contextlib.suppress(ValueError):
                shape = _decoded(tree, name, wanted).shape
                break
    return {split: (len(files), *shape) for split, files in order.items()}


def _decoded(tree: Tree, name: str, wanted: _Wanted) -> UInt8[np.ndarray, "h w 3"]:
    said = f"{name} in {tree.root}"
    return decode_image(tree.read(name), said, wanted.image_size, wanted.resize)


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
    wanted: _Wanted,
    arrays: dict[str, np.ndarray],
    progress: bool,
) -> None:
    """Decodes all images into the splits' arrays."""
    total = sum(map(len, order.values()))
    size, first = "", ""
    faults: dict[str, ValueError] = {}
    with Bar("decoding images", total, unit="images", show=progress) as bar:
        for split, files in order.items():
            for row, (name, _) in enumerate(files):
                bar.advance(1)
                try:
                    image = _decoded(tree, name, wanted)
                except ValueError as error:
                    # All are named at once.
                    faults[name] = error
                    continue
                found = f"{image.shape[1]}x{image.shape[0]}"
                if not size:
                    check_side(image, wanted.expected_side, name, tree.root)
                    size, first = found, name
                elif found != size and not faults:
                    raise ValueError(
                        f"all images in {tree.root} must have one size: {first} is {size}, "
                        f"{name} is {found}; give an image size to resize them"
                    )
                if not faults:
                    arrays[split][row] = image
    if faults:
        raise ValueError(_said_of(faults, total, tree.root))


def check_side(image: np.ndarray, expected: int | None, name: str, origin: object) -> None:
    """Raises where an image has not the side that a network takes.

    Args:
        image: The image.
        expected: The side; ``None`` where any will do.
        name: Of the image.
        origin: Where it is from.

    Raises:
        ValueError: It has another size.
    """
    if expected is not None and image.shape[:2] != (expected, expected):
        raise ValueError(
            f"expected images of {expected}x{expected}, found {image.shape[1]}x{image.shape[0]} "
            f"({name} in {origin}): give the image size {expected} to resize them (--image-size "
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
