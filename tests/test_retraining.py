import csv
import json

import numpy as np
import pytest

from jaxpoison import (
    Dataset,
    Detection,
    ExclusiveRetraining,
    PoisonedSplits,
    RunConfig,
    RunOutcome,
    Splits,
    exclusive_retraining,
    repair,
    retraining,
    widened_suspects,
)

TARGET, SOURCE = 1, 0


def test_images_that_look_like_another_class_are_poisoned():
    logits = np.eye(4)[[2, 2, 2, 1, 1, 3]]
    assert exclusive_retraining(logits, 1) == ExclusiveRetraining(2, 3, 2)
    assert exclusive_retraining(logits, 1).poisoned
    # As many one way as the other: not below 1.
    assert not exclusive_retraining(logits[1:], 1).poisoned
    assert exclusive_retraining(np.eye(4)[[1, 1]], 1) == ExclusiveRetraining(2, 0, None)
    with pytest.raises(ValueError, match="at least one image, found none"):
        exclusive_retraining(np.zeros((0, 4)), 1)


@pytest.fixture
def attacked():
    """Images whose colour is what they look like; six poisoned ones in the target class."""
    looks = np.array([SOURCE] * 10 + [TARGET] * 20 + [SOURCE] * 6)
    labels = np.array([SOURCE] * 10 + [TARGET] * 26)
    images = np.broadcast_to(looks[:, None, None, None], (36, 8, 8, 3)).astype(np.uint8)
    train = Dataset.from_arrays(images, labels)
    few = train.take(np.arange(2))
    splits = Splits(train, few, few)
    return PoisonedSplits(splits, np.arange(36) >= 30, few, SOURCE, TARGET)


@pytest.fixture
def searched(attacked, monkeypatch):
    """Searches that suspect given images, by id; networks that see colours."""
    suspected_ids = [{"30", "31", "32", "33", "12"}, {"34", "35"}, {"13", "14", "15"}]
    made = []

    def search(config, data, settings, work, progress):
        assert settings == "settings of the first"
        train = data.splits.train
        made.append((work.path.name, len(train), config.detectors))
        suspected = np.flatnonzero(train.labels == TARGET)
        found = suspected_ids.pop(0) if config.detectors and suspected_ids else set()
        labels = np.array([train.ids[i] in found for i in suspected]).astype(int)
        detection = Detection(labels, labels.astype(float), 0.0, True, {})
        result = {
            "model": {"test_accuracy": 0.97},
            "attack": {"asr": data.poisoned.mean(), "masr": None},
            "detectors": {name: {"suspicious": bool(found)} for name in config.detectors},
        }
        detections = {name: detection for name in config.detectors}
        activations = np.zeros((len(suspected), 3))
        return RunOutcome(
            result, data, None, suspected, np.zeros(0), activations, detections, {}, []
        )

    monkeypatch.setattr(retraining, "search", search)
    monkeypatch.setattr(
        retraining, "prepare", lambda *_: (attacked, attacked.splits, "settings of the first")
    )
    monkeypatch.setattr(retraining, "FEWEST", 1)
    monkeypatch.setattr(retraining, "widened_suspects", lambda suspects, _: suspects)
    monkeypatch.setattr(retraining, "config_record", lambda config, _: {"data": config.data})
    monkeypatch.setattr(
        retraining, "predict", lambda _, images: np.eye(2)[images[:, 0, 0, 0].astype(int)]
    )
    return made


def test_suspects_are_widened_by_activations(rng):
    truth = np.arange(300) < 60
    activations = rng.normal(size=(300, 4, 2)) + 6 * truth[:, None, None]
    missed, false = (np.arange(300) % 20 == 7) & truth, np.arange(300) == 250
    found = widened_suspects(truth & ~missed | false, activations)
    np.testing.assert_array_equal(found, truth | false)
    # Without a word from the activations, the suspects.
    for suspects in (np.zeros(300, bool), np.arange(300) == 3, np.ones(300, bool)):
        np.testing.assert_array_equal(widened_suspects(suspects, activations), suspects)


