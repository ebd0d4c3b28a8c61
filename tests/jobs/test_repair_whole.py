"""A repair with real networks, on small data."""

import csv
import json

import numpy as np
import pytest

from jaxpoison import run, run_repair, trained_network
from jaxpoison.models.inference import predict

pytestmark = pytest.mark.mixes_types


def test_a_repair_goes_through_all_stages_and_is_not_made_twice(config, tmp_path, only):
    first = run(config, tmp_path)
    outcome = run_repair(config, tmp_path, detector="activation_pca", rounds=1)
    record = json.loads((tmp_path / "repair.json").read_text())
    train = outcome.data.train
    assert record["networks"][0]["training_images"] == len(train) == len(first.data.train)
    assert (
        record["removed"]
        == outcome.removed.sum()
        == len(train) - len(outcome.rounds[outcome.kept].train)
    )
    rows = list(csv.DictReader((tmp_path / "removed.csv").read_text().splitlines()))
    assert [row["id"] for row in rows if row["part"] == "train"] == [
        train.ids[i] for i in np.flatnonzero(outcome.removed)
    ]
    if len(outcome.rounds) == 1:
        assert outcome.ended == "class not suspicious"
    only()
    again = run_repair(config, tmp_path, detector="activation_pca", rounds=1)
    np.testing.assert_array_equal(again.removed, outcome.removed)
    model = trained_network(tmp_path)
    images = outcome.data.test.images
    assert predict(model, images).shape == (len(images), 10)
