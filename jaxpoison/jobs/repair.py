"""Training again without the suspects, until they prove clean."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Int

from jaxpoison._files import write_json, write_text
from jaxpoison.datasets.dataset import Splits
from jaxpoison.evidence.retraining import exclusive_retraining, like_suspects, widened_suspects
from jaxpoison.jobs.asking import look_for_carriers, possible_hosts
from jaxpoison.jobs.config import RepairConfig, RunConfig
from jaxpoison.jobs.detecting import FEWEST
from jaxpoison.jobs.evaluating import evaluation_of
from jaxpoison.jobs.explaining import activations
from jaxpoison.jobs.outcome import (
    Finding,
    Removal,
    RepairOutcome,
    RepairRound,
    RunOutcome,
    versions_of,
)
from jaxpoison.jobs.planning import plan_of_search
from jaxpoison.jobs.prepare import prepare
from jaxpoison.jobs.records import listed, repair_record
from jaxpoison.jobs.search import network, search
from jaxpoison.jobs.stages import WorkDirectory
from jaxpoison.models.inference import predict


def repair(
    config: RunConfig,
    workdir: str | Path,
    *,
    detector: str = RepairConfig.detector,
    rounds: int = RepairConfig.rounds,
    progress: bool = False,
) -> RepairOutcome:
    """Takes out what a detector suspects and trains again, until nothing is suspicious.

    Every round trains a network without the suspects of the one before, and searches the
    target class again; it ends where the class is not called attacked. Validation images like
    the suspects are taken out too: they would choose the network that keeps the backdoor.

    By default the network itself is asked (:class:`TransplantJudge`): what is called stays
    out, and so does whatever carries the trigger in other classes and among validation images.

    Other detectors do not know why images are alike. What is taken out with their suspects are
    images whose activations are like theirs (:func:`widened_suspects`), and the new network
    classifies them: if it calls more of them one other class than their label, they stay
    out; otherwise they were clean, go back in, and the network before was the last. All
    networks are trained by the settings of the first. Finished rounds are read from the work
    directory, not trained again.

    Leaves ``repair.json``, ``removed.csv`` and ``kept.csv``: names and labels of the training
    and validation images that were taken out, and of the others.

    Args:
        config: What to run; the class searched is its target.
        workdir: Where results and stages are kept; that of a run serves.
        detector: Whose suspects are taken out.
        rounds: Most trainings after the first.
        progress: Show progress bars.

    Raises:
        TypeError: ``rounds`` is not an integer.
        ValueError: There is no such detector, ``rounds`` is below 1, the configuration does
            not fit the data, or another process works in the directory.
        FileNotFoundError: There are no data at the given path.

    Examples:
        >>> outcome = jp.repair(jp.RunConfig(), "runs/first", detector="activation_pca", rounds=1)
        >>> sum(part.removal is not None for part in outcome.rounds) <= 1
        True
    """
    options = RepairConfig(detector, rounds)
    workdir = Path(workdir)
    work = WorkDirectory(workdir)
    with work.job("repair"):
        data, settings = prepare(config, work, progress)
        # The parts of the data, by their index in the data before the repair.
        left = np.arange(len(data.train))
        # Of one network and its search; how many follow is not known.
        work.plan = plan_of_search(config, data, settings, (detector,))
        outcome = search(config, data, settings, work, progress, (detector,))
        networks = [RepairRound(outcome.data.train, outcome.evaluation)]
        trained = [outcome.trained.stage]
        stages = list(outcome.stages)
        kept = 0
        removed = np.zeros(len(data.train), bool)
        ended = "rounds used up"
        for number in range(1, options.rounds + 1):
            finding = outcome.findings[detector]
            suspected = finding.detection.suspects
            # A detector that cannot tell leaves it to the next network.
            if finding.verdict.suspicious is False or not suspected.any():
                ended = "class not suspicious"
                break
            taken, out_of_validation = _taken_with(outcome, finding, work, progress)
            suspects = outcome.data.train.take(taken)
            without = _without(outcome.data, taken, out_of_validation)
            work.plan = plan_of_search(config, without, settings, (detector,))
            following, evaluated = network(config, without, settings, work, progress)
            of_target = suspects.images[suspects.labels == config.target]
            found = exclusive_retraining(predict(following.model, of_target), config.target)
            taken_too = outcome.data.validation.take(out_of_validation)
            removal = Removal(int(suspected.sum()), suspects, taken_too, found)
            networks[-1] = dataclasses.replace(networks[-1], removal=removal)
            networks.append(RepairRound(without.train, evaluation_of(evaluated)))
            trained.append(following.stage)
            stages += [following.stage, evaluated]
            # What evidence called is poisoned, whatever the next network makes of it.
            if finding.evidence is None and not found.poisoned:
                ended = "suspects proved clean"
                break
            kept = number
            removed[left[taken]] = True
            left = np.delete(left, taken)
            if (without.train.labels == config.target).sum() < FEWEST:
                ended = "class too small to be searched"
                break
            if number < options.rounds:
                outcome = search(config, without, settings, work, progress, (detector,))
                stages += outcome.stages
        repaired = RepairOutcome(
            config,
            options,
            data,
            settings,
            removed,
            ended,
            tuple(networks),
            kept,
            versions_of(stages),
        )
        taken_out = [each.removal.validation for each in networks[:kept] if each.removal]
        names = {name for each in taken_out for name in each.ids}
        gone = np.array([name in names for name in data.validation.ids])
        for table, train, validation in (("removed", removed, gone), ("kept", ~removed, ~gone)):
            parts = {
                "train": data.train.take(train),
                "validation": data.validation.take(validation),
            }
            write_text(workdir / f"{table}.csv", listed(**parts))
        write_json(workdir / "config.json", config.record())
        write_json(workdir / "repair.json", repair_record(repaired))
        work.finish(trained[kept])
    return repaired


def _taken_with(
    outcome: RunOutcome, finding: Finding, work: WorkDirectory, progress: bool
) -> tuple[Int[np.ndarray, " n"], Int[np.ndarray, " v"]]:
    """Indices of the training and validation images that go with a detector's suspects."""
    suspected, data = finding.detection.suspects, outcome.data
    if finding.evidence is None:
        widened = widened_suspects(suspected, outcome.explained.activations)
        return outcome.explained.members[widened], _validation_suspects(outcome, widened)
    hosts = possible_hosts(outcome.trained, data.train, work, progress)
    # Nothing is trained on test images: none of them is taken out.
    trained_on = dataclasses.replace(data, test=data.test.take(np.zeros(0, int)))
    carriers = look_for_carriers(
        outcome.trained,
        trained_on,
        finding.evidence,
        hosts,
        outcome.config.seed,
        finding.key,
        work,
        progress,
    )
    taken = np.union1d(outcome.explained.members[suspected], carriers.train)
    return taken, _unless_all(carriers.validation, data)


def _unless_all(found: Int[np.ndarray, " v"], data: Splits) -> Int[np.ndarray, " v"]:
    """None, where all validation images are found: a training needs some."""
    return found if len(found) < len(data.validation) else found[:0]


def _validation_suspects(
    outcome: RunOutcome, widened: Bool[np.ndarray, " n"]
) -> Int[np.ndarray, " v"]:
    """Indices of the target's validation images with activations like those of suspects."""
    validation = outcome.data.validation
    members = np.flatnonzero(validation.labels == outcome.config.target)
    if not len(members):
        return members
    others = activations(outcome.trained.model, validation.images[members], None)
    found = members[like_suspects(widened, outcome.explained.activations, others)]
    return _unless_all(found, outcome.data)


def _without(
    data: Splits, taken: Int[np.ndarray, " n"], out_of_validation: Int[np.ndarray, " v"]
) -> Splits:
    """The data without some training and validation images."""
    return dataclasses.replace(
        data,
        train=data.train.take(np.delete(np.arange(len(data.train)), taken)),
        validation=data.validation.take(
            np.delete(np.arange(len(data.validation)), out_of_validation)
        ),
    )
