"""A small version of the default run finds its poison; the pages' code runs on what it left."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jaxpoison import accuracy, predict, synthetic, trained_network
from jaxpoison.cli import main
from jaxpoison.jobs import prepare
from jaxpoison.jobs.named import DETECTORS

pytestmark = pytest.mark.mixes_types
DOCS = Path(__file__).parent.parent / "docs"


@pytest.fixture(scope="module")
def default_run(tmp_path_factory):
    """``jaxpoison run`` on half the images, with fewer epochs; nothing else changed.

    A page that goes on with it finds the same images.
    """
    folder = tmp_path_factory.mktemp("default")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(prepare, "load_data", lambda *_, **__: synthetic(train=1000))
        assert main(["run", "--epochs", "4", "--quiet"]) == 0
        yield folder / "jaxpoison-run"


def test_the_default_run_finds_the_poison(default_run):
    result = json.loads((default_run / "result.json").read_text())
    assert result["config"]["data"] == "synthetic"
    assert list(result["detectors"]) == list(DETECTORS)
    assert result["attack"]["asr"] > 0.9
    assert result["attack"]["poisoned_images"] == 18
    for name in ("heatmap", "heatmap_paper", "heatmap_sharp"):
        found = result["detectors"][name]
        assert found["acc"] > 0.9, name
        assert found["tpr"] > 0.8, name
    assert result["detectors"]["heatmap"]["suspicious"]
    assert (default_run / "report.html").stat().st_size > 100_000


@pytest.mark.parametrize("page", ["explain", "rules", "conservation", "run"])
def test_code_of_the_page_draws_its_picture(page, default_run, monkeypatch):
    """With a trained network."""
    test = synthetic().test
    found = accuracy(predict(trained_network(default_run), test.images), test.labels)
    assert found > 0.4
    monkeypatch.chdir(default_run.parent)
    text = (DOCS / f"{page}.md").read_text()
    scope = {"__name__": "page"}
    for code in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        exec(code, scope)
    picture = default_run.parent / f"{page}.png"
    assert picture.stat().st_size > 10_000
    if page != "rules":  # That page shows a layer of one's own, untrained.
        assert Image.open(picture).text["Description"] == f"test accuracy {found:.3f}"


@pytest.mark.parametrize("page", ["explain", "conservation", "run"])
def test_pictures_of_the_pages_come_from_trained_networks(page):
    said = Image.open(DOCS / f"{page}.png").text["Description"]
    assert float(said.removeprefix("test accuracy ")) > 0.9


def test_code_of_the_clustering_page_runs():
    text = (DOCS / "clustering.md").read_text()
    scope = {"__name__": "page"}
    for code in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        exec(code, scope)
    labels = scope["found"].labels_
    assert set(labels[:30]).isdisjoint(labels[30:])
    assert np.bincount(labels).min() > 0


def test_links_between_pages_lead_somewhere():
    root = DOCS.parent
    for page in (*DOCS.glob("*.md"), *root.glob("*.md"), *root.glob("experiments/**/*.md")):
        for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text()):
            if not target.startswith("http"):
                assert (page.parent / target).exists(), f"{page.name} links to {target}"
