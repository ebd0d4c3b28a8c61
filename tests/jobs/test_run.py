import csv
import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxpoison import Dataset, RunConfig, read_config, run, synthetic, trained_network
from jaxpoison.evidence.verdict import SUSPICIOUS_FROM
from jaxpoison.jobs import detecting, explaining, prepare, stages
from jaxpoison.jobs.stages import WorkDirectory
from jaxpoison.models.inference import predict
from jaxpoison.report.html import write_report

pytestmark = pytest.mark.mixes_types
DETECTORS = ("raw_pca", "activation_pca", "heatmap_paper")
NUMBER = (int, float)
SCHEMA = {
    "config": {
        "data": str,
        "attack": str,
        "rate": float,
        "sticker_size": int,
        "trigger": str,
        "amplitude": int,
        "pgd": dict,
        "source": int,
        "target": int,
        "model": str,
        "protocol": str,
        "epochs": int,
        "seed": int,
        "attribution": str,
        "detectors": list,
    },
    "training": {"epochs": int, "batch_size": int, "optimizer": str, "learning_rate": float},
    "suspected_class": {
        "images": int,
        "negative_logits": int,
        "largest_absorbed_share": float,
        "conservation": list,
    },
    "model": {"test_accuracy": float, "parameters": int},
    "attack": {"asr": float, "masr": type(None), "per_class_asr": type(None)},
    "detectors": {
        name: {
            "acc": float,
            "tpr": float,
            "tnr": float,
            "cluster_sizes": list,
            "silhouette": float,
            "suspicious": (bool, type(None)),
            "seconds": NUMBER,
        }
        for name in DETECTORS
    },
    "seconds": {name: NUMBER for name in ("train", "evaluate", "explain", *DETECTORS)},
    "versions": {"jax": str, "jaxpoison": str, "ott-jax": str, "devices": str},
}


def conforms(value, schema, path=""):
    if isinstance(schema, dict):
        for name, inner in schema.items():
            assert name in value, f"{path}.{name} is missing"
            conforms(value[name], inner, f"{path}.{name}")
    else:
        assert isinstance(value, schema), f"{path} is {value!r}"


def result_of(workdir):
    return json.loads((workdir / "result.json").read_text())


def test_results_have_the_documented_form(config, tmp_path):
    outcome = run(config, tmp_path)
    result = result_of(tmp_path)
    conforms(result, SCHEMA)
    assert result["config"]["rate"] == 0.25
    assert result["versions"]["devices"] == str(jax.device_count())
    members = outcome.data.train.labels == 5
    for name, row in result["detectors"].items():
        assert sum(row["cluster_sizes"]) == members.sum() == 40, name
        shares = [row[rate] for rate in ("acc", "tpr", "tnr")]
        assert all(0 <= share <= 1 for share in shares)
        assert (row["suspicious"] is None) == (name != "activation_pca")
    layers = result["suspected_class"]["conservation"]
    assert [row["layer"] for row in layers] == ["conv", "pool", "hidden", "out"]
    assert layers[-1]["rule"] == "Epsilon"
    assert layers[-1]["given"] == pytest.approx(1, rel=1e-4)
    assert result["attack"]["poisoned_images"] == outcome.poisoned.sum() == 10

    rows = list(csv.DictReader((tmp_path / "images.csv").read_text().splitlines()))
    train = outcome.data.train
    assert [r["id"] for r in rows] == [train.ids[i] for i in np.flatnonzero(members)]
    assert {r["label"] for r in rows} == {"5"}
    for name, found in outcome.findings.items():
        assert [int(r[f"{name}_cluster"]) for r in rows] == found.detection.labels.tolist()
        np.testing.assert_allclose(
            [float(r[f"{name}_score"]) for r in rows], found.detection.scores, rtol=1e-4, atol=1e-6
        )
    # The network of the run, and of what comes later in its directory.
    again = trained_network(tmp_path)
    images = outcome.data.test.images
    np.testing.assert_array_equal(predict(again, images), predict(outcome.network.model, images))
    with pytest.raises(FileNotFoundError, match="no job has ended in .*elsewhere"):
        trained_network(tmp_path / "elsewhere")


