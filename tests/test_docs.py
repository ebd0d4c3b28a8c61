"""The code of the documentation's pages runs and draws their pictures."""

import re
from pathlib import Path

import pytest
from flax import nnx

from jaxpoison import CompactInception, save_model

DOCS = Path(__file__).parent.parent / "docs"


@pytest.mark.parametrize("page", ["explain", "rules", "conservation"])
def test_code_of_the_page_draws_its_picture(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = CompactInception(10, rngs=nnx.Rngs(0))
    save_model(tmp_path / "jaxpoison-run" / "stages" / "train" / "model", model)
    text = (DOCS / f"{page}.md").read_text()
    scope = {"__name__": "page"}
    for code in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        exec(code, scope)
    assert (tmp_path / f"{page}.png").stat().st_size > 10_000


def test_code_of_the_clustering_page_runs():
    text = (DOCS / "clustering.md").read_text()
    scope = {"__name__": "page"}
    for code in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        exec(code, scope)
    labels = scope["found"].labels_
    assert set(labels[:30]).isdisjoint(labels[30:])


def test_links_between_pages_lead_somewhere():
    for page in (*DOCS.glob("*.md"), DOCS.parent / "README.md"):
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            if not target.startswith("http"):
                assert (page.parent / target).exists(), f"{page.name} links to {target}"
