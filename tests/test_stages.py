import json

import numpy as np
import pytest

from jaxpoison import stages
from jaxpoison.stages import Made, WorkDirectory, hash_of


@pytest.fixture
def work(tmp_path):
    return WorkDirectory(tmp_path / "work")


class Counter:
    def __init__(self):
        self.calls = 0

    def __call__(self):
        self.calls += 1
        return Made({"n": self.calls}, {"x": np.arange(3)})


def test_same_key_is_read_and_another_key_runs_again(work):
    make = Counter()
    first = work.stage("a", "key", make)
    again = work.stage("a", "key", make)
    assert make.calls == 1
    assert again.values == {"n": 1}
    assert again.seconds == first.seconds
    assert again.arrays["x"].tolist() == [0, 1, 2]
    assert work.stage("a", "other", make).values == {"n": 2}
    assert work.stage("a", "key", make).values == {"n": 3}


@pytest.mark.parametrize("content", [b"half of a fi", b""])
@pytest.mark.parametrize("file", ["stage.json", "arrays.npz"])
def test_damaged_stages_run_again(work, file, content):
    make = Counter()
    work.stage("a", "key", make)
    (work.folder("a") / file).write_bytes(content)
    assert work.stage("a", "key", make).values == {"n": 2}
    assert work.stage("a", "key", make).values == {"n": 2}


def test_failing_stage_leaves_nothing_valid_and_others_intact(work):
    make = Counter()
    work.stage("a", "key", make)
    work.stage("b", "key", make)

    def fail():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        work.stage("b", "new", fail)
    assert not (work.folder("b") / "stage.json").exists()
    assert work.stage("a", "key", make).values == {"n": 1}


def test_a_stage_that_knows_its_time_says_it(work):
    work.stage("a", "key", lambda: Made({}, {}, seconds=12.5))
    assert json.loads((work.folder("a") / "stage.json").read_text())["seconds"] == 12.5


def test_stages_of_other_code_run_again(work, monkeypatch):
    make = Counter()
    for name in ("detect-a", "train"):
        work.stage(name, "key", make)
    monkeypatch.setitem(stages.REVISIONS, "detect", stages.REVISIONS["detect"] + 1)
    assert work.stage("train", "key", make).values == {"n": 2}
    assert work.stage("detect-a", "key", make).values == {"n": 3}
    assert work.stage("detect-a", "key", make).values == {"n": 3}


def test_a_stage_keeps_the_versions_it_ran_with(work, monkeypatch):
    ran_with = work.stage("a", "key", Counter()).versions
    assert ran_with["numpy"] == np.__version__
    monkeypatch.setattr(stages, "versions", lambda: {"numpy": "later"})
    assert work.stage("a", "key", Counter()).versions == ran_with


def test_hash_depends_on_values_not_on_order():
    assert hash_of(a=1, b=[2, 3]) == hash_of(b=[2, 3], a=1)
    assert hash_of(a=1) != hash_of(a=2)
