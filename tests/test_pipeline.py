import csv
import dataclasses
import json
import re
from importlib import import_module

import numpy as np
import pytest
from flax import nnx

from jaxpoison import (
    Dataset,
    PoisonedSplits,
    RunConfig,
    explain,
    pipeline,
    preparation,
    run,
    screening,
    stages,
    synthetic,
)
from jaxpoison.cli import _parser
from jaxpoison.clustering import gw_kmeans, spaces_in_mode
from jaxpoison.config import MODELS
from jaxpoison.detectors.named import DETECTORS as DETECTORS_BY_NAME
from jaxpoison.models.layers import MaxPool
from jaxpoison.pipeline import explain_all
from jaxpoison.report.figures import examples
from jaxpoison.report.html import write_report, write_scan_report
from jaxpoison.screening import scan

DETECTORS = ("raw_pca", "activation_pca", "heatmap_paper")


class Small(nnx.Module):
    feature_layer = "hidden"

    def __init__(self, num_classes, *, rngs):
        self.conv = nnx.Conv(3, 4, (3, 3), strides=2, rngs=rngs)
        self.pool = MaxPool(2)
        self.hidden = nnx.Linear(4 * 8 * 8, 16, rngs=rngs)
        self.out = nnx.Linear(16, num_classes, rngs=rngs)

    def __call__(self, x):
        x = self.pool(nnx.relu(self.conv(x)))
        return self.out(nnx.relu(self.hidden(x.reshape(len(x), -1))))


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """A small network and small data: what is tested is the way through the stages."""
    monkeypatch.setitem(MODELS, "inception", Small)
    monkeypatch.setattr(
        preparation,
        "load_data",
        lambda *_, seed, **__: synthetic(train=300, validation=60, test=60, seed=seed),
    )


@pytest.fixture
def config():
    return RunConfig(rate=0.25, epochs=1, detectors=DETECTORS)


def only(monkeypatch, *allowed):
    """Lets no other stage run."""
    for name in ("fit", "_evaluate", "_explain", "_detect"):
        if name not in allowed:

            def fail(*_, name=name, **__):
                raise AssertionError(f"{name} ran")

            monkeypatch.setattr(preparation if name == "fit" else pipeline, name, fail)


NUMBER = (int, float)
SCHEMA = {
    "config": {
        "data": str,
        "attack": str,
        "rate": float,
        "sticker_size": int,
        "trigger": str,
        "amplitude": type(None),
        "source": int,
        "target": int,
        "model": str,
        "protocol": str,
        "epochs": int,
        "seed": int,
        "attribution": str,
    },
    "suspected_class": {
        "images": int,
        "negative_logits": int,
        "largest_absorbed_share": float,
        "conservation": list,
    },
    "model": {"test_accuracy": float, "parameters": int},
    "attack": {"asr": float, "masr": type(None), "per_class_asr": type(None)},
    "detectors": {
        name: {
            "acc": float,
            "tpr": float,
            "tnr": float,
            "cluster_sizes": list,
            "silhouette": float,
            "suspicious": (bool, type(None)),
            "seconds": NUMBER,
        }
        for name in DETECTORS
    },
    "seconds": {name: NUMBER for name in ("train", "evaluate", "explain", *DETECTORS)},
    "versions": {"jax": str, "jaxpoison": str, "ott-jax": str},
}


def conforms(value, schema, path=""):
    if isinstance(schema, dict):
        for name, inner in schema.items():
            assert name in value, f"{path}.{name} is missing"
            conforms(value[name], inner, f"{path}.{name}")
    else:
        assert isinstance(value, schema), f"{path} is {value!r}"


def test_results_have_the_documented_form(config, tmp_path):
    outcome = run(config, tmp_path)
    result = json.loads((tmp_path / "result.json").read_text())
    conforms(result, SCHEMA)
    assert result["config"]["rate"] == 0.25
    members = outcome.splits.train.labels == 5
    for name, row in result["detectors"].items():
        assert sum(row["cluster_sizes"]) == members.sum() == 40, name
        shares = [row[rate] for rate in ("acc", "tpr", "tnr")]
        assert all(0 <= share <= 1 for share in shares)
        assert (row["suspicious"] is None) == (name != "activation_pca")
    layers = result["suspected_class"]["conservation"]
    assert [row["layer"] for row in layers] == ["conv", "pool", "hidden", "out"]
    assert layers[-1]["rule"] == "Epsilon"
    assert layers[-1]["given"] == pytest.approx(1, rel=1e-4)
    assert result["attack"]["poisoned_images"] == outcome.poisoned.sum() == 10
    assert json.loads((tmp_path / "config.json").read_text())["epochs"] == 1

    rows = list(csv.DictReader((tmp_path / "suspects.csv").read_text().splitlines()))
    train = outcome.splits.train
    assert [r["id"] for r in rows] == [train.ids[i] for i in np.flatnonzero(members)]
    assert {r["label"] for r in rows} == {"5"}
    for name, found in outcome.detections.items():
        assert [int(r[f"{name}_cluster"]) for r in rows] == found.labels.tolist()
        np.testing.assert_allclose(
            [float(r[f"{name}_score"]) for r in rows], found.scores, rtol=1e-4, atol=1e-6
        )


