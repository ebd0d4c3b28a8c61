"""The analysis of low rates, on the heatmaps of a real run."""

import numpy as np

from experiments import low_rates


def test_few_poisoned_heatmaps_are_analysed(heatmaps, monkeypatch):
    monkeypatch.setattr(low_rates, "EPSILONS", {0.1: "heatmap_paper"})
    monkeypatch.setattr(low_rates, "ROUNDS", 4)
    truth = np.arange(19) < 3
    found = low_rates.analysed(heatmaps[13:], truth)
    assert (found["images"], found["poisoned"]) == (19, 3)
    (part,) = found["epsilons"]
    best = part["oracle"]
    # The nearest centre is never farther than the true one.
    assert best["inertia"] <= best["inertia_of_truth"] + 1e-5
    near = part["neighborhoods"]
    assert near["compared"] == 19
    assert near["poisoned_among_neighbors_of_poisoned"] <= 2 / 5
    assert part["drift"][-1]["inertia"] <= part["drift"][0]["inertia"] + 1e-5
    # A bright spot makes the largest weight large, and the mean distance differ.
    assert found["numbers"]["largest weight"] > 0.9
    detected = {"acc": 0.75, "tpr": 0.5, "tnr": 0.8, "notes": {"inertia": 12.5}, "seconds": 1.0}
    part["detector"] = low_rates.of_detector(
        {"detectors": {"heatmap_paper": detected}}, "heatmap_paper"
    )
    text = low_rates.markdown({**found, "asr": 0.34})
    assert "The detector ends at 12.500 and calls 75.00 % rightly (TPR 50.00, TNR 80.00)." in text
    assert text.count("| 1 | ") == 1
    assert "3 poisoned among 19 images of one class; the attack succeeds at 34.00 %" in text


def test_every_group_has_its_heatmaps(heatmaps):
    few = np.arange(20) >= 17
    drawn = low_rates.picture(heatmaps[:20], {"few": few, "none": few & ~few, "rest": ~few})
    shown = [axis for axis in drawn.axes if axis.images]
    assert [axis.get_title() for axis in shown] == ["few"] * 3 + ["rest"] * low_rates.SHOWN
    for axis, expected in zip(shown[:4], (17, 18, 19, 0), strict=True):
        np.testing.assert_array_equal(axis.images[0].get_array(), heatmaps[expected])
