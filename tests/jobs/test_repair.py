"""How a repair goes on and ends, with searches that suspect given images."""

import csv
import json
from importlib import import_module
from types import SimpleNamespace

import numpy as np
import pytest

from jaxpoison import (
    Backdoor,
    Dataset,
    Detection,
    RunConfig,
    RunOutcome,
    Separation,
    Splits,
    TrainConfig,
    Verdict,
    run_repair,
)
from jaxpoison.jobs.evaluating import Evaluation
from jaxpoison.jobs.explaining import ExplainedClass

module = import_module("jaxpoison.jobs.repair")
outcomes = import_module("jaxpoison.jobs.outcome")
TARGET, SOURCE = 1, 0
NONE = np.zeros(0, int)


@pytest.fixture
def attacked():
    """Images whose colour is what they look like; six poisoned ones in the target class."""
    looks = np.array([SOURCE] * 10 + [TARGET] * 20 + [SOURCE] * 6)
    labels = np.array([SOURCE] * 10 + [TARGET] * 26)
    images = np.broadcast_to(looks[:, None, None, None], (36, 8, 8, 3)).astype(np.uint8)
    ids = tuple(map(str, range(36)))
    train = Dataset(images, labels, ("0", "1"), ids, np.arange(36) >= 30)
    few = train.take(np.array([0, 1, 12, 34]))
    return Splits(train, few, few, Backdoor(SOURCE, TARGET, few))


def validation_of(table):
    return [row for row in table.read_text().split() if row.startswith("validation")]


@pytest.fixture
def searched(attacked, monkeypatch):
    """Searches that suspect given images, by id; networks that see colours."""
    suspected_ids = [{"30", "31", "32", "33", "12"}, {"34", "35"}, {"13", "14", "15"}]
    made = SimpleNamespace(
        calls=[], silhouette=0.9, activations=lambda ids: np.zeros((len(ids), 3))
    )
    settings = TrainConfig(epochs=3)

    def evaluation(data):
        return Evaluation(0.97, 10, float(data.train.poisoned.mean()), {}, 1.0)

    def train(name, given, data, work, progress):
        assert given == settings
        # The first one is of all.
        if len(data.train) < 36:
            made.calls.append(("network", len(data.train), len(data.validation)))
        key = f"network of {len(data.train)}"
        stage = SimpleNamespace(key=key, seconds=1.0, versions={"jax": "1"})
        training = outcomes.Training(None, settings, stage)
        return outcomes.Network("network", key, training)

    def judge(network, data, work, progress):
        return evaluation(data), SimpleNamespace(versions={"jax": "2"})

    def search(options, network, data, target, detectors, work, progress):
        assert target == TARGET
        train = data.train
        made.calls.append(("search", len(train), detectors))
        members = np.flatnonzero(train.labels == TARGET)
        found = suspected_ids.pop(0) if suspected_ids else set()
        labels = np.array([train.ids[i] in found for i in members]).astype(int)
        detection = Detection(labels, labels.astype(float), 0.0, True, {})
        silhouette = made.silhouette if found else None
        (name,) = detectors
        evidence = None
        if name == "transplant":
            evidence = SimpleNamespace(verdict=Verdict(2.0 if found else 0.1))
        apart = Separation(silhouette, np.zeros(10))
        finding = outcomes.Finding(name, detection, apart, 0.0, "key of the finding", evidence)
        activations = made.activations([train.ids[i] for i in members])
        explained = ExplainedClass(TARGET, members, np.zeros(0), activations, 0, None, (), 1.0)
        return RunOutcome(
            options,
            data,
            network,
            evaluation(data),
            explained,
            {name: finding},
            network.stages,
        )

    monkeypatch.setattr(module, "search_class", search)
    monkeypatch.setattr(module, "train_model", train)
    monkeypatch.setattr(module, "job_network", lambda config, *given: train(None, *given))
    monkeypatch.setattr(module, "judge_network", judge)
    monkeypatch.setattr(module, "prepare", lambda *_: (attacked, settings))
    monkeypatch.setattr(module, "FEWEST", 1)
    monkeypatch.setattr(module, "widened_suspects", lambda suspects, _: suspects)
    monkeypatch.setattr(
        module, "activations", lambda model, images, layer, title: np.zeros((len(images), 3))
    )
    monkeypatch.setattr(
        module, "like_suspects", lambda suspects, of_train, others: np.zeros(len(others), bool)
    )
    monkeypatch.setattr(
        "jaxpoison.jobs.records.config_record", lambda config, _: {"config": config.record()}
    )
    monkeypatch.setattr(
        module, "predict", lambda _, images: np.eye(2)[images[:, 0, 0, 0].astype(int)]
    )
    return made


