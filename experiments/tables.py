"""What the paper's tables have in common: rows that are runs, beside the printed figures.

Every table is a command (``python -m experiments.table1``). A row is one run
of the main job; rows that are recorded are not run again, an interrupted one
goes on where it stopped, and after every row the table's ``result.json`` and
``result.md`` under ``experiments/results/`` are written anew.
"""

import argparse
import dataclasses
import json
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from experiments.benchmarks.reporting import RESULTS, machine, record
from jaxpoison import RunConfig, RunOutcome, run
from jaxpoison.parallel import use_one_device_per_core

PRINTED = json.loads((Path(__file__).parent / "paper_tables.json").read_text())
# The same for all rows.
SCHEDULE = {"protocol": "fast", "epochs": 2, "batch_size": 64}
# Which of the paper's detectors ours stand beside.
RIVALS = {
    "raw_pca": "pca",
    "raw_ica": "fastica",
    "activation_pca": "ac",
    "activation_ica": "ac",
    "mean_distance": "hc",
    "heatmap_paper": "hc",
    "heatmap": "hc",
    "heatmap_sharp": "hc",
}
NAMES = {
    "raw_pca": "raw, PCA",
    "raw_ica": "raw, FastICA",
    "activation_pca": "AC, PCA",
    "activation_ica": "AC, FastICA",
    "mean_distance": "mean distance",
    "heatmap_paper": "HC, ε = 0.1",
    "heatmap": "HC, ε = 0.02",
    "heatmap_sharp": "HC, ε = 0.005, quick",
}
SHOWN = tuple(name for name in NAMES if not name.startswith("raw"))
RATES = ("acc", "tpr", "tnr")


@dataclass(frozen=True)
class Row:
    """One run and what the paper printed of it.

    Attributes:
        name: Of the row, and of its work directory.
        options: What differs from the defaults of :class:`RunConfig`.
        title: What the table calls it.
        printed: The paper's figures, percent.
        doubt: Why a printed figure does not add up, where it does not.
        doubted: The paper's detectors that this concerns.
    """

    name: str
    options: dict[str, Any]
    title: str
    printed: dict[str, Any] = field(default_factory=dict)
    doubt: str = ""
    doubted: Sequence[str] = ("ac", "hc")


@dataclass(frozen=True)
class Table:
    """A table of the paper.

    Attributes:
        name: Folder of its results.
        title: Heading.
        rows: Its rows.
        detectors: The detectors it shows.
    """

    name: str
    title: str
    rows: Sequence[Row]
    detectors: Sequence[str] = SHOWN

    def markdown(self, recorded: Mapping[str, Any]) -> str:
        """The table, ours beside the paper's."""
        shown = [row for row in self.rows if row.name in recorded]
        lines = [
            f"# {self.title}",
            "",
            "Percent; ACC / TPR / TNR. *Success*: of the attack, ASR (standard) or MASR "
            "(label-consistent). HC stands at the paper's setting (ε = 0.1), at the package's "
            "default (ε = 0.02) and on quantised heatmaps (ε = 0.005); *mean distance* is "
            "two-means on one number per heatmap.",
            "",
            "| | test accuracy | success | paper | detector | ours | paper |",
            "|---|---:|---:|---:|---|---|---|",
        ]
        for row in shown:
            found = recorded[row.name]
            success = found["attack"]["masr" if row.options["attack"] != "standard" else "asr"]
            for k, name in enumerate(d for d in self.detectors if d in found["detectors"]):
                ours = [percent(found["detectors"][name][rate]) for rate in RATES]
                theirs = row.printed.get(RIVALS[name])
                cells = ["", "", "", ""]
                if k == 0:
                    printed = row.printed.get("masr", row.printed.get("asr"))
                    cells = [
                        row.title,
                        percent(found["model"]["test_accuracy"]),
                        percent(success),
                        "–" if printed is None else f"{printed:g}",
                    ]
                doubted = " †" if row.doubt and RIVALS[name] in row.doubted else ""
                ended = "" if found["detectors"][name]["converged"] else " ‡"
                lines.append(
                    f"| {' | '.join(cells)} | {NAMES[name]} | {' / '.join(ours)}{ended} | "
                    f"{'–' if theirs is None else beside(theirs)}{doubted} |"
                )
        lines += ["", *self._means(shown, recorded)]
        lines += [*(f"† {row.title}: {row.doubt}." for row in shown if row.doubt)]
        if any("‡" in line for line in lines):
            lines += ["‡ Labels still moved in the last round."]
        for name in self.detectors:
            without = [r.title for r in shown if name not in recorded[r.name]["detectors"]]
            if without:
                lines += [f"Recorded without {NAMES[name]}: {', '.join(without)}."]
        missing = [row.title for row in self.rows if row.name not in recorded]
        if missing:
            lines += [f"Not run: {', '.join(missing)}."]
        return "\n".join(lines).rstrip() + "\n"

    def _means(self, shown: Sequence[Row], recorded: Mapping[str, Any]) -> list[str]:
        """One setting is to be chosen for a whole table, not row by row."""
        means = []
        for name in self.detectors:
            having = [row for row in shown if name in recorded[row.name]["detectors"]]
            if RIVALS[name] == "hc" and name != "mean_distance" and having:
                accs = [recorded[row.name]["detectors"][name]["acc"] for row in having]
                theirs = [row.printed["hc"]["acc"] for row in having if "hc" in row.printed]
                paper = f" (paper {sum(theirs) / len(theirs):.2f})" if theirs else ""
                means.append(
                    f"{NAMES[name]}: {percent(sum(accs) / len(accs))}{paper}, rows: {len(having)}"
                )
        return [f"Mean ACC. {'; '.join(means)}.", ""] if means else []


