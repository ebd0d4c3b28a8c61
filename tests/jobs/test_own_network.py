"""Networks that no job trained, and data that come without a configuration."""

import json
import sys

import numpy as np
import pytest
from flax import linen, nnx
from small_runs import Small, use_small

from jaxpoison import (
    Dataset,
    RunConfig,
    explain,
    fit,
    predict,
    protocol,
    repair,
    run_scan,
    save_model,
    scan,
    search,
    trained_network,
    write_report,
    write_scan_report,
)
from jaxpoison.cli import main
from jaxpoison.jobs import explaining, stages

pytestmark = [
    pytest.mark.mixes_types,
    # It is trained for two epochs.
    pytest.mark.filterwarnings("ignore:the network classifies"),
]
NAMES = ("raw_pca", "activation_pca")


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """A scan by configuration, whose network and data are then brought."""
    with pytest.MonkeyPatch.context() as patch:
        use_small(patch)
        folder = tmp_path_factory.mktemp("scanned")
        return run_scan(RunConfig(epochs=2, rate=0.3), folder, detector="activation_pca")


def test_a_brought_network_is_searched_as_a_trained_one(found, tmp_path):
    model, data = found.network.model, found.data
    own = scan(model, data, detector="activation_pca", workdir=tmp_path)
    assert [each.label for each in own.classes] == [each.label for each in found.classes]
    np.testing.assert_array_equal(own.called, found.called)
    assert own.config is None
    assert own.network.training is None
    assert sorted(p.name for p in tmp_path.glob("*.*") if p.name != ".lock") == [
        "classes.csv",
        "clusters.csv",
        "scan.json",
        "suspects.csv",
    ]
    write_scan_report(tmp_path / "scan.html", own)
    assert "the data" in (tmp_path / "scan.html").read_text()


def test_one_class_is_searched(found, tmp_path):
    model, data = found.network.model, found.data
    outcome = search(model, data, 5, detectors=NAMES)
    assert list(outcome.findings) == list(NAMES)
    of_scan = next(each for each in found.classes if each.label == 5)
    np.testing.assert_array_equal(
        outcome.findings["activation_pca"].detection.labels, of_scan.finding.detection.labels
    )
    assert outcome.evaluation.test_accuracy is not None
    assert outcome.rates("raw_pca").tpr is not None
    write_report(tmp_path / "report.html", outcome)
    text = (tmp_path / "report.html").read_text()
    assert "The network was brought" in text
    assert "Small" in text


def test_training_images_alone_will_do_and_the_truth_is_optional(found, tmp_path):
    train = found.data.train
    unknown = Dataset(train.images, train.labels, train.class_names, train.ids)
    outcome = search(found.network.model, unknown, 5, detectors=NAMES)
    assert outcome.evaluation.test_accuracy is None
    assert outcome.poisoned is None
    write_report(tmp_path / "report.html", outcome)
    assert "there are no test images" in (tmp_path / "report.html").read_text()
    scanned = scan(found.network.model, unknown, detector="activation_pca")
    np.testing.assert_array_equal(scanned.called, found.called)


def test_a_model_is_left_as_it_is(found):
    model = nnx.clone(found.network.model)
    model.train()
    before = [np.array(leaf) for leaf in nnx.to_flat_state(nnx.state(model)).leaves]
    search(model, found.data, 5, detectors=("raw_pca",))
    after = [np.array(leaf) for leaf in nnx.to_flat_state(nnx.state(model)).leaves]
    for one, other in zip(before, after, strict=True):
        np.testing.assert_array_equal(one, other)


