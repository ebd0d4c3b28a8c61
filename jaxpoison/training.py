"""Training a network: two protocols, early stopping, checkpoints, resume."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree, UInt8
from optax import contrib

from jaxpoison._checks import check_choice, check_integer, check_positive
from jaxpoison._progress import Bar
from jaxpoison.augment import Augmentation
from jaxpoison.checkpoints import Checkpoints, from_host, is_key, to_host
from jaxpoison.datasets.dataset import Dataset
from jaxpoison.models.inference import evaluation_view, predict
from jaxpoison.parallel import BATCH, mesh_for, shardings_for

PROTOCOLS = ("fast", "paper")
OPTIMIZERS = ("adam", "muon")
SCHEDULES = ("constant", "one-cycle")
# The fast protocol shows the network at least this many images, however small the data.
_FAST_IMAGES = 10_000
_STEPS_PER_REPORT = 8
# Share of the one-cycle schedule's steps in which the rate rises.
_RISING = 0.15
# Root mean square of Muon's steps before the rate, like that of Adam's.
_ADAM_SIZE = 0.2


@dataclass(frozen=True)
class TrainConfig:
    """How to train.

    Attributes:
        epochs: Most passes over the data.
        batch_size: Images per step; an incomplete last batch is left out.
        optimizer: ``"adam"``, or ``"muon"`` (Jordan 2024): orthogonalised momentum for
            kernels, and Adam with Nesterov's momentum for the rest. Muon's steps have
            the size of Adam's (Liu et al. 2025, *Muon is Scalable for LLM Training*).
        learning_rate: Of the optimiser; the peak, for the one-cycle schedule.
        schedule: ``"constant"`` or ``"one-cycle"`` (a cosine up and down again).
        patience: Epochs without a fall in validation loss after which training
            stops; ``None`` never stops early.
        augmentation: Random transformations of the training images, or ``None``.
        compute_dtype: Type convolutions and batch normalisations compute in
            while training; statistics and parameters are always float32, and so
            is everything after training.
        seed: Seed of order, augmentation and dropout.
    """

    epochs: int = 100
    batch_size: int = 32
    optimizer: str = "adam"
    learning_rate: float = 1e-3
    schedule: str = "constant"
    patience: int | None = 20
    augmentation: Augmentation | None = Augmentation()
    compute_dtype: str = "bfloat16"
    seed: int = 0

    def __post_init__(self) -> None:
        check_integer("epochs", self.epochs, at_least=1)
        check_integer("batch size", self.batch_size, at_least=1)
        check_positive("learning rate", self.learning_rate)
        check_choice("optimizer", self.optimizer, OPTIMIZERS)
        check_choice("schedule", self.schedule, SCHEDULES)
        check_choice("compute dtype", self.compute_dtype, ("bfloat16", "float32"))


def protocol(
    name: str,
    images: int,
    *,
    epochs: int | None = None,
    batch_size: int | None = None,
    seed: int = 0,
) -> TrainConfig:
    """The settings of a named training protocol.

    ``"paper"``: Adam 1e-3, batch 32, at most 100 epochs, patience 20.
    ``"fast"``: Muon, one cycle to 3e-3 over 2 epochs at batch 64; data sets below
    10,000 images get smaller batches, and below 5,000 more epochs.

    Args:
        name: One of ``PROTOCOLS``.
        images: Number of training images.
        epochs: Overrides the protocol's number of epochs.
        batch_size: Overrides the protocol's number of images per step.
        seed: Seed of order, augmentation and dropout.

    Raises:
        ValueError: There is no such protocol.
    """
    check_choice("protocol", name, PROTOCOLS)
    if name == "paper":
        return TrainConfig(epochs=epochs or 100, batch_size=batch_size or 32, seed=seed)
    return TrainConfig(
        epochs=epochs or max(2, math.ceil(_FAST_IMAGES / images)),
        batch_size=batch_size or (64 if images >= 10_000 else 32),
        optimizer="muon",
        learning_rate=3e-3,
        schedule="one-cycle",
        patience=None,
        seed=seed,
    )


@dataclass(frozen=True)
class Epoch:
    """What one pass over the data gave; losses are mean cross-entropies in nats."""

    train_loss: float
    train_accuracy: float
    validation_loss: float
    validation_accuracy: float
    seconds: float


@dataclass(frozen=True)
class History:
    """The course of a training.

    Attributes:
        epochs: One entry per pass.
        best: Index of the epoch whose parameters were kept.
    """

    epochs: tuple[Epoch, ...] = ()
    best: int = 0


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


Step = Callable[
    [TrainState, UInt8[Array, "n h w c"], Int[Array, " n"], Int[Array, " b"], PRNGKeyArray],
    tuple[TrainState, Float[Array, " 2"]],
]


def make_train_step(model: nnx.Module, config: TrainConfig, steps: int) -> tuple[TrainState, Step]:
    """Builds the jitted training step of a model.

    The batch is split over this process's devices, with the statistics of batch
    normalisation taken over all of it.

    Args:
        model: Takes images in [0, 1], gives logits; not changed.
        config: How to train.
        steps: Steps of the whole training, for the schedule.

    Returns:
        The initial state, and a function of state, all images, all labels, the
        batch's indices and a key that returns the next state and the batch's
        mean loss and accuracy. The state given to it must not be used again.
    """
    mesh = mesh_for(config.batch_size)
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

    # Every device takes its part of the batch; batch statistics and gradients are
    # averaged over all, so that the step is that of the whole batch.
    @partial(jax.jit, donate_argnums=0)
    @partial(
        jax.shard_map,
        mesh=mesh,
        in_specs=(P(), P(), P(), P(BATCH), P()),
        out_specs=P(),
        check_vma=False,
    )
    def step(
        state: TrainState, images: Array, labels: Array, indices: Array, key: Array
    ) -> tuple[TrainState, Array]:
        part = jax.lax.axis_index(BATCH)
        batch = images[indices].astype(jnp.float32) / 255
        if config.augmentation is not None:
            batch = config.augmentation(jax.random.fold_in(key, part), batch)
        gradient = jax.value_and_grad(loss, has_aux=True)
        (value, (accuracy, rest)), grads = gradient(
            state.parameters, _with_keys_of(part, state.rest), batch, labels[indices]
        )
        value, accuracy, grads = jax.lax.pmean((value, accuracy, grads), BATCH)
        updates, optimizer_state = optimizer.update(grads, state.optimizer, state.parameters)
        parameters = optax.apply_updates(state.parameters, updates)
        rest = _with_keys(state.rest, rest)
        return TrainState(parameters, rest, optimizer_state), jnp.stack([value, accuracy])

    state = TrainState(parameters, rest, optimizer.init(parameters))
    # Copies: the step gives its input's memory away, the model must keep its own.
    return jax.device_put(jax.tree.map(jnp.copy, state), NamedSharding(mesh, P())), step


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


def _with_keys_of(part: Array, state: PyTree) -> PyTree:
    """The state with random keys of their own for a part of the batch."""
    return jax.tree.map(lambda x: jax.random.fold_in(x, part) if is_key(x) else x, state)


def _with_keys(keys: PyTree, state: PyTree) -> PyTree:
    """The state with the random keys of another."""
    return jax.tree.map(lambda k, x: k if is_key(x) else x, keys, state)


def fit(
    model: nnx.Module,
    train: Dataset,
    validation: Dataset,
    config: TrainConfig,
    *,
    checkpoints: Path | None = None,
    progress: bool = False,
) -> History:
    """Trains a model in place; it ends with the parameters of the best epoch.

    Args:
        model: Takes images in [0, 1], gives logits.
        train: Training images.
        validation: Images whose loss chooses the best epoch.
        config: How to train.
        checkpoints: Directory for one checkpoint per epoch. A training that
            was interrupted goes on from the last one and gives the same result.
        progress: Show a progress bar.

    Raises:
        ValueError: There are fewer training images than one batch, no
            validation images, the loss is not finite, or the checkpoints are
            of another training.
    """
    if len(train) < config.batch_size:
        raise ValueError(
            f"training needs at least one batch of {config.batch_size} images, found {len(train)}"
        )
    if not len(validation):
        raise ValueError("training needs validation images to choose the best epoch, found none")
    steps = len(train) // config.batch_size
    state, step = make_train_step(model, config, steps * config.epochs)
    best = state
    history = History()
    manager = None
    if checkpoints is not None:
        manager = Checkpoints(checkpoints, dataclasses.asdict(config))
        restored = manager.restore((state, best))
        if restored is not None:
            (state, best), course = restored
            history = History(tuple(Epoch(**e) for e in course["epochs"]), course["best"])
    # The step takes its input's memory, so what is kept must be a copy.
    best = jax.tree.map(jnp.copy, best)
    everywhere, _ = shardings_for(config.batch_size)
    images, labels = jax.device_put((train.images, train.labels), everywhere)
    scored = nnx.clone(model)
    total = config.epochs * steps * config.batch_size
    with Bar("training", total, unit="images", show=progress) as bar:
        bar.advance(len(history.epochs) * steps * config.batch_size)
        for epoch in range(len(history.epochs), config.epochs):
            if _exhausted(history, config.patience):
                break
            started = time.perf_counter()
            key = jax.random.fold_in(jax.random.key(config.seed), epoch)
            order_key, step_key = jax.random.split(key)
            order = np.asarray(jax.random.permutation(order_key, len(train)))
            measured = []
            for i in range(steps):
                indices = jnp.asarray(order[i * config.batch_size : (i + 1) * config.batch_size])
                state, metrics = step(
                    state, images, labels, indices, jax.random.fold_in(step_key, i)
                )
                measured.append(metrics)
                if i % _STEPS_PER_REPORT == _STEPS_PER_REPORT - 1 or i == steps - 1:
                    value, accuracy = np.mean(measured[-_STEPS_PER_REPORT:], axis=0)
                    if not np.isfinite(value):
                        raise ValueError(
                            f"the training loss is {value} in epoch {epoch + 1}: "
                            f"lower the learning rate (now {config.learning_rate})"
                        )
                    bar.advance(
                        (i % _STEPS_PER_REPORT + 1) * config.batch_size,
                        f"epoch {epoch + 1}  loss {value:.3f}  accuracy {accuracy:.1%}",
                    )
            nnx.update(scored, state.parameters, state.rest)
            validation_loss, validation_accuracy = evaluate(scored, validation)
            value, accuracy = np.mean(measured, axis=0)
            history = History(
                (
                    *history.epochs,
                    Epoch(
                        float(value),
                        float(accuracy),
                        validation_loss,
                        validation_accuracy,
                        time.perf_counter() - started,
                    ),
                ),
                history.best,
            )
            losses = [e.validation_loss for e in history.epochs]
            if losses[-1] <= min(losses):
                best = jax.tree.map(jnp.copy, state)
                history = dataclasses.replace(history, best=epoch)
            bar.line(
                f"epoch {epoch + 1}: loss {value:.4f}, validation loss {validation_loss:.4f}, "
                f"validation accuracy {validation_accuracy:.2%}, "
                f"{steps * config.batch_size / history.epochs[-1].seconds:.0f} images/s"
            )
            if manager is not None:
                manager.save(len(history.epochs), (state, best), dataclasses.asdict(history))
    if manager is not None:
        manager.close()
    # By way of the host: the model is not bound to the devices that trained it.
    trained = (best.parameters, best.rest)
    nnx.update(model, *from_host(to_host(trained), trained))
    model.eval()
    return history


def _exhausted(history: History, patience: int | None) -> bool:
    return patience is not None and len(history.epochs) - 1 - history.best >= patience


def evaluate(model: nnx.Module, data: Dataset) -> tuple[float, float]:
    """Mean cross-entropy in nats, and accuracy, of a model in evaluation mode."""
    logits = predict(evaluation_view(model), data.images)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.asarray(data.labels))
    return float(losses.mean()), float((logits.argmax(-1) == data.labels).mean())