def standard(share: float, size: int = 3, seed: int = 0) -> tuple[str, dict[str, Any]]:
    """Name and options of a run with the standard attack; the share in percent."""
    name = f"standard-s{size}-p{share:g}-seed{seed}"
    return name, {
        "attack": "standard",
        "rate": share / 100,
        "sticker_size": size,
        "seed": seed,
    }


def label_consistent(share: float, amplitude: int | None = None) -> tuple[str, dict[str, Any]]:
    """Name and options of a run with the label-consistent attack; a sticker without amplitude."""
    options: dict[str, Any] = {"attack": "label-consistent", "rate": share / 100}
    if amplitude is None:
        return f"label-consistent-s3-p{share:g}-seed0", options
    options |= {"trigger": "amplitude", "amplitude": amplitude}
    return f"label-consistent-a{amplitude}-p{share:g}-seed0", options


def command(description: str | None) -> argparse.ArgumentParser:
    """What every command on runs takes."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--data", default=os.environ.get("JAXPOISON_GTSRB", "gtsrb"), help="as for jaxpoison run")
    add("--workdir", type=Path, default=Path("runs"), help="where runs are kept [runs]")
    return parser


def parsed(parser: argparse.ArgumentParser, rows: Iterable[str]) -> argparse.Namespace:
    """Options of a command that goes row by row; ``only`` names the rows to run."""
    rows = list(rows)
    parser.add_argument(
        "--only", help="names of rows, separated by commas; the others are left as they are"
    )
    options = parser.parse_args()
    options.only = rows if options.only is None else options.only.split(",")
    unknown = set(options.only) - set(rows)
    if unknown:
        parser.error(f"no row is called {', '.join(sorted(unknown))}; there are {', '.join(rows)}")
    return options


def run_of(
    options: argparse.Namespace,
    name: str,
    changes: dict[str, Any],
    schedule: Mapping[str, Any] = SCHEDULE,
) -> tuple[RunConfig, Path]:
    """Configuration and work directory of a row's run."""
    config = RunConfig(data=options.data, **changes, **schedule)
    usual = schedule.get("epochs") in (None, SCHEDULE["epochs"])
    epochs = "" if usual else f"-{config.epochs}-epochs"
    return config, options.workdir / f"{name}-{config.protocol}{epochs}"


def outcome_of(
    options: argparse.Namespace,
    name: str,
    changes: dict[str, Any],
    schedule: Mapping[str, Any] = SCHEDULE,
) -> RunOutcome:
    """A row's run, made or gone on with where it is not finished."""
    return run(*run_of(options, name, changes, schedule), progress=True)


