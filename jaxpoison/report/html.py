"""The report: one self-contained HTML page."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup
from matplotlib.figure import Figure

from jaxpoison._files import replace_file, write_text
from jaxpoison._names import shown
from jaxpoison._sampling import evenly
from jaxpoison._storage import chunks_of, empty_array
from jaxpoison.datasets.dataset import Dataset
from jaxpoison.detectors.detection import Detection
from jaxpoison.evidence.class_evidence import ClassEvidence
from jaxpoison.evidence.verdict import SUSPICIOUS_FROM, TURNS_FROM
from jaxpoison.jobs.config import RunConfig
from jaxpoison.jobs.outcome import RunOutcome, ScannedClass, ScanOutcome, Training
from jaxpoison.jobs.records import config_record
from jaxpoison.lrp.attributions import ATTRIBUTIONS, explain
from jaxpoison.metrics import detection_rates
from jaxpoison.report.figures import (
    class_ranking,
    cluster_map,
    examples,
    save_png,
    training_course,
    trigger_picture,
)
from jaxpoison.report.gallery import Gallery, gallery, shown_images
from jaxpoison.report.words import said_of_attacked, said_of_excluded, said_of_run, said_of_scan

_EXAMPLES = 4
# Most classes whose images a scan shows.
_CLASSES = 3


def write_report(path: Path, outcome: RunOutcome) -> None:
    """Writes what a search found as a page, with the triggers as pictures beside it.

    Args:
        path: The HTML file.
        outcome: Of :func:`search` or :func:`run`.

    Examples:
        >>> import pathlib
        >>> outcome = jp.search(model, train, 5, detectors=("activation_pca",))
        >>> jp.write_report(pathlib.Path("report.html"), outcome)
        >>> pathlib.Path("report.html").stat().st_size > 10_000
        True
    """
    names, config, label = outcome.data.train.class_names, outcome.config, outcome.explained.label
    training = outcome.network.training
    detections = {name: found.detection for name, found in outcome.findings.items()}
    evidence = [found.evidence for found in outcome.findings.values()]
    chosen = shown_images(len(outcome.explained.members), detections)
    write_text(
        path,
        _template("report.html.jinja").render(
            outcome=outcome,
            config=config,
            target=label,
            target_name=names[label],
            attribution=outcome.search.attribution,
            data_name=_data_name(config),
            model_name=type(outcome.network.model).__name__ if config is None else config.model,
            settings=_settings(config, training),
            trigger=None if config is None else _trigger(config),
            source_name=_source_name(outcome),
            sentences=list(said_of_run(outcome)),
            excluded=said_of_excluded(config),
            gallery=_gallery(
                outcome.data.train,
                outcome.explained.members,
                outcome.explained.relevance[chosen].sum(-1),
                detections,
                chosen,
            ),
            poisoned_images=None if outcome.poisoned is None else int(outcome.poisoned.sum()),
            rates={name: outcome.rates(name) for name in outcome.findings},
            example_figures=_example_figures(outcome),
            trigger_figures=_trigger_figures(path.parent, evidence, names),
            cluster_figure=cluster_map(detections, outcome.poisoned) if detections else None,
            training_figure=None if training is None else training_course(training.history.epochs),
            disagreements=_disagreements(outcome),
        ),
    )


def write_scan_report(path: Path, outcome: ScanOutcome) -> None:
    """Writes what a scan found as a page, with one for every class that is called attacked.

    Args:
        path: The HTML file; pages of classes and pictures of triggers stand beside it.
        outcome: Of :func:`scan` or :func:`run_scan`.

    Examples:
        >>> import pathlib
        >>> outcome = jp.scan(model, train, detector="activation_pca")
        >>> jp.write_scan_report(pathlib.Path("scan.html"), outcome)
        >>> pathlib.Path("scan.html").stat().st_size > 10_000
        True
    """
    train = outcome.data.train
    shown = [scanned for scanned in outcome.classes if scanned.suspicious] or outcome.classes[:1]
    pictures, pages = [], {}
    for scanned in shown[:_CLASSES]:
        name, suspects = train.class_names[scanned.label], scanned.finding.detection.suspects
        for title, group in (("suspects", suspects), ("others", ~suspects)):
            members = scanned.members[group]
            if not len(members):
                continue
            rows = members[evenly(len(members), 2 * _EXAMPLES)]
            images, labels = train.images[rows], train.labels[rows]
            method = ATTRIBUTIONS[outcome.search.attribution]()
            relevance = explain(outcome.network.model, images, labels, method=method).relevance
            titles = [Path(train.ids[row]).name for row in rows]
            pictures.append(
                (f"Class {scanned.label} ({name}), {title}", examples(images, relevance, titles))
            )
        if scanned.suspicious:
            pages[scanned.label] = _write_class_page(path.parent, outcome, scanned)
    for stale in path.parent.glob("class-*.html"):
        # Perhaps an earlier job called it.
        if stale.name not in pages.values():
            stale.unlink()
    rates = None
    if outcome.data.backdoor is not None:
        rates = detection_rates(outcome.called, train.poisoned)
    evidence = [scanned.finding.evidence for scanned in outcome.classes]
    write_text(
        path,
        _template("scan.html.jinja").render(
            outcome=outcome,
            names=train.class_names,
            data_name=_data_name(outcome.config),
            sentences=list(said_of_scan(outcome)),
            excluded=said_of_excluded(outcome.config),
            thresholds={k: v for k, v in SUSPICIOUS_FROM.items() if k in outcome.detectors},
            turns_from=TURNS_FROM,
            rates=rates,
            ranking_figure=class_ranking(outcome.classes, train.class_names),
            trigger_figures=_trigger_figures(path.parent, evidence, train.class_names),
            example_figures=pictures,
            pages=pages,
        ),
    )


def _write_class_page(folder: Path, outcome: ScanOutcome, scanned: ScannedClass) -> str:
    """A page to look at all images of a class that is called attacked; gives its name."""
    train, finding = outcome.data.train, scanned.finding
    detections = {finding.detector: finding.detection}
    chosen = shown_images(len(scanned.members), detections)
    rows = scanned.members[chosen]
    heatmaps = empty_array((len(rows), *train.image_shape[:2]), np.float32)
    method = ATTRIBUTIONS[outcome.search.attribution]()
    for some in chunks_of(heatmaps):
        images, labels = train.images[rows[some]], train.labels[rows[some]]
        found = explain(outcome.network.model, images, labels, method=method)
        heatmaps[some] = found.relevance.sum(-1)
    name = f"class-{scanned.label}.html"
    write_text(
        folder / name,
        _template("class.html.jinja").render(
            scanned=scanned,
            name=train.class_names[scanned.label],
            data_name=_data_name(outcome.config),
            sentence=said_of_attacked(scanned, train.class_names),
            trigger_figures=_trigger_figures(folder, [finding.evidence], train.class_names),
            gallery=_gallery(train, scanned.members, heatmaps, detections, chosen),
        ),
    )
    return name


def _gallery(
    train: Dataset,
    members: Int[np.ndarray, " n"],
    heatmaps: Float[np.ndarray, "m h w"],
    detections: Mapping[str, Detection],
    chosen: Int[np.ndarray, " m"],
) -> Gallery:
    return gallery(
        train.images[members[chosen]],
        heatmaps,
        [train.ids[k] for k in members],
        detections,
        None if train.poisoned is None else train.poisoned[members],
        chosen,
    )


def _trigger_figures(
    folder: Path, evidence: Iterable[ClassEvidence | None], names: Sequence[str]
) -> list[tuple[str, Figure]]:
    """The trigger of every attacked class; each is left as ``trigger-class-K.png``, too."""
    figures = []
    for found in evidence:
        if found is None:
            continue
        path = folder / f"trigger-class-{found.label}.png"
        if found.trigger is None:
            # Perhaps an earlier job called it.
            path.unlink(missing_ok=True)
            continue
        figure = trigger_picture(found, names)
        with replace_file(path) as file:
            save_png(figure, file)
        figures.append((f"The trigger of class {found.label} ({names[found.label]})", figure))
    return figures


def _data_name(config: RunConfig | None) -> str:
    return "the data" if config is None else Path(config.data).name


def _settings(config: RunConfig | None, training: Training | None) -> dict[str, Any]:
    """Name and value of every setting of a job that plays a part, one level deep."""
    if config is None:
        return {}
    record = config_record(config, None if training is None else training.settings)
    left_out = {"schema", *config.unused()}
    flat = {}
    for part in filter(None, record.values()):
        part = {name: value for name, value in part.items() if name not in left_out}
        for name, value in part.items():
            inner = value.items() if isinstance(value, dict) else ()
            flat |= {f"{name} {key}": each for key, each in inner} or {name: value}
    return flat


def _source_name(outcome: RunOutcome) -> str | None:
    backdoor = outcome.data.backdoor
    if backdoor is None or backdoor.source is None:
        return None
    return outcome.data.train.class_names[backdoor.source]


def _template(name: str) -> Template:
    environment = Environment(
        loader=PackageLoader("jaxpoison.report"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_finalized,
    )
    environment.filters["percent"] = _percent
    environment.filters["picture"] = _picture
    return environment.get_template(name)


def _trigger(config: RunConfig) -> str:
    """What marks poisoned images, in words."""
    if config.trigger == "amplitude":
        where = "all corners" if config.four_corners else "the lower right corner"
        return f"a 3×3 pattern of amplitude {config.amplitude} in {where}"
    return f"a {config.sticker_size}×{config.sticker_size} sticker"


def _example_figures(outcome: RunOutcome) -> list[tuple[str, Figure]]:
    """A few images of each group, evenly over the data."""
    poisoned = outcome.poisoned
    if poisoned is not None:
        groups = [("Poisoned images", poisoned), ("Clean images", ~poisoned)]
    else:
        ranking = next(reversed(outcome.findings.values()), None)
        if ranking is None:
            groups = [("Images", np.ones(len(outcome.explained.members), bool))]
        else:
            suspects = ranking.detection.suspects
            groups = [("Suspects", suspects), ("Others", ~suspects)]
    train = outcome.data.train
    figures = []
    for title, members in groups:
        index = np.flatnonzero(members)
        if not len(index):
            continue
        chosen = index[evenly(len(index), 2 * _EXAMPLES)]
        rows = outcome.explained.members[chosen]
        figures.append(
            (
                title,
                examples(
                    train.images[rows],
                    outcome.explained.relevance[chosen],
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
            "missed": int((poisoned & ~found.detection.suspects).sum()),
            "false_alarms": int((~poisoned & found.detection.suspects).sum()),
        }
        for name, found in outcome.findings.items()
    ]


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.2f}"


def _finalized(value: Any) -> Any:
    """What a template writes: names as they can be shown."""
    return shown(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _picture(figure: Figure, what: str) -> Markup:
    """An image in the page; ``what`` is read out where it is not seen."""
    data = io.BytesIO()
    save_png(figure, data)
    encoded = base64.b64encode(data.getvalue()).decode()
    return Markup('<img alt="{}" src="data:image/png;base64,{}">').format(shown(what), encoded)
