"""What the commands on scans and repairs write."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest

from experiments import repairs, scans
from jaxpoison import RunConfig, Sticker, standard_backdoor


def row(label, silhouette, suspicious):
    return {
        "class": label,
        "detector": "heatmap",
        "suspicious": suspicious,
        "images": 300,
        "suspects": 40,
        "silhouette": silhouette,
        "eigengap": 0.05,
        "notes": {"rounds": 3},
    }


def test_scans_are_possible_and_written():
    for rows in (scans.ROWS, repairs.ROWS):
        for _, options in rows.values():
            RunConfig(**options)
    result = {
        "classes": [row(5, 0.9, True), row(2, 0.6, False), row(3, 0.5, False), row(1, 0.4, False)],
        "suspicious_silhouettes": {"heatmap": 0.78},
        "truth": {"acc": 0.999, "tpr": 0.95, "tnr": 1.0},
        "seconds": {"train": 1000.0, "explain": 400.0, "heatmap": 200.0},
    }
    kept = {**scans.scanned(result), "peak_gib": 1.5}
    assert "notes" not in kept["classes"][0]
    assert kept["total_seconds"] == 600
    text = scans.markdown({"p = 15 %": {"heatmap": kept}})
    expected = "| p = 15 % | heatmap | 5 (0.900), 2 (0.600), 3 (0.500) | 0.78 | 5 | "
    assert expected + "99.90 / 95.00 / 100.00 | 4 | 600 |" in text
    calm = {**kept, "classes": kept["classes"][1:], "truth": None}
    assert "| 0.78 | none | – | 3 | 600 |" in scans.markdown({"clean": {"heatmap": calm}})


def test_repairs_are_written():
    network = {
        "training_images": 100,
        "poisoned_images": 9,
        "test_accuracy": 0.97,
        "asr": 1.0,
        "suspects": {
            "by_detector": 7,
            "images": 10,
            "poisoned_images": 9,
            "as_label": 1,
            "as_other": 9,
        },
    }
    last = {**network, "training_images": 90, "poisoned_images": 0, "asr": 0.01, "suspects": None}
    clean = {"training_images": 100, "test_accuracy": 0.98, "asr": 0.03}
    found = {"networks": [network, last], "ended": "class not suspicious", "removed": 10}
    assert "| clean |" not in repairs.markdown({"standard": found})
    found["clean"] = clean
    text = repairs.markdown({"standard": found})
    assert "| standard | first | 100 | 9 | 97.00 | 100.00 | 7 | 10 (9) | 1 / 9 |" in text
    assert "|  | round 1 | 90 | 0 | 97.00 | 1.00 | – | – | – |" in text
    assert "| | clean | 100 | 0 | 98.00 | 3.00 | – | – | – |" in text
    assert "*ended: class not suspicious*" in text


def test_a_network_without_the_attack_is_asked(signs, monkeypatch):
    attacked = standard_backdoor(signs, source=2, target=5, rate=0.3, trigger=Sticker(3))
    few = attacked.backdoor.triggered.take(np.arange(4))
    backdoor = dataclasses.replace(attacked.backdoor, triggered=few)
    data = dataclasses.replace(attacked, backdoor=backdoor)

    def predict(model, images):
        assert model == "clean"
        # All test images are called their class, a quarter of the triggered ones the target.
        calls = signs.test.labels if len(images) == len(signs.test) else [2, 5, 2, 2]
        return np.eye(10)[calls]

    monkeypatch.setattr(repairs, "clean_network", lambda config, progress: ("clean", signs))
    monkeypatch.setattr(repairs, "predict", predict)
    repaired = SimpleNamespace(data=data, config=RunConfig())
    found = repairs.without_attack(repaired)
    assert found == {"training_images": 200, "test_accuracy": 1.0, "asr": 0.25}
    with pytest.raises(ValueError, match="needs a run with an attack"):
        repairs.without_attack(SimpleNamespace(data=signs, config=RunConfig()))