def main(table: Table, description: str | None) -> None:
    """Runs a table's rows and writes it."""
    parser = command(description)
    add = parser.add_argument
    add(
        "--again",
        action="store_true",
        help="run recorded rows again, training too; in this table alone",
    )
    other = parser.add_mutually_exclusive_group()
    other.add_argument(
        "--protocol", choices=("fast", "paper"), help="paper: up to 100 epochs a row"
    )
    other.add_argument(
        "--epochs",
        type=int,
        default=SCHEDULE["epochs"],
        help="of every network, a surrogate too; others than %(default)s are recorded apart",
    )
    options = parsed(parser, (row.name for row in table.rows))
    use_one_device_per_core()
    schedule, name = {**SCHEDULE, "epochs": options.epochs}, table.name
    if options.protocol == "paper":
        schedule, name = {"protocol": "paper"}, f"{name}_paper_protocol"
        table = dataclasses.replace(table, title=f"{table.title}; the paper's protocol")
    elif schedule != SCHEDULE:
        name = f"{name}_{options.epochs}_epochs"
        table = dataclasses.replace(table, title=f"{table.title}; {options.epochs} epochs")
    recorded = read(name)
    refuse_other_data(parser, options, name, recorded.values())
    for row, found in recorded.items():
        if not of_schedule(found, schedule):
            parser.error(
                f"the recorded row {row} was trained by another schedule than {schedule}: "
                f"move {RESULTS / name} away first"
            )
    for row in table.rows:
        if row.name not in options.only:
            continue
        workdir = run_of(options, row.name, row.options, schedule)[1]
        if row.name in recorded and not options.again and not goes_on(recorded[row.name], workdir):
            continue
        made = None if options.again else elsewhere(row.name, options.data, schedule)
        if made is None or goes_on(made, workdir):
            print(f"{table.name}: {row.title}", flush=True)
            if options.again:
                forget(workdir)
            made = trimmed(outcome_of(options, row.name, row.options, schedule).result)
        # Another process may have recorded other rows meanwhile.
        recorded = {**read(name), row.name: made}
        write(name, table, recorded)
    write(name, table, read(name))


def refuse_other_data(
    parser: argparse.ArgumentParser,
    options: argparse.Namespace,
    name: str,
    recorded: Iterable[Mapping[str, Any]],
) -> None:
    """Ends the command if recorded runs are of other data than it is given."""
    data = Path(options.data).name
    others = {found["config"]["data"] for found in recorded} - {data}
    if others:
        parser.error(
            f"the recorded rows are of {', '.join(sorted(others))}, not of {data}: give --data, or "
            f"move {RESULTS / name} away first"
        )


def goes_on(found: Mapping[str, Any], workdir: Path) -> bool:
    """Whether a recorded run lacks a detector, and its trained network is still there."""
    lacking = set(RunConfig.detectors) - set(found["detectors"])
    return bool(lacking) and (workdir / "stages" / "train" / "stage.json").is_file()


def forget(workdir: Path) -> None:
    """Lets a finished run start anew; one that was interrupted goes on."""
    if (workdir / "result.json").is_file():
        (workdir / "result.json").unlink()
        shutil.rmtree(workdir / "stages")


def read(name: str) -> dict[str, Any]:
    """The recorded rows of a table."""
    path = RESULTS / name / "result.json"
    return json.loads(path.read_text())["rows"] if path.is_file() else {}


def of_schedule(found: Mapping[str, Any], schedule: Mapping[str, Any]) -> bool:
    """Whether a recorded run was trained by a schedule."""
    return all(found["config"][k] == value for k, value in schedule.items())


def elsewhere(row: str, data: str, schedule: Mapping[str, Any]) -> dict[str, Any] | None:
    """The same run, if another of the tables 1 to 5 has recorded it; that of most detectors."""
    records = [
        json.loads(p.read_text())["rows"] for p in sorted(RESULTS.glob("table*/result.json"))
    ]
    same = [
        found[row]
        for found in records
        if row in found
        and found[row]["config"]["data"] == Path(data).name
        and of_schedule(found[row], schedule)
    ]
    return max(same, key=lambda found: len(found["detectors"]), default=None)


def trimmed(result: dict[str, Any]) -> dict[str, Any]:
    """What a table keeps of a run."""
    suspected = {k: v for k, v in result["suspected_class"].items() if k != "conservation"}
    return {**result, "suspected_class": suspected, "machine": machine()}


def write(name: str, table: Table, recorded: dict[str, Any]) -> None:
    rows = {row.name: recorded[row.name] for row in table.rows if row.name in recorded}
    if rows:
        printed = {row.name: row.printed for row in table.rows}
        record(name, {"rows": rows, "printed": printed}, table.markdown(rows))


def beside(figures: dict[str, Any]) -> str:
    return " / ".join(f"{figures[rate]:.2f}" for rate in RATES)


def percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.2f}"
