"""Weights that were trained elsewhere."""

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from flax import nnx
from safetensors.numpy import save_file

from jaxpoison import load_weights, predict, save_model, synthetic

pytestmark = pytest.mark.mixes_types


class Normed(nnx.Module):
    """With batch statistics, dropout's seed, a list and a tied layer."""

    def __init__(self, seed, width=8):
        rngs = nnx.Rngs(seed)
        self.convs = nnx.List([nnx.Conv(3, width, (3, 3), strides=8, rngs=rngs)])
        self.norm = nnx.BatchNorm(width, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.out = nnx.Linear(16 * width, 4, rngs=rngs)
        self.norm.mean[...] = jax.random.normal(rngs.params(), (width,))

    def __call__(self, x):
        x = self.dropout(nnx.relu(self.norm(self.convs[0](x))))
        return self.out(x.reshape(len(x), -1))


def by_orbax(path, tree):
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(path.absolute(), tree)


def named(model):
    state = nnx.to_pure_dict(nnx.state(model, nnx.Any(nnx.Param, nnx.BatchStat)))
    return {
        ".".join(str(key.key) for key in keys): np.asarray(leaf)
        for keys, leaf in jax.tree.leaves_with_path(state)
    }


def pure(model):
    return nnx.to_pure_dict(nnx.state(model, nnx.Any(nnx.Param, nnx.BatchStat)))


WRITERS = {
    "the package": lambda path, model: save_model(path, model),
    "a pure dictionary": lambda path, model: by_orbax(path, pure(model)),
    "variables": lambda path, model: by_orbax(
        path, nnx.state(model, nnx.Any(nnx.Param, nnx.BatchStat))
    ),
    "under a name": lambda path, model: by_orbax(
        path, {"model": pure(model), "optimizer": {"out": {"kernel": np.zeros(3)}}, "step": 7}
    ),
    "safetensors": lambda path, model: save_file(named(model), path),
    "safetensors under a name": lambda path, model: save_file(
        {f"network.{name}": leaf for name, leaf in named(model).items()}, path
    ),
}


@pytest.mark.parametrize("writer", WRITERS)
def test_weights_are_read_whoever_wrote_them(writer, tmp_path):
    images = synthetic(train=20, validation=10, test=10).train.images
    trained, other = Normed(0), Normed(1)
    path = tmp_path / "weights"
    WRITERS[writer](path, trained)
    assert np.abs(predict(trained, images) - predict(other, images)).max() > 0.1
    load_weights(path, other)
    np.testing.assert_array_equal(predict(trained, images), predict(other, images))
    assert other.dropout.deterministic


def test_what_does_not_fit_is_named(tmp_path):
    path, model = tmp_path / "weights.safetensors", Normed(0)
    weights = named(model)
    with pytest.raises(FileNotFoundError, match="no weights at .*weights.safetensors"):
        load_weights(path, model)
    save_file({k: v for k, v in weights.items() if not k.startswith("norm.")}, path)
    with pytest.raises(ValueError, match="lacks 4 of the network's 8 arrays: norm.bias, n"):
        load_weights(path, model)
    save_file(named(Normed(0, width=4)), path)
    with pytest.raises(ValueError, match=r"convs.0.bias of the network has the shape \(8,\), in"):
        load_weights(path, model)
    path.write_bytes(b"x" * 100)
    with pytest.raises(ValueError, match="is no safetensors file, or a damaged one"):
        load_weights(path, model)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="is no checkpoint of Orbax's, or a damaged one"):
        load_weights(tmp_path / "empty", model)


def test_nothing_is_changed_by_weights_that_do_not_fit(tmp_path):
    path, model = tmp_path / "weights.safetensors", Normed(0)
    before = named(model)
    save_file(named(Normed(1)) | {"out.kernel": np.zeros((2, 2), np.float32)}, path)
    with pytest.raises(ValueError, match="out.kernel of the network has the shape"):
        load_weights(path, model)
    for name, leaf in named(model).items():
        np.testing.assert_array_equal(leaf, before[name])
