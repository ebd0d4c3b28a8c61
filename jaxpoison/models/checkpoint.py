"""A model's parameters and batch statistics on disk, as an Orbax checkpoint."""

from __future__ import annotations

from pathlib import Path

import orbax.checkpoint as ocp
from flax import nnx

_SAVED = nnx.Any(nnx.Param, nnx.BatchStat)


def save_model(path: Path, model: nnx.Module) -> None:
    """Writes a model's weights; what was there before is replaced."""
    with ocp.StandardCheckpointer() as checkpointer:
        state = nnx.to_pure_dict(nnx.state(model, _SAVED))
        checkpointer.save(path.absolute(), state, force=True)


def load_model(path: Path, model: nnx.Module) -> None:
    """Reads weights written by :func:`save_model` into a model of the same build.

    The model is put into evaluation mode.

    Raises:
        FileNotFoundError: There is no such checkpoint.
        ValueError: The checkpoint is of another architecture.
    """
    if not path.is_dir():
        raise FileNotFoundError(f"no model checkpoint at {path}")
    state = nnx.state(model, _SAVED)
    with ocp.StandardCheckpointer() as checkpointer:
        restored = checkpointer.restore(path.absolute(), nnx.to_pure_dict(state))
    nnx.replace_by_pure_dict(state, restored)
    nnx.update(model, state)
    model.eval()
