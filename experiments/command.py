"""Commands that go row by row.

Every table is a command (``python -m experiments.table1``). A row is one run of the main
job; rows that are recorded are not run again, an interrupted one goes on where it stopped,
and after every row the table's ``result.json`` and ``result.md`` under
``experiments/results/`` are written anew.
"""

import argparse
import dataclasses
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from experiments.benchmarks.reporting import RESULTS, record
from experiments.records import elsewhere, forget, goes_on, of_schedule, read, trimmed
from experiments.rows import SCHEDULE
from experiments.table import Table
from jaxpoison import RunConfig, RunOutcome, run, use_one_device_per_core


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
            outcome_of(options, row.name, row.options, schedule)
            made = trimmed(json.loads((workdir / "result.json").read_text()))
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


def write(name: str, table: Table, recorded: dict[str, Any]) -> None:
    rows = {row.name: recorded[row.name] for row in table.rows if row.name in recorded}
    if rows:
        printed = {row.name: row.printed for row in table.rows}
        record(name, {"rows": rows, "printed": printed}, table.markdown(rows))
