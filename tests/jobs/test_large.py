"""Jobs on data that are mapped from files give what they give on data in memory."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from flax import nnx
from small_runs import Small

import jaxpoison as jp
from jaxpoison import _storage
from jaxpoison.evidence import judge

pytestmark = pytest.mark.mixes_types


@pytest.fixture(scope="module")
def attacked():
    clean = jp.synthetic(train=300, validation=60, test=40)
    return jp.standard_backdoor(clean, source=2, target=5, rate=0.3, trigger=jp.Sticker(5))


@pytest.fixture(scope="module")
def network(attacked):
    model = Small(attacked.train.num_classes, rngs=nnx.Rngs(0))
    settings = jp.protocol("fast", len(attacked.train), epochs=30, batch_size=20)
    settings = dataclasses.replace(settings, augmentation=None)
    jp.fit(model, attacked.train, attacked.validation, settings)
    return model


@pytest.fixture(scope="module")
def expected(network, attacked):
    return jp.scan(network, attacked)


def mapped(data, path):
    np.save(path, data.images)
    images = np.load(path, mmap_mode="r")
    return jp.Dataset(images, data.labels, data.class_names, data.ids, data.poisoned)


def test_a_scan_of_mapped_images_is_that_of_images_in_memory(
    attacked, network, expected, tmp_path, monkeypatch
):
    parts = {
        name: mapped(getattr(attacked, name), tmp_path / f"{name}.npy")
        for name in ("train", "validation", "test")
    }
    in_files = jp.Splits(**parts, backdoor=attacked.backdoor)
    # All but single images is large, and few images are asked about at once.
    monkeypatch.setattr(_storage, "_MAPPED_FROM", 2**12)
    monkeypatch.setattr(_storage, "_AT_ONCE", 2**14)
    monkeypatch.setattr(judge, "_PIXELS", 7 * 2 * 32 * 32)
    found = jp.scan(network, in_files)
    for one, other in zip(found.classes, expected.classes, strict=True):
        assert one.label == other.label
        np.testing.assert_array_equal(one.finding.detection.scores, other.finding.detection.scores)
        np.testing.assert_array_equal(one.finding.detection.labels, other.finding.detection.labels)
    np.testing.assert_array_equal(found.called, expected.called)


def test_a_page_of_a_large_class_explains_what_it_shows(expected, tmp_path, monkeypatch):
    from jaxpoison.report import gallery, html

    explained = []
    explain = html.explain

    def counted(model, images, labels, **options):
        explained.append(len(images))
        return explain(model, images, labels, **options)

    scanned = max(expected.classes, key=lambda each: len(each.members))
    assert len(scanned.members) > 20
    monkeypatch.setattr(gallery, "_MOST", 20)
    monkeypatch.setattr(html, "explain", counted)
    name = html._write_class_page(tmp_path, expected, scanned)
    assert sum(explained) == 20
    assert f"Of {len(scanned.members)} images 20 are shown" in (tmp_path / name).read_text()


# What a scan holds beside its images must not grow with their number.
SCAN = """
import sys
from pathlib import Path
import numpy as np
import jaxpoison as jp
from experiments.benchmarks.large_data import Memory, Small, written
from flax import nnx
from jaxpoison import _storage

_storage._MAPPED_FROM = 2**23
images, labels, poisoned = written(Path(sys.argv[1]), int(sys.argv[2]), 224)
data = jp.Dataset.from_arrays(images, labels)
model = Small(224, rngs=nnx.Rngs(0))
with Memory() as memory:
    jp.scan(model, data)
print(memory.most)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux says what is in no file")
def test_memory_does_not_grow_with_the_number_of_images(tmp_path):
    root = Path(__file__).parents[2]

    def most(count):
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", SCAN, str(tmp_path / "images.npy"), str(count)],
            env=os.environ | {"PYTHONPATH": str(root), "JAXPOISON_CACHE": str(tmp_path)},
            cwd=root,
            capture_output=True,
            text=True,
            check=True,
            timeout=600,
        )
        return float(done.stdout)

    few, many = most(300), most(1200)
    grown = 900 * 224 * 224 * 3 / 2**30
    # Images alone are 0.13 GiB more, their heatmaps as much again and a third.
    assert many - few < grown
