"""The analysis of two clusters, on the heatmaps of a real run."""

import json
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest

from experiments import two_clusters
from jaxpoison import (
    AmplitudePattern,
    DetectionRates,
    EntropicGW,
    RunConfig,
    barycenters,
    measure_spaces,
    quantised,
)


def outcome_of(truth, relevance=None):
    """What a run would have found."""
    detection = SimpleNamespace(suspects=truth, notes={"inertia": 12.5})
    return SimpleNamespace(
        config=RunConfig(),
        poisoned=truth,
        explained=SimpleNamespace(relevance=relevance),
        evaluation=SimpleNamespace(asr=0.1, masr=0.36),
        findings=dict.fromkeys(
            ("heatmap_paper", "heatmap", "heatmap_sharp"), SimpleNamespace(detection=detection)
        ),
        rates=lambda _: DetectionRates(0.75, 0.5, 0.8),
    )


def test_few_poisoned_heatmaps_are_analysed(heatmaps, monkeypatch):
    monkeypatch.setattr(two_clusters, "NAMES", ("heatmap_paper",))
    monkeypatch.setattr(two_clusters, "ROUNDS", 4)
    truth = np.arange(19) < 3
    found = two_clusters.analysed(heatmaps[13:], truth)
    assert (found["images"], found["poisoned"]) == (19, 3)
    (part,) = found["settings"]
    best = part["oracle"]
    # The nearest centre is never farther than the true one.
    assert best["inertia"] <= best["inertia_of_truth"] + 1e-5
    near = part["neighborhoods"]
    assert near["compared"] == 19
    assert near["poisoned_among_neighbors_of_poisoned"] <= 2 / 5
    assert part["drift"][-1]["inertia"] <= part["drift"][0]["inertia"] + 1e-5
    # A bright spot makes the largest weight large, and the mean distance differ.
    assert found["numbers"]["largest weight"] > 0.9
    part["found"] = two_clusters.of_detector(outcome_of(None), "heatmap_paper")
    text = two_clusters.markdown("few", {**found, "success": 0.34})
    assert "The detector ends at 12.500 and calls 75.00 % rightly (TPR 50.00, TNR 80.00)." in text
    assert text.count("| 1 | ") == 1
    assert "3 poisoned among 19 images of one class; the attack succeeds at 34.00 %" in text


def test_every_group_has_its_heatmaps(heatmaps):
    few = np.arange(20) >= 17
    drawn = two_clusters.picture(heatmaps[:20], {"few": few, "none": few & ~few, "rest": ~few})
    shown = [axis for axis in drawn.axes if axis.images]
    assert [axis.get_title() for axis in shown] == ["few"] * 3 + ["rest"] * two_clusters.SHOWN
    for axis, expected in zip(shown[:4], (17, 18, 19, 0), strict=True):
        np.testing.assert_array_equal(axis.images[0].get_array(), heatmaps[expected])


def test_weight_on_the_pattern_is_told():
    heatmaps = np.zeros((5, 32, 32), np.float32)
    heatmaps[:, 0, :16] = 1
    # Rows and columns 19 to 21 hold the pattern.
    heatmaps[0, 19:22, 19:22] = 1
    heatmaps[1, 22, 22] = 1
    heatmaps[2, 21, 21] = 1
    spaces = measure_spaces(heatmaps, mass=1.0)
    truth = np.array([True, True, False, False, False])
    found = two_clusters.at_pattern(spaces, truth, AmplitudePattern(64))
    assert found == pytest.approx(
        {
            "median_of_poisoned": 9 / 25 / 2,
            "median_of_clean": 0,
            "poisoned_below_clean": 0,
            "area": (1 + 1 / 3) / 2,
        }
    )
    found = two_clusters.at_pattern(spaces, ~truth, AmplitudePattern(64))
    assert found["poisoned_below_clean"] == 1
    (line, _) = two_clusters.on_pattern(found)
    assert "hold 0.00 % of the weight of a poisoned heatmap and 18.00 % of a clean one" in line


def test_a_row_is_recorded_with_its_picture(heatmaps, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr("experiments.benchmarks.reporting.RESULTS", tmp_path)
    monkeypatch.setattr(two_clusters, "RESULTS", tmp_path)
    monkeypatch.setattr(two_clusters, "NAMES", ("heatmap_paper",))
    monkeypatch.setattr(two_clusters, "ROUNDS", 1)
    # Devices were chosen when the tests began.
    monkeypatch.setattr(two_clusters, "use_one_device_per_core", lambda: None)
    truth = np.arange(19) < 3

    def outcome(_, name, changes):
        assert name == "label-consistent-a64-p33-seed0"
        assert changes["amplitude"] == 64
        return outcome_of(truth, heatmaps[13:, ..., None])

    monkeypatch.setattr(two_clusters, "outcome_of", outcome)
    command = ["two_clusters", "--workdir", str(tmp_path), "--row"]
    monkeypatch.setattr("sys.argv", [*command, "label-consistent-a64-p33-seed0"])
    two_clusters.main()
    folder = tmp_path / "two_clusters" / "label-consistent-a64-p33-seed0"
    assert (folder / "heatmaps.png").stat().st_size > 1000
    text = (folder / "result.md").read_text()
    assert text.startswith("# Two clusters: label-consistent, amplitude 64")
    assert "succeeds at 36.00 %" in text
    assert "The pattern's nine pixels hold" in text
    assert json.loads((folder / "result.json").read_text())["poisoned"] == 3
    # What is recorded is left as it is, unless one wants it anew.
    two_clusters.main()
    assert f"{folder} is there; --again makes it anew" in capsys.readouterr().out
    assert (folder / "result.md").read_text() == text
    monkeypatch.setattr("sys.argv", [*command, "none"])
    with pytest.raises(SystemExit):
        two_clusters.main()
    assert "no row is called none; there are standard-s3-p33-seed0," in capsys.readouterr().err


def test_the_critical_epsilon_is_where_a_constant_center_begins_to_attract(heatmaps):
    spaces = measure_spaces(heatmaps[:16])
    critical = two_clusters.constant_from(spaces)
    small = quantised(spaces, 10)
    nearly = 0.5 + 1e-2 * np.random.default_rng(0).standard_normal((1, 10, 10)).astype(np.float32)
    start = jnp.asarray((nearly + nearly.transpose(0, 2, 1)) / 2)

    def spread(epsilon):
        center, _ = barycenters(small, jnp.zeros(16, int), jnp.ones(16), start, EntropicGW(epsilon))
        return float(np.asarray(center.distances).std())

    assert spread(2 * critical) < 1e-3
    assert spread(critical / 2) > 1e-2
