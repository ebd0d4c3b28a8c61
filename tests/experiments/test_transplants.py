import json

import numpy as np
import pytest
from small_runs import config as config
from small_runs import small as small

from experiments import transplants
from experiments.benchmarks import reporting
from jaxpoison import RunConfig, run

pytestmark = pytest.mark.mixes_types


@pytest.mark.usefixtures("small")
def test_a_run_is_measured_and_recorded(config, tmp_path, monkeypatch):  # noqa: F811
    for module in (reporting, transplants):
        monkeypatch.setattr(module, "RESULTS", tmp_path / "results")
    outcome = run(config, tmp_path / "run")
    every = int(outcome.poisoned.sum())
    assert every > 4
    monkeypatch.setattr("sys.argv", ["transplants", str(tmp_path / "run"), "--poisoned", "4", "0"])
    transplants.main()
    found = json.loads((tmp_path / "results" / "transplants" / "result.json").read_text())
    assert [row["poisoned"] for row in found["rows"]] == [every, 4, 0]
    assert found["hosts"] <= 9
    for row in found["rows"]:
        assert row["clean"] == (~outcome.poisoned).sum()
        assert 0 <= row["hosts_turned"] <= 1
        assert ("auroc" in row) == (row["poisoned"] > 0)
    assert (tmp_path / "results" / "transplants" / "turned.png").stat().st_size > 5_000
    text = (tmp_path / "results" / "transplants" / "result.md").read_text()
    assert all(f"| {count} | " in text for count in (every, 4, 0))


def test_poisoned_images_are_thinned_evenly():
    poisoned = np.arange(20) % 2 == 1
    kept = transplants.thinned(poisoned, 3)
    np.testing.assert_array_equal(kept[poisoned[kept]], [1, 9, 19])
    assert (~poisoned[kept]).sum() == 10
    assert not poisoned[transplants.thinned(poisoned, 0)].any()


@pytest.mark.usefixtures("small")
def test_a_run_without_poison_has_nothing_to_find(tmp_path):
    run(RunConfig(attack="none", epochs=1, detectors=("raw_pca",)), tmp_path)
    with pytest.raises(ValueError, match="has no poisoned images to find"):
        transplants.measured(tmp_path, (4,))
