"""Writes ``tests/golden/torchvision.npz``: logits and relevance of torchvision's ResNets.

One image of noise, weights of NumPy's generator under the names of torchvision's state dict,
relevance by zennit in float64, summed over channels. Images are normalised first, which passes
relevance on, pixel by pixel. The file names the versions it was made with.

    pip install torch==2.14.1 torchvision==0.29.1 && pip install --no-deps zennit==0.5.1
    python -m experiments.make_torchvision_golden
"""

from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from zennit.torchvision import ResNetBasicBlockCanonizer, ResNetBottleneckCanonizer

from experiments.seeded import seeded_arrays
from experiments.zennit_networks import zennit_composites, zennit_relevance

CLASSES, SEED, SIDE, LABEL = 10, 0, 64, 3
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
TITLES = ("Paper", "EpsilonPlusFlat", "EpsilonAlpha2Beta1")
GOLDEN = Path(__file__).parent.parent / "tests" / "golden" / "torchvision.npz"


def torchvision_network(name: str) -> torch.nn.Module:
    """A network of torchvision's with seeded weights, in evaluation mode."""
    network = getattr(torchvision.models, name)(num_classes=CLASSES)
    state = network.state_dict()
    arrays = seeded_arrays({key: tuple(value.shape) for key, value in state.items()}, SEED)
    network.load_state_dict({key: torch.from_numpy(value) for key, value in arrays.items()})
    return network.eval()


def main() -> None:
    images = np.random.default_rng(SEED).uniform(size=(1, SIDE, SIDE, 3)).astype(np.float32)
    normalised = ((images - MEAN) / STD).astype(np.float32)
    packages = ("zennit", "torch", "torchvision", "numpy")
    arrays: dict[str, Any] = {"versions": np.array([f"{p} {version(p)}" for p in packages])}
    for name in ("resnet18", "resnet50"):
        network = torchvision_network(name).double()
        state = network.state_dict()
        arrays[f"{name}, names"] = np.array(list(state))
        arrays[f"{name}, shapes"] = np.array([str(tuple(value.shape)) for value in state.values()])
        pixels = torch.from_numpy(normalised.transpose(0, 3, 1, 2).copy()).double()
        arrays[f"{name}, logits"] = network(pixels).detach().numpy().astype(np.float32)
        composites = zennit_composites(("conv1",))
        for title in TITLES:
            composite = composites[title]
            # Sums become layers; batch normalisation stays.
            composite.canonizers = [ResNetBasicBlockCanonizer(), ResNetBottleneckCanonizer()]
            relevance = zennit_relevance(network, composite, normalised, np.array([LABEL]))
            arrays[f"{name}, {title}"] = relevance[0].sum(-1).astype(np.float32)
    np.savez_compressed(GOLDEN, **arrays)
    print(f"{GOLDEN}: {GOLDEN.stat().st_size / 1024:.0f} KiB")


if __name__ == "__main__":
    main()
