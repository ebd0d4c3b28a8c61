import dataclasses
import json
import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx

from jaxpoison import Augmentation, Dataset, TrainConfig, fit, predict, protocol
from jaxpoison.parallel import training_mesh
from jaxpoison.training.checkpoints import from_host, to_host
from jaxpoison.training.step import make_train_steps

training = import_module("jaxpoison.training.fit")
pytestmark = pytest.mark.mixes_types


class Small(nnx.Module):
    def __init__(self, seed=0):
        rngs = nnx.Rngs(seed)
        self.conv = nnx.Conv(3, 4, (3, 3), strides=2, use_bias=False, rngs=rngs)
        self.norm = nnx.BatchNorm(4, momentum=0.9, rngs=rngs)
        self.hidden = nnx.Linear(4 * 16 * 16, 16, rngs=rngs)
        self.dropout = nnx.Dropout(0.1, rngs=rngs)
        self.out = nnx.Linear(16, 2, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.norm(self.conv(x)))
        x = nnx.relu(self.hidden(x.reshape(len(x), -1)))
        return self.out(self.dropout(x))


def bright_images():
    """Dark and bright noise: easy to tell apart."""
    rng = np.random.default_rng(0)
    labels = np.arange(96, dtype=np.int32) % 2
    images = rng.integers(0, 128, (96, 32, 32, 3)) + 100 * labels[:, None, None, None]
    return Dataset.from_arrays(images.astype(np.uint8), labels)


@pytest.fixture(scope="module")
def bright():
    return bright_images()


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
    state, _ = make_train_steps(model, config, 3)
    before = jax.tree.map(np.asarray, nnx.to_pure_dict(state.parameters))
    state, _ = one_step(model, config, bright, None)
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


def one_step(model, config, data, devices):
    """The state after one step with the first sixteen images, and its metrics."""
    steps = 3
    state, run_steps = make_train_steps(model, config, steps, devices=devices)
    batches = np.arange(16, dtype=np.int32)[None]
    images, labels = jax.numpy.asarray(data.images), jax.numpy.asarray(data.labels)
    return run_steps(state, images, labels, batches, 1, jax.random.key(0), 0)


def test_devices_do_not_change_the_step(bright):
    """Two devices with half the batch each make the step of one with all of it."""
    config = dataclasses.replace(CONFIG, compute_dtype="float32", augmentation=Augmentation())
    stepped = {}
    for devices in (1, 2):
        state, metrics = one_step(Small(), config, bright, jax.local_devices()[:devices])
        assert len(metrics.sharding.device_set) == devices
        # Adam's first moments are a tenth of the gradients.
        moments = state.optimizer[0].mu
        statistics = [x for x in jax.tree.leaves(state.rest) if x.dtype == np.float32]
        stepped[devices] = [metrics, *jax.tree.leaves(moments), *statistics]
    for one, two in zip(stepped[1], stepped[2], strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-4, atol=1e-6)


class Spy(nnx.Module):
    """Hands what another module gives to someone else."""

    def __init__(self, module, seen):
        self.module = module
        self.seen = seen

    def __call__(self, x):
        y = self.module(x)
        jax.debug.callback(lambda kept: self.seen.append(np.asarray(kept)), y != 0)
        return y


class OwnNoise(nnx.Module):
    """A layer that draws random numbers, and that nobody knows."""

    def __init__(self, rngs):
        self.rngs = rngs.fork()

    def __call__(self, x):
        return x * jax.random.bernoulli(self.rngs.dropout(), shape=x.shape).astype(x.dtype)


