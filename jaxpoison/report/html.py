"""The report: one self-contained HTML page."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup
from matplotlib.figure import Figure

from jaxpoison._files import write_text
from jaxpoison._sampling import evenly
from jaxpoison.attributions import ATTRIBUTIONS, explain
from jaxpoison.pipeline import RunOutcome
from jaxpoison.report.figures import class_ranking, cluster_map, examples, training_course
from jaxpoison.screening import ScanOutcome

_EXAMPLES = 4
# Most classes whose images a scan shows.
_CLASSES = 3


def write_report(path: Path, outcome: RunOutcome) -> None:
    """Writes a report of a run.

    Args:
        path: The HTML file.
        outcome: What the run found.
    """
    template = _template("report.html.jinja")
    names = outcome.splits.train.class_names
    config = outcome.result["config"]
    write_text(
        path,
        template.render(
            result=outcome.result,
            target_name=names[config["target"]],
            trigger=_trigger(config),
            source_name=None if config["source"] is None else names[config["source"]],
            example_figures=_example_figures(outcome),
            cluster_figure=cluster_map(outcome.detections, outcome.poisoned),
            training_figure=training_course(outcome.history),
            disagreements=_disagreements(outcome),
        ),
    )


def write_scan_report(path: Path, outcome: ScanOutcome) -> None:
    """Writes a report of a scan, with pictures of the most suspicious classes.

    Args:
        path: The HTML file.
        outcome: What the scan found.
    """
    shown = [of for of in outcome.classes if of.suspicious] or outcome.classes[:1]
    pictures = []
    for of in shown[:_CLASSES]:
        name, suspects = outcome.train.class_names[of.label], of.detection.suspects
        for title, group in (("suspects", suspects), ("others", ~suspects)):
            members = of.members[group]
            if not len(members):
                continue
            rows = members[evenly(len(members), 2 * _EXAMPLES)]
            images, labels = outcome.train.images[rows], outcome.train.labels[rows]
            method = ATTRIBUTIONS[outcome.attribution]()
            relevance = explain(outcome.model, images, labels, method=method).relevance
            titles = [Path(outcome.train.ids[row]).name for row in rows]
            pictures.append(
                (f"Class {of.label} ({name}), {title}", examples(images, relevance, titles))
            )
    write_text(
        path,
        _template("scan.html.jinja").render(
            result=outcome.result,
            ranking_figure=class_ranking(outcome.result["classes"]),
            example_figures=pictures,
        ),
    )


def _template(name: str) -> Template:
    environment = Environment(
        loader=PackageLoader("jaxpoison.report"), autoescape=True, undefined=StrictUndefined
    )
    environment.filters["percent"] = _percent
    environment.filters["picture"] = _picture
    return environment.get_template(name)


def _trigger(config: dict[str, Any]) -> str:
    """What marks poisoned images, in words."""
    if config["trigger"] == "amplitude":
        where = "all corners" if config["four_corners"] else "the lower right corner"
        return f"a 3×3 pattern of amplitude {config['amplitude']} in {where}"
    return f"a {config['sticker_size']}×{config['sticker_size']} sticker"


def _example_figures(outcome: RunOutcome) -> list[tuple[str, Figure]]:
    """A few images of each group, evenly over the data."""
    poisoned = outcome.poisoned
    if poisoned is not None:
        groups = [("Poisoned images", poisoned), ("Clean images", ~poisoned)]
    else:
        ranking = next(reversed(outcome.detections.values()), None)
        if ranking is None:
            groups = [("Images", np.ones(len(outcome.suspected), bool))]
        else:
            groups = [("Suspects", ranking.suspects), ("Others", ~ranking.suspects)]
    train = outcome.splits.train
    figures = []
    for title, members in groups:
        index = np.flatnonzero(members)
        if not len(index):
            continue
        chosen = index[evenly(len(index), 2 * _EXAMPLES)]
        rows = outcome.suspected[chosen]
        figures.append(
            (
                title,
                examples(
                    train.images[rows],
                    outcome.relevance[chosen],
                    [Path(train.ids[row]).name for row in rows],
                ),
            )
        )
    return figures


def _disagreements(outcome: RunOutcome) -> list[dict[str, Any]]:
    """What each detector got wrong, by number, where the truth is known."""
    poisoned = outcome.poisoned
    if poisoned is None:
        return []
    return [
        {
            "name": name,
            "missed": int((poisoned & ~found.suspects).sum()),
            "false_alarms": int((~poisoned & found.suspects).sum()),
        }
        for name, found in outcome.detections.items()
    ]


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.2f}"


def _picture(figure: Figure) -> Markup:
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=130)
    encoded = base64.b64encode(data.getvalue()).decode()
    return Markup('<img alt="" src="data:image/png;base64,{}">').format(encoded)
