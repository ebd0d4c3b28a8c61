"""The training loop: epochs, early stopping, checkpoints, resume."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Float

from jaxpoison._code import code_of
from jaxpoison._progress import Bar
from jaxpoison._storage import is_large
from jaxpoison.datasets.dataset import Dataset
from jaxpoison.models.inference import evaluation_view, fingerprint, kinds_of, predict
from jaxpoison.parallel import mesh_of, shardings_on, training_mesh
from jaxpoison.training.checkpoints import Checkpoints, from_host, to_host
from jaxpoison.training.protocols import TrainConfig
from jaxpoison.training.step import Steps, TrainState, make_train_steps

# Steps of one dispatch: a progress bar moves after each.
_BLOCK = 8


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

    Examples:
        >>> history = jp.History()  # of no epochs yet; jp.fit returns one
        >>> len(history.epochs), history.best
        (0, 0)
    """

    epochs: tuple[Epoch, ...] = ()
    best: int = 0


def fit(
    model: nnx.Module,
    train: Dataset,
    validation: Dataset,
    config: TrainConfig,
    *,
    checkpoints: Path | None = None,
    devices: Sequence[Any] | None = None,
    progress: bool = False,
) -> History:
    """Trains a model in place; it ends with the parameters of the best epoch.

    Args:
        model: Takes images in [0, 1], gives logits.
        train: Training images; from one gibibyte on they stay where they are, and are read eight
            batches at a time.
        validation: Images whose loss chooses the best epoch.
        config: How to train.
        checkpoints: Directory for one checkpoint per epoch. A training that
            was interrupted goes on from the last one and gives the same result, on any
            number of devices up to rounding. Checkpoints know their settings, data,
            network (first weights included), code and package versions.
        devices: What to split a batch over; see
            :func:`jaxpoison.training.step.make_train_steps`.
        progress: Show a progress bar.

    Raises:
        ValueError: There are fewer training images than one batch, no
            validation images, a training or validation loss is not finite, or the
            checkpoints are of another training.

    Examples:
        >>> network = nnx.clone(model)
        >>> settings = jp.protocol("fast", len(train), epochs=2, batch_size=50)
        >>> history = jp.fit(network, train, splits.validation, settings)
        >>> [epoch.seconds > 0 for epoch in history.epochs]
        [True, True]
    """
    if len(train) < config.batch_size:
        raise ValueError(
            f"training needs at least one batch of {config.batch_size} images, found {len(train)}"
        )
    if not len(validation):
        raise ValueError("training needs validation images to choose the best epoch, found none")
    steps = len(train) // config.batch_size
    if devices is None:
        devices = list(training_mesh(config.batch_size).devices.flat)
    state, run_steps = make_train_steps(model, config, steps * config.epochs, devices=devices)
    best = state
    history = History()
    manager = None
    if checkpoints is not None:
        manager = Checkpoints(checkpoints, training_identity(model, train, validation, config))
        restored = manager.restore((state, best))
        if restored is not None:
            (state, best), course = restored
            history = History(tuple(Epoch(**e) for e in course["epochs"]), course["best"])
    # The step takes its input's memory, so what is kept must be a copy.
    best = jax.tree.map(jnp.copy, best)
    images, labels = train.images, train.labels.astype(np.int32)
    if not is_large(images.shape, images.dtype):
        everywhere, _ = shardings_on(mesh_of(devices))
        images, labels = jax.device_put((images, labels), everywhere)
    scored = nnx.clone(model)
    total = config.epochs * steps * config.batch_size
    with Bar("training", total, unit="images", show=progress) as bar:
        if history.epochs:
            bar.line(f"training goes on after epoch {len(history.epochs)} of {config.epochs}")
            bar.resume(len(history.epochs) * steps * config.batch_size)
        for epoch in range(len(history.epochs), config.epochs):
            if _exhausted(history, config.patience):
                break
            started = time.perf_counter()
            measured = []
            key = jax.random.fold_in(jax.random.key(config.seed), epoch)
            blocks = _blocks(state, run_steps, images, labels, config, steps, key)
            for following, metrics in blocks:
                state = following
                value, accuracy = metrics.mean(0)
                _refuse_infinite("training", value, epoch, config)
                measured.append(metrics)
                bar.advance(
                    len(metrics) * config.batch_size,
                    f"epoch {epoch + 1}, loss {value:.3f}, {accuracy:.1%} right",
                )
            nnx.update(scored, state.parameters, state.rest)
            validation_loss, validation_accuracy = evaluate(scored, validation)
            _refuse_infinite("validation", validation_loss, epoch, config)
            value, accuracy = np.concatenate(measured).mean(0)
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


def _blocks(
    state: TrainState,
    run_steps: Steps,
    images: jax.Array | np.ndarray,
    labels: jax.Array | np.ndarray,
    config: TrainConfig,
    steps: int,
    key: jax.Array,
) -> Iterator[tuple[TrainState, Float[np.ndarray, "k 2"]]]:
    """One epoch; every block's metrics come while the next block is computed.

    Images on the host are read block by block.
    """
    order_key, step_key = jax.random.split(key)
    order = np.asarray(jax.random.permutation(order_key, len(images)))
    batches = order[: steps * config.batch_size].reshape(steps, config.batch_size)
    pending = None
    for first in range(0, steps, _BLOCK):
        count = min(_BLOCK, steps - first)
        # One shape for all blocks; of the last one's rows, those that are missing are not run.
        block = np.zeros((_BLOCK, config.batch_size), np.int32)
        block[:count] = batches[first : first + count]
        among = images, labels
        if isinstance(images, np.ndarray):
            rows = block.reshape(-1)
            among = images[rows], labels[rows]
            block = np.arange(block.size, dtype=np.int32).reshape(block.shape)
        following = run_steps(state, *among, block, count, step_key, first)
        if pending is not None:
            yield following[0], np.asarray(pending)
        state, pending = following[0], following[1][:count]
    yield state, np.asarray(pending)


def _refuse_infinite(what: str, value: float, epoch: int, config: TrainConfig) -> None:
    if not np.isfinite(value):
        raise ValueError(
            f"the {what} loss is {value} in epoch {epoch + 1}: "
            f"lower the learning rate (now {config.learning_rate})"
        )


def training_identity(
    model: nnx.Module, train: Dataset, validation: Dataset, config: TrainConfig
) -> dict[str, Any]:
    """Everything that decides what a training ends with, as JSON values.

    Args:
        model: Before the training.
        train: Training images.
        validation: Validation images.
        config: How to train.
    """
    return {
        "settings": dataclasses.asdict(config),
        "data": [train.fingerprint, validation.fingerprint],
        "network": fingerprint(model),
        "code": code_of(fit, *kinds_of(model)),
    }


def _exhausted(history: History, patience: int | None) -> bool:
    return patience is not None and len(history.epochs) - 1 - history.best >= patience


def evaluate(model: nnx.Module, data: Dataset) -> tuple[float, float]:
    """Mean cross-entropy in nats, and accuracy, of a model in evaluation mode."""
    logits = predict(evaluation_view(model), data.images)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.asarray(data.labels))
    return float(losses.mean()), float((logits.argmax(-1) == data.labels).mean())
