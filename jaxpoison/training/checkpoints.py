"""Where an interrupted training goes on from, on disk."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jaxtyping import Array, PyTree

from jaxpoison.models.checkpoint import writing


class Checkpoints:
    """The last state of a training and its course so far.

    Args:
        directory: Where they are kept; made if it does not exist.
        identity: What decides the training, as JSON values by kind; those of another
            training are refused.
    """

    def __init__(self, directory: Path, identity: dict[str, Any]) -> None:
        self._identity = json.loads(json.dumps(identity))
        self._manager = ocp.CheckpointManager(
            directory.absolute(), options=ocp.CheckpointManagerOptions(max_to_keep=1)
        )

    def save(self, step: int, state: PyTree, course: dict[str, Any]) -> None:
        """Writes a state and the course, JSON values, and drops those before."""
        with writing(Path(self._manager.directory), _plain(state)):
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(_plain(state)),
                    course=ocp.args.JsonSave({"identity": self._identity, "history": course}),
                ),
            )
            self._manager.wait_until_finished()

    def restore(self, like: PyTree) -> tuple[Any, dict[str, Any]] | None:
        """The last state and course; ``None`` where there are none.

        Args:
            like: A state of the same structure.

        Raises:
            ValueError: They are of another training; the message says what differs.
        """
        latest = self._manager.latest_step()
        if latest is None:
            return None
        try:
            course: dict[str, Any] = self._manager.restore(
                latest, args=ocp.args.Composite(course=ocp.args.JsonRestore())
            )["course"]
        except (KeyError, FileNotFoundError, ValueError):
            return self._removed(latest)
        if course.get("identity") != self._identity:
            raise ValueError(
                f"the checkpoints in {self._manager.directory} belong to a training with other "
                f"{', '.join(self._differences(course))}; use another directory or delete them"
            )
        try:
            plain = self._manager.restore(
                latest, args=ocp.args.Composite(state=ocp.args.StandardRestore(_plain(like)))
            )["state"]
        except (KeyError, FileNotFoundError, ValueError):
            return self._removed(latest)
        return _typed(plain, like), course["history"]

    def _removed(self, step: int) -> None:
        """Nothing: a checkpoint that is damaged, or half removed, is none."""
        shutil.rmtree(Path(self._manager.directory) / str(step), ignore_errors=True)
        self._manager.reload()

    def _differences(self, course: dict[str, Any]) -> list[str]:
        found: dict[str, Any] = course.get("identity", {})
        different = [kind for kind, mine in self._identity.items() if found.get(kind) != mine]
        if "settings" in different and isinstance(found.get("settings"), dict):
            settings = self._identity["settings"].items()
            fields = [k for k, v in settings if found["settings"].get(k) != v]
            different = [*fields, *(kind for kind in different if kind != "settings")]
        return different

    def close(self) -> None:
        self._manager.close()


def is_key(x: Array) -> bool:
    """Whether an array is one of random keys."""
    return jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def to_host(tree: PyTree) -> list[np.ndarray]:
    """A state's leaves as host arrays; random keys become their data."""
    return [np.asarray(x) for x in _plain(tree)]


def from_host(leaves: list[np.ndarray], like: PyTree) -> Any:
    """A state from what :func:`to_host` made of one, on the default device."""
    return _typed([jnp.asarray(x) for x in leaves], like)


# Orbax stores arrays: random keys become their data, and states their leaves.


def _plain(tree: PyTree) -> list[Array]:
    return [jax.random.key_data(x) if is_key(x) else x for x in jax.tree.leaves(tree)]


def _typed(leaves: list[Array], like: PyTree) -> Any:
    restored = [
        jax.random.wrap_key_data(x, impl=jax.random.key_impl(y)) if is_key(y) else x
        for x, y in zip(leaves, jax.tree.leaves(like), strict=True)
    ]
    return jax.tree.unflatten(jax.tree.structure(like), restored)
