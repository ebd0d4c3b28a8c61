import itertools
import json
import re
from pathlib import Path

import numpy as np
from flax import nnx

from jaxpoison import synthetic
from jaxpoison.models.layers import ConvBlock, MaxPool

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


def arrays():
    """Four easy classes of the rendered signs."""
    splits = synthetic(train=1000, validation=200, test=200)
    images, labels = {}, {}
    for name in ("train", "validation", "test"):
        part = getattr(splits, name)
        part = part.take(part.labels >= 6)
        images[name], labels[name] = part.images, part.labels - 6
    return images, labels


def test_example_finds_the_poisoned_images(capsys):
    text = README.read_text()
    (code,) = re.findall(r"<!-- example.*?-->\n```python\n(.*?)```", text, re.DOTALL)
    assert code.count("\n") <= 25
    images, labels = arrays()
    scope = {"MyNetwork": MyNetwork, "images": images, "labels": labels}
    exec(code, scope)
    rates = scope["jp"].detection_rates(
        scope["detector"].detection_.suspects, scope["data"].poisoned[scope["suspected"]]
    )
    assert rates.acc > 0.9
    # Twenty-five images are poisoned; the network is small, and trained for a minute.
    assert rates.tpr > 0.8
    assert "DetectionRates" in capsys.readouterr().out


def test_numbers_are_those_of_committed_results():
    results = README.parent / "experiments" / "results"
    text = README.read_text()
    table = re.search(r"<!-- results -->\n(.*?)<!-- end of results -->", text, re.DOTALL)
    assert table, "the README has no table of results"
    shown_runs = 0
    for line in table[1].splitlines():
        cells = [c.strip() for c in line.strip("|").split("|")]
        run = re.match(r"\[(\w+)\]\(experiments/results/(\w+)/result.json\)", cells[0])
        if not run:
            continue
        shown_runs += 1
        result = json.loads((results / run[2] / "result.json").read_text())
        expected = [result["model"]["test_accuracy"], result["attack"]["asr"]]
        for name in ("raw_pca", "activation_pca", "activation_ica", "heatmap_paper"):
            expected += [result["detectors"][name][rate] for rate in ("acc", "tpr", "tnr")]
        shown = re.findall(r"[\d.]+", " ".join(cells[2:]))
        np.testing.assert_array_equal(shown, [f"{100 * value:.1f}" for value in expected])
    assert shown_runs >= 2
