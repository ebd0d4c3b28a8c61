"""Writes the heatmaps that the tests compare with POT.

Takes 16 poisoned and 16 clean relevance maps, evenly spaced, from the work
directory of a run on GTSRB (standard attack, p = 15 %):

    jaxpoison run --data ../shared/data/gtsrb32.zip --rate 0.15 --workdir runs/p15
    python -m experiments.make_golden --data ../shared/data/gtsrb32.zip --workdir runs/p15
"""

import argparse
from pathlib import Path

import numpy as np

from jaxpoison import RunConfig, run

PATH = Path(__file__).parent.parent / "tests" / "golden" / "heatmaps.npz"
EACH = 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True)
    parser.add_argument("--workdir", type=Path, required=True)
    options = parser.parse_args()
    outcome = run(RunConfig(data=options.data, rate=0.15), options.workdir)
    poisoned = outcome.poisoned
    index = np.concatenate(
        [
            np.flatnonzero(where)[np.linspace(0, where.sum() - 1, EACH).astype(int)]
            for where in (poisoned, ~poisoned)
        ]
    )
    maps = outcome.explained.relevance[index].sum(-1)
    maps = maps.astype(np.float32)
    PATH.parent.mkdir(exist_ok=True)
    np.savez_compressed(PATH, heatmaps=maps)
    print(f"{PATH}: {len(maps)} heatmaps, {PATH.stat().st_size / 1024:.0f} KiB")


if __name__ == "__main__":
    main()
