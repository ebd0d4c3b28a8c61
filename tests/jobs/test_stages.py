import importlib
import json
import multiprocessing
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxpoison import CompactInception, _code, _files, fit
from jaxpoison._code import code_of
from jaxpoison.gw.kmeans import gw_kmeans
from jaxpoison.jobs import stages
from jaxpoison.jobs.artefact import Made
from jaxpoison.jobs.stages import WorkDirectory, hash_of
from jaxpoison.models.inference import fingerprint


@pytest.fixture
def work(tmp_path):
    return WorkDirectory(tmp_path / "work")


def test_a_name_that_checkpoints_cannot_have_is_refused_at_once(tmp_path):
    with pytest.raises(ValueError, match="name of a work directory must be UTF-8, found .*give an"):
        WorkDirectory(tmp_path / "caf\udce9")
    assert not list(tmp_path.iterdir())


FILES = ("arrays.npz", "arrays.npz.sha256", "stage.json")


class Counter:
    def __init__(self):
        self.calls = 0

    def __call__(self, folder):
        self.calls += 1
        return Made({"n": self.calls}, {"x": np.arange(3)})


def made(work, make, name="a", **depends):
    return work.stage(name, depends, make, code=(Counter,))


def test_same_key_is_read_and_another_lives_beside_it(work):
    make = Counter()
    first = made(work, make, seed=1)
    again = made(work, make, seed=1)
    assert make.calls == 1
    assert again.values == {"n": 1}
    assert again.seconds == first.seconds
    assert again.folder == first.folder
    assert again.arrays["x"].tolist() == [0, 1, 2]
    assert made(work, make, seed=2).values == {"n": 2}
    # Going back costs nothing.
    assert made(work, make, seed=1).values == {"n": 1}
    assert made(work, make, seed=2).values == {"n": 2}


def test_a_mistake_in_the_same_directory_destroys_nothing(work):
    make = Counter()
    made(work, make, seed=1)

    def interrupted(folder):
        (folder / "half").touch()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        made(work, interrupted, seed=2)
    assert made(work, make, seed=1).values == {"n": 1}
    # What was begun is found again, and is not valid.
    begun = []

    def goes_on(folder):
        begun.extend(path.name for path in folder.iterdir())
        return make(folder)

    assert made(work, goes_on, seed=2).values == {"n": 2}
    assert begun == ["half"]


@pytest.mark.parametrize("content", [b"half of a fi", b"", b"[1, 2]", b"{}"])
@pytest.mark.parametrize("file", FILES)
def test_damaged_stages_run_again(work, file, content):
    make = Counter()
    folder = made(work, make).folder
    (folder / file).write_bytes(content)
    assert made(work, make).values == {"n": 2}
    assert made(work, make).values == {"n": 2}


@pytest.mark.parametrize("files", [*((file,) for file in FILES), FILES])
def test_killed_between_its_files_a_stage_runs_again(work, files, monkeypatch):
    """Whichever file is missing, what is there is not taken for whole."""
    make = Counter()
    whole = made(work, make)
    for file in files:
        (whole.folder / file).unlink()
    assert made(work, make).values == {"n": 2}
    # And while it writes.
    replace = _files.replace_file

    def killed_at(name):
        def killed(path):
            if path.name == name:
                raise KeyboardInterrupt
            return replace(path)

        return killed

    for seed, file in enumerate(FILES):
        before = make.calls
        with monkeypatch.context() as patch:
            patch.setattr(_files, "replace_file", killed_at(file))
            with pytest.raises(KeyboardInterrupt):
                made(work, make, seed=seed)
        assert made(work, make, seed=seed).values == {"n": before + 2}
        assert made(work, make, seed=seed).values == {"n": before + 2}


def test_a_changed_bit_is_seen_wherever_it_is(work, rng):
    """Of a stage's files, 300 single bits and 60 ends cut off."""
    make = Counter()
    folder = made(work, make).folder
    whole = {file: (folder / file).read_bytes() for file in FILES}
    for trial in range(360):
        file = FILES[trial % 3]
        data = bytearray(whole[file])
        if trial < 300:
            place = rng.integers(len(data))
            data[place] ^= 1 << rng.integers(8)
        else:
            del data[rng.integers(len(data)) :]
        (folder / file).write_bytes(data)
        found = stages._read(folder, folder_key(whole))
        # White space in JSON, and at the end of the hash, says nothing.
        if found is not None:
            assert file != "arrays.npz"
            assert found.values == {"n": 1}
            assert found.arrays["x"].tolist() == [0, 1, 2]
        (folder / file).write_bytes(whole[file])
    assert made(work, make).values == {"n": 1}


def folder_key(files):
    return json.loads(files["stage.json"])["key"]


def test_a_damaged_note_of_a_job_is_named(work):
    with work.job("run"):
        stage = made(work, Counter())
        work.finish(stage.key)
    note = work.path / "jobs" / "run.json"
    for content in (b"", b"[]", b"{", b'{"stages": 3}', b"\xff"):
        note.write_bytes(content)
        with pytest.raises(ValueError, match=r"jobs/run\.json is damaged: delete it"):
            work.prune()
    assert stage.folder.is_dir()


def test_a_stage_that_knows_its_time_says_it(work):
    stage = made(work, lambda _: Made({}, {}, seconds=12.5))
    assert json.loads((stage.folder / "stage.json").read_text())["seconds"] == 12.5


def test_a_stage_keeps_the_versions_it_ran_with(work, monkeypatch):
    ran_with = made(work, Counter()).versions
    assert ran_with["numpy"] == np.__version__
    monkeypatch.setattr(stages, "versions", lambda: {"numpy": "later"})
    assert made(work, Counter()).versions == ran_with


