"""Readers given what they do not expect: a result, or one line; never another error.

``JAXPOISON_FUZZ=10000 pytest tests/faults/test_fuzz.py`` tries so many inputs of each kind.
"""

import copy
import io
import json
import os
import tempfile
import warnings
import zipfile
from pathlib import Path

import numpy as np
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image

from jaxpoison import RunConfig, load_folder, read_config
from jaxpoison.datasets.decoding import decode_image
from jaxpoison.jobs import stages
from jaxpoison.jobs.artefact import Made
from jaxpoison.jobs.stages import WorkDirectory

EXAMPLES = int(os.environ.get("JAXPOISON_FUZZ", "100"))
many = settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)

# Bytes that change, by their place as a share of the length; and where the end is cut off.
EDITS = st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=6)
CUT = st.one_of(st.just(1.0), st.floats(0, 1))


def edited(data, edits, cut):
    changed = bytearray(data[: round(cut * len(data))])
    for share, value in edits:
        if changed:
            changed[int(share * len(changed))] = value
    return bytes(changed)


def one_line(error, holds=""):
    assert "\n" not in str(error)
    assert "BytesIO" not in str(error)
    assert holds in str(error)


def encoded(value, kind="png"):
    data = io.BytesIO()
    image = np.random.default_rng(value).integers(0, 255, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(image).save(data, kind)
    return data.getvalue()


def archive():
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", zipfile.ZIP_DEFLATED) as packed:
        for k in range(12):
            packed.writestr(f"photos/{'cat' if k % 2 else 'dog'}/{k}.png", encoded(k))
    return data.getvalue()


ARCHIVE = archive()
IMAGES = tuple(
    encoded(1, kind) for kind in ("png", "jpeg", "gif", "bmp", "tiff", "webp", "ppm", "tga", "ico")
)


@many
@given(EDITS, CUT)
# A line feed in a name of the directory, and in one that is in no layout.
@example([(0.8455035698009054, 10)], 1.0)
@example([(0.84375, 10)], 1.0)
def test_archives(edits, cut):
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        # Of names that do not match, as they are read.
        warnings.simplefilter("ignore")
        path = Path(folder) / "photos.zip"
        path.write_bytes(edited(ARCHIVE, edits, cut))
        try:
            splits = load_folder(path)
        except ValueError as error:
            one_line(error)
        else:
            assert splits.train.images.shape[1:] == (8, 8, 3)
        # Nothing is unpacked.
        assert [p.name for p in Path(folder).iterdir()] == ["photos.zip"]


@many
@given(st.sampled_from(IMAGES), EDITS, CUT)
def test_images(image, edits, cut):
    try:
        assert decode_image(edited(image, edits, cut), "cat.png", 8).shape == (8, 8, 3)
    except ValueError as error:
        one_line(error, "cat.png ")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=6,
)
RECORD = RunConfig().record()


@many
@given(st.sampled_from([*RECORD, "another"]), JSON, EDITS, CUT)
def test_configurations(key, value, edits, cut):
    """A value of any kind in the place of another, then bytes of the file."""
    record = copy.deepcopy(RECORD) | {key: value}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "config.json"
        for data in (
            json.dumps(record).encode(),
            edited(json.dumps(RECORD).encode(), edits, cut),
        ):
            path.write_bytes(data)
            try:
                assert isinstance(read_config(path), RunConfig)
            except (ValueError, TypeError) as error:
                one_line(error, str(path))


@many
@given(st.sampled_from(("arrays.npz", "arrays.npz.sha256", "stage.json")), EDITS, CUT)
def test_stages(file, edits, cut):
    """What is read is what was written; what is not, is made again."""
    with tempfile.TemporaryDirectory() as folder:
        work = WorkDirectory(Path(folder))
        arrays = {"x": np.arange(5), "y": np.ones((2, 3), np.float32)}
        made = work.stage("a", {"seed": 1}, lambda _: Made({"n": 1.5}, arrays), code=())
        path = made.folder / file
        path.write_bytes(edited(path.read_bytes(), edits, cut))
        found = stages._read(made.folder, made.key)
        if found is not None:
            assert found.values == {"n": 1.5}
            assert found.seconds == made.seconds
            for name, array in arrays.items():
                np.testing.assert_array_equal(found.arrays[name], array)
        again = work.stage("a", {"seed": 1}, lambda _: Made({"n": 1.5}, arrays), code=())
        np.testing.assert_array_equal(again.arrays["x"], arrays["x"])