def test_finished_stages_are_skipped(config, tmp_path, monkeypatch):
    first = run(config, tmp_path).result
    only(monkeypatch)
    assert run(config, tmp_path).result == first


def test_changes_invalidate_what_depends_on_them(config, tmp_path, monkeypatch):
    run(config, tmp_path)
    with monkeypatch.context() as patch:
        only(patch, "_detect")
        more = dataclasses.replace(config, detectors=(*DETECTORS, "activation_ica"))
        assert "activation_ica" in run(more, tmp_path).result["detectors"]
    with monkeypatch.context() as patch:
        only(patch)
        fewer = dataclasses.replace(config, detectors=("heatmap_paper",))
        assert list(run(fewer, tmp_path).result["detectors"]) == ["heatmap_paper"]
    only(monkeypatch)
    for change in ({"rate": 0.3}, {"seed": 1}, {"epochs": 2}, {"sticker_size": 2}):
        with pytest.raises(AssertionError, match="fit ran"):
            run(dataclasses.replace(config, **change), tmp_path)


def test_interrupted_run_goes_on(config, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:

        def interrupt(*_, **__):
            raise KeyboardInterrupt

        patch.setattr(pipeline, "_explain", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run(config, tmp_path)
    only(monkeypatch, "_explain", "_detect")
    run(config, tmp_path)


def test_detectors_never_see_the_truth(config, tmp_path, monkeypatch):
    expected = run(config, tmp_path / "a").detections
    attack = preparation.standard_backdoor

    def scrambled(*arguments, **options):
        data = attack(*arguments, **options)
        truth = np.random.default_rng(5).permutation(data.poisoned)
        return PoisonedSplits(data.splits, truth, data.triggered, data.source, data.target)

    monkeypatch.setattr(preparation, "standard_backdoor", scrambled)
    found = run(config, tmp_path / "b").detections
    for name in DETECTORS:
        assert (found[name].labels == expected[name].labels).all()
        assert (found[name].scores == expected[name].scores).all()


def test_label_consistent_attack_trains_one_surrogate(config, tmp_path, monkeypatch):
    trained = []
    fit = preparation.fit

    def counted(model, train, *arguments, **options):
        trained.append(train.fingerprint)
        return fit(model, train, *arguments, **options)

    monkeypatch.setattr(preparation, "fit", counted)
    config = dataclasses.replace(
        config, attack="label-consistent", trigger="amplitude", amplitude=64
    )
    outcome = run(config, tmp_path / "a")
    clean = synthetic(train=300, validation=60, test=60, seed=config.seed)
    # The surrogate sees clean data, the victim poisoned ones.
    assert trained[0] == clean.train.fingerprint
    assert len(set(trained)) == len(trained) == 2
    result = outcome.result
    assert result["attack"]["asr"] is None
    shares = result["attack"]["per_class_asr"]
    assert set(shares) == {str(c) for c in range(10) if c != 5}
    assert result["attack"]["masr"] == pytest.approx(np.mean(list(shares.values())))
    assert result["attack"]["poisoned_images"] == round(0.25 * (clean.train.labels == 5).sum())
    assert (outcome.splits.train.labels == clean.train.labels).all()
    changed = (outcome.splits.train.images != clean.train.images).any((1, 2, 3))
    assert (changed[outcome.suspected] == outcome.poisoned).all()
    assert changed.sum() == outcome.poisoned.sum()
    assert result["config"]["source"] is None
    assert result["config"]["perturbation"]["steps"] == 5
    assert run(config, tmp_path / "a").result == result
    assert len(trained) == 2
    run(dataclasses.replace(config, rate=0.5), tmp_path / "b")
    assert len(trained) == 3
    preparation.clean_network(dataclasses.replace(config, attack="standard"), clean, False)
    assert len(trained) == 3
    write_report(tmp_path / "report.html", outcome)
    text = (tmp_path / "report.html").read_text()
    assert "a 3×3 pattern of amplitude 64 in the lower right corner and kept their label" in text
    assert "on the mean over classes" in text


def test_both_settings_of_heatmap_clustering(config, tmp_path, monkeypatch):
    """The default's couplings carry geometry where the paper's do not.

    The relevance of so small a network is spread over all pixels, and at either epsilon the
    iteration (a float64 loop's too) ends in constant centres: it is squared.
    """

    def sharper(*arguments, **options):
        found = explain(*arguments, **options)
        return dataclasses.replace(found, relevance=np.maximum(found.relevance, 0) ** 2)

    monkeypatch.setattr(pipeline, "explain", sharper)
    names = ("mean_distance", "heatmap_paper", "heatmap", "heatmap_sharp")
    outcome = run(dataclasses.replace(config, detectors=names), tmp_path)
    notes = {name: found.notes for name, found in outcome.detections.items()}
    assert [notes[name]["epsilon"] for name in names[1:]] == [0.1, 0.02, 0.005]
    assert notes["heatmap_paper"]["coupling_information_nats"] < 1e-4
    assert notes["heatmap"]["coupling_information_nats"] > 0.05
    # Quantised to ten points, both centres have a structure.
    assert notes["heatmap_sharp"]["coupling_information_nats"] > 0.2
    assert outcome.result["detectors"]["heatmap_sharp"]["suspicious"] is None
    # Without geometry, one number per image is left of the heatmaps; from other seeds
    # two-means may end an image or two elsewhere.
    same = outcome.detections["mean_distance"].labels == outcome.detections["heatmap_paper"].labels
    assert same.mean() > 0.9


def test_without_attack_rates_are_null(config, tmp_path):
    outcome = run(dataclasses.replace(config, attack="none"), tmp_path)
    result = json.loads((tmp_path / "result.json").read_text())
    assert outcome.poisoned is None
    assert result["attack"]["asr"] is None
    assert result["config"]["rate"] is None
    assert all(row["acc"] is None for row in result["detectors"].values())
    write_report(tmp_path / "report.html", outcome)
    text = (tmp_path / "report.html").read_text()
    assert "No attack was made" in text
    assert "Suspects" in text


def test_other_attributions_need_no_new_training(config, tmp_path, monkeypatch):
    lrp = run(config, tmp_path)
    only(monkeypatch, "_explain", "_detect")
    gradient = run(dataclasses.replace(config, attribution="gradient"), tmp_path)
    assert gradient.result["suspected_class"]["conservation"] is None
    assert gradient.result["config"]["attribution"] == "gradient"
    assert not np.allclose(lrp.relevance, gradient.relevance)
    write_report(tmp_path / "report.html", gradient)
    assert "by gradient" in (tmp_path / "report.html").read_text()


def test_every_training_image_is_explained_part_by_part(config, tmp_path, monkeypatch):
    outcome = run(config, tmp_path)
    monkeypatch.setattr(pipeline, "_PART", 100)
    only(monkeypatch)
    heatmaps = np.load(explain_all(config, tmp_path), mmap_mode="r")
    train = outcome.splits.train
    assert heatmaps.shape == (len(train), 32, 32)
    np.testing.assert_allclose(
        heatmaps[outcome.suspected],
        outcome.relevance.sum(-1),
        rtol=1e-4,
        atol=1e-6 * outcome.relevance.max(),
    )
    rows = list(csv.DictReader((tmp_path / "relevance.csv").read_text().splitlines()))
    assert [r["id"] for r in rows] == list(train.ids)
    assert [int(r["label"]) for r in rows] == train.labels.tolist()
    monkeypatch.setattr(pipeline, "explain", None)  # finished parts are read
    np.testing.assert_array_equal(np.load(explain_all(config, tmp_path)), heatmaps)


def read(path):
    return list(csv.DictReader(path.read_text().splitlines()))


def test_all_classes_are_searched_once(config, tmp_path, monkeypatch):
    monkeypatch.setattr(import_module("jaxpoison.separation"), "SAMPLE", 16)
    outcome = run(config, tmp_path)
    scanned = scan(config, tmp_path, detector="heatmap")
    train = outcome.splits.train
    classes, images = read(tmp_path / "classes.csv"), read(tmp_path / "clusters.csv")
    sizes = np.bincount(train.labels)
    assert sorted(int(r["class"]) for r in classes) == np.flatnonzero(sizes).tolist()
    suspicions = [float(r["suspicion"]) for r in classes]
    assert suspicions == sorted(suspicions, reverse=True)
    assert sorted(r["id"] for r in images) == sorted(train.ids)
    for row in classes:
        own = [int(r["cluster"]) for r in images if r["class"] == row["class"]]
        assert len(own) == int(row["images"]) == sizes[int(row["class"])]
        assert sum(own) == int(row["suspects"]) <= len(own) / 2
        assert -1 <= float(row["silhouette"]) <= 1
        assert (row["suspicious"] == "True") == (float(row["suspicion"]) >= 1)
        assert int(row["near_zero_eigenvalues"]) >= 1
    # Alone and without padding, a class is split alike.
    spaces = spaces_in_mode(outcome.relevance, "quick", 0.99, 10)
    alone = gw_kmeans(spaces, n_init=3, random_state=config.seed)
    there = np.array([int(r["cluster"]) for r in images if int(r["class"]) == config.target])
    smaller = alone.labels == np.bincount(alone.labels).argmin()
    assert (there == smaller).mean() >= 0.98
    record = json.loads((tmp_path / "scan.json").read_text())
    assert record == scanned.result
    order = [row["class"] for row in record["classes"]]
    assert record["truth"]["rank"] == order.index(config.target) + 1
    called = [
        outcome.splits.train.ids[i]
        for of in scanned.classes
        if of.suspicious
        for i in of.members[of.detection.suspects]
    ]
    poisoned = {train.ids[i] for i in np.flatnonzero(outcome.data.poisoned)}
    hits = len(poisoned & set(called)) / len(poisoned)
    assert record["truth"]["tpr"] == pytest.approx(hits)

    def changed(*_, **__):
        raise AssertionError("a finished class was searched again")

    monkeypatch.setattr(screening, "search_class", changed)
    monkeypatch.setattr(pipeline, "explain", changed)
    before = (tmp_path / "classes.csv").read_text()
    scan(config, tmp_path, detector="heatmap")
    assert (tmp_path / "classes.csv").read_text() == before


def test_the_cascade_explains_only_what_activations_tell_apart(config, tmp_path, monkeypatch):
    monkeypatch.setattr(import_module("jaxpoison.separation"), "SAMPLE", 16)
    activations = scan(config, tmp_path, detector="activation_pca")
    by_class = {of.label: of for of in activations.classes}
    silhouettes = sorted(of.separation.silhouette for of in activations.classes)
    # A threshold that two classes reach.
    monkeypatch.setattr(screening, "_PASSED_ON", silhouettes[-2])
    explained = []
    once = pipeline.explain

    def counted(model, images, labels, **options):
        explained.extend(labels.tolist())
        return once(model, images, labels, **options)

    monkeypatch.setattr(pipeline, "explain", counted)
    cascade = scan(config, tmp_path)
    chosen = {k for k, of in by_class.items() if of.separation.silhouette >= silhouettes[-2]}
    assert len(chosen) == 2
    assert set(explained) == chosen
    for of in cascade.classes:
        assert of.detector == ("heatmap" if of.label in chosen else "activation_pca")
    assert cascade.result["seconds"]["heatmap"] > 0
    assert cascade.result["suspicious_silhouettes"].keys() == {"activation_pca", "heatmap"}


def test_a_scan_makes_a_page(config, tmp_path, monkeypatch):
    monkeypatch.setattr(import_module("jaxpoison.separation"), "SAMPLE", 16)
    outcome = scan(config, tmp_path, detector="activation_pca")
    write_scan_report(tmp_path / "scan.html", outcome)
    text = (tmp_path / "scan.html").read_text()
    assert "http" not in text.replace("http-equiv", "")
    first = outcome.result["classes"][0]
    assert f"Class {first['class']} ({first['name']}), suspects" in text
    assert "In truth class 5 was attacked" in text
    assert text.count("<img") >= 3


def test_a_scan_refuses_what_it_does_not_know(config, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="mode must be one of exact, quick; found 'fast'"):
        scan(config, tmp_path, mode="fast")
    with pytest.raises(ValueError, match="detector must be one of .*cascade.* found 'raw_pca'"):
        scan(config, tmp_path, detector="raw_pca")
    monkeypatch.setattr(screening, "FEWEST", 1000)
    with pytest.raises(ValueError, match="no class has 1000 training images or more, found 300"):
        scan(config, tmp_path)


def test_report_is_self_contained(config, tmp_path):
    outcome = run(config, tmp_path)
    write_report(tmp_path / "report.html", outcome)
    text = (tmp_path / "report.html").read_text()
    assert text.count("data:image/png;base64,") == 4
    assert not re.findall(r'(?:src|href)="(?!data:)', text)
    for name, row in outcome.result["detectors"].items():
        assert name in text
        assert f"{100 * row['acc']:.2f}" in text
    assert "Poisoned images" in text
    for row in outcome.result["suspected_class"]["conservation"]:
        assert row["layer"] in text


def test_constant_heatmaps_are_not_suspected(heatmaps, tmp_path):
    black = np.zeros((2, *heatmaps.shape[1:]), np.float32)
    seen = np.concatenate([black[:1], heatmaps, black[1:]])
    detector = DETECTORS_BY_NAME["mean_distance"][1](0)
    alone = pipeline.search_class("relevance", detector, heatmaps)
    found = pipeline.search_class("relevance", detector, seen)
    assert found.values["notes"]["constant_heatmaps"] == 2
    assert found.values["silhouette"] == alone.values["silhouette"]
    for name in ("labels", "scores"):
        np.testing.assert_array_equal(found.arrays[name][1:-1], alone.arrays[name])
        assert found.arrays[name][[0, -1]].tolist() == [0, 0]
    with pytest.raises(ValueError, match="2 of 2 heatmaps are constant"):
        pipeline.search_class("relevance", detector, black)
    # They are drawn, too.
    images = np.zeros((3, *heatmaps.shape[1:], 3), np.uint8)
    drawn = examples(images, np.stack([black[0], heatmaps[0], black[1]])[..., None], ["a"] * 3)
    assert [len(axis.collections) for axis in drawn.axes[6:]] == [0, 1, 0]
    examples(images[:2], black[..., None], ["a"] * 2)


def test_few_outliers_make_a_class_suspicious(rng):
    seen = rng.normal(size=(1650, 20))
    seen[[3, 500, 1000, 1641]] += 60
    found = pipeline.search_class("activations", DETECTORS_BY_NAME["activation_pca"][1](0), seen)
    assert found.arrays["labels"].sum() == 4
    assert found.values["silhouette"] > 0.58


def test_a_class_is_large_enough_before_anything_is_trained(config, tmp_path, monkeypatch):
    only(monkeypatch)
    monkeypatch.setattr(pipeline, "FEWEST", 50)
    with pytest.raises(ValueError, match="at least 50 training images .* class 5 has 40"):
        run(config, tmp_path)


def test_versions_are_those_of_the_stages(config, tmp_path, monkeypatch):
    run(config, tmp_path)
    before = stages.versions()
    monkeypatch.setattr(stages, "versions", lambda: {**before, "jax": "99.0"})
    more = dataclasses.replace(config, detectors=(*DETECTORS, "raw_ica"))
    assert run(more, tmp_path).result["versions"]["jax"] == f"{before['jax']}, 99.0"


def test_names_of_classes_are_escaped(config, tmp_path, monkeypatch):
    def loaded(*_, seed, **__):
        splits = synthetic(train=300, validation=60, test=60, seed=seed)
        names = ("<script>alert()</script>",) * 10
        return type(splits)(
            *(
                Dataset(p.images, p.labels, names, p.ids)
                for p in (splits.train, splits.validation, splits.test)
            )
        )

    monkeypatch.setattr(preparation, "load_data", loaded)
    write_report(tmp_path / "report.html", run(config, tmp_path))
    assert "<script" not in (tmp_path / "report.html").read_text()


def test_configuration_is_checked(tmp_path):
    for change, message in (
        (
            {"attack": "evil"},
            "attack must be one of standard, label-consistent, none; found 'evil'",
        ),
        ({"rate": 33.0}, "rate must be between 0 and 1.*not percent"),
        ({"detectors": ("heatmap", "magic")}, "detector must be one of raw_pca.*found 'magic'"),
        ({"epochs": 0}, "epochs must be at least 1, found 0"),
        ({"model": "vgg"}, "model must be one of inception, resnet18; found 'vgg'"),
        ({"attribution": "magic"}, "attribution must be one of lrp, gradient.*found 'magic'"),
        ({"trigger": "magic"}, "trigger must be one of sticker, amplitude; found 'magic'"),
        ({"amplitude": 300}, "amplitude must be at most 256, found 300"),
        ({"protocol": "slow"}, "protocol must be one of fast, paper"),
    ):
        with pytest.raises(ValueError, match=message):
            RunConfig(**change)
    with pytest.raises(ValueError, match="target must be a class from 0 to 9.*found 40"):
        run(RunConfig(target=40), tmp_path)


def test_command_line_has_the_same_defaults():
    options, config = _parser().parse_args(["run"]), RunConfig()
    for field in dataclasses.fields(config.pgd):
        assert getattr(options, f"pgd_{field.name}") == getattr(config.pgd, field.name), field.name
    for field in dataclasses.fields(config):
        if field.name == "pgd":
            continue
        expected = getattr(config, field.name)
        if field.name == "detectors":
            expected = ",".join(expected)
        assert getattr(options, field.name) == expected, field.name
