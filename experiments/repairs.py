"""Repair: accuracy and attack success before, after one retraining, and at the end.

On runs of Table 5, which are made where they are not there. Every retraining
takes as long as a row.

    python -m experiments.repairs --data gtsrb32.zip

Expected: no poisoned image left, an ASR of 4 to 8 % at the end, accuracy within a
point of the first network's. A sticker hides digits: the network that perturbs images
for the label-consistent attack was trained on clean data, and calls 5 % of the
triggered images the target too. A handful of images that stay in can keep a backdoor
alive: the thesis has ASR 34 % from two.
"""

import json
from typing import Any

from experiments.benchmarks.reporting import machine, record, versions
from experiments.command import command, parsed, refuse_other_data, run_of
from experiments.records import read
from experiments.rows import standard
from experiments.table import percent
from jaxpoison import (
    RepairOutcome,
    accuracy,
    attack_success_rate,
    clean_network,
    predict,
    run_repair,
    use_one_device_per_core,
)

ROWS: dict[str, tuple[str, dict[str, Any]]] = {
    "standard, p = 33 %": standard(33, seed=1),
    "standard, p = 15 %": standard(15, seed=1),
}


def markdown(rows: dict[str, Any]) -> str:
    lines = [
        "# Repair",
        "",
        "The suspects of Heatmap Clustering (ε = 0.02), and the images with activations like "
        "theirs, are taken out and a network is trained without them, until the class is not "
        "suspicious or the suspects prove clean. *l / q*: suspects that the next network calls "
        "their label, and the one other class. *Clean*: a network that was trained on the data "
        "before the attack.",
        "",
        "| run | network | training images | poisoned | test accuracy % | ASR % | "
        "suspects of HC | with those like them (poisoned) | l / q |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for title, found in rows.items():
        for k, network in enumerate(found["networks"]):
            taken = network["suspects"]
            first, suspects, judged = "–", "–", "–"
            if taken is not None:
                first = f"{taken['by_detector']}"
                suspects = f"{taken['images']} ({taken['poisoned_images']})"
                judged = f"{taken['as_label']} / {taken['as_other']}"
            lines.append(
                f"| {title if k == 0 else ''} | {'first' if k == 0 else f'round {k}'} | "
                f"{network['training_images']} | {network['poisoned_images']} | "
                f"{percent(network['test_accuracy'])} | {percent(network['asr'])} | "
                f"{first} | {suspects} | {judged} |"
            )
        # A row recorded before the clean network was asked has none yet.
        if clean := found.get("clean"):
            lines.append(
                f"| | clean | {clean['training_images']} | 0 | "
                f"{percent(clean['test_accuracy'])} | {percent(clean['asr'])} | – | – | – |"
            )
        lines.append(f"| | *ended: {found['ended']}* | | | | | | {found['removed']} removed | |")
    return "\n".join(lines) + "\n"


def without_attack(repaired: RepairOutcome) -> dict[str, Any]:
    """What a network makes of the triggered images that has never seen the trigger."""
    backdoor, test = repaired.data.backdoor, repaired.data.test
    if backdoor is None:
        raise ValueError("a repair needs a run with an attack")
    model, clean = clean_network(repaired.config, progress=True)
    return {
        "training_images": len(clean.train),
        "test_accuracy": accuracy(predict(model, test.images), test.labels),
        "asr": attack_success_rate(predict(model, backdoor.triggered.images), backdoor.target),
    }


def main() -> None:
    parser = command(__doc__)
    options = parsed(parser, (name for name, _ in ROWS.values()))
    use_one_device_per_core()
    rows = read("repairs")
    refuse_other_data(parser, options, "repairs", rows.values())
    for title, (name, changes) in ROWS.items():
        if name not in options.only or "clean" in rows.get(title, {}):
            continue
        print(title, flush=True)
        config, workdir = run_of(options, name, changes)
        repaired = run_repair(config, workdir, progress=True)
        rows[title] = json.loads((workdir / "repair.json").read_text())
        rows[title] |= {"machine": machine(), "versions": versions("jax", "flax", "optax")}
        rows[title]["clean"] = without_attack(repaired)
        record("repairs", {"rows": rows}, markdown(rows))


if __name__ == "__main__":
    main()
