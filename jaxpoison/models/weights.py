"""Weights of a network that was trained elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from flax import nnx
from safetensors import SafetensorError
from safetensors.flax import load_file

from jaxpoison.models.resnet import ResNet

# What a network holds: all of it must be there.
_WEIGHTS = nnx.Any(nnx.Param, nnx.BatchStat)
# Names in an error.
_NAMED = 5
# That torchvision's residual networks end in.
_LAST_OF_TORCHVISIONS = "fc.weight"


def load_weights(path: Path, model: nnx.Module) -> None:
    """Reads weights into a network, and puts it into evaluation mode.

    Args:
        path: A directory that Orbax wrote of ``nnx.state(model)`` or its pure dictionary, alone or
            under one name (as in ``{"model": …, "step": …}``); or a ``.safetensors`` file, whose
            arrays are named by their path in the network with dots (``conv.kernel``), or, for a
            :class:`jaxpoison.ResNet`, as in torchvision's state dict, kernels in PyTorch's order.
        model: The network; what it holds beside parameters and batch statistics, such as seeds of
            dropout, stays.

    Raises:
        FileNotFoundError: There is nothing at the path.
        ValueError: It is damaged, lacks an array or has one of another shape.

    Examples:
        >>> import pathlib
        >>> jp.save_model(pathlib.Path("weights"), model)
        >>> jp.load_weights(pathlib.Path("weights"), model)
    """
    weights = _read(Path(path))
    state = nnx.to_pure_dict(nnx.state(model, _WEIGHTS))
    wanted = {_name(keys): leaf for keys, leaf in jax.tree.leaves_with_path(state)}
    if isinstance(model, ResNet) and _LAST_OF_TORCHVISIONS in weights:
        weights = _from_torchvision(weights, model, wanted)
    found = _under_one_name(weights, wanted)
    if missing := sorted(wanted.keys() - found.keys()):
        raise ValueError(
            f"{path} lacks {len(missing)} of the network's {len(wanted)} arrays: {_some(missing)}; "
            f"it has {_some(sorted(weights))}"
        )
    for name, leaf in wanted.items():
        if np.shape(found[name]) != leaf.shape:
            raise ValueError(
                f"{name} of the network has the shape {leaf.shape}, in {path} it has "
                f"{np.shape(found[name])}"
            )
    filled = jax.tree_util.tree_map_with_path(
        lambda keys, leaf: jax.numpy.asarray(found[_name(keys)], leaf.dtype), state
    )
    nnx.update(model, filled)
    model.eval()


def _read(path: Path) -> dict[str, Any]:
    """Arrays by their path with dots."""
    if not path.exists():
        raise FileNotFoundError(f"no weights at {path}")
    if path.is_file():
        try:
            return dict(load_file(path))
        except SafetensorError as error:
            raise ValueError(
                f"{path} is no safetensors file, or a damaged one: expected one, or a directory "
                "that Orbax wrote"
            ) from error
    with ocp.StandardCheckpointer() as checkpointer:
        try:
            restored = checkpointer.restore(path.absolute())
        # Of damaged files, whatever reads which part of them raises something else.
        except Exception as error:
            raise ValueError(f"{path} is no checkpoint of Orbax's, or a damaged one") from error
    return {
        # Variables were written with their value's name.
        _name(keys).removesuffix(".value"): leaf
        for keys, leaf in jax.tree.leaves_with_path(restored)
    }


def _from_torchvision(
    weights: Mapping[str, Any], model: ResNet, wanted: Mapping[str, Any]
) -> dict[str, Any]:
    """The weights under the network's own names, kernels with outputs last."""
    names = {name: model.torchvision_name(name) for name in wanted}
    found = {name: weights[theirs] for name, theirs in names.items() if theirs in weights}
    for name, array in found.items():
        if name.endswith("kernel"):
            found[name] = array.transpose(*range(2, array.ndim), 1, 0)
    return found


def _name(keys: tuple[Any, ...]) -> str:
    return ".".join(str(getattr(key, "key", getattr(key, "idx", key))) for key in keys)


def _under_one_name(weights: Mapping[str, Any], wanted: Mapping[str, Any]) -> dict[str, Any]:
    """The weights, without the name under which all of them stand."""
    first = next(iter(wanted), "")
    for name in weights:
        if name.endswith(f".{first}"):
            before = name.removesuffix(first)
            if all(before + each in weights for each in wanted):
                return {each: weights[before + each] for each in wanted}
    return dict(weights)


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:_NAMED])
    return shown if len(names) <= _NAMED else f"{shown}, …"
