"""The training step: many of them in one dispatch, the same on any number of devices."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree, UInt8
from optax import contrib

from jaxpoison.models.convolution import conv_general_dilated
from jaxpoison.parallel import BATCH, mesh_of, training_mesh
from jaxpoison.training.checkpoints import is_key
from jaxpoison.training.protocols import TrainConfig

# Share of the one-cycle schedule's steps in which the rate rises.
_RISING = 0.15
# Root mean square of Muon's steps before the rate, like that of Adam's.
_ADAM_SIZE = 0.2


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """Everything a training step changes.

    Attributes:
        parameters: What the optimiser learns.
        rest: Batch statistics and random streams.
        optimizer: The optimiser's state.
    """

    parameters: PyTree
    rest: PyTree
    optimizer: PyTree


Steps = Callable[
    [
        TrainState,
        UInt8[Array | np.ndarray, "n h w c"],
        Int[Array | np.ndarray, " n"],
        Int[Array | np.ndarray, "steps b"],
        int,
        PRNGKeyArray,
        int,
    ],
    tuple[TrainState, Float[Array, "steps 2"]],
]


def make_train_steps(
    model: nnx.Module,
    config: TrainConfig,
    steps: int,
    *,
    devices: Sequence[Any] | None = None,
) -> tuple[TrainState, Steps]:
    """Builds the jitted training steps of a model.

    A batch is split over devices, with the statistics of batch normalisation taken over
    all of it. Augmentation and dropout draw from an image's place in the batch, so that
    the number of devices changes nothing but rounding. (Other layers that draw random
    numbers draw others on every device.)

    Args:
        model: Takes images in [0, 1], gives logits; not changed.
        config: How to train.
        steps: Steps of the whole training, for the schedule.
        devices: What to split a batch over, evenly; by default the most of this process's
            devices that divide a batch.

    Returns:
        The initial state, and a function of state, all images, all labels, the batches'
        indices, how many of these batches to take, a key, and the number of the first
        step. It returns the next state and every step's mean loss and accuracy. The
        state given to it must not be used again.
    """
    mesh = training_mesh(config.batch_size) if devices is None else mesh_of(devices)
    working = nnx.with_attributes(
        model,
        only=(nnx.Conv, nnx.BatchNorm),
        dtype=jnp.dtype(config.compute_dtype),
        raise_if_not_found=False,
    )
    working = nnx.with_attributes(
        working, only=nnx.BatchNorm, axis_name=BATCH, raise_if_not_found=False
    )
    working.train()
    placed = []
    for path, module in nnx.iter_modules(working):
        if (
            isinstance(module, nnx.Conv)
            and module.conv_general_dilated is jax.lax.conv_general_dilated
        ):
            # On CPUs XLA's own gradients of convolutions are slow.
            module.conv_general_dilated = conv_general_dilated
        if type(module) is nnx.Dropout:
            module.__class__ = _PlacedDropout
            placed.append(tuple(map(str, path)))
    graphdef, parameters, rest = nnx.split(working, nnx.Param, ...)
    optimizer = _optimizer(config, steps)

    def loss(
        parameters: PyTree, rest: PyTree, images: Array, labels: Array
    ) -> tuple[Array, tuple[Array, PyTree]]:
        net = nnx.merge(graphdef, parameters, rest, copy=True)
        logits = net(images)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        accuracy = (logits.argmax(-1) == labels).mean()
        return losses.mean(), (accuracy, nnx.state(net, nnx.Not(nnx.Param)))

    def step(
        state: TrainState, images: Array, labels: Array, key: PRNGKeyArray
    ) -> tuple[TrainState, Array]:
        batch = images.astype(jnp.float32) / 255
        if config.augmentation is not None:
            batch = config.augmentation(_keys_of_places(key, len(batch)), batch)
        gradient = jax.value_and_grad(loss, has_aux=True)
        (value, (accuracy, rest)), grads = gradient(
            state.parameters, _with_keys_of_device(state.rest, placed), batch, labels
        )
        value, accuracy, grads = jax.lax.pmean((value, accuracy, grads), BATCH)
        updates, optimizer_state = optimizer.update(grads, state.optimizer, state.parameters)
        parameters = optax.apply_updates(state.parameters, updates)
        rest = _with_keys(state.rest, rest)
        return TrainState(parameters, rest, optimizer_state), jnp.stack([value, accuracy])

    # Every device takes its part of each batch; batch statistics and gradients are
    # averaged over all, so that a step is that of the whole batch.
    @partial(jax.jit, donate_argnums=0)
    @partial(
        jax.shard_map,
        mesh=mesh,
        in_specs=(P(), P(), P(), P(None, BATCH), P(), P(), P()),
        out_specs=P(),
        check_vma=False,
    )
    def run_steps(
        state: TrainState,
        images: Array,
        labels: Array,
        batches: Array,
        count: Array,
        key: PRNGKeyArray,
        first: Array,
    ) -> tuple[TrainState, Array]:
        def one(i: Array, carried: tuple[TrainState, Array]) -> tuple[TrainState, Array]:
            state, metrics = carried
            index = batches[i]
            state, measured = step(
                state, images[index], labels[index], jax.random.fold_in(key, first + i)
            )
            return state, metrics.at[i].set(measured)

        return jax.lax.fori_loop(0, count, one, (state, jnp.zeros((len(batches), 2))))

    state = TrainState(parameters, rest, optimizer.init(parameters))
    # Copies: the step gives its input's memory away, the model must keep its own.
    return jax.device_put(jax.tree.map(jnp.copy, state), NamedSharding(mesh, P())), run_steps


def _places(count: int) -> Int[Array, " b"]:
    """The places of this device's images in the whole batch."""
    return jax.lax.axis_index(BATCH) * count + jnp.arange(count)


