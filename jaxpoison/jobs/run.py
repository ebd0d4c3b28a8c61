"""The main job: poison, train, explain, detect."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from jaxpoison._files import write_json
from jaxpoison.jobs.config import RunConfig
from jaxpoison.jobs.detecting import FEWEST
from jaxpoison.jobs.outcome import RunOutcome
from jaxpoison.jobs.planning import plan_of_search
from jaxpoison.jobs.prepare import job_network, prepare
from jaxpoison.jobs.search import members_of, search_class, write_records
from jaxpoison.jobs.stages import working


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
    with working(workdir, "run") as work:
        data, settings = prepare(config, work, progress)
        members_of(data.train, config.target, fewest=FEWEST if config.detectors else 0)
        work.plan = plan_of_search(config.target, data, settings, config.detectors)
        network = job_network(config, settings, data, work, progress)
        outcome = search_class(
            config.search, network, data, config.target, config.detectors, work, progress
        )
        outcome = dataclasses.replace(outcome, config=config)
        write_json(workdir / "config.json", config.record())
        write_records(workdir, outcome)
        work.finish(network.trained_as)
    return outcome