def test_what_is_finished_is_not_done_again(found, tmp_path, monkeypatch):
    model, data = found.network.model, found.data
    search(model, data, 5, detectors=NAMES, workdir=tmp_path)
    record = json.loads((tmp_path / "result.json").read_text())
    assert (record["config"], record["training"]) == (None, None)
    assert list(record["detectors"]) == list(NAMES)
    assert (tmp_path / "images.csv").exists()
    assert (tmp_path / "suspects-class-5.csv").exists()
    made = []
    monkeypatch.setattr(stages, "write_arrays", lambda path, arrays: made.append(path))
    search(model, data, 5, detectors=NAMES, workdir=tmp_path)
    assert not made
    # Another network is another search.
    other = Small(10, rngs=nnx.Rngs(7))
    search(other, data, 5, detectors=("raw_pca",), workdir=tmp_path)
    assert made


def test_activations_of_a_named_layer_are_seen(found, monkeypatch):
    asked = []
    outputs = explaining.layer_outputs
    monkeypatch.setattr(
        explaining,
        "layer_outputs",
        lambda model, images, layer, **given: (
            asked.append(layer) or outputs(model, images, layer, **given)
        ),
    )
    model, data = found.network.model, found.data
    outcome = search(model, data, 5, detectors=("activation_pca",), layer="conv")
    assert asked == ["conv"]
    assert outcome.explained.activations.shape[1] == 4 * 16 * 16
    with pytest.raises(ValueError, match="no module 'head'; it has conv, hidden, out"):
        search(model, data, 5, detectors=("activation_pca",), layer="head")


def test_a_repair_trains_by_a_function_of_ones_own(found, tmp_path):
    left = []

    def fit_again(data):
        left.append(data)
        network = Small(10, rngs=nnx.Rngs(1))
        fit(network, data.train, data.validation, protocol("fast", len(data.train), epochs=1))
        return network

    outcome = repair(
        fit_again,
        found.network.model,
        found.data,
        5,
        # It cannot tell whether a class is attacked, and always suspects someone.
        detector="raw_pca",
        rounds=1,
        workdir=tmp_path,
    )
    assert len(outcome.rounds) == 2
    assert len(left) == 1
    removed = outcome.rounds[0].removal.images
    assert len(left[0].train) == len(found.data.train) - len(removed)
    assert (tmp_path / "removed.csv").exists()
    assert (outcome.config, outcome.settings) == (None, None)


class Linen(linen.Module):
    @linen.compact
    def __call__(self, x):
        return linen.Dense(10)(x.reshape(len(x), -1))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (Linen(), "a network must be a flax.nnx.Module, found Linen: nnx.bridge.ToNNX"),
        (lambda x: x, "a network must be a flax.nnx.Module, found function$"),
    ],
)
def test_what_is_no_network_is_refused(model, message, found):
    with pytest.raises(TypeError, match=message):
        scan(model, found.data)


def test_a_linen_module_is_scanned_by_gradients_through_the_bridge(found):
    data = found.data
    one = np.zeros((1, 32, 32, 3), np.float32)
    module = nnx.bridge.ToNNX(Linen(), rngs=nnx.Rngs(0)).lazy_init(one)
    assert predict(module, data.test.images).shape == (len(data.test), 10)
    with pytest.raises(ValueError, match="operation 'dot_general' .*there is no relevance rule"):
        explain(module, data.test.images, data.test.labels)
    # It is not trained: its own words are the labels.
    labels = predict(module, data.train.images).argmax(-1)
    scanned = scan(module, Dataset.from_arrays(data.train.images, labels), attribution="gradient")
    counts = np.bincount(labels)
    assert (counts > 0).sum() > 1
    assert {each.label for each in scanned.classes} == set(np.flatnonzero(counts >= 12))


def test_mistakes_are_named_before_anything_is_done(found, tmp_path):
    model, data = found.network.model, found.data
    for error, message, given in (
        (ValueError, "detector must be one of", {"detectors": ("magic",)}),
        (ValueError, "attribution must be one of", {"attribution": "magic"}),
        (ValueError, "target must be a class from 0 to 9", {"target": 10}),
        (TypeError, "data must be a Dataset or Splits, found ndarray", {"data": data.train.images}),
    ):
        options = {"data": data, "target": 5, "detectors": NAMES} | given
        with pytest.raises(error, match=message):
            search(model, **options)
    search(model, data, 5, detectors=(), workdir=tmp_path)
    with pytest.raises(FileNotFoundError, match="no network in .*: the last job was given a"):
        trained_network(tmp_path)


