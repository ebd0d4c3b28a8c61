"""Tables in the terminal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from jaxpoison.pipeline import RunOutcome
from jaxpoison.screening import ScanOutcome

_SHOWN_CLASSES = 5


def print_run(outcome: RunOutcome, workdir: Path, seconds: float) -> None:
    """What every detector found, and how well the network and the attack do.

    Args:
        outcome: Of the run.
        workdir: Where its files are.
        seconds: It took.
    """
    console = Console()
    result = outcome.result
    table = Table(title=f"Suspected images of class {result['config']['target']}")
    table.add_column("detector")
    for name in ("ACC %", "TPR %", "TNR %", "suspects", "of", "seconds"):
        table.add_column(name, justify="right")
    for name, row in result["detectors"].items():
        clean, suspects = row["cluster_sizes"]
        table.add_row(
            name,
            *(_percent(row[rate]) for rate in ("acc", "tpr", "tnr")),
            str(suspects),
            str(clean + suspects),
            f"{row['seconds']:.1f}",
        )
    console.print(table)
    told = {name: row for name, row in result["detectors"].items() if row["suspicious"] is not None}
    calling = [name for name, row in told.items() if row["suspicious"]]
    said = ", ".join(calling) or "no detector"
    console.print(
        f"the class looks attacked to {said} (of {len(told)} that can tell)", highlight=False
    )
    line = f"test accuracy {_percent(result['model']['test_accuracy'])} %"
    if result["attack"]["asr"] is not None:
        line += f", attack success rate {_percent(result['attack']['asr'])} %"
    if result["attack"]["masr"] is not None:
        line += f", mean attack success rate {_percent(result['attack']['masr'])} %"
    console.print(f"{line}, {seconds:.0f} s", highlight=False)
    console.print(
        f"report: {workdir / 'report.html'}   suspects: {workdir / 'suspects.csv'}",
        highlight=False,
        soft_wrap=True,
    )


def print_scan(outcome: ScanOutcome, workdir: Path, seconds: float) -> None:
    """The most suspicious classes, and which are suspicious.

    Args:
        outcome: Of the scan.
        workdir: Where its files are.
        seconds: It took.
    """
    console = Console()
    table = Table(title="The most suspicious classes; suspicious from 1 on")
    table.add_column("class")
    for name in ("suspicion", "silhouette", "suspects", "of"):
        table.add_column(name, justify="right")
    for row in outcome.result["classes"][:_SHOWN_CLASSES]:
        table.add_row(
            f"{row['class']} {row['name']}",
            f"{row['suspicion']:.2f}",
            "–" if row["silhouette"] is None else f"{row['silhouette']:.3f}",
            str(row["suspects"]),
            str(row["images"]),
        )
    console.print(table)
    called = [str(row["class"]) for row in outcome.result["classes"] if row["suspicious"]]
    console.print(
        f"suspicious: {', '.join(called) or 'none'} (of {len(outcome.classes)} classes), "
        f"{seconds:.0f} s",
        highlight=False,
    )
    console.print(f"report: {workdir / 'scan.html'}", highlight=False, soft_wrap=True)


def _percent(share: Any) -> str:
    return "–" if share is None else f"{100 * share:.2f}"
