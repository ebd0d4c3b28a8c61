"""Names that a file system allows, as they can be shown anywhere."""

from __future__ import annotations


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
