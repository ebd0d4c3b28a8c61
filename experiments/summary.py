"""The table of results in the README, from the recorded rows of the paper's tables.

    python -m experiments.summary

writes it between its two marks. It shows ACC and TPR; TNR and more detectors stand
in ``experiments/results/<table>/result.md``.
"""

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiments.tables import NAMES, SCHEDULE, percent, read

README = Path(__file__).parent.parent / "README.md"
BEGIN, END = "<!-- results -->\n", "<!-- end of results -->"
TABLES = ("table1", "table2", "table4")
DETECTORS = (
    "activation_pca",
    "activation_ica",
    "mean_distance",
    "heatmap_paper",
    "heatmap",
    "heatmap_sharp",
)


def shown(found: Mapping[str, Any] | None) -> str:
    """ACC and TPR: where few images are poisoned, calling nothing poisoned has a high ACC."""
    return "–" if found is None else f"{100 * found['acc']:.1f} / {100 * found['tpr']:.1f}"


def text() -> str:
    """The table, and the line below it."""
    heads = " | ".join(NAMES[name] for name in DETECTORS)
    lines = [
        f"| | test accuracy | attack success | {heads} | paper: AC | paper: HC |",
        f"|---|{'---:|' * (len(DETECTORS) + 4)}",
    ]
    for name in TABLES:
        table = importlib.import_module(f"experiments.{name}").TABLE
        recorded = read(name)
        for row in table.rows:
            if row.name not in recorded:
                continue
            found = recorded[row.name]
            attack = row.options["attack"]
            cells = [
                f"[{attack}, {row.title}](experiments/results/{name}/result.md)",
                percent(found["model"]["test_accuracy"]),
                percent(found["attack"]["asr" if attack == "standard" else "masr"]),
                *(shown(found["detectors"].get(d)) for d in DETECTORS),
            ]
            for rival in ("ac", "hc"):
                doubted = " †" if row.doubt and rival in row.doubted else ""
                printed = row.printed[rival]
                cells.append(f"{printed['acc']:.1f} / {printed['tpr']:.1f}{doubted}")
            lines.append(f"| {' | '.join(cells)} |")
    lines += [
        "",
        f"ACC / TPR in percent; one network a row, {SCHEDULE['epochs']} epochs at batch "
        f"{SCHEDULE['batch_size']}.",
    ]
    if any("†" in line for line in lines):
        lines.append("† The paper's figures of this row do not add up.")
    return "\n".join(lines) + "\n"


def main() -> None:
    readme = README.read_text()
    before, rest = readme.split(BEGIN)
    README.write_text(before + BEGIN + text() + END + rest.split(END)[1])


if __name__ == "__main__":
    main()
