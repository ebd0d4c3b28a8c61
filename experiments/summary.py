"""The table of results in the README, from the recorded rows of the paper's tables.

    python -m experiments.summary

writes it between its two marks. It shows ACC alone; TPR and TNR stand in
``experiments/results/<table>/result.md``.
"""

import importlib
from pathlib import Path

from experiments.tables import NAMES, SCHEDULE, percent, read

README = Path(__file__).parent.parent / "README.md"
BEGIN, END = "<!-- results -->\n", "<!-- end of results -->"
TABLES = ("table1", "table2", "table4")
DETECTORS = ("raw_pca", "activation_pca", "activation_ica", "heatmap_paper", "heatmap")


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
                *(percent(found["detectors"][d]["acc"]) for d in DETECTORS),
            ]
            for rival in ("ac", "hc"):
                doubted = " †" if row.doubt and rival in row.doubted else ""
                cells.append(f"{row.printed[rival]['acc']:.2f}{doubted}")
            lines.append(f"| {' | '.join(cells)} |")
    lines += [
        "",
        f"ACC in percent; one network a row, {SCHEDULE['epochs']} epochs at batch "
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
