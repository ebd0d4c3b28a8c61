"""Writes ``tests/golden/zennit.npz``: relevance that zennit computes, for tests without it.

One image of noise, seeded weights, both networks, every composite; the
paper's rules on the Inception in plain PyTorch as well. Relevance is summed
over channels. The file names the versions it was made with.

    pip install torch==2.13.0 && pip install --no-deps zennit==0.5.1
    python -m experiments.make_zennit_golden
"""

from importlib.metadata import version
from pathlib import Path

import numpy as np
from flax import nnx

from experiments.seeded import seeded
from experiments.torch_reference import paper_relevance
from experiments.zennit_networks import (
    NETWORKS,
    with_weights_of,
    zennit_composites,
    zennit_relevance,
)

CLASSES, SEED = 10, 0
GOLDEN = Path(__file__).parent.parent / "tests" / "golden" / "zennit.npz"


def main() -> None:
    images = np.random.default_rng(SEED).uniform(size=(1, 32, 32, 3)).astype(np.float32)
    arrays = {"versions": np.array([f"{p} {version(p)}" for p in ("zennit", "torch", "numpy")])}
    for name, (ours, theirs) in NETWORKS.items():
        model = seeded(ours(CLASSES, rngs=nnx.Rngs(0)), SEED)
        network = with_weights_of(model, theirs(CLASSES)).double()
        for title, composite in zennit_composites(network.first).items():
            relevance = zennit_relevance(network, composite, images, np.array([3]))
            arrays[f"{name}, {title}"] = relevance[0].sum(-1).astype(np.float32)
        if name == "inception":
            plain = paper_relevance(network, images, np.array([3]))
            arrays["inception, plain PyTorch"] = plain[0].sum(-1).astype(np.float32)
    np.savez_compressed(GOLDEN, **arrays)
    print(f"{GOLDEN}: {GOLDEN.stat().st_size / 1024:.0f} KiB")


if __name__ == "__main__":
    main()
