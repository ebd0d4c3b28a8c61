"""The export for ViRelAy: as its reader wants it, and read by it where it is installed."""

import json

import numpy as np
import pytest

from jaxpoison import run
from jaxpoison.report.virelay import export_virelay

h5py = pytest.importorskip("h5py", reason="pip install '.[export]'")
yaml = pytest.importorskip("yaml", reason="pip install '.[export]'")
pytestmark = pytest.mark.mixes_types


@pytest.fixture
def exported(config, tmp_path):
    outcome = run(config, tmp_path / "run")
    return outcome, export_virelay(tmp_path / "run" / "virelay", outcome)


def test_files_hold_what_was_found(exported):
    outcome, path = exported
    folder, explained = path.parent, outcome.explained
    project = yaml.safe_load(path.read_text())["project"]
    assert set(project) == {"name", "model", "label_map", "dataset", "attributions", "analyses"}
    names = json.loads((folder / project["label_map"]).read_text())
    assert [entry["index"] for entry in names] == list(range(10))
    with h5py.File(folder / project["dataset"]["path"]) as file:
        data = file["data"][:]
        assert data.dtype == np.uint8
        images = outcome.data.train.images[explained.members]
        np.testing.assert_array_equal(data, np.moveaxis(images, -1, 1))
        assert (file["label"][:] == explained.label).all()
        assert file["label"].dtype == np.uint16
    with h5py.File(folder / project["attributions"]["sources"][0]) as file:
        found = file["attribution"][:]
        np.testing.assert_allclose(np.moveaxis(found, 1, -1), explained.relevance, rtol=1e-6)
        assert file["prediction"].shape == (len(data), 10)
        assert file["index"].dtype == np.uint32
        np.testing.assert_array_equal(file["index"][:], np.arange(len(data)))
    with h5py.File(folder / project["analyses"][0]["sources"][0]) as file:
        # Categories alone stand at the top, named as the label map names the class.
        assert list(file) == [names[explained.label]["word_net_id"]]
        group = file[next(iter(file))]
        assert set(group) == {"index", "embedding", "cluster"}
        assert set(group["embedding"]) == {"gw_mds", "activation_pca"}
        for embedding in group["embedding"].values():
            assert embedding.shape[0] == len(data)
            assert embedding.shape[1] >= 2
            assert embedding.dtype == np.float32
        assert set(group["cluster"]) == {*outcome.findings, "truth"}
        np.testing.assert_array_equal(group["cluster/truth"][:], outcome.poisoned)
        for name, each in outcome.findings.items():
            np.testing.assert_array_equal(group[f"cluster/{name}"][:], each.detection.labels)


def test_virelays_own_reader_reads_it(exported):
    model = pytest.importorskip("virelay.model", reason="pip install virelay")
    outcome, path = exported
    project = model.Project(str(path))
    assert project.name.startswith("jaxpoison, class 5")
    assert len(project.dataset) == len(outcome.explained.members)
    sample, attribution = project.get_sample(3), project.get_attribution(3)
    image = outcome.data.train.images[outcome.explained.members[3]]
    np.testing.assert_array_equal(np.asarray(sample.data).reshape(32, 32, 3), image)
    name = outcome.data.train.class_names[5]
    assert [label.name for label in sample.labels] == [name]
    np.testing.assert_allclose(attribution.data, outcome.explained.relevance[3], rtol=1e-6)
    assert list(project.get_analysis_methods()) == ["jaxpoison"]
    clusterings = project.get_analysis_clustering_names("jaxpoison")
    assert set(clusterings) == {*outcome.findings, "truth"}


def test_an_earlier_export_is_replaced(exported):
    outcome, path = exported
    before = path.read_text()
    assert export_virelay(path.parent, outcome) == path
    assert path.read_text() == before
    assert sorted(p.name for p in path.parent.iterdir()) == [
        "analysis.h5",
        "attribution.h5",
        "dataset.h5",
        "label-map.json",
        "project.yaml",
    ]
