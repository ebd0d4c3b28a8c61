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
        image_size: Side to which the images of a folder or zip are resized.
        seed: Seed of rendering and of splits made here.
        progress: Show progress bars.

    Raises:
        FileNotFoundError: There is no such data set and no such path.
        ValueError: The data are damaged or incomplete.
    """
    if name == "synthetic":
        return synthetic(seed=seed, progress=progress)
    # Imported here: TFDS takes seconds to import and only this data set needs it.
    if name == "gtsrb":
        from jaxpoison.datasets.gtsrb import load_gtsrb

        return load_gtsrb(seed=seed, progress=progress)
    path = Path(name)
    if not path.exists():
        raise FileNotFoundError(
            f"no data at {name!r}: expected {', '.join(DATASETS)}, or the path of an image "
            "folder or zip"
        )
    from jaxpoison.datasets.gtsrb import holds_gtsrb, load_gtsrb

    if holds_gtsrb(path):
        return load_gtsrb(path, seed=seed, progress=progress)
    return load_folder(path, image_size=image_size, seed=seed, progress=progress)
