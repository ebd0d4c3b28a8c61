"""Attacked or not? Whole data sets judged, on networks of many attacks and on clean ones.

Every network is trained, all its classes are scanned, and what is called is compared with the
truth. Thresholds may be fixed on calibration networks alone; those in use were chosen on the
classes of another, Table 1's p = 15 %, before any of these was judged.

    python -m experiments.networks --data gtsrb32.zip
    python -m experiments.networks --data gtsrb32.zip --only clean-seed2

Rows that are recorded are not run again. On two CPU cores an Inception takes about forty minutes
of training, and a network as a user might write it (*plain*) five; a scan about twenty-five.
"""

import dataclasses
import json
from dataclasses import dataclass
from typing import Any

from experiments.benchmarks.reporting import machine, record, versions
from experiments.command import command, parsed, refuse_other_data, run_of
from experiments.records import read
from experiments.table import LEARNED_FROM, percent
from jaxpoison import RunOutcome, ScanOutcome, run, run_scan, score_rates, use_one_device_per_core

# Long enough for a network to learn an attack of two images in a hundred.
SCHEDULE = {"protocol": "fast", "epochs": 6, "batch_size": 64}


@dataclass(frozen=True)
class Network:
    """A network to be judged.

    Attributes:
        role: ``calibration``, of which thresholds may know, or ``evaluation``.
        options: What differs from the defaults of :class:`RunConfig`.
    """

    role: str
    options: dict[str, Any]


def standard(source: int, target: int, share: float, seed: int) -> dict[str, Any]:
    """Options of the standard attack; the share in percent."""
    return {
        "attack": "standard",
        "source": source,
        "target": target,
        "rate": share / 100,
        "seed": seed,
    }


def clean(seed: int) -> dict[str, Any]:
    return {"attack": "none", "seed": seed}


def label_consistent(target: int, share: float, amplitude: int | None, seed: int) -> dict[str, Any]:
    """Options of the label-consistent attack; a sticker without amplitude."""
    options = {
        "attack": "label-consistent",
        "target": target,
        "rate": share / 100,
        "seed": seed,
    }
    return (
        options
        if amplitude is None
        else options | {"trigger": "amplitude"} | {"amplitude": amplitude}
    )


PLAIN = {"model": "experiments.plain_network:Plain"}

NETWORKS = {
    "standard-10-13-p1-seed1": Network("calibration", standard(10, 13, 1, 1)),
    "clean-seed2": Network("calibration", clean(2)),
    "standard-1-4-p5-seed3": Network("calibration", standard(1, 4, 5, 3)),
    "label-consistent-12-p10-seed4": Network("calibration", label_consistent(12, 10, None, 4)),
    "clean-resnet18-seed5": Network("calibration", {**clean(5), "model": "resnet18"}),
    "clean-seed6": Network("calibration", clean(6)),
    "standard-2-5-p2-seed0": Network("evaluation", standard(2, 5, 2, 0)),
    "standard-2-5-p33-seed0": Network("evaluation", standard(2, 5, 33, 0)),
    "clean-seed7": Network("evaluation", clean(7)),
    "standard-38-25-p0.5-seed8": Network("evaluation", standard(38, 25, 0.5, 8)),
    "label-consistent-5-a64-p33-seed0": Network("evaluation", label_consistent(5, 33, 64, 0)),
    "clean-seed9": Network("evaluation", clean(9)),
    "standard-9-2-p0.25-seed10": Network("evaluation", standard(9, 2, 0.25, 10)),
    "label-consistent-1-p5-seed11": Network("evaluation", label_consistent(1, 5, None, 11)),
    "standard-12-21-p15-seed12": Network("evaluation", standard(12, 21, 15, 12)),
    "clean-resnet18-seed13": Network("evaluation", {**clean(13), "model": "resnet18"}),
    "standard-2-5-p5-resnet18-seed14": Network(
        "evaluation", {**standard(2, 5, 5, 14), "model": "resnet18"}
    ),
    "standard-1-4-p5-plain-seed3": Network("evaluation", {**standard(1, 4, 5, 3), **PLAIN}),
    "clean-plain-seed6": Network("evaluation", {**clean(6), **PLAIN}),
    "standard-12-21-p15-plain-seed12": Network("evaluation", {**standard(12, 21, 15, 12), **PLAIN}),
    "clean-plain-seed9": Network("evaluation", {**clean(9), **PLAIN}),
    "standard-10-13-p2-plain-seed1": Network("evaluation", {**standard(10, 13, 2, 1), **PLAIN}),
    "clean-plain-seed15": Network("evaluation", {**clean(15), **PLAIN}),
}