def test_hash_depends_on_values_not_on_order():
    assert hash_of(a=1, b=[2, 3]) == hash_of(b=[2, 3], a=1)
    assert hash_of(a=1) != hash_of(a=2)


SOURCE = '''
"""Doubles."""
import numpy as np


def double(x):
    """Twice."""
    return 2 * np.asarray(x)
'''


def test_code_that_changes_what_a_stage_makes_changes_its_key(tmp_path, monkeypatch, work):
    """Not so comments, docstrings and layout."""
    monkeypatch.syspath_prepend(tmp_path)
    file = tmp_path / "doubles_of_tests.py"

    def imported(source):
        file.write_text(source)
        sys.modules.pop("doubles_of_tests", None)
        importlib.invalidate_caches()
        _code._read.cache_clear()
        _code._versions_of.cache_clear()
        return importlib.import_module("doubles_of_tests").double

    make = Counter()

    def stage(function):
        return work.stage("a", {}, make, code=(function,)).values["n"]

    assert stage(imported(SOURCE)) == 1
    assert stage(imported(SOURCE.replace("Twice.", "Two times.") + "# a comment\n")) == 1
    assert stage(imported(SOURCE.replace("2 *", "3 *"))) == 2
    assert stage(imported(SOURCE)) == 1
    # What is edited while a process runs is not what it runs.
    running = imported(SOURCE)
    assert stage(running) == 1
    file.write_text(SOURCE.replace("2 *", "4 *"))
    assert stage(running) == 1
    monkeypatch.setattr(_code, "version", lambda name: "99")
    assert stage(imported(SOURCE)) == 3
    _code._versions_of.cache_clear()


OWN = """
import jaxpoison as jp

class Mine(jp.HeatmapClustering):
    pass
"""


def test_code_of_ones_own_knows_what_it_inherits_and_uses(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "own_of_tests.py").write_text(OWN)
    found = code_of(importlib.import_module("own_of_tests").Mine)
    assert {"own_of_tests", "jaxpoison", "jaxpoison.gw.kmeans", "scikit-learn"} <= found.keys()
    # Public names stand for the whole package.
    assert len(found["jaxpoison"]) == 64
    assert not any(name.startswith("sklearn") for name in found)


def test_code_typed_into_an_interpreter_is_told_apart():
    found = []
    for factor in (2, 3):
        scope = {"__name__": "__main__"}
        exec(f"class Typed:\n    def times(self, x):\n        return {factor} * x", scope)
        found.append(code_of(scope["Typed"]))
    assert list(found[0]) == ["__main__.Typed"]
    assert found[0] != found[1]


def test_networks_are_told_apart_by_their_options():
    base = CompactInception(4, rngs=nnx.Rngs(0))
    same = CompactInception(4, rngs=nnx.Rngs(0))
    same.eval()
    assert fingerprint(base) == fingerprint(same)
    others = [
        CompactInception(4, rngs=nnx.Rngs(1)),
        CompactInception(4, dtype=jnp.bfloat16, rngs=nnx.Rngs(0)),
    ]
    changed = CompactInception(4, rngs=nnx.Rngs(0))
    changed.dropout1.rate = 0.1
    wider = CompactInception(4, rngs=nnx.Rngs(0))
    wider.pool1.window = 3
    marks = {fingerprint(model) for model in (base, *others, changed, wider)}
    assert len(marks) == 5


def test_code_is_followed_through_imports():
    of_training, of_clustering = code_of(fit), code_of(gw_kmeans)
    for name in ("jaxpoison.training.step", "jaxpoison.models.surgery", "jaxpoison.parallel"):
        assert name in of_training
    assert {"jax", "jaxlib", "flax", "optax", "numpy"} <= of_training.keys()
    # What comes later in the way of the data does not train a network anew.
    assert not any(name.startswith("jaxpoison.gw") for name in of_training)
    assert not any(
        name.startswith(("jaxpoison.training", "jaxpoison.jobs")) for name in of_clustering
    )
    assert "jaxpoison.gw.layouts" in of_clustering


def test_a_changed_module_changes_the_keys_behind_it(monkeypatch):
    before = code_of(fit), code_of(gw_kmeans)
    read = _code._read

    def changed(path, *rest):
        digest, imported = read(path, *rest)
        return (digest + "changed" if path.name == "solver.py" else digest), imported

    monkeypatch.setattr(_code, "_read", changed)
    assert code_of(fit) == before[0]
    assert code_of(gw_kmeans) != before[1]


def hold(path, ready, done):
    with WorkDirectory(path).locked():
        ready.set()
        done.wait(60)


def test_two_processes_keep_out_of_each_others_way(work):
    context = multiprocessing.get_context("spawn")
    ready, done = context.Event(), context.Event()
    other = context.Process(target=hold, args=(work.path, ready, done))
    other.start()
    assert ready.wait(60)
    with (
        pytest.raises(ValueError, match="another process works in .*work: wait until it ends, or"),
        work.locked(),
    ):
        pass
    # One that is killed leaves no lock behind.
    other.kill()
    other.join()
    with work.locked():
        pass


def test_whoever_waits_goes_on(work):
    context = multiprocessing.get_context("spawn")
    ready, done = context.Event(), context.Event()
    other = context.Process(target=hold, args=(work.path, ready, done))
    other.start()
    assert ready.wait(60)
    done.set()
    with work.locked(wait=True):
        assert not other.is_alive() or other.join(5) is None
