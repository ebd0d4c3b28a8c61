"""Networks by name: the package's own, and whatever a function of the user's makes."""

from __future__ import annotations

import importlib
import inspect
import os
import re
import sys
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

from flax import linen, nnx

from jaxpoison.models.inception import CompactInception
from jaxpoison.models.resnet import ResNet18, ResNet34, ResNet50


class NamedModel(Protocol):
    """Makes a network; may say in ``image_side`` which images that takes."""

    def __call__(self, num_classes: int, *, rngs: nnx.Rngs) -> nnx.Module: ...


_RESNETS = {"resnet18": ResNet18, "resnet34": ResNet34, "resnet50": ResNet50}
MODELS: dict[str, NamedModel] = {
    "inception": CompactInception,
    **_RESNETS,
    **{f"{name}-imagenet": partial(make, stem="imagenet") for name, make in _RESNETS.items()},
}
# A function of a user's module, as ``package.module:function``.
_OWN = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*")


def check_model_name(name: str) -> str:
    """The name of a network, checked.

    Raises:
        ValueError: It is none of the package's, and no ``package.module:function``.
    """
    if name not in MODELS and not _OWN.fullmatch(name):
        raise ValueError(
            f"model must be one of {', '.join(MODELS)}, or package.module:function, which makes a "
            f"network of your own; found {name!r}"
        )
    return name


def image_side_of(name: str) -> int | None:
    """Side of the images that a network takes; ``None`` if any will do, or nobody knows."""
    return getattr(MODELS.get(name), "image_side", None)


def made_network(name: str, num_classes: int, seed: int) -> nnx.Module:
    """A new network.

    Args:
        name: Of :data:`MODELS`, or ``package.module:function``, looked for in the current
            directory first; a class will do. Of the arguments ``num_classes`` and ``rngs`` the
            function is given those that it has.
        num_classes: Of the data.
        seed: Of the first parameters.

    Raises:
        ImportError: There is no such module.
        TypeError: What is made is no network of NNX's.
        ValueError: The module has no such function, or that needs other arguments.
    """
    rngs = nnx.Rngs(seed)
    if name in MODELS:
        return MODELS[name](num_classes, rngs=rngs)
    function = _own_function(name)
    known: dict[str, Any] = {"num_classes": num_classes, "rngs": rngs}
    arguments = _arguments_of(function)
    plain = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    needed = [
        each.name
        for each in arguments
        if each.name not in known
        and each.default is inspect.Parameter.empty
        and each.kind in (*plain, inspect.Parameter.POSITIONAL_ONLY)
    ]
    if needed:
        raise ValueError(
            f"{name} needs {', '.join(needed)}: it may have the arguments num_classes and rngs; "
            "write a function that gives it the others"
        )
    given = {each.name for each in arguments if each.kind in plain} & known.keys()
    return check_network(function(**{key: known[key] for key in given}))


def _own_function(name: str) -> Callable[..., Any]:
    module, _, path = name.partition(":")
    here = os.getcwd()
    added = here not in sys.path
    if added:
        # As python -m does.
        sys.path.insert(0, here)
    try:
        found: Any = importlib.import_module(module)
    except ModuleNotFoundError as error:
        # One that it imports in its turn is another matter.
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise
        raise ImportError(f"no module {module} in {here} or among those installed") from error
    finally:
        if added:
            sys.path.remove(here)
    for part in path.split("."):
        if not hasattr(found, part):
            raise ValueError(f"{module} has no {path}: expected a function that makes a network")
        found = getattr(found, part)
    if not callable(found):
        raise ValueError(f"{name} must be a function, found {type(found).__name__}")
    return found


def _arguments_of(function: Callable[..., Any]) -> list[inspect.Parameter]:
    """A function's, or those that make an instance of a class."""
    if inspect.isclass(function):
        # NNX's metaclass hides them.
        return list(inspect.signature(function.__init__).parameters.values())[1:]
    return list(inspect.signature(function).parameters.values())


def check_network(model: Any) -> nnx.Module:
    """A network, checked.

    Raises:
        TypeError: It is none of NNX's.
    """
    if isinstance(model, nnx.Module):
        return model
    more = ""
    if isinstance(model, linen.Module):
        more = (
            ": nnx.bridge.ToNNX(module, rngs=nnx.Rngs(0)).lazy_init(images) makes one of a Linen "
            "module, for gradients; relevance needs its layers written as NNX's"
        )
    raise TypeError(f"a network must be a flax.nnx.Module, found {type(model).__name__}{more}")
