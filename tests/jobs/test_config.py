import dataclasses
import json

import numpy as np
import pytest

from jaxpoison import PGD, RunConfig, TrainConfig


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"attack": "evil"},
            "attack must be one of standard, label-consistent, none; found 'evil'",
        ),
        ({"rate": 33.0}, "rate must be between 0 and 1.*not percent"),
        ({"detectors": ("heatmap", "magic")}, "detector must be one of raw_pca.*found 'magic'"),
        ({"epochs": 0}, "epochs must be at least 1, found 0"),
        (
            {"model": "vgg"},
            "model must be one of inception, resnet18.* or package.*found 'vgg'",
        ),
        ({"attribution": "magic"}, "attribution must be one of lrp, gradient.*found 'magic'"),
        ({"trigger": "magic"}, "trigger must be one of sticker, amplitude; found 'magic'"),
        ({"amplitude": 300}, "amplitude must be at most 256, found 300"),
        ({"protocol": "slow"}, "protocol must be one of fast, paper"),
        ({"target": -1}, "target must be at least 0, found -1"),
        ({"batch_size": 0}, "batch size must be at least 1, found 0"),
    ],
)
def test_what_is_out_of_range_is_named(change, message):
    with pytest.raises(ValueError, match=message):
        RunConfig(**change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"target": 5.0}, "target must be an integer, found 5.0"),
        ({"seed": "0"}, "seed must be an integer, found '0'"),
        ({"rate": "0.1"}, "rate must be a number, found '0.1'"),
        ({"four_corners": 1}, "four corners must be true or false, found 1"),
        ({"data": 3}, "data must be a text, found 3"),
        ({"detectors": "heatmap"}, "detectors must be several names, found 'heatmap'"),
        ({"pgd": {"steps": 5}}, "pgd must be a PGD, found"),
    ],
)
def test_what_has_the_wrong_type_is_named(change, message):
    with pytest.raises(TypeError, match=message):
        RunConfig(**change)


def test_values_become_plain_ones():
    """As NumPy, pandas or a search over settings hands them on."""
    config = RunConfig(
        data=np.str_("synthetic"),
        target=np.int64(5),
        rate=np.float32(0.25),
        epochs=np.int32(2),
        four_corners=np.bool_(True),
        detectors=np.array(["raw_pca", "heatmap"]),
        pgd=PGD(np.int64(2), np.float64(0.1), np.str_("linf"), np.float32(8)),
    )
    assert json.loads(json.dumps(config.record()))["target"] == 5
    assert RunConfig.from_record(json.loads(json.dumps(config.record()))) == config
    for value in (config.target, config.epochs, config.pgd.steps):
        assert type(value) is int
    assert config.detectors == ("raw_pca", "heatmap")
    train = TrainConfig(epochs=np.int64(3), learning_rate=np.float32(0.5), seed=np.uint8(1))
    assert json.loads(json.dumps(dataclasses.asdict(train)))["epochs"] == 3


def test_a_record_makes_the_configuration_again(tmp_path, monkeypatch):
    config = RunConfig(rate=0.3, detectors=("heatmap",), pgd=PGD(steps=2), epochs=4)
    record = json.loads(json.dumps(config.record()))
    assert RunConfig.from_record(record) == config
    # Data on disk are found from wherever the record is read.
    (tmp_path / "photos").mkdir()
    monkeypatch.chdir(tmp_path)
    record = RunConfig(data="photos", exclude="suspects.csv").record()
    assert record["data"] == str(tmp_path / "photos")
    assert record["exclude"] == str(tmp_path / "suspects.csv")
    # Those of before there was such an option.
    del record["exclude"]
    assert RunConfig.from_record(record).exclude is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r.pop("target"), "the configuration lacks the keys: target"),
        (lambda r: r.update(targets=3, zeta=1), "has unknown keys: targets, zeta"),
        (lambda r: r["pgd"].pop("steps"), "pgd lacks the keys: steps"),
        (lambda r: r["pgd"].update(size=1), "pgd has unknown keys: size"),
        (lambda r: r.update(schema=1), "must have the schema 2, found 1"),
        (lambda r: r.pop("schema"), "must have the schema 2, found None"),
    ],
)
def test_keys_that_do_not_fit_are_named(change, message):
    record = json.loads(json.dumps(RunConfig().record()))
    change(record)
    with pytest.raises(ValueError, match=message):
        RunConfig.from_record(record)
