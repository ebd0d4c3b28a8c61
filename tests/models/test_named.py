"""Networks that a function of the user's makes."""

import sys

import pytest
from flax import nnx

from jaxpoison import RunConfig
from jaxpoison.models.named import made_network

pytestmark = pytest.mark.mixes_types

MODULE = """
from flax import linen, nnx
import functools


def make(num_classes, *, rngs):
    return nnx.Linear(4, num_classes, rngs=rngs)


def bare():
    return nnx.Linear(4, 3, rngs=nnx.Rngs(0))


def options(num_classes=7, width=4, **others):
    assert not others
    return nnx.Linear(width, num_classes, rngs=nnx.Rngs(0))


def wide(width, num_classes):
    return nnx.Linear(width, num_classes, rngs=nnx.Rngs(0))


def of_linen():
    return linen.Dense(3)


class Net(nnx.Module):
    def __init__(self, num_classes, width=4, *, rngs):
        self.out_features = num_classes
        self.layer = nnx.Linear(width, num_classes, rngs=rngs)


class WideNet(Net):
    def __init__(self, width, *, rngs):
        super().__init__(3, width, rngs=rngs)


def nothing():
    return None


class Networks:
    best = staticmethod(bare)


NUMBER = 3
"""


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own_networks.py").write_text(MODULE)
    (tmp_path / "broken_networks.py").write_text("import something_that_is_not_there\n")
    yield tmp_path
    for name in ("own_networks", "broken_networks"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize(
    ("name", "classes"),
    [("make", 5), ("bare", 3), ("options", 5), ("Networks.best", 3), ("Net", 5)],
)
def test_a_function_is_given_what_it_takes(name, classes, place):
    before = list(sys.path)
    made = made_network(f"own_networks:{name}", 5, 0)
    assert isinstance(made, nnx.Module)
    assert made.out_features == classes
    assert sys.path == before


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("own_networks:absent", ValueError, "own_networks has no absent: expected a function"),
        ("own_networks:wide", ValueError, "own_networks:wide needs width: it may have the arg"),
        ("own_networks:WideNet", ValueError, "own_networks:WideNet needs width: it may have"),
        ("own_networks:NUMBER", ValueError, "own_networks:NUMBER must be a function, found int"),
        ("own_networks:nothing", TypeError, "must be a flax.nnx.Module, found NoneType$"),
        ("own_networks:of_linen", TypeError, r"found Dense: nnx.bridge.ToNNX\(module"),
        ("absent_networks:make", ImportError, "no module absent_networks in .* or among those"),
        ("own_networks.inner:make", ImportError, "no module own_networks.inner"),
        ("broken_networks:make", ImportError, "No module named 'something_that_is_not_there'"),
    ],
)
def test_what_makes_no_network_is_named(name, error, message, place):
    with pytest.raises(error, match=message):
        made_network(name, 5, 0)


@pytest.mark.parametrize("name", ["vgg", "my-net:make", "my_net:", ":make", "a.b", "os:system()"])
def test_a_name_is_of_the_package_or_of_a_function(name):
    with pytest.raises(ValueError, match="model must be one of inception, resnet18.* or package"):
        RunConfig(model=name)
