import json

import pytest
from small_runs import config as config
from small_runs import small as small

from experiments import transplants
from experiments.benchmarks import reporting
from jaxpoison import RunConfig, run

pytestmark = pytest.mark.mixes_types


@pytest.mark.usefixtures("small")
def test_a_run_is_measured_and_recorded(config, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setattr(reporting, "RESULTS", tmp_path / "results")
    run(config, tmp_path / "run")
    monkeypatch.setattr("sys.argv", ["transplants", str(tmp_path / "run"), "--poisoned", "4"])
    transplants.main()
    found = json.loads((tmp_path / "results" / "transplants" / "result.json").read_text())
    assert found["poisoned"] == 4
    assert found["hosts"] <= 9
    assert found["regions"].keys() == transplants.REGIONS.keys()
    for region in found["regions"].values():
        assert 0 <= region["auroc"] <= 1
        assert {0 < group["p_value"] <= 1 for group in region["groups"]} <= {True}
    text = (tmp_path / "results" / "transplants" / "result.md").read_text()
    assert all(f"| {name} | " in text for name in transplants.REGIONS)


@pytest.mark.usefixtures("small")
def test_a_run_without_poison_has_nothing_to_find(tmp_path):
    run(RunConfig(attack="none", epochs=1, detectors=("raw_pca",)), tmp_path)
    with pytest.raises(ValueError, match="has no poisoned images to find"):
        transplants.measured(tmp_path, 4)
