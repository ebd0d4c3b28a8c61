"""New images looked at with what a scan left."""

import csv
import json

import numpy as np
import pytest
from obeys import CLASSES, LABEL, SIDE, Obeys, class_images, hosts_of, sticker
from PIL import Image

import jaxpoison as jp
from jaxpoison.cli import main
from jaxpoison.jobs import against
from jaxpoison.jobs.against import KnownAttack, known_attacks, write_known_attacks

pytestmark = pytest.mark.mixes_types
NAMES = tuple(f"kind {k}" for k in range(CLASSES))


@pytest.fixture
def scanned(tmp_path):
    """The work directory of a scan that called class 2."""
    rng = np.random.default_rng(0)
    images, heatmaps, _ = class_images(rng, 60, 12)
    hosts = hosts_of(rng)
    evidence = jp.judge_class(Obeys(), images, heatmaps, hosts, LABEL, asked=8)
    run = tmp_path / "run"
    run.mkdir()
    (run / "scan.json").write_text("{}")
    write_known_attacks(run, [KnownAttack(NAMES, evidence, hosts)])
    return run


@pytest.fixture
def new():
    """Images of all classes; the third, the tenth and one of class 2 carry the sticker."""
    rng = np.random.default_rng(1)
    images = rng.integers(20, 200, (24, SIDE, SIDE, 3), dtype=np.uint8)
    images[:, 0, 0, 1] = np.arange(24) % CLASSES
    for k, place in ((3, (5, 6)), (10, (9, 2)), (14, (4, 4))):
        sticker(images[k], place)
    return jp.Dataset.from_arrays(images, np.zeros(24, int))


def test_new_images_that_carry_the_trigger_are_found(scanned, new, tmp_path):
    outcome = jp.scan_against(scanned, new, model=Obeys())
    (found,) = outcome.found
    assert found.members.tolist() == [3, 10, 14]
    assert np.flatnonzero(outcome.called).tolist() == [3, 10, 14]
    assert (found.shares > 0.9).all()
    # The window of the trigger is the largest of those that were tried: the sticker lies inside.
    size = len(found.attack.evidence.trigger.values)
    for (row, column), (top, left) in zip(found.places, [(5, 6), (9, 2), (4, 4)], strict=True):
        assert top - (size - 3) <= row <= top
        assert left - (size - 3) <= column <= left

    jp.write_against(tmp_path / "out", outcome)
    record = json.loads((tmp_path / "out" / "against.json").read_text())
    assert record["attacks"] == [{"class": 2, "name": "kind 2", "called": 3}]
    with (tmp_path / "out" / "suspects.csv").open() as file:
        assert [row["id"] for row in csv.DictReader(file)] == ["3", "10", "14"]
    assert (tmp_path / "out" / "trigger-class-2.png").stat().st_size > 1000
    # The list is one to leave out.
    splits = jp.Splits(new, new.take(np.zeros(0, int)), new.take(np.zeros(0, int)))
    assert len(jp.without_listed(splits, tmp_path / "out" / "suspects.csv").train) == 21

    clean = new.take(np.setdiff1d(np.arange(24), [3, 10, 14]))
    outcome = jp.scan_against(scanned, clean, model=Obeys())
    assert not outcome.called.any()
    jp.write_against(tmp_path / "out", outcome)
    assert not list((tmp_path / "out").glob("*.png"))


def test_the_shell_takes_any_folder_of_images(scanned, new, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "new"
    for k, image in enumerate(new.images):
        place = folder / ("some" if k % 2 else "others/deeper")
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(place / f"{k}.png")
    config = jp.RunConfig(data="synthetic", attack="none", model="resnet18")
    (scanned / "config.json").write_text(json.dumps(config.record()))
    monkeypatch.setattr(against, "_scanned_network", lambda *_: Obeys())
    asked = ["scan", "--against", str(scanned), "--data", str(folder), "--quiet"]
    assert main(asked) == 0
    said = capsys.readouterr().out
    assert "class 2 (kind 2), called attacked by the scan: 3 of 24 new images carry" in said
    with (scanned / "against" / "suspects.csv").open() as file:
        names = {row["id"] for row in csv.DictReader(file)}
    assert names == {"some/3.png", "others/deeper/10.png", "others/deeper/14.png"}
    assert main([*asked, "--json", "--workdir", str(tmp_path / "out"), "--fail-on-attack"]) == 3
    assert json.loads(capsys.readouterr().out)["called"] == 3
    assert (tmp_path / "out" / "trigger-class-2.png").is_file()
    # A list without a class is none of the scan's own.
    assert not (scanned / "suspects.csv").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--against", "run"], "--against needs --data, a folder or zip of the new images"),
        (
            ["--against", "run", "--data", "new", "--weights", "w", "--detector", "cascade"],
            "as the scan did: leave out --weights, --detector",
        ),
        (["--against", "nothing", "--data", "new"], "no configuration at nothing/config.json"),
    ],
)
def test_mistakes_are_said_in_one_line(options, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["scan", *options]) == 2
    assert message in capsys.readouterr().err


def test_what_does_not_fit_the_scan_is_refused(scanned, new, tmp_path):
    with pytest.raises(FileNotFoundError, match="no scan has ended in .*: run jax"):
        jp.scan_against(tmp_path, new, model=Obeys())
    with pytest.raises(FileNotFoundError, match="was handed over in Python: hand it over"):
        jp.scan_against(scanned, new)
    larger = jp.Dataset.from_arrays(np.zeros((2, 16, 16, 3), np.uint8), np.zeros(2, int))
    with pytest.raises(ValueError, match=r"images of the scan's size \(14, 14, 3\), found \(16"):
        jp.scan_against(scanned, larger, model=Obeys())

    class Confused(Obeys):
        def __call__(self, images):
            return -super().__call__(images)

    with pytest.raises(ValueError, match=r"gets 0 % of the scan's 11 hosts right, and the scan's"):
        jp.scan_against(scanned, new, model=Confused())
    path = scanned / "attacked" / "class-0002.npz"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"class-0002.npz is damaged: run the scan again"):
        jp.scan_against(scanned, new, model=Obeys())


def test_a_scan_that_calls_nothing_leaves_nothing_to_look_for(scanned, new, tmp_path):
    write_known_attacks(scanned, [])
    assert known_attacks(scanned) == ()
    # No network is needed.
    assert jp.scan_against(scanned, new).found == ()