def row_of(network: Network, outcome: RunOutcome, scanned: ScanOutcome) -> dict[str, Any]:
    """What is recorded of a network."""
    found: dict[str, Any] = {
        "role": network.role,
        "config": {**outcome.config.record(), "data": scanned.config.data.rpartition("/")[2]},
        "test_accuracy": outcome.evaluation.test_accuracy,
        "asr": outcome.evaluation.asr,
        "masr": outcome.evaluation.masr,
        "classes": [],
        "seconds": scanned.seconds,
        "machine": machine(),
        "versions": versions("jaxpoison", "jax", "flax", "scikit-learn"),
    }
    for each in scanned.classes:
        evidence = each.finding.evidence
        if evidence is None:
            raise ValueError(f"class {each.label} was not judged by evidence")
        found["classes"].append(
            {
                "class": each.label,
                "images": len(each.members),
                "attacked": each.suspicious,
                "hosts_turned": evidence.hosts_turned,
                "called": int(evidence.called.sum()),
                "leaving": evidence.leaving,
                "most_turned_by_an_image": float(evidence.shares.max()),
                "groups": [
                    [
                        len(group.members),
                        group.hosts_turned,
                        None if group.evidence is None else group.evidence.p_value,
                    ]
                    for group in evidence.groups
                ],
                "seconds": each.finding.seconds,
                "carriers": None
                if each.carriers is None
                else [
                    len(each.carriers.train),
                    len(each.carriers.validation),
                    len(each.carriers.test),
                ],
            }
        )
    found["truth"] = truth_of(scanned)
    return found


def truth_of(scanned: ScanOutcome) -> dict[str, Any] | None:
    """How right a scan is, where something was attacked."""
    backdoor, truth = scanned.data.backdoor, scanned.data.train.poisoned
    if backdoor is None or truth is None:
        return None
    found: dict[str, Any] = {
        "attacked_class": backdoor.target,
        "poisoned": int(truth.sum()),
        "poisoned_called": int((scanned.called & truth).sum()),
        "clean_called": int((scanned.called & ~truth).sum()),
    }
    for each in scanned.classes:
        if each.label == backdoor.target:
            scores, own = each.finding.detection.scores, truth[each.members]
            found |= dataclasses.asdict(score_rates(scores, own))
    return found


def success_of(row: dict[str, Any]) -> float | None:
    return row["asr"] if row["masr"] is None else row["masr"]


def is_right(row: dict[str, Any]) -> bool:
    """Whether the attacked class is called and no other."""
    called = [each["class"] for each in row["classes"] if each["attacked"]]
    return called == ([] if row["truth"] is None else [row["truth"]["attacked_class"]])


def markdown(rows: dict[str, Any]) -> str:
    lines = [
        "# Networks, attacked and clean, judged as a whole",
        "",
        "Every network's classes are all scanned (`jaxpoison scan`, detector `transplant`). "
        "*Turned*: the share of hosts by which a class is judged, in percent: of the attacked "
        "class, and the most of any other. TPR: of the poisoned images, called. §: attack success "
        f"below {percent(LEARNED_FROM)} %. Seconds of the scan, explanations included.",
        "",
        "| network | role | test accuracy | success | classes called | turned, attacked | "
        "turned, others | poisoned | TPR | clean called | AUROC | average precision | s |",
        "|---|---|---:|---:|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for name, row in rows.items():
        truth, success = row["truth"], success_of(row)
        called = [str(each["class"]) for each in row["classes"] if each["attacked"]]
        target = None if truth is None else truth["attacked_class"]
        turned = {each["class"]: each["hosts_turned"] for each in row["classes"]}
        others = [share for k, share in turned.items() if k != target]
        weak = " §" if success is not None and success < LEARNED_FROM else ""
        cells = [name, row["role"], percent(row["test_accuracy"]), f"{percent(success)}{weak}"]
        cells += [", ".join(called) or "none", percent(turned.get(target)), percent(max(others))]
        if truth is None:
            cells += ["–", "–", str(sum(each["called"] for each in row["classes"])), "–", "–"]
        else:
            tpr = truth["poisoned_called"] / truth["poisoned"]
            cells += [str(truth["poisoned"]), percent(tpr), str(truth["clean_called"])]
            cells += [f"{truth[k]:.4f}" for k in ("auroc", "average_precision")]
        total = sum(s for what, s in row["seconds"].items() if what != "train")
        lines.append(f"| {' | '.join([*cells, f'{total:.0f}'])} |")
    for role in ("calibration", "evaluation"):
        of_role = [row for row in rows.values() if row["role"] == role]
        of_clean = [row for row in of_role if row["truth"] is None]
        learned = [row for row in of_role if (success_of(row) or 0) >= LEARNED_FROM]
        lines += [
            "",
            f"{role.capitalize()}: the attacked class and no other called in "
            f"{sum(map(is_right, learned))} of {len(learned)} networks that learned the attack; "
            f"nothing called in {sum(map(is_right, of_clean))} of {len(of_clean)} clean ones.",
        ]
    missing = [name for name in NETWORKS if name not in rows]
    if missing:
        lines += ["", f"Not run: {', '.join(missing)}."]
    return "\n".join(lines) + "\n"


def main() -> None:
    options = parsed(parser := command(__doc__), NETWORKS)
    use_one_device_per_core()
    refuse_other_data(parser, options, "networks", read("networks").values())
    for name, network in NETWORKS.items():
        if name not in options.only or name in read("networks"):
            continue
        print(f"networks: {name}", flush=True)
        config, workdir = run_of(options, name, network.options, SCHEDULE)
        outcome = run(dataclasses.replace(config, detectors=()), workdir, progress=True)
        scanned = run_scan(config, workdir, progress=True)
        made = row_of(network, outcome, scanned)
        # As JSON makes it, and with what another process has recorded meanwhile.
        rows = {**read("networks"), name: json.loads(json.dumps(made))}
        rows = {known: rows[known] for known in NETWORKS if known in rows}
        record("networks", {"rows": rows}, markdown(rows))


if __name__ == "__main__":
    main()
