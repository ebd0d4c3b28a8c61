"""A model's parameters and batch statistics on disk, as an Orbax checkpoint."""

from __future__ import annotations

import hashlib
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
from flax import nnx

_SAVED = nnx.Any(nnx.Param, nnx.BatchStat)


def save_model(path: Path, model: nnx.Module) -> None:
    """Writes a model's weights; what was there before is replaced."""
    with ocp.StandardCheckpointer() as checkpointer:
        state = nnx.to_pure_dict(nnx.state(model, _SAVED))
        checkpointer.save(path.absolute(), state, force=True)


def hash_of_weights(model: nnx.Module) -> str:
    """Of what :func:`save_model` writes; equal for equal weights."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree.leaves_with_path(nnx.to_pure_dict(nnx.state(model, _SAVED))):
        digest.update(f"{jax.tree_util.keystr(path)} {leaf.dtype} {leaf.shape};".encode())
        digest.update(np.ascontiguousarray(leaf).tobytes())
    return digest.hexdigest()


def load_model(path: Path, model: nnx.Module) -> None:
    """Reads weights written by :func:`save_model` into a model of the same build.

    The model is put into evaluation mode.

    Raises:
        FileNotFoundError: There is no such checkpoint.
        ValueError: The checkpoint is of another architecture, or damaged.
    """
    if not path.is_dir():
        raise FileNotFoundError(f"no model checkpoint at {path}")
    state = nnx.state(model, _SAVED)
    with ocp.StandardCheckpointer() as checkpointer:
        try:
            restored = checkpointer.restore(path.absolute(), nnx.to_pure_dict(state))
        # Of damaged files, whatever reads which part of them raises something else.
        except Exception as error:
            raise ValueError(
                f"the checkpoint at {path} is damaged, or of another architecture"
            ) from error
    nnx.replace_by_pure_dict(state, restored)
    nnx.update(model, state)
    model.eval()
