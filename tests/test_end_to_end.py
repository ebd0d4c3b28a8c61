"""The main job on a small part of the real data."""

import json
import zipfile

import numpy as np
import pytest

from jaxpoison.cli import main

pytestmark = pytest.mark.mixes_types
# As many as the rendered signs have, for which all programs are compiled in other tests.
CLASSES = (0, 1, 5, 6, 16, 19, 20, 21, 24, 27)
# Every track of 30 consecutive frames lends its first ones.
FRAMES = {"Training": 6, "Validation": 6, "Testing": 2}


@pytest.fixture(scope="module")
def subset(gtsrb_zip, tmp_path_factory):
    """Ten classes, a few frames of every track."""
    path = tmp_path_factory.mktemp("data") / "subset.zip"
    with zipfile.ZipFile(gtsrb_zip) as whole, zipfile.ZipFile(path, "w") as part:
        for name in whole.namelist():
            pieces = name.split("/")
            if len(pieces) != 3 or not pieces[2] or int(pieces[1]) not in CLASSES:
                continue
            index = int(pieces[2].split(".")[0])
            if index % 30 < FRAMES[pieces[0]]:
                part.writestr(name, whole.read(name))
    return path


def test_finds_the_poisoned_images_of_a_real_class(subset, tmp_path, capsys):
    arguments = ["run", "--data", str(subset), "--workdir", str(tmp_path), "--quiet"]
    arguments += ["--source", "1", "--target", "2", "--rate", "0.15", "--epochs", "4"]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    result = json.loads((tmp_path / "result.json").read_text())
    for name in result["detectors"]:
        assert name in printed
    # Small classes are few frames of few signs.
    assert result["model"]["test_accuracy"] > 0.5
    assert result["attack"]["asr"] > 0.9
    for name in ("heatmap", "heatmap_paper", "heatmap_sharp"):
        heatmap = result["detectors"][name]
        assert heatmap["acc"] > 0.9
        assert heatmap["tpr"] > 0.9
        assert heatmap["acc"] > result["detectors"]["raw_pca"]["acc"]
    assert (tmp_path / "report.html").stat().st_size > 100_000
    columns = np.loadtxt(tmp_path / "images.csv", str, delimiter=",").shape[1]
    assert columns == 2 + 2 * len(result["detectors"])
