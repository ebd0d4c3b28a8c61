import json
import re
from pathlib import Path

import numpy as np
from flax import nnx

from jaxpoison import synthetic
from jaxpoison.models.layers import MaxPool

README = Path(__file__).parent.parent / "README.md"


class MyNetwork(nnx.Module):
    def __init__(self, rngs):
        self.conv1 = nnx.Conv(3, 16, (5, 5), rngs=rngs)
        self.pool = MaxPool(4)
        self.conv2 = nnx.Conv(16, 32, (3, 3), rngs=rngs)
        self.hidden = nnx.Linear(32 * 4 * 4, 32, rngs=rngs)
        self.out = nnx.Linear(32, 4, rngs=rngs)

    def __call__(self, x):
        x = self.pool(nnx.relu(self.conv1(x)))
        x = nnx.max_pool(nnx.relu(self.conv2(x)), (2, 2), (2, 2))
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
    assert rates.tpr > 0.9
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
        for name in ("raw_pca", "activation_pca", "activation_ica", "heatmap"):
            expected += [result["detectors"][name][rate] for rate in ("acc", "tpr", "tnr")]
        shown = re.findall(r"[\d.]+", " ".join(cells[2:]))
        np.testing.assert_array_equal(shown, [f"{100 * value:.1f}" for value in expected])
    assert shown_runs >= 2
