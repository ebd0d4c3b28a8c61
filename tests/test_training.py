import dataclasses
from functools import partial

import jax
import numpy as np
import pytest
from flax import nnx

from jaxpoison import Dataset, TrainConfig, fit, predict, protocol, training
from jaxpoison.parallel import mesh_for


class Small(nnx.Module):
    feature_layer = "hidden"

    def __init__(self, seed=0):
        rngs = nnx.Rngs(seed)
        self.conv = nnx.Conv(3, 4, (3, 3), strides=2, rngs=rngs)
        self.norm = nnx.BatchNorm(4, momentum=0.9, rngs=rngs)
        self.hidden = nnx.Linear(4 * 16 * 16, 16, rngs=rngs)
        self.dropout = nnx.Dropout(0.1, rngs=rngs)
        self.out = nnx.Linear(16, 2, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.norm(self.conv(x)))
        x = nnx.relu(self.hidden(x.reshape(len(x), -1)))
        return self.out(self.dropout(x))


@pytest.fixture(scope="module")
def bright():
    """Dark and bright noise: easy to tell apart."""
    rng = np.random.default_rng(0)
    labels = np.arange(96, dtype=np.int32) % 2
    images = rng.integers(0, 128, (96, 32, 32, 3)) + 100 * labels[:, None, None, None]
    return Dataset.from_arrays(images.astype(np.uint8), labels)


CONFIG = TrainConfig(epochs=3, batch_size=16, learning_rate=1e-2, augmentation=None)


def weights(model):
    return jax.tree.leaves(nnx.to_pure_dict(nnx.state(model, nnx.Any(nnx.Param, nnx.BatchStat))))


def test_learns_and_keeps_the_best_epoch(bright):
    model = Small()
    history = fit(model, bright, bright, CONFIG)
    losses = [e.validation_loss for e in history.epochs]
    assert history.best == int(np.argmin(losses))
    assert training.evaluate(model, bright)[0] == pytest.approx(min(losses), rel=1e-5)
    assert (predict(model, bright.images).argmax(-1) == bright.labels).all()


def test_muon_moves_kernels_along_all_directions_alike(bright):
    """Its step for a kernel is near to orthogonal, as large as Adam's; biases take Adam's."""
    config = dataclasses.replace(CONFIG, optimizer="muon", compute_dtype="float32")
    model = Small()
    state, step = training.make_train_step(model, config, 3)
    before = jax.tree.map(np.asarray, nnx.to_pure_dict(state.parameters))
    images, labels = jax.numpy.asarray(bright.images), jax.numpy.asarray(bright.labels)
    state, _ = step(state, images, labels, jax.numpy.arange(16), jax.random.key(0))
    after = nnx.to_pure_dict(state.parameters)
    moved = {
        layer: (before[layer][name] - np.asarray(after[layer][name])) / config.learning_rate
        for layer, name in (("conv", "kernel"), ("hidden", "kernel"), ("norm", "bias"))
    }
    for kernel in (moved["conv"], moved["hidden"]):
        matrix = kernel.reshape(-1, kernel.shape[-1])
        strengths = np.linalg.svd(matrix, compute_uv=False)
        # Newton and Schulz's five steps bring singular values into 0.7 to 1.2; a batch of
        # 16 images leaves some units without a gradient.
        strong = strengths[strengths > strengths.max() / 2]
        assert len(strong) >= 2
        assert strengths.max() < 1.3 * 0.2 * np.sqrt(max(matrix.shape))
        assert strong.min() > 0.6 * 0.2 * np.sqrt(max(matrix.shape))
    # With Nesterov momentum, Adam's first step is the sign of the gradient times this.
    np.testing.assert_allclose(np.abs(moved["norm"]), 1 + 0.09 / 0.19, rtol=1e-3)


def test_devices_do_not_change_the_step(bright, monkeypatch):
    """Two devices with half the batch each make the step of one with all of it."""
    config = dataclasses.replace(CONFIG, compute_dtype="float32")
    images, labels = jax.numpy.asarray(bright.images), jax.numpy.asarray(bright.labels)
    stepped = {}
    for devices in (1, 2):
        assert len(jax.local_devices()) >= devices
        monkeypatch.setattr(
            training, "mesh_for", partial(mesh_for, devices=jax.local_devices()[:devices])
        )
        model = Small()
        model.dropout.rate = 0.0
        state, step = training.make_train_step(model, config, 3)
        state, metrics = step(state, images, labels, jax.numpy.arange(16), jax.random.key(0))
        assert len(metrics.sharding.device_set) == devices
        # Adam's first moments are a tenth of the gradients.
        moments = state.optimizer[0].mu
        statistics = [x for x in jax.tree.leaves(state.rest) if x.dtype == np.float32]
        stepped[devices] = [metrics, *jax.tree.leaves(moments), *statistics]
    for one, two in zip(stepped[1], stepped[2], strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-4, atol=1e-6)


