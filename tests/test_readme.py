import itertools
import re
from pathlib import Path

import numpy as np
import pytest
from flax import nnx

from jaxpoison import (
    Dataset,
    Splits,
    Sticker,
    detection_rates,
    predict,
    scan_against,
    standard_backdoor,
    synthetic,
)
from jaxpoison.models.layers import ConvBlock, MaxPool

pytestmark = pytest.mark.mixes_types
README = Path(__file__).parent.parent / "README.md"


class MyNetwork(nnx.Module):
    """Four convolutions, one hidden layer; two convolutions are too shallow for the method."""

    def __init__(self, rngs):
        widths = (3, 32, 32, 64, 64)
        self.convs = nnx.List(
            [ConvBlock(c, d, 3, rngs=rngs) for c, d in itertools.pairwise(widths)]
        )
        self.pools = nnx.List([MaxPool(2) for _ in self.convs])
        self.hidden = nnx.Linear(64 * 2 * 2, 64, rngs=rngs)
        self.out = nnx.Linear(64, 4, rngs=rngs)

    def __call__(self, x):
        for conv, pool in zip(self.convs, self.pools, strict=True):
            x = pool(conv(x))
        return self.out(nnx.relu(self.hidden(x.reshape(len(x), -1))))


def attacked():
    """Four easy classes of the rendered signs, one poisoned."""
    splits = synthetic(train=2000, validation=400, test=200)
    four = []
    for part in (splits.train, splits.validation, splits.test):
        some = part.take(part.labels >= 6)
        four.append(Dataset.from_arrays(some.images, some.labels - 6))
    return standard_backdoor(Splits(*four), source=0, target=1, rate=0.2, trigger=Sticker(3))


def test_example_finds_the_poisoned_images(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = README.read_text()
    (code,) = re.findall(r"<!-- example.*?-->\n```python\n(.*?)```", text, re.DOTALL)
    assert code.count("\n") <= 25
    data = attacked()
    parts = ("train", "validation", "test")
    images, labels = (
        {name: getattr(getattr(data, name), what) for name in parts}
        for what in ("images", "labels")
    )
    scope = {"MyNetwork": MyNetwork, "images": images, "labels": labels}
    exec(code, scope)
    outcome = scope["outcome"]
    rates = detection_rates(outcome.called, data.train.poisoned)
    # Fifty images are poisoned; the network is small, and trained for half a minute.
    assert rates.tpr > 0.9
    assert rates.tnr > 0.99
    named = [data.train.ids[i] for i in np.flatnonzero(outcome.called)]
    said = capsys.readouterr().out.splitlines()
    # Its ids are indices: names that the arrays do not have.
    assert said[0] == "[1]"
    assert len(said[1].split(",")) == min(5, len(named))
    assert (tmp_path / "scan.html").stat().st_size > 10_000
    # What comes later is looked at with what the scan left: triggered test images of class 0.
    model, triggered = scope["model"], data.backdoor.triggered
    turned = predict(model, triggered.images).argmax(1) == 1
    assert turned.mean() > 0.5
    new = scan_against("runs/mine", triggered, model=model)
    assert new.called[turned].mean() > 0.8
    clean = data.test.take(data.test.labels != 1)
    assert scan_against("runs/mine", clean, model=model).called.mean() < 0.02