MODULE = """
from small_runs import Small

def make(num_classes, rngs):
    return Small(num_classes, rngs=rngs)

def few():
    from flax import nnx
    return Small(3, rngs=nnx.Rngs(0))
"""


@pytest.fixture
def shell(found, tmp_path, monkeypatch):
    """A directory with a module that makes the network, and its weights."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_net.py").write_text(MODULE)
    save_model(tmp_path / "trained", found.network.model)
    yield ["--model", "my_net:make", "--weights", "trained", "--workdir", "work"]
    sys.modules.pop("my_net", None)


def test_a_network_of_ones_own_is_scanned_from_the_shell(shell, found, tmp_path, only, capsys):
    only("evaluate", "explain", "detect")
    command = [*shell, "--quiet", "--detector", "activation_pca"]
    assert main(["scan", *command]) == 0
    record = json.loads((tmp_path / "work" / "scan.json").read_text())
    assert record["config"]["model"] == "my_net:make"
    assert record["config"]["weights"] == "trained"
    assert record["config"]["attack"] == "none"
    assert record["truth"] is None
    # The images are those before the attack: only classes that it left alone are the same.
    same = {
        c.label: c.finding.separation.silhouette for c in found.classes if c.label not in (2, 5)
    }
    for each in record["classes"]:
        if each["class"] in same:
            assert each["silhouette"] == pytest.approx(same[each["class"]], abs=1e-4)
    assert "searched" in capsys.readouterr().out
    # It goes on by its configuration, from another directory too.
    assert main(["scan", "--config", "work/config.json", "--quiet"]) == 0
    with pytest.raises(FileNotFoundError, match="the last job was given a trained one"):
        trained_network(tmp_path / "work")


def test_a_network_of_ones_own_is_run_and_repaired_from_the_shell(shell, tmp_path):
    assert main(["run", *shell, "--quiet", "--detectors", "raw_pca"]) == 0
    assert "my_net:make" in (tmp_path / "work" / "report.html").read_text()
    options = ["--detector", "raw_pca", "--rounds", "1", "--epochs", "1"]
    assert main(["repair", *shell, "--quiet", *options]) == 0
    assert json.loads((tmp_path / "work" / "repair.json").read_text())["removed"] >= 0


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--weights", "absent"], "no weights at absent"),
        (["--model", "my_net:absent"], "my_net has no absent"),
        (["--model", "absent:make"], "no module absent in"),
        (["--model", "my_net:few"], "out.bias of the network has the shape (3,), in trained it"),
        (["--attack", "standard"], "weights are of a network that is trained: nothing can be"),
        (["--layer", "head"], "the model has no module 'head'; it has conv, hidden, out"),
    ],
)
def test_mistakes_about_ones_own_network_take_one_line(shell, given, message, capsys):
    command = ["run", *shell, "--quiet", "--detectors", "activation_pca"]
    assert main([*command, *given]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_layers_are_listed(shell, capsys):
    assert main(["layers", "--model", "my_net:make", "--image-size", "32"]) == 0
    said = capsys.readouterr().out
    assert said.index("conv") < said.index("hidden") < said.index("out ")
    for word in ("16x16x4", "Epsilon", "activations: what out gets"):
        assert word in said
    assert main(["layers", "--model", "my_net:make"]) == 2
    assert "takes images of any size: give --image-size" in capsys.readouterr().err


def test_a_network_that_knows_the_data_badly_is_doubted(found):
    untrained = Small(10, rngs=nnx.Rngs(5))
    with pytest.warns(UserWarning, match=r"classifies \d+ % of 256 of the images that it"):
        search(untrained, found.data, 5, detectors=("raw_pca",))
    with pytest.raises(ValueError, match="gives 3 logits, and the data have 10 classes"):
        scan(Small(3, rngs=nnx.Rngs(0)), found.data)