def test_finished_stages_are_skipped(config, tmp_path, only):
    run(config, tmp_path)
    first = result_of(tmp_path)
    only()
    run(config, tmp_path)
    assert result_of(tmp_path) == first


def test_changes_invalidate_what_depends_on_them_and_nothing_is_lost(
    config, tmp_path, only, monkeypatch
):
    run(config, tmp_path)
    with monkeypatch.context() as patch:
        only("detect", patch=patch)
        more = dataclasses.replace(config, detectors=(*DETECTORS, "activation_ica"))
        assert "activation_ica" in run(more, tmp_path).findings
    with monkeypatch.context() as patch:
        only(patch=patch)
        fewer = dataclasses.replace(config, detectors=("heatmap_paper",))
        assert list(run(fewer, tmp_path).findings) == ["heatmap_paper"]
    changes = ({"rate": 0.3}, {"seed": 1}, {"epochs": 2}, {"sticker_size": 2})
    with monkeypatch.context() as patch:
        only(patch=patch)
        for change in changes:
            with pytest.raises(AssertionError, match="fit ran"):
                run(dataclasses.replace(config, **change), tmp_path)
    # Another option and back again: both live side by side, and mistyped commands harm nothing.
    run(dataclasses.replace(config, epochs=2), tmp_path)
    only()
    run(config, tmp_path)
    run(dataclasses.replace(config, epochs=2), tmp_path)


def test_pruning_leaves_what_the_last_jobs_used(config, tmp_path, only):
    run(config, tmp_path)
    run(dataclasses.replace(config, epochs=2), tmp_path)
    left_over = tmp_path / "stages" / "train" / "interrupted"
    left_over.mkdir()
    (left_over / "half").write_bytes(b"1234")
    (tmp_path / "stages" / "train" / ".DS_Store").touch()
    removed, freed = WorkDirectory(tmp_path).prune()
    # Of the first run training, evaluation, explanation, and the detectors that follow; that
    # of the images themselves serves both. And what was left over.
    assert removed == 3 + 2 + 2
    assert freed > 10_000
    assert not left_over.exists()
    only()
    run(dataclasses.replace(config, epochs=2), tmp_path)
    with pytest.raises(AssertionError, match="fit ran"):
        run(config, tmp_path)