@pytest.mark.parametrize("own", [False, True])
def test_each_image_drops_other_units(bright, own):
    """By its place in the batch; a layer of one's own draws others on every device."""
    same = Dataset.from_arrays(np.repeat(bright.images[:1], 96, 0), bright.labels)
    seen, model = [], Small()
    model.dropout = Spy(OwnNoise(nnx.Rngs(0)) if own else nnx.Dropout(0.5, rngs=nnx.Rngs(0)), seen)
    jax.block_until_ready(one_step(model, CONFIG, same, jax.local_devices()[:2]))
    jax.effects_barrier()
    assert [kept.shape for kept in seen] == [(8, 16), (8, 16)]
    assert (seen[0] != seen[1]).any()
    assert len({row.tobytes() for kept in seen for row in kept}) > 8
    alone, model = [], Small()
    model.dropout = Spy(OwnNoise(nnx.Rngs(0)) if own else nnx.Dropout(0.5, rngs=nnx.Rngs(0)), alone)
    jax.block_until_ready(one_step(model, CONFIG, same, jax.local_devices()[:1]))
    jax.effects_barrier()
    # Which device calls back first is chance.
    both = [np.concatenate(order) for order in (seen, seen[::-1])]
    assert any((alone[0] == rows).all() for rows in both) == (not own)


def test_masks_that_images_share_are_shared_by_devices(bright):
    seen, model = [], Small()
    model.dropout = Spy(nnx.Dropout(0.5, broadcast_dims=(0,), rngs=nnx.Rngs(0)), seen)
    model.hidden.bias[...] = 1.0
    jax.block_until_ready(one_step(model, CONFIG, bright, jax.local_devices()[:2]))
    jax.effects_barrier()
    assert len(seen) == 2
    assert (seen[0].any(0) == seen[1].any(0)).all()
    assert 0 < seen[0].any(0).sum() < 16


SCRIPT = """
import json, sys
import jax
jax.config.update("jax_num_cpu_devices", 4)
sys.path.insert(0, sys.argv[1])
import dataclasses, pathlib, tempfile
import numpy as np
from test_fit import CONFIG, Small, bright_images
import jaxpoison as jp
data = bright_images()
config = dataclasses.replace(CONFIG, compute_dtype="float32", augmentation=jp.Augmentation())

def trained(devices, checkpoints=None, epochs=3):
    model = Small()
    some = dataclasses.replace(config, epochs=epochs)
    jp.fit(model, data, data, some, checkpoints=checkpoints, devices=jax.local_devices()[:devices])
    return jp.predict(model, data.images).tolist()

print(json.dumps([trained(devices) for devices in (1, 2, 4)]))
"""


def test_any_number_of_devices_trains_the_same_network():
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(Path(__file__).parent)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    one, two, four = np.array(json.loads(done.stdout.splitlines()[-1]))
    # Adam divides by the size of gradients, and so enlarges rounding.
    for other in (two, four):
        np.testing.assert_allclose(other, one, atol=2e-3)
    # An image's own draws matter: another seed leads elsewhere.
    model, data = Small(), bright_images()
    config = dataclasses.replace(
        CONFIG, compute_dtype="float32", augmentation=Augmentation(), seed=1
    )
    fit(model, data, data, config)
    assert np.abs(one - predict(model, data.images)).max() > 0.2


def test_devices_that_are_left_over_are_told_of(monkeypatch):
    monkeypatch.setattr(jax, "local_devices", lambda: list("abcdef"))
    monkeypatch.setattr("jaxpoison.parallel.mesh_of", lambda devices: devices)
    with pytest.warns(
        UserWarning,
        match="batches of 64 images use 4 of 6 devices: a batch size that is a multiple of 6",
    ):
        assert len(training_mesh(64)) == 4
    assert len(training_mesh(60)) == 6
    # Not one image each.
    assert len(training_mesh(32)) == 4
    assert len(training_mesh(4)) == 1


def test_blocks_change_nothing(bright, monkeypatch):
    found = []
    for block in (1, 4, 8):
        monkeypatch.setattr(training, "_BLOCK", block)
        model = Small()
        # Every image is drawn from anew in every step, whatever block that is in.
        fit(
            model,
            bright,
            bright,
            dataclasses.replace(CONFIG, epochs=1, augmentation=Augmentation()),
        )
        found.append(predict(model, bright.images))
    for other in found[1:]:
        np.testing.assert_allclose(found[0], other, atol=2e-3)


def test_seed_decides(bright):
    a, b, c = Small(), Small(), Small()
    fit(a, bright, bright, CONFIG)
    fit(b, bright, bright, CONFIG)
    fit(c, bright, bright, dataclasses.replace(CONFIG, seed=1))
    assert all((x == y).all() for x, y in zip(weights(a), weights(b), strict=True))
    assert any((x != y).any() for x, y in zip(weights(a), weights(c), strict=True))


