"""Options of the command line, made from the fields of the configurations."""

from __future__ import annotations

import argparse
import dataclasses
import types
import typing
from collections.abc import Iterator
from typing import Any

from jaxpoison.jobs.config import choices_of


@dataclasses.dataclass(frozen=True)
class Option:
    """One option, and the field it sets.

    Attributes:
        name: Without dashes in front, words joined by underscores.
        path: The field, after the field that holds its configuration, if any.
        kind: Its type.
        metadata: What the field knows.
        default: Its value if it is not given.
    """

    name: str
    path: tuple[str, ...]
    kind: Any
    metadata: typing.Mapping[str, Any]
    default: Any

    @property
    def flag(self) -> str:
        """As it is typed."""
        return f"--{self.name.replace('_', '-')}"


def options_of(config: type, *, leave_out: tuple[str, ...] = ()) -> tuple[Option, ...]:
    """The options that set the fields of a configuration.

    Args:
        config: A dataclass of options.
        leave_out: Fields that are none.
    """
    return tuple(_options(config, leave_out))


def _options(config: type, leave_out: tuple[str, ...]) -> Iterator[Option]:
    kinds = typing.get_type_hints(config)
    nested: dict[str, str] = getattr(config, "NESTED", {})
    for each in dataclasses.fields(config):
        if each.name in leave_out:
            continue
        default = each.default
        if each.default_factory is not dataclasses.MISSING:
            default = each.default_factory()
        if each.name not in nested:
            kind = kinds[each.name]
            yield Option(each.name, (each.name,), kind, each.metadata, default)
            continue
        for inner in dataclasses.fields(kinds[each.name]):
            of_outer = {key: each.metadata.get(key) for key in ("goes_with", "group")}
            metadata = {**inner.metadata, **of_outer}
            yield Option(
                f"{nested[each.name]}_{inner.name}",
                (each.name, inner.name),
                typing.get_type_hints(kinds[each.name])[inner.name],
                metadata,
                getattr(default, inner.name),
            )


def add_options(parser: argparse.ArgumentParser, options: tuple[Option, ...]) -> None:
    """Adds options to a parser, group by group; only those given appear in what it parses."""
    groups = {
        name: parser.add_argument_group(name)
        for name in dict.fromkeys(each.metadata["group"] for each in options)
    }
    for each in options:
        group = groups[each.metadata["group"]]
        kind = each.kind
        if isinstance(kind, types.UnionType):
            (kind,) = (k for k in typing.get_args(kind) if k is not types.NoneType)
        # A percent sign begins a placeholder to argparse.
        help_text = each.metadata["help"].replace("%", "%%")
        if kind is bool:
            group.add_argument(
                each.flag,
                dest=each.name,
                action=argparse.BooleanOptionalAction,
                default=argparse.SUPPRESS,
                help=help_text,
            )
            continue
        several = typing.get_origin(kind) is tuple
        default = ",".join(each.default) if several else each.default
        choices = choices_of(each.metadata)
        if choices is not None and any(choice not in help_text for choice in choices):
            help_text += f": {', '.join(choices)}"
        group.add_argument(
            each.flag,
            dest=each.name,
            # A class may be given by its name: which number that is, the data know.
            type=_names if several else str if each.metadata.get("is_class") else kind,
            metavar=each.metadata.get("metavar"),
            default=argparse.SUPPRESS,
            help=help_text if default is None else f"{help_text} [{default}]",
        )


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split(","))


def configured(base: Any, options: tuple[Option, ...], given: argparse.Namespace) -> Any:
    """A configuration with the fields whose options were given.

    Raises:
        TypeError: A value has the wrong type.
        ValueError: A value is out of range, or an option that was given has no effect with
            the others; the message names it and what it goes with.
    """
    changes: dict[str, Any] = {}
    for each in options:
        if not hasattr(given, each.name):
            continue
        outer, *inner = each.path
        value = getattr(given, each.name)
        if inner:
            value = dataclasses.replace(
                changes.get(outer, getattr(base, outer)), **{inner[0]: value}
            )
        changes[outer] = value
    made = dataclasses.replace(base, **changes)
    for each in options:
        goes_with = each.metadata.get("goes_with")
        if not hasattr(given, each.name):
            continue
        if made.attack == "none" and each.path[0] in made.unused():
            raise ValueError(f"{each.flag} has no effect with --attack none: leave it out")
        if not goes_with:
            continue
        key, value = goes_with
        if (found := getattr(made, key)) != value:
            raise ValueError(
                f"{each.flag} has no effect with --{key} {found}: add --{key} {value}, or leave "
                "it out"
            )
    return made
