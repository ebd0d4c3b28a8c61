"""The files of a folder or a zip, by name: what is the user's, and what is left out."""

from __future__ import annotations

import contextlib
import os
import stat
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from jaxpoison.datasets.archive import is_system_file, open_archive, read_member


@dataclass(frozen=True)
class Tree:
    """Files of a folder or a zip.

    Attributes:
        root: The folder or zip.
        files: By name, with slashes: size in bytes, and a mark that changes with the content.
        folders: Names of the folders.
        read: Gives a file's bytes; raises ``ValueError`` that names the file where it cannot.
        skipped: How many files were left out, by the reason.
    """

    root: Path
    files: dict[str, tuple[int, int]]
    folders: tuple[str, ...]
    read: Callable[[str], bytes]
    skipped: Counter[str]


@contextlib.contextmanager
def open_tree(root: Path) -> Iterator[Tree]:
    """Lists a folder, links to folders followed, or a zip, which stays open for reading.

    Files of the operating system, hidden files and those in hidden folders (``.git``,
    ``.ipynb_checkpoints``) are left out, and links that lead nowhere or back to where they are.

    Raises:
        FileNotFoundError: There is nothing.
        ValueError: It is no folder and no zip, or a damaged one.
        OSError: A folder inside must not be read.
    """
    if not root.exists():
        raise FileNotFoundError(f"no image folder or zip at {root}")
    if root.is_dir():
        yield _of_folder(root)
    elif zipfile.is_zipfile(root):
        with open_archive(root) as archive:
            yield _of_archive(root, archive)
    else:
        raise ValueError(f"{root} is neither a folder nor a zip file")


def _of_folder(root: Path) -> Tree:
    files: dict[str, tuple[int, int]] = {}
    folders: list[str] = []
    skipped: Counter[str] = Counter()

    def walk(folder: Path, name: str, above: tuple[tuple[int, int], ...]) -> None:
        with os.scandir(folder) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                own = f"{name}{entry.name}"
                reason = _left_out(own)
                if entry.is_dir():
                    found = entry.stat()
                    here = found.st_dev, found.st_ino
                    if reason is not None:
                        skipped[reason] += _count(Path(entry.path))
                    elif here in above:
                        skipped["links back to a folder above"] += 1
                    else:
                        folders.append(own)
                        walk(Path(entry.path), f"{own}/", (*above, here))
                elif reason is not None:
                    skipped[reason] += 1
                elif entry.is_file():
                    found = entry.stat()
                    files[own] = found.st_size, found.st_mtime_ns
                else:
                    broken = entry.is_symlink()
                    skipped["links that lead nowhere" if broken else "no regular files"] += 1

    found = root.stat()
    walk(root, "", ((found.st_dev, found.st_ino),))

    def read(name: str) -> bytes:
        try:
            return (root / name).read_bytes()
        except OSError as error:
            raise ValueError(f"{name} in {root} cannot be read: {error.strerror}") from error

    return Tree(root, files, tuple(folders), read, skipped)


def _of_archive(root: Path, archive: zipfile.ZipFile) -> Tree:
    entries = {entry.filename: entry for entry in archive.infolist()}
    # Some old programs of Windows write its own separators.
    windows = all("/" not in name for name in entries)
    places = {name.replace("\\", "/") if windows else name: name for name in entries}
    files: dict[str, tuple[int, int]] = {}
    folders: list[str] = []
    skipped: Counter[str] = Counter()
    for name, original in places.items():
        entry, reason = entries[original], _left_out(name)
        if name.endswith("/"):
            if reason is None:
                folders.append(name.rstrip("/"))
        elif reason is not None:
            skipped[reason] += 1
        elif stat.S_ISLNK(entry.external_attr >> 16):
            skipped["links, which are not followed in a zip"] += 1
        else:
            files[name] = entry.file_size, entry.CRC
    return Tree(
        root, files, tuple(folders), lambda name: read_member(archive, places[name]), skipped
    )


def _left_out(name: str) -> str | None:
    """Why a file or folder is no part of the data; ``None`` where it is."""
    if is_system_file(name):
        return "files of the operating system"
    if any(part.startswith(".") for part in PurePosixPath(name).parts):
        return "hidden files"
    return None


def _count(folder: Path) -> int:
    return sum(len(files) for _, _, files in os.walk(folder))
