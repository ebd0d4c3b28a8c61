"""Repair: accuracy and attack success before, after one retraining, and at the end.

On runs of Table 5, which are made where they are not there. Every retraining
takes as long as a row.

    python -m experiments.repairs --data gtsrb32.zip

Expected: no poisoned image left, an ASR of 4 to 8 % at the end (a sticker hides
digits from any network), accuracy within a point of the first network's. A handful
of images that stay in can keep a backdoor alive: the thesis has ASR 34 % from two.
"""

import json
from typing import Any

from experiments.benchmarks.reporting import machine, record
from experiments.tables import (
    command,
    one_device_per_core,
    parsed,
    percent,
    read,
    refuse_other_data,
    run_of,
    standard,
)
from jaxpoison import repair

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
        "their label, and the one other class.",
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
        lines.append(f"| | *ended: {found['ended']}* | | | | | | {found['removed']} removed | |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = command(__doc__)
    options = parsed(parser, (name for name, _ in ROWS.values()))
    one_device_per_core()
    rows = read("repairs")
    refuse_other_data(parser, options, "repairs", rows.values())
    for title, (name, changes) in ROWS.items():
        if title in rows or name not in options.only:
            continue
        print(title, flush=True)
        output = repair(*run_of(options, name, changes), progress=True)
        rows[title] = json.loads(output.read_text())
        record("repairs", {"rows": rows, "machine": machine()}, markdown(rows))


if __name__ == "__main__":
    main()
