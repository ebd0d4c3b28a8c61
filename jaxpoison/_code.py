"""What code makes a thing: its sources, and the packages they import.

What is kept on disk is found again by a key; where the code or a version that made it has
changed, so has the key. Comments, docstrings and layout do not count. A file is read once in a
process, as the interpreter did: code that is edited meanwhile is not what runs.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import hashlib
import inspect
import sys
from importlib.metadata import packages_distributions, version
from pathlib import Path
from typing import Any

_PACKAGE = "jaxpoison"
_ROOT = Path(__file__).parent
# What a package computes with, though sources do not import it by name.
_BESIDE = {"jax": ("jaxlib",)}
# Modules and packages that only show, name or guard what others compute.
_ONLY_SHOW = frozenset({f"{_PACKAGE}._progress", f"{_PACKAGE}._files", "jaxtyping", "rich"})


def code_of(*made_by: Any) -> dict[str, str]:
    """Names and hashes of the modules, and versions of the packages, behind some functions.

    From the modules that define the functions, or the classes and what they inherit from,
    imports are followed inside this package: the further back in the flow of data a stage
    stands, the less can change its key. Code outside that uses the package's public names
    depends on all of it.

    Args:
        *made_by: Functions or classes.

    Returns:
        JSON values, by name.
    """
    sources: dict[str, str] = {}
    packages: set[str] = set()
    waiting: list[tuple[str, Any]] = [
        (part.__module__, part)
        for thing in made_by
        for part in (inspect.getmro(thing) if inspect.isclass(thing) else (thing,))
    ]
    while waiting:
        module, thing = waiting.pop()
        top = module.partition(".")[0]
        if module in sources or module in _ONLY_SHOW or top in sys.stdlib_module_names:
            continue
        if top == _PACKAGE:
            path = _own_path(module)
        elif top in _distributions():
            packages.add(top)
            continue
        else:
            path = _path_of(module)
        if path is None:
            # Typed into an interpreter: there is no file to follow.
            sources[f"{module}.{thing.__qualname__}"] = _typed_in(thing)
            continue
        sources[module], imported = _read(path, module)
        for name in imported:
            top = name.partition(".")[0]
            if top == _PACKAGE:
                inside = [m for m in (name, name.rpartition(".")[0]) if _own_path(m)]
                waiting += [(m, None) for m in inside]
                if not inside and not module.startswith(_PACKAGE):
                    sources[_PACKAGE] = _whole_package()
            elif top not in sys.stdlib_module_names and top not in _ONLY_SHOW:
                packages.add(top)
    return dict(sorted({**sources, **_versions(packages)}.items()))


def hash_of_code(*made_by: Any) -> str:
    """One hash of :func:`code_of`."""
    return hashlib.sha256(repr(code_of(*made_by)).encode()).hexdigest()


def described(value: Any) -> str:
    """A text of what a value is made of, the same in every process."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
        return f"{type(value).__qualname__}{described(fields)}"
    if isinstance(value, dict):
        pairs = (f"{described(k)}: {described(v)}" for k, v in value.items())
        return f"{{{', '.join(pairs)}}}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(described, value))}]"
    if isinstance(value, functools.partial):
        return f"partial({described(value.func)}, {described((value.args, value.keywords))})"
    if callable(value) and hasattr(value, "__qualname__"):
        return f"{value.__module__}.{value.__qualname__}"
    return repr(value)


@functools.cache
def _versions_of(name: str) -> str:
    return version(name)


def _versions(packages: set[str]) -> dict[str, str]:
    distributions = _distributions()
    names = {name for top in packages for name in distributions.get(top, ())}
    names |= {name for top in packages for name in _BESIDE.get(top, ())}
    return {name: _versions_of(name) for name in names}


@functools.cache
def _distributions() -> dict[str, list[str]]:
    return dict(packages_distributions())


@functools.cache
def _whole_package() -> str:
    """A hash of all modules of this package."""
    files = sorted(_ROOT.rglob("*.py"))
    hashes = [_read(path, str(path.relative_to(_ROOT)))[0] for path in files]
    return hashlib.sha256("".join(hashes).encode()).hexdigest()


def _own_path(name: str) -> Path | None:
    """The file of a module of this package; the page of its public names decides nothing."""
    if not name.startswith(f"{_PACKAGE}."):
        return None
    place = _ROOT.joinpath(*name.split(".")[1:])
    return next((f for f in (place.with_suffix(".py"), place / "__init__.py") if f.is_file()), None)


def _path_of(module: str) -> Path | None:
    try:
        found = inspect.getsourcefile(sys.modules[module])
    except (KeyError, TypeError):
        return None
    return Path(found) if found and Path(found).is_file() else None


def _typed_in(thing: Any) -> str:
    """A hash of the source that an interpreter remembers, or of what it was compiled to."""
    try:
        text = inspect.getsource(thing)
    except (OSError, TypeError):
        functions = vars(thing).values() if inspect.isclass(thing) else (thing,)
        codes = [f.__code__ for f in functions if inspect.isfunction(f)]
        text = repr([(c.co_name, c.co_code, repr(c.co_consts), c.co_names) for c in codes])
    return hashlib.sha256(text.encode()).hexdigest()


@functools.cache
def _read(path: Path, module: str) -> tuple[str, tuple[str, ...]]:
    """A hash of what a file's code says, and the names it imports."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    imported = tuple(_imports(tree, module))
    return hashlib.sha256(ast.dump(_WithoutDocs().visit(tree)).encode()).hexdigest(), imported


def _imports(tree: ast.AST, module: str) -> list[str]:
    names = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names += [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = module.rsplit(".", node.level)[0]
            names += [f"{base}.{node.module or ''}".rstrip(".") + f".{a.name}" for a in node.names]
    return names


class _WithoutDocs(ast.NodeTransformer):
    def generic_visit(self, node: ast.AST) -> ast.AST:
        super().generic_visit(node)
        body = getattr(node, "body", None)
        documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
        if isinstance(node, documented) and body and ast.get_docstring(node) is not None:
            node.body = body[1:]
        return node
