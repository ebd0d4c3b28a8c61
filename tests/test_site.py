"""The documentation is built as a site, warnings as errors; its notebooks are run for that."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SAID = {
    "find-a-backdoor": "class 5 (limit 80): ATTACKED",
    "explain-your-network": "(4, 32, 32, 3) (4, 10)",
    "cluster-heatmaps": "Gromov-Wasserstein 1.00",
}


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    pytest.importorskip("mkdocs", reason="pip install '.[docs]'")
    folder = tmp_path_factory.mktemp("site")
    # Kernels are told what of their tools is out of date; tests hear it as errors.
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1", "JAX_PLATFORMS": "cpu"}
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert built.returncode == 0, built.stdout + built.stderr
    return folder


@pytest.mark.parametrize("notebook", SAID)
def test_notebooks_show_what_they_find(site, notebook):
    page = (site / "notebooks" / notebook / "index.html").read_text()
    assert SAID[notebook] in page
    assert "data:image/png" in page
    assert "Traceback" not in page


def test_the_reference_shows_signatures_and_examples(site):
    page = (site / "reference" / "data" / "index.html").read_text()
    assert 'id="jaxpoison.Dataset.take"' in page
    assert page.count("&gt;&gt;&gt; ") > 5


def test_results_are_part_of_it(site):
    page = site / "experiments" / "results" / "table1" / "result" / "index.html"
    assert "p = 33" in page.read_text()
    link = 'href="../experiments/results/table1/result/"'
    assert link in (site / "results" / "index.html").read_text()


def test_nothing_is_loaded_from_elsewhere(site):
    """A page works without a network, but for links one follows."""
    for page in ("index.html", "detection/index.html", "reference/evidence/index.html"):
        text = (site / page).read_text()
        for loaded in ('src="http', "@import", 'rel="stylesheet" href="http', "fonts.googleapis"):
            assert loaded not in text, f"{loaded} in {page}"
