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
from pathlib import Path
from typing import Any

from experiments.benchmarks.reporting import machine, record, versions
from experiments.tables import (
    command,
    parsed,
    percent,
    read,
    refuse_other_data,
    run_of,
    standard,
)
from jaxpoison import (
    PoisonedSplits,
    RunConfig,
    accuracy,
    attack_success_rate,
    load_data,
    predict,
    repair,
)
from jaxpoison.parallel import use_one_device_per_core
from jaxpoison.preparation import clean_network, prepare
from jaxpoison.stages import WorkDirectory

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


def without_attack(config: RunConfig, workdir: Path) -> dict[str, Any]:
    """What a network makes of the triggered images that has never seen the trigger."""
    data, splits, _ = prepare(config, WorkDirectory(workdir), progress=True)
    if not isinstance(data, PoisonedSplits):
        raise TypeError("a repair needs a run with an attack")
    clean = load_data(config.data, image_size=config.image_size, seed=config.seed, progress=True)
    model = clean_network(config, clean, progress=True)
    return {
        "training_images": len(clean.train),
        "test_accuracy": accuracy(predict(model, splits.test.images), splits.test.labels),
        "asr": attack_success_rate(predict(model, data.triggered.images), config.target),
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
        if title not in rows:
            rows[title] = json.loads(repair(config, workdir, progress=True).read_text())
            rows[title] |= {"machine": machine(), "versions": versions("jax", "flax", "optax")}
        rows[title]["clean"] = without_attack(config, workdir)
        record("repairs", {"rows": rows}, markdown(rows))


if __name__ == "__main__":
    main()
