"""Where an interrupted training goes on from, on disk."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jaxtyping import Array, PyTree


class Checkpoints:
    """The last state of a training and its course so far.

    Args:
        directory: Where they are kept; made if it does not exist.
        config: Settings of the training, as JSON values; those of another are refused.
    """

    def __init__(self, directory: Path, config: dict[str, Any]) -> None:
        self._config = json.loads(json.dumps(config))
        self._manager = ocp.CheckpointManager(
            directory.absolute(), options=ocp.CheckpointManagerOptions(max_to_keep=1)
        )

    def save(self, step: int, state: PyTree, course: dict[str, Any]) -> None:
        """Writes a state and the course, JSON values, and drops those before."""
        self._manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(_plain(state)),
                course=ocp.args.JsonSave({"config": self._config, "history": course}),
            ),
        )
        self._manager.wait_until_finished()

    def restore(self, like: PyTree) -> tuple[Any, dict[str, Any]] | None:
        """The last state and course; ``None`` where there are none.

        Args:
            like: A state of the same structure.

        Raises:
            ValueError: They are of a training with other settings.
        """
        latest = self._manager.latest_step()
        if latest is None:
            return None
        course: dict[str, Any] = self._manager.restore(
            latest, args=ocp.args.Composite(course=ocp.args.JsonRestore())
        )["course"]
        if course["config"] != self._config:
            different = [k for k, v in self._config.items() if course["config"].get(k) != v]
            raise ValueError(
                f"the checkpoints in {self._manager.directory} belong to a training with other "
                f"{', '.join(different)}; use another directory or delete them"
            )
        plain = self._manager.restore(
            latest, args=ocp.args.Composite(state=ocp.args.StandardRestore(_plain(like)))
        )["state"]
        return _typed(plain, like), course["history"]

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
        jax.random.wrap_key_data(x) if is_key(y) else x
        for x, y in zip(leaves, jax.tree.leaves(like), strict=True)
    ]
    return jax.tree.unflatten(jax.tree.structure(like), restored)
