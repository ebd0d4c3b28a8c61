"""Copies of a model in which some modules are replaced."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from flax import nnx
from flax.typing import Key
from flax.typing import PathParts as Path

M = TypeVar("M", bound=nnx.Module)


def replace_modules(
    model: M,
    replacement: Callable[[Path, nnx.Module], nnx.Module | None],
    wrapper: Callable[[Path, nnx.Module], nnx.Module] | None = None,
) -> M:
    """A copy of the model with modules replaced; the model is not changed.

    Args:
        model: Any module.
        replacement: Is shown each module with its path, outer ones first;
            returns what takes its place, or ``None`` to look inside instead.
            A module used in two places is replaced by one and the same.
        wrapper: Is shown each module that was looked inside, with what it
            contains already replaced; returns what takes its place.
    """
    # With the module itself, so that it lives and its id is not given to another.
    known: dict[int, tuple[nnx.Module, nnx.Module]] = {}
    visited: set[int] = set()

    def visit(path: Path, node: Any) -> None:
        for key, child in list(nnx.iter_children(node)):
            here = (*path, key)
            if isinstance(child, nnx.List | nnx.Dict):
                # The copy holds it, so its id stays its own.
                if id(child) not in visited:
                    visited.add(id(child))
                    visit(here, child)
            elif isinstance(child, nnx.Module):
                if id(child) not in known:
                    known[id(child)] = child, replaced(here, child)
                new = known[id(child)][1]
                if new is not child:
                    _assign(node, key, new)

    def replaced(path: Path, module: nnx.Module) -> nnx.Module:
        new = replacement(path, module)
        if new is not None:
            return new
        visit(path, module)
        return module if wrapper is None else wrapper(path, module)

    return replaced((), nnx.clone(model))  # pyright: ignore[reportReturnType]


class Wrapper(nnx.Module):
    """Stands for a module, whose attributes it shows.

    Names of its own begin with ``_own``, to leave all others to the module.

    Args:
        module: The module it stands for.
    """

    def __init__(self, module: nnx.Module) -> None:
        self._own_module = module

    def __getattr__(self, name: str) -> Any:
        # Only called for names the wrapper itself lacks.
        if name.startswith(("_own", "_pytree", "__")):
            raise AttributeError(name)
        return getattr(self._own_module, name)


def _assign(node: Any, key: Key, value: nnx.Module) -> None:
    if isinstance(node, nnx.List | nnx.Dict):
        node[key] = value  # pyright: ignore[reportArgumentType, reportCallIssue]
    else:
        setattr(node, str(key), value)


def find_module(model: nnx.Module, path: str) -> Path:
    """The path of a module named with dots, as in ``"blocks.2.conv"``.

    Raises:
        ValueError: There is no such module; the message lists those that are.
    """
    modules = {".".join(map(str, p)): p for p, _ in nnx.iter_modules(model) if p}
    if path not in modules:
        raise ValueError(f"the model has no module {path!r}; it has {', '.join(sorted(modules))}")
    return modules[path]