def test_repairs_take_out_what_is_like_the_suspects(searched, attacked, tmp_path, monkeypatch):
    monkeypatch.setattr(
        retraining,
        "widened_suspects",
        lambda suspects, activations: suspects | (activations[:, 0] > 0),
    )
    inner = retraining.search

    def search(config, data, *rest):
        outcome = inner(config, data, *rest)
        outcome.activations[:, 0] = [outcome.splits.train.ids[i] == "34" for i in outcome.suspected]
        return outcome

    monkeypatch.setattr(retraining, "search", search)
    found = json.loads(repair(RunConfig(target=TARGET), tmp_path, max_rounds=1).read_text())
    first = found["networks"][0]["suspects"]
    assert (first["by_detector"], first["images"], first["poisoned_images"]) == (5, 6, 5)
    assert found["removed"] == 6


def test_without_suspects_it_ends_where_a_detector_cannot_tell(searched, tmp_path, monkeypatch):
    inner = retraining.search

    def search(*arguments):
        outcome = inner(*arguments)
        outcome.detections["heatmap"].labels[:] = 0
        outcome.result["detectors"]["heatmap"]["suspicious"] = None
        return outcome

    monkeypatch.setattr(retraining, "search", search)
    found = json.loads(repair(RunConfig(target=TARGET), tmp_path).read_text())
    assert (found["ended"], found["removed"]) == ("class not suspicious", 0)
    assert len(searched) == 1


def test_suspects_stay_out_until_they_prove_clean(searched, tmp_path):
    found = json.loads(repair(RunConfig(target=TARGET), tmp_path).read_text())
    searches, none = ("heatmap",), ()
    assert searched == [
        (tmp_path.name, 36, searches),
        ("round-1", 31, none),
        ("round-1", 31, searches),
        ("round-2", 29, none),
        ("round-2", 29, searches),
        # What is judged clean is not searched.
        ("round-3", 26, none),
    ]
    assert found["ended"] == "suspects proved clean"
    assert found["removed"] == 7
    assert (found["before"]["poisoned_images"], found["after"]["poisoned_images"]) == (6, 0)
    assert (found["before"]["training_images"], found["after"]["training_images"]) == (36, 29)
    assert found["networks"][0]["suspects"] == {
        "by_detector": 5,
        "images": 5,
        "poisoned_images": 4,
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
    assert len(kept) == 29
    assert kept[0] == {"id": "0", "label": "0"}


def test_rounds_are_bounded(searched, tmp_path):
    found = json.loads(repair(RunConfig(target=TARGET), tmp_path, max_rounds=1).read_text())
    assert len(searched) == 2
    assert (found["removed"], found["ended"]) == (5, "rounds used up")
    assert found["after"]["poisoned_images"] == 2


def test_ends_where_nothing_is_suspected(searched, tmp_path, monkeypatch):
    monkeypatch.setattr(
        retraining, "predict", lambda _, images: np.eye(2)[np.full(len(images), SOURCE)]
    )
    found = json.loads(repair(RunConfig(target=TARGET), tmp_path, max_rounds=9).read_text())
    assert (found["removed"], found["ended"]) == (10, "class not suspicious")
    assert found["after"]["training_images"] == 26
    assert found["after"]["suspects"] is None


def test_suspects_of_a_class_that_is_not_suspicious_stay(searched, tmp_path, monkeypatch):
    suspicious = retraining.search

    def search(config, data, *rest):
        outcome = suspicious(config, data, *rest)
        if config.detectors and len(data.splits.train) < 36:
            outcome.result["detectors"]["heatmap"]["suspicious"] = False
        return outcome

    monkeypatch.setattr(retraining, "search", search)
    found = json.loads(repair(RunConfig(target=TARGET), tmp_path).read_text())
    assert (found["removed"], found["ended"]) == (5, "class not suspicious")
    assert found["after"]["training_images"] == 31
    assert len(searched) == 3


def test_what_is_left_of_a_class_may_be_too_small(searched, tmp_path, monkeypatch):
    monkeypatch.setattr(retraining, "FEWEST", 22)
    found = json.loads(repair(RunConfig(target=TARGET), tmp_path).read_text())
    assert (found["removed"], found["ended"]) == (5, "class too small to be searched")
    assert found["after"]["training_images"] == 31
    assert len(searched) == 2


def test_options_are_checked(tmp_path):
    with pytest.raises(ValueError, match="detector must be one of .* found 'magic'"):
        repair(RunConfig(), tmp_path, detector="magic")
    with pytest.raises(ValueError, match="max_rounds"):
        repair(RunConfig(), tmp_path, max_rounds=0)
    assert not list(tmp_path.iterdir())