def repaired(tmp_path, **options):
    options = {"detector": "heatmap", **options}
    outcome = run_repair(RunConfig(target=TARGET), tmp_path, **options)
    return outcome, json.loads((tmp_path / "repair.json").read_text())


def test_repairs_take_out_what_is_like_the_suspects(searched, tmp_path, monkeypatch):
    searched.activations = lambda ids: np.array([[name == "34"] for name in ids], float)
    monkeypatch.setattr(
        module,
        "widened_suspects",
        lambda suspects, activations: suspects | (activations[:, 0] > 0),
    )
    outcome, found = repaired(tmp_path, rounds=1)
    first = found["networks"][0]["suspects"]
    assert (first["by_detector"], first["images"], first["poisoned_images"]) == (5, 6, 5)
    assert found["removed"] == outcome.removed.sum() == 6


def test_validation_images_like_the_suspects_are_taken_out_too(searched, tmp_path, monkeypatch):
    monkeypatch.setattr(
        module, "like_suspects", lambda suspects, of_train, others: np.arange(len(others)) == 1
    )
    outcome, found = repaired(tmp_path, rounds=1)
    # Two of four validation images are of the target class.
    assert searched.calls[-1] == ("network", 31, 3)
    assert found["networks"][0]["suspects"]["validation_images"] == 1
    assert outcome.rounds[0].removal.validation.ids == ("34",)
    assert validation_of(tmp_path / "removed.csv") == ["validation,34,1"]
    assert len(validation_of(tmp_path / "kept.csv")) == 3
    assert found["versions"] == {"jax": "1, 2"}


def test_without_suspects_it_ends_where_a_detector_cannot_tell(searched, tmp_path, monkeypatch):
    search = module.search_class

    def without(*arguments):
        outcome = search(*arguments)
        outcome.findings["raw_pca"].detection.labels[:] = 0
        return outcome

    monkeypatch.setattr(module, "search_class", without)
    _, found = repaired(tmp_path, detector="raw_pca")
    assert (found["ended"], found["removed"]) == ("class not suspicious", 0)
    assert len(searched.calls) == 1


def test_suspects_stay_out_until_they_prove_clean(searched, tmp_path):
    outcome, found = repaired(tmp_path)
    searches = ("heatmap",)
    assert searched.calls == [
        ("search", 36, searches),
        ("network", 31, 4),
        ("search", 31, searches),
        ("network", 29, 4),
        ("search", 29, searches),
        # What is judged clean is not searched.
        ("network", 26, 4),
    ]
    assert found["ended"] == "suspects proved clean"
    assert found["removed"] == 7
    assert (found["before"]["poisoned_images"], found["after"]["poisoned_images"]) == (6, 0)
    assert (found["before"]["training_images"], found["after"]["training_images"]) == (36, 29)
    assert found["networks"][0]["suspects"] == {
        "by_detector": 5,
        "images": 5,
        "poisoned_images": 4,
        "validation_images": 0,
        "as_label": 1,
        "as_other": 4,
        "other": SOURCE,
        "called_poisoned": True,
    }
    assert not found["networks"][2]["suspects"]["called_poisoned"]
    with (tmp_path / "removed.csv").open(newline="") as file:
        assert {row["id"] for row in csv.DictReader(file)} == {"12", *map(str, range(30, 36))}
    with (tmp_path / "kept.csv").open(newline="") as file:
        kept = list(csv.DictReader(file))
    assert sum(row["part"] == "train" for row in kept) == 29
    assert kept[0] == {"part": "train", "id": "0", "label": "0"}
    # The network that stands for the directory is the last whose removal stands.
    job = json.loads((tmp_path / "jobs" / "repair.json").read_text())
    assert job["network"] == "network of 29"
    assert outcome.kept == 2


