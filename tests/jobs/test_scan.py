import csv
import dataclasses
import json
from importlib import import_module

import numpy as np
import pytest

from jaxpoison import Verdict, gw_kmeans, measure_spaces, quantised, run, run_scan, synthetic
from jaxpoison.jobs import explaining
from jaxpoison.jobs.outcome import Carriers
from jaxpoison.jobs.planning import plan_of_carriers
from jaxpoison.jobs.records import suspects_of_scan

pytestmark = pytest.mark.mixes_types
module = import_module("jaxpoison.jobs.scan")


@pytest.fixture(autouse=True)
def few(monkeypatch):
    """Few members of a class are compared."""
    monkeypatch.setattr(import_module("jaxpoison.evidence.separation"), "_SAMPLE", 16)


def read(path):
    return list(csv.DictReader(path.read_text().splitlines()))


def test_all_classes_are_searched_once(config, tmp_path, monkeypatch, only):
    outcome = run(config, tmp_path)
    scanned = run_scan(config, tmp_path, detector="heatmap")
    train = outcome.data.train
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
    # Alone, a class is split alike.
    spaces = quantised(measure_spaces(outcome.explained.relevance), 10)
    alone = gw_kmeans(spaces, n_init=3, random_state=config.seed)
    there = np.array([int(r["cluster"]) for r in images if int(r["class"]) == config.target])
    smaller = alone.labels == np.bincount(alone.labels).argmin()
    assert (there == smaller).mean() >= 0.98
    record = json.loads((tmp_path / "scan.json").read_text())
    order = [row["class"] for row in record["classes"]]
    assert record["truth"]["rank"] == order.index(config.target) + 1 == scanned.rank
    called = {train.ids[i] for i in np.flatnonzero(scanned.called)}
    poisoned = {train.ids[i] for i in np.flatnonzero(train.poisoned)}
    assert record["truth"]["tpr"] == pytest.approx(len(poisoned & called) / len(poisoned))
    only()
    before = (tmp_path / "classes.csv").read_text()
    run_scan(config, tmp_path, detector="heatmap")
    assert (tmp_path / "classes.csv").read_text() == before


def test_what_carries_a_trigger_elsewhere_is_a_suspect_too(config, tmp_path):
    outcome = run_scan(config, tmp_path, detector="activation_pca")
    data, first = outcome.data, outcome.classes[0]
    others = np.flatnonzero(data.train.labels != first.label)[:2]
    carried = dataclasses.replace(
        first, carriers=Carriers(others, np.array([3]), np.array([1, 4]), 0.0)
    )
    found = dataclasses.replace(outcome, classes=(carried, *outcome.classes[1:]))
    before = {(row["part"], row["id"]) for row in read(tmp_path / "suspects.csv")}
    (tmp_path / "more.csv").write_text(suspects_of_scan(found))
    after = {(row["part"], row["id"]) for row in read(tmp_path / "more.csv")}
    assert before == {("train", data.train.ids[i]) for i in np.flatnonzero(outcome.called)}
    assert after - before == {("train", data.train.ids[i]) for i in others} | {
        ("validation", data.validation.ids[3]),
        *(("test", data.test.ids[i]) for i in (1, 4)),
    }


def test_time_left_counts_the_search_for_every_trigger():
    data = synthetic(train=300, validation=60, test=40)
    plan = plan_of_carriers(data, [5, 7])
    assert "carriers-of-0005" in plan
    with plan.doing("carriers-of-0005"):
        # The first of two that cost as much.
        assert plan.seconds_left(20.0, 0.05) == pytest.approx(20.0 + 20.0, abs=0.5)
    assert "carriers-of-0005" not in plan
    assert "carriers-of-0007" in plan


def test_the_cascade_explains_only_what_activations_tell_apart(config, tmp_path, monkeypatch):
    activations = run_scan(config, tmp_path, detector="activation_pca")
    by_class = {scanned.label: scanned for scanned in activations.classes}
    silhouettes = {k: scanned.finding.separation.silhouette for k, scanned in by_class.items()}
    # A threshold that two classes reach.
    least = sorted(silhouettes.values())[-2]
    monkeypatch.setattr(module, "passed_on", lambda apart: apart.silhouette >= least)
    explained = []
    once = explaining.explain

    def counted(model, images, labels, **options):
        explained.extend(labels.tolist())
        return once(model, images, labels, **options)

    monkeypatch.setattr(explaining, "explain", counted)
    cascade = run_scan(config, tmp_path, detector="cascade")
    chosen = {k for k, silhouette in silhouettes.items() if silhouette >= least}
    assert len(chosen) == 2
    assert set(explained) == chosen
    for scanned in cascade.classes:
        expected = "heatmap" if scanned.label in chosen else "activation_pca"
        assert scanned.finding.detector == expected
    assert cascade.seconds["heatmap"] > 0
    record = json.loads((tmp_path / "scan.json").read_text())
    assert record["suspicious_silhouettes"].keys() == {"activation_pca", "heatmap"}


def test_a_scan_refuses_what_it_does_not_know(config, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="mode must be one of exact, quick; found 'fast'"):
        run_scan(config, tmp_path, mode="fast")
    with pytest.raises(ValueError, match="detector must be one of .*cascade.* found 'raw_pca'"):
        run_scan(config, tmp_path, detector="raw_pca")
    monkeypatch.setattr(module, "FEWEST", 1000)
    with pytest.raises(ValueError, match="no class has 1000 training images or more, found 300"):
        run_scan(config, tmp_path)


def test_a_class_that_cannot_be_told_is_not_ranked(config, tmp_path, monkeypatch):
    monkeypatch.setattr("jaxpoison.jobs.outcome.judged", lambda *_: Verdict(None))
    with pytest.raises(ValueError, match="activation_pca cannot tell whether a class"):
        run_scan(config, tmp_path, detector="activation_pca")
