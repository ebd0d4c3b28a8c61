"""Tables in the terminal."""

from __future__ import annotations

from pathlib import Path

import jax.numpy as jnp
import numpy as np
from flax import nnx
from rich.console import Console
from rich.table import Table

from jaxpoison._names import shown
from jaxpoison.evidence.verdict import CASCADE, JUDGE
from jaxpoison.jobs.against import AgainstOutcome
from jaxpoison.jobs.outcome import RepairOutcome, RunOutcome, ScanOutcome
from jaxpoison.lrp.graph import last_dense_layer
from jaxpoison.lrp.propagation import ruled_layers
from jaxpoison.models.inference import class_count, parameter_count
from jaxpoison.report.words import said_of_run, said_of_scan

_SHOWN_CLASSES = 5


def print_run(outcome: RunOutcome, workdir: Path, seconds: float) -> None:
    """What every detector found, and how well the network and the attack do.

    Args:
        outcome: Of the run.
        workdir: Where its files are.
        seconds: It took.
    """
    console = _console()
    table = Table(title=f"Suspected images of class {outcome.explained.label}")
    table.add_column("detector")
    for name in ("ACC %", "TPR %", "TNR %", "suspects", "of", "seconds"):
        table.add_column(name, justify="right")
    for name, found in outcome.findings.items():
        clean, suspects = found.detection.cluster_sizes
        rates = outcome.rates(name)
        table.add_row(
            name,
            *(_percent(share) for share in (rates.acc, rates.tpr, rates.tnr)),
            str(suspects),
            str(clean + suspects),
            f"{found.detection.seconds:.1f}",
        )
    console.print(table)
    for sentence in said_of_run(outcome):
        console.print(sentence, highlight=False)
    evaluation = outcome.evaluation
    line = f"test accuracy {_percent(evaluation.test_accuracy)} %"
    if evaluation.asr is not None:
        line += f", attack success rate {_percent(evaluation.asr)} %"
    if evaluation.masr is not None:
        line += f", mean attack success rate {_percent(evaluation.masr)} %"
    console.print(f"{line}, {seconds:.0f} s", highlight=False)
    console.print(
        f"report: {_at(workdir / 'report.html')}   suspects: "
        f"{_at(workdir / f'suspects-class-{outcome.explained.label}.csv')}",
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
    console = _console()
    table = Table(title="The most suspicious classes; suspicious from 1 on")
    table.add_column("class")
    asked = outcome.options.detector == JUDGE
    for name in ("suspicion", "hosts turned %" if asked else "silhouette", "suspects", "of"):
        table.add_column(name, justify="right")
    for scanned in outcome.classes[:_SHOWN_CLASSES]:
        evidence, silhouette = scanned.finding.evidence, scanned.finding.separation.silhouette
        if evidence is not None:
            measured = _percent(evidence.hosts_turned)
        else:
            measured = "–" if silhouette is None else f"{silhouette:.3f}"
        table.add_row(
            f"{scanned.label} {shown(outcome.data.train.class_names[scanned.label])}",
            f"{scanned.suspicion:.2f}",
            measured,
            str(scanned.finding.detection.cluster_sizes[1]),
            str(len(scanned.members)),
        )
    console.print(table)
    for sentence in said_of_scan(outcome):
        console.print(shown(sentence), highlight=False)
    console.print(f"{len(outcome.classes)} classes searched, {seconds:.0f} s", highlight=False)
    if outcome.options.detector == "cascade":
        explained = sum(scanned.finding.detector == CASCADE[1] for scanned in outcome.classes)
        console.print(
            f"{CASCADE[1]} looked at {explained} of them; --detector {CASCADE[1]} looks at all",
            highlight=False,
        )
    called = [outcome.called, outcome.called_in_validation, outcome.called_in_test]
    console.print(
        f"report: {_at(workdir / 'scan.html')}   {sum(int(part.sum()) for part in called)} images "
        f"called: {_at(workdir / 'suspects.csv')}",
        highlight=False,
        soft_wrap=True,
    )


def print_against(outcome: AgainstOutcome, scanned: Path, workdir: Path) -> None:
    """Which new images carry a trigger that a scan knows.

    Args:
        outcome: Of the search.
        scanned: Work directory of the scan.
        workdir: Where the new images' files are.
    """
    console = _console()
    if not outcome.found:
        console.print(
            f"the scan in {shown(str(scanned))} knows no trigger: nothing was looked for",
            highlight=False,
            soft_wrap=True,
        )
    for each in outcome.found:
        console.print(
            f"class {each.attack.evidence.label} ({shown(each.attack.name)}), called attacked by "
            f"the scan: {len(each.members)} of {len(outcome.data)} new images carry its trigger",
            highlight=False,
            soft_wrap=True,
        )
    console.print(
        f"{int(outcome.called.sum())} images called: {_at(workdir / 'suspects.csv')}   "
        f"{outcome.seconds:.0f} s",
        highlight=False,
        soft_wrap=True,
    )


def print_layers(model: nnx.Module, image_shape: tuple[int, int, int]) -> None:
    """The layers of a network in the order of the computation, and the rule of each.

    Args:
        model: The network.
        image_shape: Height, width and channels of its images.

    Raises:
        ValueError: It has operations without a rule.
    """
    console = _console()
    table = Table(title=f"{type(model).__name__}: from the image to the logits")
    for name in ("layer", "kind", "output", "rule"):
        table.add_column(name, overflow="fold")
    one = jnp.zeros((1, *image_shape), jnp.float32)
    for row in ruled_layers(model, one):
        shape = "x".join(map(str, row.shape))
        table.add_row(shown(row.path), shown(row.kind), shape, type(row.rule).__name__)
    console.print(table)
    images = np.zeros((1, *image_shape), np.uint8)
    console.print(
        f"{parameter_count(model):,} parameters, {class_count(model, images)} classes; "
        f"activations: what {shown(last_dense_layer(model, images))} gets (--layer names another)",
        highlight=False,
        soft_wrap=True,
    )


def print_repair(outcome: RepairOutcome, workdir: Path, seconds: float) -> None:
    """Every network of a repair.

    Args:
        outcome: Of the repair.
        workdir: Where its files are.
        seconds: It took.
    """
    console = _console()
    table = Table(title=f"Repair of class {outcome.target}")
    table.add_column("network")
    for name in ("training images", "test accuracy %", "ASR or MASR %", "taken out after it"):
        table.add_column(name, justify="right")
    for number, each in enumerate(outcome.rounds):
        evaluation = each.evaluation
        success = evaluation.masr if evaluation.asr is None else evaluation.asr
        table.add_row(
            "first" if number == 0 else f"round {number}",
            str(len(each.train)),
            _percent(evaluation.test_accuracy),
            _percent(success),
            "–" if each.removal is None else str(len(each.removal.images)),
        )
    console.print(table)
    console.print(
        f"{int(outcome.removed.sum())} images taken out; ended: {outcome.ended}, {seconds:.0f} s",
        highlight=False,
    )
    console.print(
        f"record: {_at(workdir / 'repair.json')}   images: {_at(workdir / 'removed.csv')}",
        highlight=False,
        soft_wrap=True,
    )


def _at(path: Path) -> str:
    return shown(str(path))


def _console() -> Console:
    # Names of classes and folders are no markup.
    return Console(markup=False, emoji=False)


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.2f}"
