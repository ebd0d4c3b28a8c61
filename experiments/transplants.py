"""What transplants say of a run's class, with ever fewer of its poisoned images.

On a run that has ended, whose truth is known:

    python -m experiments.transplants runs/p15

The poisoned images are thinned to a few, as few as a small attack has, though the network has
learned them all; the class is then judged anew. The truth is used to thin and to report, never
to find. It takes about two minutes a row on two CPU cores. Beside the record it leaves two
pictures of the class with all of its poisoned images: what share of hosts every image turns, and
the trigger that was recovered.
"""

import argparse
import dataclasses
import time
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from experiments.benchmarks.reporting import RESULTS, finished, machine, record, versions
from experiments.figures import evenly
from experiments.table import percent
from jaxpoison import (
    TURNS_FROM,
    Case,
    ClassEvidence,
    TransplantJudge,
    case_of_run,
    detection_rates,
    score_rates,
    trigger_picture,
    use_one_device_per_core,
)

# Poisoned images that are left.
LEFT = (34, 9, 5, 3, 0)


def thinned(poisoned: np.ndarray, left: int) -> np.ndarray:
    """Indices of the clean images and of some poisoned ones, evenly over them."""
    bad = np.flatnonzero(poisoned)
    return np.sort(np.concatenate([np.flatnonzero(~poisoned), evenly(bad, left)]))


def judged(
    case: Case, poisoned: np.ndarray, left: int
) -> tuple[dict[str, Any], ClassEvidence, np.ndarray]:
    """The class with so many poisoned images, judged; and how right that is.

    Returns:
        What is recorded, the evidence, and which of the images that were judged are poisoned.
    """
    kept = thinned(poisoned, left)
    truth = poisoned[kept]
    started = time.perf_counter()
    some = dataclasses.replace(case, images=case.images[kept], heatmaps=case.heatmaps[kept])
    evidence = TransplantJudge(progress=True).fit(some).evidence_
    seconds = time.perf_counter() - started
    found: dict[str, Any] = {
        "poisoned": int(truth.sum()),
        "clean": int((~truth).sum()),
        "attacked": evidence.verdict.suspicious,
        "hosts_turned": evidence.hosts_turned,
        **dataclasses.asdict(detection_rates(evidence.called, truth)),
        "clean_called": int((evidence.called & ~truth).sum()),
        "asked": len(evidence.asked),
        "groups": [(len(group.members), group.hosts_turned) for group in evidence.groups],
        "seconds": seconds,
    }
    clean = evidence.scores[~truth]
    found["most_turned_by_clean"] = float(clean.max())
    if truth.any():
        found |= dataclasses.asdict(score_rates(evidence.scores, truth))
        found["least_turned_by_poisoned"] = float(evidence.scores[truth].min())
    return found, evidence, truth


def turned_picture(evidence: ClassEvidence, truth: np.ndarray) -> Figure:
    """What share of hosts every image turns; those that were not asked turn none."""
    shares = np.clip(evidence.scores, 0, 1)
    figure = Figure(figsize=(6.5, 2.6), layout="constrained")
    axis = figure.subplots()
    bins = np.linspace(0, 1, 41)
    axis.hist(shares[~truth], bins, color="#3b6fb6", label=f"{(~truth).sum()} clean")
    axis.hist(shares[truth], bins, color="#d1495b", label=f"{truth.sum()} poisoned")
    axis.axvline(TURNS_FROM, color="black", linewidth=0.8, linestyle=":", label="called from")
    axis.set_yscale("symlog")
    axis.set_xlabel("share of hosts that the region of an image turns into its class")
    axis.set_ylabel("images")
    axis.legend()
    return figure


def markdown(result: dict[str, Any]) -> str:
    success = result["masr"] if result["asr"] is None else result["asr"]
    lines = [
        "# Transplants, with ever fewer poisoned images",
        "",
        f"`{result['data']}`, {result['attack']} attack, p = {percent(result['rate'])} %, test "
        f"accuracy {percent(result['test_accuracy'])}, attack success {percent(success)} %. The "
        "class is judged with some of the poisoned images that the network has learned; "
        f"{result['hosts']} hosts. *Turned*: the share of hosts by which the class is judged, and "
        "the least that a poisoned image turns, the most that a clean one does; below 0: not "
        "asked beyond the screening. In percent.",
        "",
        "| poisoned images | attacked | turned | TPR | clean called | least by poisoned | "
        "most by clean | AUROC | average precision | s |",
        "|---:|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in result["rows"]:
        cells = [
            str(row["poisoned"]),
            "yes" if row["attacked"] else "no",
            percent(row["hosts_turned"]),
            percent(row["tpr"]),
            str(row["clean_called"]),
            percent(row.get("least_turned_by_poisoned")),
            percent(row["most_turned_by_clean"]),
            *(
                f"{row[name]:.4f}" if name in row else "–"
                for name in ("auroc", "average_precision")
            ),
            f"{row['seconds']:.0f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def measured(workdir: Path, left: tuple[int, ...]) -> tuple[dict[str, Any], dict[str, Figure]]:
    """What is recorded, and the pictures beside it."""
    outcome = finished(workdir)
    if outcome.poisoned is None or not outcome.poisoned.any():
        raise ValueError(f"{workdir} has no poisoned images to find")
    case = case_of_run(outcome)
    every = int(outcome.poisoned.sum())
    counts = [every, *(k for k in left if k < every)]
    found = [judged(case, outcome.poisoned, count) for count in counts]
    _, evidence, truth = found[0]
    pictures = {"turned": turned_picture(evidence, truth)}
    if evidence.trigger is not None:
        pictures["trigger"] = trigger_picture(evidence, outcome.data.train.class_names)
    return {
        "data": Path(outcome.config.data).name,
        "attack": outcome.config.attack,
        "rate": outcome.config.rate,
        "test_accuracy": outcome.evaluation.test_accuracy,
        "asr": outcome.evaluation.asr,
        "masr": outcome.evaluation.masr,
        "hosts": len(case.hosts.labels),
        "rows": [row for row, _, _ in found],
        "machine": machine(),
        "versions": versions("jaxpoison", "jax", "scikit-learn"),
    }, pictures


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("workdir", type=Path, help="of jaxpoison run, or of a table's row")
    parser.add_argument("--name", default="transplants", help="of the record [%(default)s]")
    parser.add_argument(
        "--poisoned",
        type=int,
        nargs="*",
        default=LEFT,
        help="how many poisoned images are left, row by row, beside all of them [%(default)s]",
    )
    given = parser.parse_args()
    use_one_device_per_core()
    result, pictures = measured(given.workdir, tuple(given.poisoned))
    record(given.name, result, markdown(result))
    for name, figure in pictures.items():
        figure.savefig(RESULTS / given.name / f"{name}.png", dpi=130)


if __name__ == "__main__":
    main()
