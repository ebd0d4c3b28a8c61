"""The table of results in the documentation, from the recorded rows of the paper's tables.

    python -m experiments.summary

writes it between its two marks. It shows ACC and TPR; TNR and more detectors stand
in ``experiments/results/<table>/result.md``.
"""

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiments.records import of_earlier_code, read
from experiments.rows import SCHEDULE
from experiments.table import EARLIER, percent, shown_detectors
from jaxpoison import DETECTORS

PAGE = Path(__file__).parent.parent / "docs" / "results.md"
BEGIN, END = "<!-- results -->\n", "<!-- end of results -->"
TABLES = ("table1", "table2", "table4")
SHOWN = shown_detectors()


def shown(found: Mapping[str, Any] | None) -> str:
    """ACC and TPR: where few images are poisoned, calling nothing poisoned has a high ACC."""
    return "–" if found is None else f"{100 * found['acc']:.1f} / {100 * found['tpr']:.1f}"


def text() -> str:
    """The table, and the line below it."""
    heads = " | ".join(DETECTORS[name].title for name in SHOWN)
    lines = [
        f"| | test accuracy | attack success | {heads} | paper: AC | paper: HC |",
        f"|---|{'---:|' * (len(SHOWN) + 4)}",
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
                f"[{attack}, {row.title}](../experiments/results/{name}/result.md)"
                + (" ◦" if of_earlier_code(found) else ""),
                percent(found["model"]["test_accuracy"]),
                percent(found["attack"]["asr" if attack == "standard" else "masr"]),
                *(shown(found["detectors"].get(d)) for d in SHOWN),
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
    if any("◦" in line for line in lines):
        lines.append(EARLIER)
    if any("†" in line for line in lines):
        lines.append("† The paper's figures of this row do not add up.")
    return "\n".join(lines) + "\n"


def main() -> None:
    page = PAGE.read_text()
    before, rest = page.split(BEGIN)
    PAGE.write_text(before + BEGIN + text() + END + rest.split(END)[1])


if __name__ == "__main__":
    main()
