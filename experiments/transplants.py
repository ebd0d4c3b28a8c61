"""What transplants say of a run's class: of every image, and of groups that density proposes.

On a run that has ended, whose truth is known:

    python -m experiments.transplants runs/p15

For two windows and nine pixels of relevance: the share of hosts (one image of each other
class that the network gets right) that the region turns into the class, for poisoned and
for clean images; how well the score of a single image orders poisoned before clean; and the
evidence for every group of HeatmapDensity. The poisoned images are thinned to a few, as few as a
small attack has, though the network has learned them all. The truth is used to report, never to
find.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.metrics import average_precision_score, roc_auc_score

from experiments.benchmarks.reporting import finished, machine, record, versions
from experiments.figures import evenly
from jaxpoison import (
    HeatmapDensity,
    hosts_for,
    predict,
    relevant_pixels,
    relevant_windows,
    transplant_evidence,
    transplant_flips,
    transplant_scores,
    use_one_device_per_core,
)

REGIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "window 3×3": lambda relevance: relevant_windows(relevance, 3),
    "window 5×5": lambda relevance: relevant_windows(relevance, 5),
    "nine pixels": lambda relevance: relevant_pixels(relevance, 9),
}
# Class-mates that are asked.
MATES = 250
# Images from which hosts are drawn.
HOSTS_FROM = 4_000


def thinned(poisoned: np.ndarray, left: int) -> np.ndarray:
    """Indices of the clean images and of some poisoned ones, evenly over them."""
    bad = np.flatnonzero(poisoned)
    bad = evenly(bad, left)
    return np.sort(np.concatenate([np.flatnonzero(~poisoned), bad]))


def image_scores(flips: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """How the images' own scores order poisoned before clean, without groups."""
    scores = transplant_scores(flips)
    clean = np.quantile(scores[~truth], 0.99)
    return {
        "auroc": float(roc_auc_score(truth, scores)),
        "average_precision": float(average_precision_score(truth, scores)),
        "tpr_at_1_percent_fpr": float((scores[truth] > clean).mean()),
        "above_every_clean": float((scores[truth] > scores[~truth].max()).mean()),
    }


def evidence_for(
    flips: np.ndarray, groups: list[np.ndarray], truth: np.ndarray
) -> list[dict[str, Any]]:
    """The evidence for every group."""
    found = []
    for group in groups:
        evidence = transplant_evidence(flips, group)
        found.append(
            {
                "images": len(group),
                "poisoned": int(truth[group].sum()),
                "share": evidence.share,
                "control": evidence.control,
                "p_value": evidence.p_value,
            }
        )
    return found


def measured(workdir: Path, left: int) -> dict[str, Any]:
    outcome = finished(workdir)
    train, explained, config = outcome.data.train, outcome.explained, outcome.config
    if outcome.poisoned is None or not outcome.poisoned.any():
        raise ValueError(f"{workdir} has no poisoned images to find")
    kept = thinned(outcome.poisoned, left)
    started = time.perf_counter()
    proposed = HeatmapDensity().fit(explained.relevance[kept]).groups_
    density_seconds = time.perf_counter() - started
    truth = outcome.poisoned[kept]
    # All poisoned, all that is proposed, and class-mates to compare them with.
    mates = evenly(np.arange(len(kept)), MATES)
    asked = np.unique(np.concatenate([np.flatnonzero(truth), mates, *proposed[1:]]))
    groups = [np.searchsorted(asked, group) for group in proposed[1:]]
    kept, truth = kept[asked], truth[asked]
    drawn = np.random.default_rng(config.seed).permutation(len(train))[:HOSTS_FROM]
    logits = predict(outcome.trained.model, train.images[drawn], progress="hosts")
    hosts = hosts_for(
        config.target, train.images[drawn], train.labels[drawn], logits, seed=config.seed
    )
    result: dict[str, Any] = {
        "data": Path(config.data).name,
        "attack": config.attack,
        "rate": config.rate,
        "test_accuracy": outcome.evaluation.test_accuracy,
        "asr": outcome.evaluation.asr,
        "masr": outcome.evaluation.masr,
        "poisoned": int(truth.sum()),
        "clean": int((~truth).sum()),
        "hosts": len(hosts.labels),
        "density_seconds": density_seconds,
        "regions": {},
        "machine": machine(),
        "versions": versions("jaxpoison", "jax", "scikit-learn"),
    }
    for name, masks in REGIONS.items():
        started = time.perf_counter()
        flips = transplant_flips(
            outcome.trained.model,
            train.images[explained.members[kept]],
            masks(explained.relevance[kept]),
            hosts,
            config.target,
            progress=name,
        )
        shares = flips.mean(1)
        result["regions"][name] = {
            "poisoned": float(shares[truth].mean()),
            "clean": float(shares[~truth].mean()),
            **image_scores(flips, truth),
            "groups": evidence_for(flips, groups, truth),
            "seconds": time.perf_counter() - started,
        }
    return result


def percent(share: float) -> str:
    return f"{100 * share:.1f}"


def markdown(result: dict[str, Any]) -> str:
    success = result["masr"] if result["asr"] is None else result["asr"]
    lines = [
        "# Transplants",
        "",
        f"`{result['data']}`, {result['attack']} attack, p = {percent(result['rate'])} %, test "
        f"accuracy {percent(result['test_accuracy'])}, attack success {percent(success)} %. "
        f"{result['poisoned']} of the poisoned images the network has learned are looked for; "
        f"{result['clean']} clean class-mates beside them; {result['hosts']} hosts.",
        "",
        "Single images, by their own score, class-mates as control; shares in %:",
        "",
        "| region | hosts turned by poisoned | by clean | AUROC | average precision | "
        "TPR at 1 % FPR | above every clean | s |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, found in result["regions"].items():
        shares = [percent(found[key]) for key in ("poisoned", "clean")]
        areas = [f"{found[key]:.4f}" for key in ("auroc", "average_precision")]
        ends = [percent(found[key]) for key in ("tpr_at_1_percent_fpr", "above_every_clean")]
        cells = [name, *shares, *areas, *ends, f"{found['seconds']:.0f}"]
        lines.append(f"| {' | '.join(cells)} |")
    lines += [
        "",
        "Groups that HeatmapDensity proposes, but for the largest, "
        f"in {result['density_seconds']:.0f} s:",
        "",
        "| region | images | of them poisoned | hosts turned | by class-mates | p |",
        "|---|---|---|---|---|---|",
    ]
    for name, found in result["regions"].items():
        lines += [
            f"| {name} | {group['images']} | {group['poisoned']} | {percent(group['share'])} | "
            f"{percent(group['control'])} | {group['p_value']:.4f} |"
            for group in found["groups"]
        ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("workdir", type=Path, help="of jaxpoison run, or of a table's row")
    parser.add_argument("--name", default="transplants", help="of the record [%(default)s]")
    parser.add_argument(
        "--poisoned", type=int, default=34, help="how many poisoned images are left [%(default)s]"
    )
    given = parser.parse_args()
    use_one_device_per_core()
    result = measured(given.workdir, given.poisoned)
    record(given.name, result, markdown(result))


if __name__ == "__main__":
    main()