def test_rounds_are_bounded(searched, tmp_path):
    _, found = repaired(tmp_path, rounds=1)
    assert len(searched.calls) == 2
    assert (found["removed"], found["ended"]) == (5, "rounds used up")
    assert found["after"]["poisoned_images"] == 2


def test_ends_where_nothing_is_suspected(searched, tmp_path, monkeypatch):
    monkeypatch.setattr(
        module, "predict", lambda _, images: np.eye(2)[np.full(len(images), SOURCE)]
    )
    _, found = repaired(tmp_path, rounds=9)
    assert (found["removed"], found["ended"]) == (10, "class not suspicious")
    assert found["after"]["training_images"] == 26
    assert found["after"]["suspects"] is None


def test_suspects_of_a_class_that_is_not_suspicious_stay(searched, tmp_path, monkeypatch):
    judge = module.judge_network

    def calming(*arguments):
        searched.silhouette = 0.1
        return judge(*arguments)

    monkeypatch.setattr(module, "judge_network", calming)
    _, found = repaired(tmp_path)
    assert (found["removed"], found["ended"]) == (5, "class not suspicious")
    assert found["after"]["training_images"] == 31
    assert len(searched.calls) == 3


def test_what_is_left_of_a_class_may_be_too_small(searched, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "FEWEST", 22)
    _, found = repaired(tmp_path)
    assert (found["removed"], found["ended"]) == (5, "class too small to be searched")
    assert found["after"]["training_images"] == 31
    assert len(searched.calls) == 2


def test_options_are_checked(tmp_path):
    with pytest.raises(ValueError, match="detector must be one of .* found 'magic'"):
        run_repair(RunConfig(), tmp_path, detector="magic")
    with pytest.raises(ValueError, match="rounds must be at least 1, found 0"):
        run_repair(RunConfig(), tmp_path, rounds=0)
    assert not list(tmp_path.iterdir())


@pytest.fixture
def carriers(monkeypatch):
    """Carriers that are found at first; none later."""
    waiting = [outcomes.Carriers(np.array([3]), np.array([3]), NONE, 1.0)]
    none = outcomes.Carriers(NONE, NONE, NONE, 1.0)

    def look(trained, data, evidence, hosts, seed, found_by, work, progress):
        assert found_by == "key of the finding"
        return waiting.pop() if waiting else none

    monkeypatch.setattr(module, "look_for_carriers", look)
    monkeypatch.setattr(module, "possible_hosts", lambda *_: None)
    return waiting


@pytest.mark.usefixtures("carriers")
def test_what_evidence_calls_stays_out_and_carriers_with_it(searched, tmp_path):
    outcome, found = repaired(tmp_path, detector="transplant")
    # Five suspects and one of another class; then two; then three clean ones, called all the same.
    assert found["removed"] == 6 + 2 + 3
    assert outcome.removed[3]
    assert outcome.ended == "class not suspicious"
    first = found["networks"][0]["suspects"]
    assert (first["by_detector"], first["images"], first["validation_images"]) == (5, 6, 1)
    assert validation_of(tmp_path / "removed.csv") == ["validation,34,1"]
    # The last ones look like their label, as those of a label-consistent attack do.
    last = found["networks"][2]["suspects"]
    assert (last["as_label"], last["as_other"]) == (3, 0)


def test_other_detectors_put_back_what_looks_like_its_label(searched, tmp_path):
    outcome, found = repaired(tmp_path)
    assert outcome.ended == "suspects proved clean"
    assert found["removed"] == 7


def test_some_validation_images_are_left(searched, carriers, tmp_path):
    carriers[:] = [outcomes.Carriers(NONE, np.arange(4), NONE, 1.0)]
    repaired(tmp_path, detector="transplant", rounds=1)
    assert ("network", 31, 4) in searched.calls