def test_interrupted_training_goes_on_to_the_same_end(bright, tmp_path, monkeypatch):
    config = dataclasses.replace(CONFIG, augmentation=Augmentation())
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


@pytest.mark.parametrize("damage", ["course", "state"])
def test_a_checkpoint_that_is_half_removed_is_none(bright, tmp_path, damage):
    config = dataclasses.replace(CONFIG, epochs=2)
    whole = Small()
    fit(whole, bright, bright, config, checkpoints=tmp_path)
    (step,) = (path for path in tmp_path.iterdir() if path.name.isdigit())
    shutil.rmtree(step / damage)
    again = Small()
    history = fit(again, bright, bright, config, checkpoints=tmp_path)
    assert len(history.epochs) == 2
    assert all((x == y).all() for x, y in zip(weights(again), weights(whole), strict=True))


def test_keys_of_any_kind_come_back():
    keys = [jax.random.key(3, impl=impl) for impl in ("threefry2x32", "rbg")]
    for given, found in zip(keys, from_host(to_host(keys), keys), strict=True):
        assert given.dtype == found.dtype
        assert (jax.random.key_data(given) == jax.random.key_data(found)).all()


def test_interrupted_training_goes_on_on_other_devices(bright, tmp_path, monkeypatch):
    config = dataclasses.replace(
        CONFIG, compute_dtype="float32", augmentation=Augmentation(), epochs=2
    )
    whole, model = Small(), Small()
    fit(whole, bright, bright, config, devices=jax.local_devices()[:1])
    once = iter([True])

    def interrupted(*arguments, evaluate=training.evaluate):
        if next(once, False):
            return evaluate(*arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(training, "evaluate", interrupted)
        with pytest.raises(KeyboardInterrupt):
            fit(model, bright, bright, config, checkpoints=tmp_path, devices=jax.local_devices())
    fit(model := Small(), bright, bright, config, checkpoints=tmp_path, devices=jax.devices()[:1])
    expected = predict(whole, bright.images)
    np.testing.assert_allclose(predict(model, bright.images), expected, atol=2e-3)


def test_checkpoints_of_another_training_are_refused(bright, tmp_path, monkeypatch):
    """Settings, data, network, code: whatever differs is named, and nothing is lost."""
    config = dataclasses.replace(CONFIG, epochs=1)
    expected = Small()
    fit(expected, bright, bright, config, checkpoints=tmp_path)
    darker = Dataset.from_arrays(bright.images // 2, bright.labels)
    turned = Dataset.from_arrays(bright.images, 1 - bright.labels)

    def with_dropout(rate):
        model = Small()
        model.dropout.rate = rate
        return model

    others = {
        "epochs, seed": (Small(), bright, bright, dataclasses.replace(config, epochs=2, seed=5)),
        "network ": (with_dropout(0.5), bright, bright, config),
        "data": (Small(), darker, bright, config),
        "data;": (Small(), turned, bright, config),
        "data; ": (Small(), bright, darker, config),
        "network": (Small(seed=1), bright, bright, config),
        "data, network": (Small(seed=1), darker, bright, config),
    }
    for what, training_of in others.items():
        with pytest.raises(ValueError, match=f"a training with other {what.strip('; ')};"):
            fit(*training_of, checkpoints=tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(training, "code_of", lambda *_: {"jaxpoison.training.fit": "changed"})
        with pytest.raises(ValueError, match="a training with other code;"):
            fit(Small(), bright, bright, config, checkpoints=tmp_path)
    again = Small()
    fit(again, bright, bright, config, checkpoints=tmp_path)
    assert all((x == y).all() for x, y in zip(weights(again), weights(expected), strict=True))


@pytest.mark.parametrize("loss", [float("nan"), float("inf")])
def test_a_validation_loss_that_is_not_finite_is_an_error(bright, loss, monkeypatch):
    monkeypatch.setattr(training, "evaluate", lambda *_: (loss, 0.5))
    with pytest.raises(ValueError, match=f"the validation loss is {loss} in epoch 1: lower the"):
        fit(Small(), bright, bright, CONFIG)


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
