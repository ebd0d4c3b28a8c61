import json

import numpy as np
import pytest
from small_runs import config as config
from small_runs import small as small

from experiments import ablation
from experiments.benchmarks import reporting
from jaxpoison import RunConfig, SmallSpaces, run

pytestmark = pytest.mark.mixes_types


@pytest.mark.usefixtures("small")
def test_a_run_is_grouped_by_every_geometry(config, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setattr(reporting, "RESULTS", tmp_path / "results")
    outcome = run(config, tmp_path / "run")
    monkeypatch.setattr("sys.argv", ["ablation", str(tmp_path / "run")])
    ablation.main()
    found = json.loads((tmp_path / "results" / "ablation" / "result.json").read_text())
    assert found["rows"].keys() == ablation.geometries(outcome).keys()
    for row in found["rows"].values():
        assert row["poisoned_in_groups"] <= found["poisoned"]
        assert 0 <= row["poisoned_neighbours_of_clean"] <= 1
    text = (tmp_path / "results" / "ablation" / "result.md").read_text()
    assert all(f"| {name} | " in text for name in found["rows"])


def test_a_tight_group_in_a_wide_one_is_counted():
    rng = np.random.default_rng(0)
    points = np.concatenate([rng.normal(0, 1, (60, 2)), rng.normal(9, 0.01, (12, 2))])
    truth = np.arange(72) >= 60
    found = ablation.grouped(np.linalg.norm(points[:, None] - points, axis=-1), truth)
    assert found["poisoned_in_groups"] == 12
    assert found["clean_in_them"] == 0
    assert found["poisoned_neighbours_of_poisoned"] == 1
    assert found["poisoned_neighbours_of_clean"] == 0


def test_quantile_functions_are_those_of_the_distances():
    """A space of two points, a quarter and three quarters of the mass, is at distance 2."""
    distances = np.array([[[0.0, 2.0], [2.0, 0.0]]], np.float32)
    spaces = SmallSpaces(distances, np.array([[0.25, 0.75]], np.float32))
    levels = ablation.quantile_functions(spaces)[0]
    # A pair of points drawn by the weights is the same point ten times in sixteen.
    np.testing.assert_array_equal(np.unique(levels), [0, 2])
    assert (levels == 0).mean() == pytest.approx(10 / 16)


@pytest.mark.usefixtures("small")
def test_a_run_without_poison_has_nothing_to_group(tmp_path):
    run(RunConfig(attack="none", epochs=1, detectors=("raw_pca",)), tmp_path)
    with pytest.raises(ValueError, match="has no poisoned images to group"):
        ablation.measured(tmp_path)
