"""Training again without the suspects, until they prove clean."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from flax import nnx
from jaxtyping import Bool, Int

from jaxpoison._files import write_json, write_text
from jaxpoison.datasets.dataset import Dataset, Splits
from jaxpoison.evidence.retraining import exclusive_retraining, like_suspects, widened_suspects
from jaxpoison.jobs.asking import look_for_carriers, possible_hosts
from jaxpoison.jobs.brought import brought, splits_of
from jaxpoison.jobs.config import RepairConfig, RunConfig, SearchOptions
from jaxpoison.jobs.detecting import FEWEST
from jaxpoison.jobs.explaining import activations
from jaxpoison.jobs.outcome import (
    Finding,
    Network,
    Removal,
    RepairOutcome,
    RepairRound,
    RunOutcome,
    versions_of,
)
from jaxpoison.jobs.planning import plan_of_search
from jaxpoison.jobs.prepare import job_network, prepare, train_model
from jaxpoison.jobs.records import listed, repair_record
from jaxpoison.jobs.search import judge_network, members_of, search_class
from jaxpoison.jobs.stages import WorkDirectory, working
from jaxpoison.models.inference import predict
from jaxpoison.training.protocols import TrainConfig


def repair(
    fit: Callable[[Splits], nnx.Module],
    model: nnx.Module,
    data: Splits | Dataset,
    target: int,
    *,
    detector: str = RepairConfig.detector,
    rounds: int = RepairConfig.rounds,
    attribution: str = SearchOptions.attribution,
    layer: str | None = None,
    seed: int = 0,
    workdir: str | Path | None = None,
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
    out; otherwise they were clean, go back in, and the network before was the last.

    Args:
        fit: Trains a new network, as ``model`` was, on the data that are left: on its
            ``train``, with ``validation`` to choose by; gives the network. It is called once a
            round, and again by a repair that was interrupted.
        model: The network that was trained on the data; takes images in [0, 1], gives logits.
        data: What it was trained on, perhaps with validation and test images.
        target: The class that is searched.
        detector: Whose suspects are taken out.
        rounds: Most trainings.
        attribution: What makes heatmaps.
        layer: Path of the layer whose outputs are the activations that detectors see; by default
            what the last dense layer gets.
        seed: Of everything random.
        workdir: Where stages are kept, and where the files of :func:`run_repair` are left; nowhere
            by default.
        progress: Show progress bars.

    Raises:
        TypeError: A value has the wrong type.
        ValueError: There is no such class or detector, the class has too few images, ``rounds`` is
            below 1, or another process works in the directory.

    Examples:
        >>> def fit_again(left):
        ...     again = nnx.clone(model)
        ...     jp.fit(again, left.train, left.validation, jp.protocol("fast", 200, epochs=1))
        ...     return again
        >>> outcome = jp.repair(fit_again, model, attacked, 5, detector="raw_pca", rounds=1)
        >>> len(outcome.rounds), outcome.removed.shape == (len(attacked.train),)
        (2, True)
    """
    how, options = SearchOptions(attribution, layer, seed), RepairConfig(detector, rounds)
    splits = splits_of(data)
    with working(workdir, "repair") as work:
        repaired, _ = _repaired(
            _Search(how, options, target, None, work, progress),
            splits,
            brought(model, splits.train),
            lambda left: brought(fit(left), left.train),
        )
        if workdir is not None:
            _write_records(Path(workdir), repaired)
        work.finish(None)
    return repaired


def run_repair(
    config: RunConfig,
    workdir: str | Path,
    *,
    detector: str = RepairConfig.detector,
    rounds: int = RepairConfig.rounds,
    progress: bool = False,
) -> RepairOutcome:
    """Attacks data, trains a network on them, and repairs its target class as :func:`repair` does.

    All networks are trained by the settings of the first. Finished rounds are read from the work
    directory, not trained again.

    Leaves ``config.json``; ``repair.json``; ``removed.csv`` and ``kept.csv``: names and labels of
    the training and validation images that were taken out, and of the others.

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
        >>> config = jp.RunConfig()
        >>> outcome = jp.run_repair(config, "runs/first", detector="activation_pca", rounds=1)
        >>> sum(part.removal is not None for part in outcome.rounds) <= 1
        True
    """
    options = RepairConfig(detector, rounds)
    workdir = Path(workdir)
    with working(workdir, "repair") as work:
        data, settings = prepare(config, work, progress)
        members_of(data.train, config.target)
        # Of one network and its search; how many follow is not known.
        work.plan = plan_of_search(config.target, data, settings, (detector,))
        repaired, last = _repaired(
            _Search(config.search, options, config.target, settings, work, progress),
            data,
            job_network(config, settings, data, work, progress),
            lambda left: train_model(config.model, settings, left, work, progress),
        )
        repaired = dataclasses.replace(repaired, config=config, settings=settings)
        write_json(workdir / "config.json", config.record())
        _write_records(workdir, repaired)
        work.finish(last.trained_as)
    return repaired


