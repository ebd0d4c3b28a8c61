"""Files inside zips and folders: which are a system's own, and what reading one may run into."""

from __future__ import annotations

import zipfile
from pathlib import Path, PurePosixPath

_SYSTEM_FILES = frozenset({".ds_store", "thumbs.db", "desktop.ini"})


def is_system_file(name: str) -> bool:
    """Whether an operating system, not the user, put a file beside the others.

    Args:
        name: Its path, with slashes.
    """
    path = PurePosixPath(name)
    return (
        "__MACOSX" in path.parts or path.name.startswith("._") or path.name.lower() in _SYSTEM_FILES
    )


def open_archive(path: Path) -> zipfile.ZipFile:
    """A zip, opened.

    Raises:
        ValueError: It is damaged; the message names it and says what to do.
    """
    try:
        return zipfile.ZipFile(path)
    # Of changed bytes, zipfile raises what they happen to lead to.
    except Exception as error:
        raise ValueError(f"{path} is damaged ({error}): copy or load the archive again") from error


def read_member(archive: zipfile.ZipFile, name: str) -> bytes:
    """The bytes of one file of a zip.

    Raises:
        ValueError: It is encrypted, compressed in a way that Python cannot read, or damaged;
            the message names it and says what to do.
    """
    where = f"{name} in {archive.filename}"
    try:
        return archive.read(name)
    except RuntimeError as error:
        # NotImplementedError, of unknown compression, is one too.
        if isinstance(error, NotImplementedError):
            raise ValueError(
                f"{where} is compressed in a way that cannot be read ({error}): zip the folder "
                "again with deflate"
            ) from error
        raise ValueError(f"{where} is encrypted: unzip the archive and give the folder") from error
    except MemoryError:
        raise
    except Exception as error:
        raise ValueError(f"{where} is damaged ({error}): copy or load the archive again") from error
