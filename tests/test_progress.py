"""The time that is left of a job, from the steps that are done and the bar of the one that is."""

import io

import numpy as np
import pytest
from rich.console import Console

from jaxpoison import RunConfig, protocol, synthetic
from jaxpoison import _progress as progress
from jaxpoison._progress import Bar, Plan
from jaxpoison.jobs.named import DETECTORS
from jaxpoison.jobs.planning import SCANNING, plan_of_scan, plan_of_search


@pytest.fixture
def clock(monkeypatch):
    """Time that passes when a test says so."""

    class Clock:
        now = 0.0

        def perf_counter(self):
            return self.now

    made = Clock()
    monkeypatch.setattr(progress, "time", made)
    return made


def test_what_follows_is_left_too(clock):
    plan = Plan({"train": 300.0, "explain": 100.0, "detect": 50.0})
    with plan.doing("train"):
        assert plan.seconds_left(None, None) is None
        clock.now = 10.0
        # A tenth in ten seconds: three units a second.
        assert plan.seconds_left(90.0, 0.01) == pytest.approx(90 + 150 / 3)
        clock.now = 100.0
    with plan.doing("explain"):
        clock.now = 120.0
        assert plan.seconds_left(5.0, 0.2) == pytest.approx(100 / 3 - 20 + 50 / 3)
        # A bar knows better where its step takes longer than it should.
        assert plan.seconds_left(80.0, 0.01) == pytest.approx(80 + 50 / 3)
        clock.now = 220.0
    with plan.doing("detect"):
        # 400 units in 220 seconds.
        assert plan.seconds_left(None, None) == pytest.approx(50 * 220 / 400)
    assert plan.seconds_left(7.0, None) == 7.0


def test_what_is_there_already_does_not_count(clock):
    plan = Plan({"train": 300.0, "explain": 100.0, "detect": 50.0})
    plan.leave_out("train")
    plan.leave_out("something else")
    with plan.doing("explain"), plan.doing("a part of it"):
        clock.now = 10.0
        assert plan.seconds_left(10.0, 0.05) == pytest.approx(10 + 50 / 5)


def test_what_was_done_before_an_interruption_counts_for_nothing(clock):
    plan = Plan({"train": 300.0, "explain": 100.0})
    with plan.doing("train"):
        plan.resume(0.9)
        clock.now = 5.0
        # Half of the tenth that was left, in five seconds: three units a second.
        assert plan.seconds_left(5.0, 0.01) == pytest.approx(5 + 100 / 3)
        clock.now = 10.0
    with plan.doing("explain"):
        assert plan.seconds_left(None, None) == pytest.approx(100 / 3)


def test_a_bar_says_what_is_left_in_all(capsys):
    plan = Plan({"train": 300.0, "detect": 50.0})
    with plan.doing("train"), Bar("training", 4, unit="images", show=True) as bar:
        for _ in range(4):
            bar.advance(1)
    with Bar("alone", 4, unit="images", show=True) as bar:
        bar.advance(4)
    said = capsys.readouterr().err.splitlines()
    assert any("training" in line and "in all" in line for line in said), said
    assert not any("alone" in line and "in all" in line for line in said), said


@pytest.mark.parametrize("width", [80, 120, 160])
def test_nothing_is_cut_off_on_a_terminal(width, monkeypatch):
    shown = io.StringIO()
    terminal = Console(file=shown, force_terminal=True, width=width, markup=False)
    monkeypatch.setattr(progress, "console", terminal)
    plan = Plan({"train": 300.0, "detect": 50.0})
    with plan.doing("train"), Bar("training", 208_794, unit="images", show=True) as bar:
        bar.advance(100_000, "epoch 3, loss 0.123, 98.1% right")
    line = next(line for line in reversed(shown.getvalue().splitlines()) if "training" in line)
    assert "98.1% right" in line
    assert "in all" in line
    assert "…" not in line
    assert ("208,794" in line) == (width >= 120)


def test_jobs_have_plans():
    data, config = synthetic(train=200, validation=40, test=50), RunConfig()
    settings = protocol("fast", len(data.train), epochs=2)
    run = plan_of_search(config, data, settings, ("heatmap", "transplant"))
    assert all(
        step in run
        for step in ("train", "evaluate", "explain", "detect-heatmap", "detect-transplant")
    )
    scan = plan_of_scan(data, settings, ("transplant",))
    assert "train" in scan
    assert SCANNING in scan
    assert all(np.isfinite(entry.passes) and entry.passes > 0 for entry in DETECTORS.values())
