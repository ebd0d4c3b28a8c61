"""Images left out by a list of their names: what was called poisoned, in the next training."""

from __future__ import annotations

import csv
import os
import warnings
from pathlib import Path

import numpy as np

from jaxpoison._names import shown
from jaxpoison.datasets.dataset import Splits

_PARTS = ("train", "validation", "test")
# Names that a message gives.
_NAMED = 3


def without_listed(splits: Splits, path: str | os.PathLike[str]) -> Splits:
    r"""Data without the images that a table names.

    Such a table is what ``jaxpoison scan`` leaves as ``suspects.csv``, ``run`` as
    ``suspects-class-K.csv`` and ``repair`` as ``removed.csv``. One of your own needs a column
    ``id``, with the name of an image in each row, and may have a column ``part``: ``train``,
    ``validation`` or ``test``. Without it all parts are looked through, and so they are where the
    named part has no such image and one other has: a folder's parts depend on the seed.

    Args:
        splits: The data.
        path: Of the table, as CSV.

    Returns:
        The data less the images that are named. Names that no image has are counted in a
        warning: an image may have been deleted since.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is no table with a column ``id``, has a row for every image, names a part
            there is not, no image has any of its names, or no image of a part would be left.

    Examples:
        >>> import pathlib, tempfile
        >>> splits = jp.synthetic(train=40, validation=10, test=10)
        >>> table = pathlib.Path(tempfile.mkdtemp()) / "suspects.csv"
        >>> _ = table.write_text("part,id\ntrain,train/0\ntrain,train/7\n")
        >>> len(jp.without_listed(splits, table).train)
        38
    """
    listed, said = listed_images(path), shown(str(path))
    parts = {part: getattr(splits, part) for part in _PARTS}
    known = {part: set(data.ids) for part, data in parts.items()}
    taken: dict[str, set[str]] = {part: set() for part in parts}
    unknown = []
    for part, name in listed:
        where = [each for each in parts if name in known[each]]
        if part in where:
            where = [part]
        elif part is not None and len(where) > 1:
            # Held out elsewhere with another seed, it would be in one part alone.
            where = []
        for each in where:
            taken[each].add(name)
        if not where:
            unknown.append(name)
    if unknown:
        some = ", ".join(shown(name) for name in unknown[:_NAMED])
        more = f" and {len(unknown) - _NAMED} more" if len(unknown) > _NAMED else ""
        message = f"{len(unknown)} of {len(listed)} names in {said} are of no image: {some}{more}"
        if len(unknown) == len(listed):
            raise ValueError(f"{message}; names look like {shown(splits.train.ids[0])} here")
        warnings.warn(message, stacklevel=2)
    left = {}
    for part, data in parts.items():
        left[part] = data.take(np.array([name not in taken[part] for name in data.ids], bool))
        if len(data) and not len(left[part]):
            raise ValueError(f"{said} names all images of part {part}: none is left")
    return Splits(**left, backdoor=splits.backdoor)


def listed_images(path: str | os.PathLike[str]) -> list[tuple[str | None, str]]:
    """The part, where it is known, and the name of every image that a list names.

    Args:
        path: Of the list, as CSV.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is no such list.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no list of images to exclude at {shown(str(path))}")
    # Names of files may be no UTF-8; other programs write a mark in front.
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        table = csv.DictReader(file)
        try:
            columns, rows = table.fieldnames or [], list(table)
        except csv.Error as error:
            raise ValueError(f"{shown(str(path))} is no CSV: {error}") from error
    if "id" not in columns:
        raise ValueError(
            f"{shown(str(path))} must have a column id with names of images, found "
            f"{shown(', '.join(columns)) or 'no columns'}"
        )
    if clusters := [name for name in columns if name.endswith("cluster")]:
        raise ValueError(
            f"{shown(str(path))} has a row for every image, with clusters ({clusters[0]}): give "
            "suspects.csv, or the rows of the images to leave out without these columns"
        )
    found = []
    for number, row in enumerate(rows, start=2):
        part, name = row.get("part"), row["id"]
        if part not in (None, *_PARTS) or not name:
            raise ValueError(
                f"row {number} of {shown(str(path))} must name an image, and as part "
                f"{', '.join(_PARTS)}, found {shown(repr(part))} and {shown(repr(name))}"
            )
        found.append((part, name))
    return found
