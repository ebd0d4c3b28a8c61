"""What was found in new images: files, and pictures of the triggers in them."""

from __future__ import annotations

from pathlib import Path

from jaxpoison._files import replace_file, write_json, write_text
from jaxpoison._sampling import evenly
from jaxpoison.jobs.against import AgainstOutcome, against_record, new_suspects
from jaxpoison.report.figures import carriers_sheet, save_png

# Images in a picture.
_SHOWN = 24


def write_against(workdir: str | Path, outcome: AgainstOutcome) -> None:
    """Leaves what was found in new images.

    ``against.json``; ``suspects.csv``, a list for :func:`without_listed`; and for every attacked
    class a picture of images that carry its trigger, ``trigger-class-K.png``.

    Args:
        workdir: Where; made if it does not exist.
        outcome: Of :func:`scan_against`.

    Examples:
        >>> _ = jp.scan(model, train, detector="activation_pca", workdir="runs/scanned")
        >>> new = jp.scan_against("runs/scanned", splits.test, model=model)
        >>> jp.write_against("runs/scanned/against", new)
    """
    workdir = Path(workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    write_json(workdir / "against.json", against_record(outcome))
    write_text(workdir / "suspects.csv", new_suspects(outcome))
    for stale in workdir.glob("trigger-class-*.png"):
        stale.unlink()
    for each in outcome.found:
        trigger = each.attack.evidence.trigger
        if trigger is None or not len(each.members):
            continue
        some = evenly(len(each.members), _SHOWN)
        rows = each.members[some]
        figure = carriers_sheet(
            outcome.data.images[rows],
            each.places[some],
            len(trigger.values),
            [Path(outcome.data.ids[row]).name for row in rows],
        )
        with replace_file(workdir / f"trigger-class-{each.attack.evidence.label}.png") as file:
            save_png(figure, file)
