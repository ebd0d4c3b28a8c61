"""Data sets that TFDS prepares, read without TensorFlow."""

import io
import json
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from jaxpoison import load_data, load_tfds
from jaxpoison.datasets.loading import class_names


def png(value, size, mode="L"):
    data = io.BytesIO()
    pixels = np.full((size[1], size[0]), value, np.uint8)
    Image.fromarray(pixels).convert(mode).save(data, "png")
    data.seek(0)
    return data


def of_gray(k):
    return {"picture": png(k, (8, 6)), "kind": k % 2, "file_name": f"{k:02d}.png"}


def of_colour(k):
    return {"picture": png(k, (8, 8 + k), "RGB"), "kind": k % 2, "second": k % 3}


class Gray(tfds.core.GeneratorBasedBuilder):
    """Images of one channel that are not square, and a test split without labels."""

    VERSION = tfds.core.Version("1.0.0")
    features = {  # noqa: RUF012
        "picture": tfds.features.Image(shape=(None, None, 1)),
        "kind": tfds.features.ClassLabel(names=["even", "odd"]),
        "file_name": tfds.features.Text(),
    }
    supervised = None

    def _info(self):
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(self.features),
            supervised_keys=self.supervised,
        )

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(30), "test": self._generate_examples(10, -1)}

    def _generate_examples(self, count, label=None):
        for k in range(count):
            yield k, of_gray(k) | ({} if label is None else {"kind": label})


class Colour(Gray):
    """Images of several sizes, two labels, all splits."""

    features = {  # noqa: RUF012
        "picture": tfds.features.Image(shape=(None, None, 3)),
        "kind": tfds.features.ClassLabel(names=["even", "odd"]),
        "second": tfds.features.ClassLabel(num_classes=3),
    }
    supervised = ("picture", "kind")

    def _split_generators(self, dl_manager):
        return {split: self._generate_examples(8) for split in ("train", "validation", "test")}

    def _generate_examples(self, count):
        for k in range(count):
            yield k, of_colour(k)


class Unclear(Colour):
    """Two labels, none of which is said to be the class."""

    supervised = None


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    root = tmp_path_factory.mktemp("tfds")
    for kind in (Gray, Colour, Unclear):
        kind(data_dir=root, file_format="array_record").download_and_prepare()
    return root


def test_images_of_one_channel_keep_it_and_their_names(prepared):
    found = load_tfds(prepared / "gray" / "1.0.0")
    assert "tensorflow" not in sys.modules
    assert found.train.image_shape == (6, 8, 1)
    assert found.train.class_names == ("even", "odd")
    # The split without labels is none: test images are held out.
    parts = (found.train, found.validation, found.test)
    assert [len(part) for part in parts] == [22, 2, 6]
    for part in parts:
        numbers = [int(name.removesuffix(".png")) for name in part.ids]
        np.testing.assert_array_equal(part.images[:, 2, 3, 0], numbers)
        np.testing.assert_array_equal(part.labels, np.array(numbers) % 2)


def test_images_of_several_sizes_are_resized(prepared):
    place = prepared / "colour" / "1.0.0"
    with pytest.raises(ValueError, match=r"all images of colour must have one size: train/0 is 8x"):
        load_tfds(place)
    found = load_data(f"tfds:{place}", image_size=16, expected_side=16)
    assert [len(part) for part in (found.train, found.validation, found.test)] == [8, 8, 8]
    assert found.train.image_shape == (16, 16, 3)
    assert found.validation.ids == tuple(f"validation/{k}" for k in range(8))
    assert class_names(f"tfds:{place}") == ("even", "odd")


def test_the_network_s_side_is_asked_for(prepared):
    with pytest.raises(ValueError, match=r"expected images of 32x32, found 8x6 \(.* in tfds:"):
        load_data(f"tfds:{prepared / 'gray' / '1.0.0'}", expected_side=32)


def test_a_name_is_looked_up_and_prepared(prepared, monkeypatch, tmp_path):
    monkeypatch.setattr(tfds.core.constants, "DATA_DIR", str(tmp_path))
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    assert len(load_data("tfds:colour", image_size=8).train) == 8
    assert (tmp_path / "colour" / "1.0.0").is_dir()


def test_what_cannot_be_read_is_named(prepared, tmp_path):
    with pytest.raises(FileNotFoundError, match="TFDS knows no data set 'nothing_of_the_kind'"):
        load_tfds("nothing_of_the_kind")
    with pytest.raises(FileNotFoundError, match=r"no data prepared by TFDS in .*: expected"):
        load_tfds(prepared)
    with pytest.raises(ValueError, match="one feature ClassLabel, found 2 among kind, pic"):
        load_tfds(prepared / "unclear" / "1.0.0")
    other = tmp_path / "gray" / "1.0.0"
    other.mkdir(parents=True)
    for path in (prepared / "gray" / "1.0.0").iterdir():
        (other / path.name).write_bytes(path.read_bytes())
    info = json.loads((other / "dataset_info.json").read_text())
    info["fileFormat"] = "tfrecord"
    for split in info["splits"]:
        split["filepathTemplate"] = split["filepathTemplate"].replace("array_record", "tfrecord")
    (other / "dataset_info.json").write_text(json.dumps(info))
    with pytest.raises(ValueError, match="is prepared as tfrecord, which cannot be read without"):
        load_tfds(other)
