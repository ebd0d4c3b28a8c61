import csv
from importlib import import_module

import numpy as np
import pytest

from jaxpoison import explain_all, run
from jaxpoison.jobs import explaining

pytestmark = pytest.mark.mixes_types


def test_every_training_image_is_explained_part_by_part(config, tmp_path, monkeypatch, only):
    outcome = run(config, tmp_path)
    monkeypatch.setattr(import_module("jaxpoison.jobs.explain"), "_PART", 100)
    with monkeypatch.context() as patch:
        only("explain", patch=patch)
        heatmaps = np.load(explain_all(config, tmp_path), mmap_mode="r")
    train, explained = outcome.data.train, outcome.explained
    assert heatmaps.shape == (len(train), 32, 32)
    np.testing.assert_allclose(
        heatmaps[explained.members],
        explained.relevance.sum(-1),
        rtol=1e-4,
        atol=1e-6 * explained.relevance.max(),
    )
    rows = list(csv.DictReader((tmp_path / "relevance.csv").read_text().splitlines()))
    assert [r["id"] for r in rows] == list(train.ids)
    assert [int(r["label"]) for r in rows] == train.labels.tolist()
    monkeypatch.setattr(explaining, "explain", None)  # finished parts are read
    np.testing.assert_array_equal(np.load(explain_all(config, tmp_path)), heatmaps)
