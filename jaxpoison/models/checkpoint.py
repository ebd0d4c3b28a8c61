"""A model's parameters and batch statistics on disk, as an Orbax checkpoint."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
from flax import nnx
from jaxtyping import PyTree

# What a checkpoint takes beside its arrays, in bytes.
_ROOM = 1 << 20
_SAVED = nnx.Any(nnx.Param, nnx.BatchStat)


@contextlib.contextmanager
def writing(path: Path, state: PyTree) -> Iterator[None]:
    """While Orbax writes: what goes wrong is told in one line.

    Args:
        path: Where to.
        state: What is written.

    Raises:
        OSError: It could not be written, or there is no room for it.
    """
    needed = _ROOM + sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    free = shutil.disk_usage(path.parent).free
    if free < needed:
        # Threads of its own would fail, and say so at length.
        raise OSError(
            f"{path} could not be written: No space left on device (it needs "
            f"{needed / 2**20:.1f} MiB, {free / 2**20:.1f} are free)"
        )
    # It tells whole stacks of its threads before it raises.
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    except Exception as error:
        why = getattr(error, "strerror", None) or str(error).partition("\n")[0].rpartition(": ")[2]
        raise OSError(f"{path} could not be written: {why}") from error
    finally:
        logger.setLevel(level)


def save_model(path: Path, model: nnx.Module) -> None:
    """Writes a model's weights; what was there before is replaced.

    Examples:
        >>> import pathlib
        >>> jp.save_model(pathlib.Path("weights"), model)
        >>> pathlib.Path("weights").is_dir()
        True
    """
    state = nnx.to_pure_dict(nnx.state(model, _SAVED))
    with writing(path, state), ocp.StandardCheckpointer() as checkpointer:
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

    Examples:
        >>> import pathlib
        >>> jp.save_model(pathlib.Path("weights"), model)
        >>> jp.load_model(pathlib.Path("weights"), model)
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
