"""Do images need the region that turns other images into their class?

On work directories where a scan has ended:

    python -m experiments.needed runs/networks/standard-2-5-p2-seed0 ...

Of the classes that turn most hosts, the images that turn most, those that are called, and some
others have their 5×5 window of most relevance filled from around it; how many leave the class?
The truth is used to report, never to find. What is recorded of other networks
stays. It takes half a minute a network on two CPU cores.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from experiments.benchmarks.reporting import machine, record, versions
from experiments.records import read
from experiments.table import percent
from jaxpoison import (
    ScanOutcome,
    explain,
    occlusion,
    predict,
    read_config,
    relevant_windows,
    run_scan,
    use_one_device_per_core,
)

# Classes of a network; and images that turn most, and others evenly over the class.
_CLASSES, _MOST, _OTHERS = 3, 12, 100


def leaving(outcome: ScanOutcome, label: int, index: np.ndarray) -> float | None:
    """Share of some images in their class that are not in it without their region."""
    model, train = outcome.network.model, outcome.data.train
    index = index[predict(model, train.images[index]).argmax(-1) == label] if len(index) else index
    if not len(index):
        return None
    images = train.images[index]
    heatmaps = explain(model, images, train.labels[index]).relevance.sum(-1)
    return occlusion(model, images, relevant_windows(heatmaps, 5), label).changed


def rows_of(outcome: ScanOutcome) -> list[dict[str, Any]]:
    """What is recorded of a network's classes."""
    poisoned = outcome.data.train.poisoned
    rows = []
    for scanned in outcome.classes[:_CLASSES]:
        evidence = scanned.finding.evidence
        if evidence is None:
            raise ValueError(f"class {scanned.label} was not judged by evidence")
        most = evidence.asked[np.argsort(-evidence.shares, kind="stable")[:_MOST]]
        called = np.flatnonzero(evidence.called)
        others = np.setdiff1d(np.arange(len(scanned.members)), np.union1d(most, called))
        if poisoned is not None:
            others = others[~poisoned[scanned.members[others]]]
        others = others[:: max(1, len(others) // _OTHERS)]
        rows.append(
            {
                "class": scanned.label,
                "attacked": scanned.suspicious,
                "hosts_turned": evidence.hosts_turned,
                "called": len(called),
                **{
                    f"of_{name}": leaving(outcome, scanned.label, scanned.members[some])
                    for name, some in (("called", called), ("most", most), ("others", others))
                },
            }
        )
    return rows


def markdown(result: dict[str, Any]) -> str:
    lines = [
        "# Do images need the region that turns others?",
        "",
        f"`python -m experiments.needed`: the {_CLASSES} classes of every network that turn most "
        "hosts. Shares of images that leave their class when the 5×5 window of most relevance is "
        f"filled from around it: of those called, of the {_MOST} that turn most, and of others of "
        "the class. In percent.",
        "",
        "| network | class | attacked | hosts turned | called | leave: of called | of most | "
        "of others |",
        "|---|---:|---|---:|---:|---:|---:|---:|",
    ]
    for name, rows in result["rows"].items():
        for row in rows:
            cells = [
                name,
                str(row["class"]),
                "yes" if row["attacked"] else "no",
                percent(row["hosts_turned"]),
                str(row["called"]),
                *(percent(row[key]) for key in ("of_called", "of_most", "of_others")),
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("workdirs", type=Path, nargs="+", metavar="WORKDIR")
    given = parser.parse_args()
    use_one_device_per_core()
    networks = read("needed")
    for workdir in given.workdirs:
        outcome = run_scan(read_config(workdir / "config.json"), workdir, progress=True)
        networks[workdir.name] = rows_of(outcome)
    result = {
        "rows": networks,
        "machine": machine(),
        "versions": versions("jaxpoison", "jax", "flax"),
    }
    record("needed", result, markdown(result))


if __name__ == "__main__":
    main()