def test_pruning_leaves_what_an_interrupted_job_has_made(config, tmp_path, only, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(explaining, "explain", None)
        with pytest.raises(TypeError):
            run(config, tmp_path)
    assert WorkDirectory(tmp_path).prune() == (0, 0)
    only("explain", "detect")
    run(config, tmp_path)
    with pytest.raises(ValueError, match="no job has worked in .*photos: there is nothing to"):
        WorkDirectory(tmp_path / "photos").prune()


def test_interrupted_run_goes_on(config, tmp_path, only, monkeypatch):
    with monkeypatch.context() as patch:

        def interrupt(*_, **__):
            raise KeyboardInterrupt

        patch.setattr(explaining, "explain", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run(config, tmp_path)
    only("explain", "detect")
    run(config, tmp_path)


def test_a_damaged_network_is_trained_again(config, tmp_path):
    run(config, tmp_path)
    first = result_of(tmp_path)
    (model,) = (tmp_path / "stages" / "train").glob("*/model")
    for file in model.rglob("*"):
        if file.is_file():
            file.write_bytes(b"damaged")
    run(config, tmp_path)
    assert result_of(tmp_path)["detectors"].keys() == first["detectors"].keys()
    assert result_of(tmp_path)["model"] == first["model"]


def test_detectors_never_see_the_truth(config, tmp_path, monkeypatch):
    expected = run(config, tmp_path / "a").findings
    attack = prepare.standard_backdoor

    def scrambled(*arguments, **options):
        data = attack(*arguments, **options)
        truth = np.random.default_rng(5).permutation(data.train.poisoned)
        return dataclasses.replace(data, train=dataclasses.replace(data.train, poisoned=truth))

    monkeypatch.setattr(prepare, "standard_backdoor", scrambled)
    found = run(config, tmp_path / "b").findings
    for name in DETECTORS:
        assert (found[name].detection.labels == expected[name].detection.labels).all()
        assert (found[name].detection.scores == expected[name].detection.scores).all()


def test_label_consistent_attack_trains_one_surrogate(config, tmp_path, monkeypatch):
    trained = []
    fit = prepare.fit

    def counted(model, train, *arguments, **options):
        trained.append(train.fingerprint)
        return fit(model, train, *arguments, **options)

    monkeypatch.setattr(prepare, "fit", counted)
    config = dataclasses.replace(
        config, attack="label-consistent", trigger="amplitude", amplitude=64
    )
    outcome = run(config, tmp_path / "a")
    clean = synthetic(train=300, validation=60, test=60, seed=config.seed)
    # The surrogate sees clean data, the victim poisoned ones.
    assert trained[0] == clean.train.fingerprint
    assert len(set(trained)) == len(trained) == 2
    result = result_of(tmp_path / "a")
    assert result["attack"]["asr"] is None
    shares = result["attack"]["per_class_asr"]
    assert set(shares) == {str(c) for c in range(10) if c != 5}
    assert result["attack"]["masr"] == pytest.approx(np.mean(list(shares.values())))
    assert result["attack"]["poisoned_images"] == round(0.25 * (clean.train.labels == 5).sum())
    assert (outcome.data.train.labels == clean.train.labels).all()
    changed = (outcome.data.train.images != clean.train.images).any((1, 2, 3))
    assert (changed[outcome.explained.members] == outcome.poisoned).all()
    assert changed.sum() == outcome.poisoned.sum()
    assert result["config"]["pgd"]["steps"] == 5
    run(config, tmp_path / "a")
    assert result_of(tmp_path / "a") == result
    assert len(trained) == 2
    run(dataclasses.replace(config, rate=0.5), tmp_path / "b")
    assert len(trained) == 3
    prepare.clean_network(dataclasses.replace(config, attack="standard"))
    assert len(trained) == 3


def test_settings_of_heatmap_clustering(config, tmp_path, monkeypatch):
    """The default's couplings carry geometry where the paper's do not.

    The relevance of so small a network is spread over all pixels, and at either epsilon the
    iteration (a float64 loop's too) ends in constant centres: it is squared.
    """
    explain = explaining.explain

    def sharper(*arguments, **options):
        found = explain(*arguments, **options)
        return dataclasses.replace(found, relevance=np.maximum(found.relevance, 0) ** 2)

    monkeypatch.setattr(explaining, "explain", sharper)
    names = ("mean_distance", "heatmap_paper", "heatmap", "heatmap_sharp")
    outcome = run(dataclasses.replace(config, detectors=names), tmp_path)
    notes = {name: found.detection.notes for name, found in outcome.findings.items()}
    assert [notes[name]["epsilon"] for name in names[1:]] == [0.1, 0.02, 0.005]
    assert notes["heatmap_paper"]["coupling_information_nats"] < 1e-4
    assert notes["heatmap"]["coupling_information_nats"] > 0.05
    # Quantised to ten points, both centres have a structure.
    assert notes["heatmap_sharp"]["coupling_information_nats"] > 0.2
    assert outcome.findings["heatmap_sharp"].verdict.suspicious is None
    # Without geometry, one number per image is left of the heatmaps; from other seeds
    # two-means may end an image or two elsewhere.
    labels = {name: found.detection.labels for name, found in outcome.findings.items()}
    assert (labels["mean_distance"] == labels["heatmap_paper"]).mean() > 0.9


def test_without_attack_rates_are_null(config, tmp_path):
    outcome = run(dataclasses.replace(config, attack="none"), tmp_path)
    result = result_of(tmp_path)
    assert outcome.poisoned is None
    assert result["attack"]["asr"] is None
    assert result["attack"]["poisoned_images"] is None
    assert all(row["acc"] is None for row in result["detectors"].values())


def test_other_attributions_need_no_new_training(config, tmp_path, only):
    lrp = run(config, tmp_path)
    only("explain", "detect")
    gradient = run(dataclasses.replace(config, attribution="gradient"), tmp_path)
    assert result_of(tmp_path)["suspected_class"]["conservation"] is None
    assert result_of(tmp_path)["config"]["attribution"] == "gradient"
    assert not np.allclose(lrp.explained.relevance, gradient.explained.relevance)


def test_constant_heatmaps_are_not_suspected(heatmaps):
    from jaxpoison import DETECTORS as DETECTORS_BY_NAME

    entry = DETECTORS_BY_NAME["mean_distance"]
    black = np.zeros((2, *heatmaps.shape[1:]), np.float32)
    seen = np.concatenate([black[:1], heatmaps, black[1:]])
    alone = detecting.detect(entry.sees, entry.make(0), heatmaps)
    found = detecting.detect(entry.sees, entry.make(0), seen)
    assert found.values["notes"]["constant_heatmaps"] == 2
    assert found.values["silhouette"] == alone.values["silhouette"]
    for name in ("labels", "scores"):
        np.testing.assert_array_equal(found.arrays[name][1:-1], alone.arrays[name])
        assert found.arrays[name][[0, -1]].tolist() == [0, 0]
    with pytest.raises(ValueError, match="2 of 2 heatmaps are constant"):
        detecting.detect(entry.sees, entry.make(0), black)


def test_few_outliers_make_a_class_suspicious(rng):
    from jaxpoison import DETECTORS as DETECTORS_BY_NAME
    from jaxpoison import judged

    entry = DETECTORS_BY_NAME["activation_pca"]
    seen = rng.normal(size=(1650, 20))
    seen[[3, 500, 1000, 1641]] += 60
    found = detecting.detect(entry.sees, entry.make(0), seen)
    assert found.arrays["labels"].sum() == 4
    assert judged("activation_pca", detecting.separation_of(found)).suspicious


def test_a_class_is_large_enough_before_anything_is_trained(config, tmp_path, only):
    only()
    few = dataclasses.replace(config, target=9, rate=0.1)
    data = synthetic(train=300, validation=60, test=60, seed=0)
    (scarce,) = (np.flatnonzero(data.train.labels == 9)[:8],)
    rest = np.flatnonzero(data.train.labels != 9)
    small = dataclasses.replace(data, train=data.train.take(np.concatenate([rest, scarce])))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prepare, "load_data", lambda *_, **__: small)
        with pytest.raises(ValueError, match="at least 12 training images .* class 9 has 9"):
            run(few, tmp_path)


def test_versions_are_those_of_the_stages(config, tmp_path, monkeypatch):
    run(config, tmp_path)
    before = stages.versions()
    monkeypatch.setattr(stages, "versions", lambda: {**before, "jax": "99.0"})
    more = dataclasses.replace(config, detectors=(*DETECTORS, "raw_ica"))
    run(more, tmp_path)
    assert result_of(tmp_path)["versions"]["jax"] == f"{before['jax']}, 99.0"


def test_classes_of_the_attack_must_be_there(tmp_path):
    for name in ("source", "target"):
        message = f"{name} must be a class from 0 to 9.*found 40.*attack none for the images"
        with pytest.raises(ValueError, match=message):
            run(RunConfig(**{name: 40}), tmp_path)


def test_a_mistake_leaves_the_configuration_of_the_results(config, tmp_path):
    run(config, str(tmp_path))
    for mistaken in ({"target": 40}, {"target": 40, "attack": "none"}):
        with pytest.raises(ValueError, match="target must be a class"):
            run(dataclasses.replace(config, **mistaken), tmp_path)
        assert read_config(str(tmp_path / "config.json")) == config
    assert trained_network(str(tmp_path)) is not None


def test_a_data_set_without_names_keeps_its_ids(config, tmp_path, monkeypatch):
    """Ids and class names of any kind stand in the records as they are."""
    odd = ('a "quoted", name', "[b]bold[/b]", "ümlaut", *map(str, range(7)))

    def loaded(*_, seed, **__):
        splits = synthetic(train=300, validation=60, test=60, seed=seed)
        parts = (splits.train, splits.validation, splits.test)
        return type(splits)(
            *(Dataset(p.images, p.labels, odd, tuple(f'{i},"x"' for i in p.ids)) for p in parts)
        )

    monkeypatch.setattr(prepare, "load_data", loaded)
    outcome = run(config, tmp_path)
    rows = list(csv.DictReader((tmp_path / "images.csv").read_text().splitlines()))
    train = outcome.data.train
    assert [r["id"] for r in rows] == [train.ids[i] for i in outcome.explained.members]
    assert Path(tmp_path / "config.json").is_file()


def test_what_is_called_can_be_left_out_of_the_next_run(config, tmp_path, monkeypatch):
    attacked = dataclasses.replace(config, detectors=("raw_pca", "activation_pca"))
    table = tmp_path / "first" / "suspects-class-5.csv"
    # However far the clusters lie apart, the class is attacked to no detector, or to one.
    monkeypatch.setitem(SUSPICIOUS_FROM, "activation_pca", 10.0)
    assert not run(attacked, tmp_path / "first").called.any()
    assert table.read_text() == "part,id,label\n"
    monkeypatch.setitem(SUSPICIOUS_FROM, "activation_pca", 1e-3)
    first = run(attacked, tmp_path / "first")
    suspects = first.findings["activation_pca"].detection.suspects
    np.testing.assert_array_equal(first.called, suspects)
    rows = list(csv.DictReader(table.read_text().splitlines()))
    named = [first.data.train.ids[i] for i in first.explained.members[suspects]]
    assert [(row["part"], row["id"], row["label"]) for row in rows] == [
        ("train", name, "5") for name in named
    ]
    again = run(dataclasses.replace(attacked, exclude=str(table)), tmp_path / "second")
    assert set(again.data.train.ids) == set(first.data.train.ids) - set(named)
    assert again.data.backdoor is not None
    assert again.network.key != first.network.key
    record = json.loads((tmp_path / "second" / "result.json").read_text())
    assert record["config"]["exclude"] == "suspects-class-5.csv"
    assert read_config(tmp_path / "second" / "config.json").exclude == str(table)
    for folder, said in (("first", False), ("second", True)):
        write_report(tmp_path / folder / "report.html", first if folder == "first" else again)
        text = (tmp_path / folder / "report.html").read_text()
        assert ("The images that suspects-class-5.csv names were left out" in text) is said


def test_a_list_where_the_job_writes_its_own_is_refused_at_once(config, tmp_path, only):
    only()
    (tmp_path / "list.csv").write_text("id\ntrain/1\n")
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "suspects.csv").write_text("id\ntrain/1\n")
    for name, message in (
        ("work/suspects.csv", "stands in the work directory, where a job may write its own"),
        ("none.csv", "no list of images to exclude"),
    ):
        excluding = dataclasses.replace(config, exclude=str(tmp_path / name))
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            run(excluding, tmp_path / "work")
    with pytest.raises(AssertionError, match="fit ran"):
        run(dataclasses.replace(config, exclude=str(tmp_path / "list.csv")), tmp_path / "work")
