"""Data by name or path."""

from __future__ import annotations

import difflib
from pathlib import Path

from jaxpoison.datasets.dataset import Splits
from jaxpoison.datasets.folder import check_side, class_names_of, load_folder
from jaxpoison.datasets.synthetic import SYNTHETIC_CLASSES, synthetic

DATASETS = ("synthetic", "gtsrb")
# What data that TFDS prepares are called with in front.
_TFDS = "tfds:"
# Of rendered images that nobody asks for in another size.
_SIDE = 32
# Classes that a message names.
_NAMED = 12


def load_data(
    name: str,
    *,
    image_size: int | None = None,
    resize: str = "stretch",
    expected_side: int | None = None,
    seed: int = 0,
    progress: bool = False,
) -> Splits:
    """Loads a data set.

    Args:
        name: ``"synthetic"``; ``"gtsrb"``, which downloads the official
            archives; the path of a directory that holds those archives or
            their extracted tree; ``"tfds:NAME"``, what :func:`load_tfds` takes; or the path of
            any image folder or zip.
        image_size: Side to which images are resized, or synthetic ones rendered; GTSRB's are 32.
        resize: What becomes of an image that is not square; see :func:`load_folder`.
        expected_side: Side that all images must have, such as a network takes; known before all
            are decoded.
        seed: Seed of rendering and of splits made here.
        progress: Show progress bars.

    Raises:
        FileNotFoundError: There is no such data set and no such path.
        ValueError: The data are damaged or incomplete, have another size than expected, or GTSRB
            is asked for in another size.

    Examples:
        >>> jp.load_data("synthetic").train.images.shape
        (2000, 32, 32, 3)
    """
    if image_size is not None and expected_side not in (None, image_size):
        raise ValueError(
            f"the network takes images of {expected_side}x{expected_side}, found the image size "
            f"{image_size}"
        )
    if name == "synthetic":
        return synthetic(size=image_size or _SIDE, seed=seed, progress=progress)
    if name == "gtsrb":
        return _gtsrb(None, image_size, seed, progress)
    if name.startswith(_TFDS):
        from jaxpoison.datasets.prepared import load_tfds

        found = load_tfds(
            name.removeprefix(_TFDS),
            image_size=image_size,
            resize=resize,
            seed=seed,
            progress=progress,
        )
        check_side(found.train.images[0], expected_side, found.train.ids[0], name)
        return found
    path = _existing(name)
    # Imported here: TFDS takes seconds to import and only this data set needs it.
    from jaxpoison.datasets.gtsrb import holds_gtsrb

    if holds_gtsrb(path):
        return _gtsrb(path, image_size, seed, progress)
    return load_folder(
        path,
        image_size=image_size,
        resize=resize,
        expected_side=expected_side,
        seed=seed,
        progress=progress,
    )


def class_number(name: str, data: str) -> int:
    """The number of a class of a data set that is called so.

    Args:
        name: Of the class, or its number.
        data: What :func:`load_data` takes; no image is decoded.

    Raises:
        FileNotFoundError: There is no such data set and no such path.
        ValueError: The data have no such class.
    """
    try:
        return int(name)
    except ValueError:
        names = class_names(data)
    if name in names:
        return names.index(name)
    near = difflib.get_close_matches(name, names, 1)
    meant = f" (did you mean {near[0]!r}?)" if near else ""
    some = ", ".join(names[:_NAMED]) + (", …" if len(names) > _NAMED else "")
    raise ValueError(f"no class of {data} is called {name!r}{meant}: there are {some}")


def class_names(data: str) -> tuple[str, ...]:
    """Names of the classes of a data set, by number; no image is decoded.

    Args:
        data: What :func:`load_data` takes.

    Raises:
        FileNotFoundError: There is no such data set and no such path.
        ValueError: The path holds no images, or in another layout.
    """
    if data == "synthetic":
        return SYNTHETIC_CLASSES
    if data.startswith(_TFDS):
        from jaxpoison.datasets.prepared import class_names_of_tfds

        return class_names_of_tfds(data.removeprefix(_TFDS))
    from jaxpoison.datasets import gtsrb

    if data == "gtsrb" or gtsrb.holds_gtsrb(_existing(data)):
        return gtsrb.CLASS_NAMES
    return class_names_of(data)


def _existing(name: str) -> Path:
    path = Path(name)
    if not path.exists():
        raise FileNotFoundError(
            f"no data at {name!r}: expected {', '.join(DATASETS)}, tfds:NAME, or the path of an "
            "image folder or zip"
        )
    return path


def _gtsrb(path: Path | None, image_size: int | None, seed: int, progress: bool) -> Splits:
    from jaxpoison.datasets.gtsrb import SIDE, load_gtsrb

    if image_size not in (None, SIDE):
        raise ValueError(
            f"GTSRB is read at {SIDE}x{SIDE} pixels, found image size {image_size}; for another "
            "one give its images as a folder split/class/file"
        )
    return load_gtsrb(path, seed=seed, progress=progress)
