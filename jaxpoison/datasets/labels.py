"""Which split and class an image of a folder or zip is of."""

from __future__ import annotations

import csv
import io
import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import PurePosixPath

from jaxpoison.datasets.tree import Tree

SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
    "testing": "test",
}
# Columns of the tables beside the folders of GTSRB as Kaggle has it.
_PATH, _CLASS = "Path", "ClassId"


def natural_key(name: str) -> list[tuple[int, int, str]]:
    """Sorting key that orders ``2.png`` before ``10.png``."""
    return [
        (0, int(part), "") if part.isdecimal() else (1, 0, part)
        for part in re.split(r"(\d+)", name)
    ]


def placed(tree: Tree, images: list[str]) -> dict[str, dict[str, list[str]]]:
    """Names of images by split and class; by the split ``all`` where there are none.

    Layouts are ``split/class/file``, ``class/file``, and ``split/…/file`` beside tables
    ``split.csv`` with the columns ``Path`` and ``ClassId``. Leading folders that hold everything
    are ignored.

    Args:
        tree: All files; what a table leaves out is counted in it.
        images: Names of the images among them.

    Raises:
        ValueError: They are in another layout, or no image is for training; a table names an
            image that is not there, or leaves one out.
    """
    parts = {name: PurePosixPath(name).parts for name in images}
    prefix: tuple[str, ...] = ()
    shortest = min(map(len, parts.values()))
    while shortest - len(prefix) > 2:
        first = {p[len(prefix)] for p in parts.values()}
        if len(first) > 1 or first.pop().lower() in SPLIT_NAMES:
            break
        prefix = next(iter(parts.values()))[: len(prefix) + 1]
    tables = _tables(tree, prefix)
    if tables:
        return _by_tables(tree, images, prefix, tables)
    found: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for name, p in parts.items():
        own = p[len(prefix) :]
        if len(own) == 3 and own[0].lower() in SPLIT_NAMES:
            found[SPLIT_NAMES[own[0].lower()]][own[1]].append(name)
        elif len(own) == 2:
            found["all"][own[0]].append(name)
        else:
            raise ValueError(
                f"{name} in {tree.root} is neither split/class/file (splits: "
                f"{', '.join(sorted(SPLIT_NAMES))}) nor class/file"
            )
    if "all" in found and len(found) > 1:
        flat = sorted({p[len(prefix)] for p in parts.values() if len(p) - len(prefix) == 2})
        raise ValueError(
            f"{tree.root} mixes the layouts split/class/file and class/file: images without a "
            f"class folder are in {_some(flat)}"
        )
    _refuse_empty_classes(tree, found)
    return found


def _tables(tree: Tree, prefix: tuple[str, ...]) -> dict[str, list[dict[str, str]]]:
    """Rows of the tables of labels, by split."""
    found = {}
    for name in tree.files:
        path = PurePosixPath(name)
        split = SPLIT_NAMES.get(path.stem.lower())
        if path.parts[:-1] != prefix or path.suffix.lower() != ".csv" or split is None:
            continue
        text = tree.read(name).decode("utf-8-sig", "surrogateescape")
        rows = list(csv.DictReader(io.StringIO(text)))
        if rows and {_PATH, _CLASS} <= rows[0].keys():
            found[split] = rows
    return found


def _by_tables(
    tree: Tree,
    images: list[str],
    prefix: tuple[str, ...],
    tables: dict[str, list[dict[str, str]]],
) -> dict[str, dict[str, list[str]]]:
    found: dict[str, dict[str, list[str]]] = {}
    left, known = set(images), set(images)
    for split, rows in tables.items():
        classes: dict[str, list[str]] = defaultdict(list)
        own_folders = set()
        for row in rows:
            name = "/".join((*prefix, *PurePosixPath(row[_PATH]).parts))
            if name not in known:
                raise ValueError(f"{name} in {tree.root} is named in a table and is not there")
            own_folders.add(PurePosixPath(name).parts[len(prefix)])
            classes[row[_CLASS]].append(name)
            left.discard(name)
        missed = [name for name in left if PurePosixPath(name).parts[len(prefix)] in own_folders]
        if missed:
            raise ValueError(
                f"{len(missed)} images of {tree.root} stand in no table, {min(missed)} first: "
                "add or remove them"
            )
        found[split] = classes
    tree.skipped["images outside the folders that tables name"] += len(left)
    return found


def _refuse_empty_classes(tree: Tree, found: dict[str, dict[str, list[str]]]) -> None:
    names = {name for classes in found.values() for name in classes}
    for folder in tree.folders:
        path = PurePosixPath(folder)
        inside_split = path.parent.name.lower() in SPLIT_NAMES
        on_top = "all" in found and len(path.parts) == 1 and path.name.lower() not in SPLIT_NAMES
        holds_folders = any(other.startswith(folder + "/") for other in tree.folders)
        if (inside_split or on_top) and not holds_folders and path.name not in names:
            raise ValueError(f"class {folder!r} in {tree.root} is empty")


def by_suffix(names: Iterable[str]) -> str:
    """How many files there are of every suffix, the most frequent first."""
    counts = Counter(PurePosixPath(name).suffix.lower() or "without suffix" for name in names)
    return ", ".join(f"{count} {suffix}" for suffix, count in counts.most_common())


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more folders"