def _keys_of_places(key: PRNGKeyArray, count: int) -> PRNGKeyArray:
    return jax.vmap(jax.random.fold_in, (None, 0))(key, _places(count))


class _PlacedDropout(nnx.Dropout):
    """Draws every image's mask from its place in the whole batch."""

    def __call__(
        self,
        inputs: Array,
        *,
        deterministic: bool | None = None,
        rngs: Any = None,
    ) -> Array:
        stopped = self.deterministic if deterministic is None else deterministic
        shared = {dim % inputs.ndim for dim in self.broadcast_dims}
        # A mask that all images share is one for all devices, too.
        if stopped or rngs is not None or self.rngs is None or 0 in shared or self.rate == 1:
            return super().__call__(inputs, deterministic=deterministic, rngs=rngs)
        shape = [1 if dim in shared else side for dim, side in enumerate(inputs.shape)][1:]
        draw = partial(jax.random.bernoulli, p=1 - self.rate, shape=tuple(shape))
        kept = jax.vmap(draw)(_keys_of_places(self.rngs(), len(inputs)))
        return jnp.where(kept, inputs / (1 - self.rate), 0).astype(inputs.dtype)


def _optimizer(config: TrainConfig, steps: int) -> optax.GradientTransformation:
    rate = optax.constant_schedule(config.learning_rate)
    if config.schedule == "one-cycle":
        rate = optax.cosine_onecycle_schedule(steps, config.learning_rate, pct_start=_RISING)
    if config.optimizer == "adam":
        return optax.adam(rate)
    return contrib.muon(rate, consistent_rms=_ADAM_SIZE, muon_weight_dimension_numbers=_as_matrices)


def _as_matrices(parameters: PyTree) -> PyTree:
    """How Muon sees kernels as matrices: from all that a unit sees to the units."""
    return jax.tree.map(
        lambda x: (
            contrib.MuonDimensionNumbers(tuple(range(x.ndim - 1)), x.ndim - 1)
            if x.ndim > 1
            else None
        ),
        parameters,
    )


def _with_keys_of_device(state: PyTree, placed: list[tuple[str, ...]]) -> PyTree:
    """The state with random keys of this device's own, but for dropout by places."""

    def own(path: tuple[Any, ...], x: Array) -> Array:
        names = tuple(str(getattr(part, "key", part)) for part in path)
        inside = any(names[: len(module)] == module for module in placed)
        if not is_key(x) or inside:
            return x
        return jax.random.fold_in(x, jax.lax.axis_index(BATCH))

    return jax.tree.map_with_path(own, state)


def _with_keys(keys: PyTree, state: PyTree) -> PyTree:
    """The state with the random keys of another."""
    return jax.tree.map(lambda k, x: k if is_key(x) else x, keys, state)
