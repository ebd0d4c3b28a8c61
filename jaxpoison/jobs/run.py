"""The main job: poison, train, explain, detect."""

from __future__ import annotations

from pathlib import Path

from jaxpoison._files import write_json, write_text
from jaxpoison.jobs.config import RunConfig
from jaxpoison.jobs.outcome import RunOutcome
from jaxpoison.jobs.planning import plan_of_search
from jaxpoison.jobs.prepare import prepare
from jaxpoison.jobs.records import images_table, run_record, suspects_of_run
from jaxpoison.jobs.search import search
from jaxpoison.jobs.stages import WorkDirectory


def run(config: RunConfig, workdir: str | Path, *, progress: bool = False) -> RunOutcome:
    """Runs all stages; finished ones are read from the work directory.

    Leaves ``config.json``, ``result.json``, ``images.csv`` and ``suspects-class-K.csv``, and
    each stage's own files under ``stages/``.

    Args:
        config: What to run.
        workdir: Where results and stages are kept.
        progress: Show progress bars.

    Raises:
        ValueError: The configuration does not fit the data, or another process works in the
            directory.
        FileNotFoundError: There are no data at the given path.

    Examples:
        >>> config = jp.RunConfig(rate=0.2, detectors=("raw_pca", "activation_pca"))
        >>> outcome = jp.run(config, "runs/first")
        >>> list(outcome.findings), int(outcome.poisoned.sum()) > 0
        (['raw_pca', 'activation_pca'], True)
    """
    workdir = Path(workdir)
    work = WorkDirectory(workdir)
    with work.job("run"):
        data, settings = prepare(config, work, progress)
        work.plan = plan_of_search(config, data, settings, config.detectors)
        outcome = search(config, data, settings, work, progress, config.detectors)
        write_json(workdir / "config.json", config.record())
        write_json(workdir / "result.json", run_record(outcome))
        write_text(workdir / "images.csv", images_table(outcome))
        write_text(workdir / f"suspects-class-{config.target}.csv", suspects_of_run(outcome))
        work.finish(outcome.trained.stage)
    return outcome
