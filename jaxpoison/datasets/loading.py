"""Data by name or path."""

from __future__ import annotations

from pathlib import Path

from jaxpoison.datasets.dataset import Splits
from jaxpoison.datasets.folder import load_folder
from jaxpoison.datasets.synthetic import synthetic

DATASETS = ("synthetic", "gtsrb")


def load_data(
    name: str, *, image_size: int | None = None, seed: int = 0, progress: bool = False
) -> Splits:
    """Loads a data set.

    Args:
        name: ``"synthetic"``; ``"gtsrb"``, which downloads the official
            archives; the path of a directory that holds those archives or
            their extracted tree; or the path of any image folder or zip.
        image_size: Side to which the images of a folder or zip are resized, or synthetic
            ones rendered; GTSRB's are 32.
        seed: Seed of rendering and of splits made here.
        progress: Show progress bars.

    Raises:
        FileNotFoundError: There is no such data set and no such path.
        ValueError: The data are damaged or incomplete, or GTSRB is asked for in another size.

    Examples:
        >>> jp.load_data("synthetic").train.images.shape
        (2000, 32, 32, 3)
    """
    if name == "synthetic":
        return synthetic(size=image_size or 32, seed=seed, progress=progress)
    if name == "gtsrb":
        return _gtsrb(None, image_size, seed, progress)
    path = Path(name)
    if not path.exists():
        raise FileNotFoundError(
            f"no data at {name!r}: expected {', '.join(DATASETS)}, or the path of an image "
            "folder or zip"
        )
    # Imported here: TFDS takes seconds to import and only this data set needs it.
    from jaxpoison.datasets.gtsrb import holds_gtsrb

    if holds_gtsrb(path):
        return _gtsrb(path, image_size, seed, progress)
    return load_folder(path, image_size=image_size, seed=seed, progress=progress)


def _gtsrb(path: Path | None, image_size: int | None, seed: int, progress: bool) -> Splits:
    from jaxpoison.datasets.gtsrb import SIDE, load_gtsrb

    if image_size not in (None, SIDE):
        raise ValueError(
            f"GTSRB is read at {SIDE}x{SIDE} pixels, found image size {image_size}; for another "
            "one give its images as a folder split/class/file"
        )
    return load_gtsrb(path, seed=seed, progress=progress)