@dataclass(frozen=True)
class _Search:
    """How every network of a repair is searched.

    Attributes:
        how: How it is asked.
        options: By which detector.
        target: The class.
        settings: How networks are trained, where the job does it.
        work: Where the stages are kept.
        progress: Show progress bars.
    """

    how: SearchOptions
    options: RepairConfig
    target: int
    settings: TrainConfig | None
    work: WorkDirectory
    progress: bool

    def plan(self, data: Splits) -> None:
        """What is before the job with the next network."""
        detectors = (self.options.detector,)
        self.work.plan = plan_of_search(self.target, data, self.settings, detectors)

    def __call__(self, network: Network, data: Splits) -> RunOutcome:
        detectors = (self.options.detector,)
        return search_class(
            self.how, network, data, self.target, detectors, self.work, self.progress
        )


def _repaired(
    search: _Search,
    data: Splits,
    first: Network,
    retrain: Callable[[Splits], Network],
) -> tuple[RepairOutcome, Network]:
    """The repair of a class, and the last network whose removal stands.

    Args:
        search: How every network is searched.
        data: Before the repair.
        first: The network trained on them.
        retrain: Trains the next one on what is left.
    """
    detector, target = search.options.detector, search.target
    # The parts of the data, by their index in the data before the repair.
    left = np.arange(len(data.train))
    outcome = search(first, data)
    networks = [RepairRound(outcome.data.train, outcome.evaluation)]
    trained = [first]
    stages = list(outcome.stages)
    kept = 0
    removed = np.zeros(len(data.train), bool)
    ended = "rounds used up"
    for number in range(1, search.options.rounds + 1):
        finding = outcome.findings[detector]
        suspected = finding.detection.suspects
        # A detector that cannot tell leaves it to the next network.
        if finding.verdict.suspicious is False or not suspected.any():
            ended = "class not suspicious"
            break
        taken, out_of_validation = _taken_with(outcome, finding, search)
        suspects = outcome.data.train.take(taken)
        without = _without(outcome.data, taken, out_of_validation)
        search.plan(without)
        following = retrain(without)
        evaluation, evaluated = judge_network(following, without, search.work, search.progress)
        of_target = suspects.images[suspects.labels == target]
        found = exclusive_retraining(predict(following.model, of_target), target)
        taken_too = outcome.data.validation.take(out_of_validation)
        removal = Removal(int(suspected.sum()), suspects, taken_too, found)
        networks[-1] = dataclasses.replace(networks[-1], removal=removal)
        networks.append(RepairRound(without.train, evaluation))
        trained.append(following)
        stages += [*following.stages, evaluated]
        # What evidence called is poisoned, whatever the next network makes of it.
        if finding.evidence is None and not found.poisoned:
            ended = "suspects proved clean"
            break
        kept = number
        removed[left[taken]] = True
        left = np.delete(left, taken)
        if (without.train.labels == target).sum() < FEWEST:
            ended = "class too small to be searched"
            break
        if number < search.options.rounds:
            outcome = search(following, without)
            stages += outcome.stages
    repaired = RepairOutcome(
        target,
        search.options,
        data,
        removed,
        ended,
        tuple(networks),
        kept,
        versions_of(stages),
    )
    return repaired, trained[kept]


def _write_records(workdir: Path, repaired: RepairOutcome) -> None:
    data, removed = repaired.data, repaired.removed
    kept = repaired.rounds[: repaired.kept]
    names = {name for each in kept if each.removal for name in each.removal.validation.ids}
    gone = np.array([name in names for name in data.validation.ids], bool)
    for table, train, validation in (("removed", removed, gone), ("kept", ~removed, ~gone)):
        parts = {
            "train": data.train.take(train),
            "validation": data.validation.take(validation),
        }
        write_text(workdir / f"{table}.csv", listed(**parts))
    write_json(workdir / "repair.json", repair_record(repaired))


def _taken_with(
    outcome: RunOutcome, finding: Finding, search: _Search
) -> tuple[Int[np.ndarray, " n"], Int[np.ndarray, " v"]]:
    """Indices of the training and validation images that go with a detector's suspects."""
    suspected, data = finding.detection.suspects, outcome.data
    if finding.evidence is None:
        widened = widened_suspects(suspected, outcome.explained.activations)
        return outcome.explained.members[widened], _validation_suspects(outcome, widened)
    hosts = possible_hosts(outcome.network, data.train, search.work, search.progress)
    # Nothing is trained on test images: none of them is taken out.
    trained_on = dataclasses.replace(data, test=data.test.take(np.zeros(0, int)))
    carriers = look_for_carriers(
        outcome.network,
        trained_on,
        finding.evidence,
        hosts,
        search.how.seed,
        finding.key,
        search.work,
        search.progress,
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
    members = np.flatnonzero(validation.labels == outcome.explained.label)
    if not len(members):
        return members
    layer = outcome.search.layer
    others = activations(outcome.network.model, validation.images[members], layer, None)
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
