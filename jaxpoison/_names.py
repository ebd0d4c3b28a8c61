"""Names that a file system allows, as they can be shown anywhere."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


def shown(name: str) -> str:
    r"""A text that any terminal, page or picture takes: what cannot be printed is escaped.

    Bytes of a file name that are no UTF-8, which Python holds as surrogates, stand as ``\xe9``,
    line feeds as ``\n``. Files keep names as they are.

    Examples:
        >>> shown("caf\udce9\n")
        'caf\\xe9\\n'
    """
    text = name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


@contextmanager
def errors_shown() -> Iterator[None]:
    """Errors of values, whose messages name files of others, can be shown anywhere, too."""
    try:
        yield
    except ValueError as error:
        text = shown(str(error))
        if text == str(error):
            raise
        raise ValueError(text) from error
