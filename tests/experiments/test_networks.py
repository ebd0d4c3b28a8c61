import json

import pytest
from small_runs import config as config
from small_runs import small as small

from experiments import networks
from experiments.benchmarks import reporting
from jaxpoison import RunConfig


def test_networks_are_possible_and_as_many_as_promised():
    for network in networks.NETWORKS.values():
        RunConfig(**network.options, **networks.SCHEDULE)
    clean = [n for n in networks.NETWORKS.values() if n.options["attack"] == "none"]
    assert len(networks.NETWORKS) >= 16
    assert len(clean) >= 6
    evaluation = [n for n in networks.NETWORKS.values() if n.role == "evaluation"]
    assert len(evaluation) >= len(networks.NETWORKS) / 2
    # No two are trained on the same data from the same seed.
    kinds = {json.dumps(n.options, sort_keys=True) for n in networks.NETWORKS.values()}
    assert len(kinds) == len(networks.NETWORKS)


def row(attacked, target, success=0.9, role="evaluation"):
    classes = [
        {"class": k, "attacked": k in attacked, "hosts_turned": 0.9 if k in attacked else 0.1}
        | {"called": 7 if k in attacked else 0}
        for k in range(4)
    ]
    truth = None
    if target is not None:
        truth = {"attacked_class": target, "poisoned": 8, "poisoned_called": 6, "clean_called": 1}
        truth |= {"auroc": 0.98765, "average_precision": 0.5}
    return {
        "role": role,
        "test_accuracy": 0.97,
        "asr": None if target is None else success,
        "masr": None,
        "classes": classes,
        "truth": truth,
        "seconds": {"train": 1000.0, "explain": 20.0, "transplant": 30.0},
    }


def test_right_is_the_attacked_class_and_no_other():
    assert networks.is_right(row([2], 2))
    assert not networks.is_right(row([2, 3], 2))
    assert not networks.is_right(row([], 2))
    assert networks.is_right(row([], None))
    assert not networks.is_right(row([1], None))


def test_what_was_called_stands_in_the_table():
    names = list(networks.NETWORKS)
    rows = {
        names[0]: row([2], 2, role="calibration"),
        names[1]: row([1, 2], 2),
        names[2]: row([2], 2, success=0.3),
        names[3]: row([], None),
    }
    text = networks.markdown(rows)
    assert (
        f"| {names[0]} | calibration | 97.00 | 90.00 | 2 | 90.00 | 10.00 | 8 | 75.00 | 1 |" in text
    )
    assert f"| {names[2]} | evaluation | 97.00 | 30.00 § |" in text
    assert f"| {names[3]} | evaluation | 97.00 | – | none | – | 10.00 | – | – | 0 |" in text
    assert "| 0.9877 | 0.5000 | 50 |" in text
    assert "Calibration: the attacked class and no other called in 1 of 1 networks" in text
    assert "Evaluation: the attacked class and no other called in 0 of 1 networks" in text
    assert "nothing called in 1 of 1 clean ones" in text
    assert names[4] in text.split("Not run: ")[1]


@pytest.mark.mixes_types
@pytest.mark.usefixtures("small")
def test_networks_are_scanned_and_recorded_once(config, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setattr(reporting, "RESULTS", tmp_path / "results")
    monkeypatch.setattr("experiments.records.RESULTS", tmp_path / "results")
    options = {"attack": "standard", "source": 2, "target": 5, "rate": 0.25, "seed": 1}
    few = {
        "attacked": networks.Network("evaluation", options),
        "clean": networks.Network("calibration", {"attack": "none", "seed": 2}),
    }
    monkeypatch.setattr(networks, "NETWORKS", few)
    monkeypatch.setattr(networks, "SCHEDULE", {"epochs": 1})
    monkeypatch.setattr("sys.argv", ["networks", "--data", "d", "--workdir", str(tmp_path / "w")])
    networks.main()
    path = tmp_path / "results" / "networks" / "result.json"
    found = json.loads(path.read_text())["rows"]
    assert list(found) == ["attacked", "clean"]
    assert found["attacked"]["truth"]["attacked_class"] == 5
    assert 0 <= found["attacked"]["truth"]["auroc"] <= 1
    assert found["clean"]["truth"] is None
    assert sorted(each["class"] for each in found["clean"]["classes"]) == list(range(10))
    monkeypatch.setattr(networks, "run_scan", None)
    networks.main()
    assert json.loads(path.read_text())["rows"] == found