def test_each_device_drops_other_units(bright, monkeypatch):
    monkeypatch.setattr(training, "mesh_for", partial(mesh_for, devices=jax.local_devices()[:2]))
    images = jax.numpy.asarray(np.repeat(bright.images[:1], 16, 0))
    seen = []
    model = Small()
    model.dropout.rate = 0.5

    class Spy(nnx.Module):
        def __init__(self, dropout):
            self.dropout = dropout

        def __call__(self, x):
            y = self.dropout(x)
            jax.debug.callback(lambda kept: seen.append(np.asarray(kept)), y[0] != 0)
            return y

    model.dropout = Spy(model.dropout)
    state, step = training.make_train_step(model, CONFIG, 1)
    labels = jax.numpy.zeros(16, int)
    jax.block_until_ready(step(state, images, labels, jax.numpy.arange(16), jax.random.key(0)))
    jax.effects_barrier()
    assert len(seen) == 2
    assert (seen[0] != seen[1]).any()


def test_seed_decides(bright):
    a, b, c = Small(), Small(), Small()
    fit(a, bright, bright, CONFIG)
    fit(b, bright, bright, CONFIG)
    fit(c, bright, bright, dataclasses.replace(CONFIG, seed=1))
    assert all((x == y).all() for x, y in zip(weights(a), weights(b), strict=True))
    assert any((x != y).any() for x, y in zip(weights(a), weights(c), strict=True))


def test_interrupted_training_goes_on_to_the_same_end(bright, tmp_path, monkeypatch):
    config = dataclasses.replace(CONFIG, augmentation=training.Augmentation())
    whole = Small()
    expected = fit(whole, bright, bright, config)

    evaluate, calls = training.evaluate, []

    def interrupted(*arguments):
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return evaluate(*arguments)

    monkeypatch.setattr(training, "evaluate", interrupted)
    model = Small()
    with pytest.raises(KeyboardInterrupt):
        fit(model, bright, bright, config, checkpoints=tmp_path)
    monkeypatch.setattr(training, "evaluate", evaluate)
    model = Small()
    history = fit(model, bright, bright, config, checkpoints=tmp_path)
    assert [e.validation_loss for e in history.epochs] == [
        e.validation_loss for e in expected.epochs
    ]
    assert all((x == y).all() for x, y in zip(weights(model), weights(whole), strict=True))


def test_checkpoints_of_another_training_are_refused(bright, tmp_path):
    fit(Small(), bright, bright, dataclasses.replace(CONFIG, epochs=1), checkpoints=tmp_path)
    with pytest.raises(ValueError, match="a training with other epochs, seed"):
        fit(
            Small(),
            bright,
            bright,
            dataclasses.replace(CONFIG, epochs=2, seed=5),
            checkpoints=tmp_path,
        )


def test_stops_when_validation_loss_no_longer_falls(bright, monkeypatch):
    losses = iter([3.0, 1.0, 2.0, 2.0, 2.0])
    monkeypatch.setattr(training, "evaluate", lambda *_: (next(losses), 0.5))
    history = fit(Small(), bright, bright, dataclasses.replace(CONFIG, epochs=50, patience=2))
    assert (len(history.epochs), history.best) == (4, 1)


def test_divergence_is_an_error(bright):
    with pytest.raises(ValueError, match=r"training loss is .*lower the learning rate"):
        fit(Small(), bright, bright, dataclasses.replace(CONFIG, learning_rate=1e30, epochs=20))


def test_too_few_images(bright):
    with pytest.raises(ValueError, match="one batch of 16 images, found 8"):
        fit(Small(), bright.take(np.arange(8)), bright, CONFIG)
    with pytest.raises(ValueError, match="needs validation images .* found none"):
        fit(Small(), bright, bright.take(np.arange(0)), CONFIG)


def test_protocols():
    paper = protocol("paper", 34_799)
    assert (paper.epochs, paper.batch_size, paper.learning_rate, paper.patience) == (
        100,
        32,
        1e-3,
        20,
    )
    fast = protocol("fast", 34_799)
    assert (fast.epochs, fast.batch_size, fast.optimizer, fast.schedule) == (
        2,
        64,
        "muon",
        "one-cycle",
    )
    small = protocol("fast", 2000)
    assert (small.epochs, small.batch_size) == (5, 32)
    assert protocol("fast", 2000, epochs=3).epochs == 3
    with pytest.raises(ValueError, match="protocol must be one of fast, paper; found 'slow'"):
        protocol("slow", 2000)
