"""What jobs find, typed; :mod:`jaxpoison.jobs.records` makes files of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from flax import nnx
from jaxtyping import Bool, Int

from jaxpoison.datasets.dataset import Dataset, Splits
from jaxpoison.detectors.detection import Detection
from jaxpoison.evidence.class_evidence import ClassEvidence
from jaxpoison.evidence.retraining import ExclusiveRetraining
from jaxpoison.evidence.separation import Separation
from jaxpoison.evidence.verdict import Verdict, judged
from jaxpoison.jobs.artefact import Artefact
from jaxpoison.jobs.config import RepairConfig, RunConfig, ScanConfig, SearchOptions
from jaxpoison.jobs.evaluating import Evaluation
from jaxpoison.jobs.explaining import ExplainedClass
from jaxpoison.metrics import DetectionRates, ScoreRates, detection_rates, score_rates
from jaxpoison.training.fit import History
from jaxpoison.training.protocols import TrainConfig


def versions_of(stages: Sequence[Artefact]) -> dict[str, str]:
    """Of all stages; several where they ran with several."""
    return {
        name: ", ".join(sorted({stage.versions[name] for stage in stages}))
        for name in stages[0].versions
    }


@dataclass(frozen=True, eq=False)
class Training:
    """How a job trained its network.

    Attributes:
        history: Losses and accuracies by epoch.
        settings: What it was trained with.
        stage: What the training left.
    """

    history: History
    settings: TrainConfig
    stage: Artefact


@dataclass(frozen=True, eq=False)
class Network:
    """A network that is searched.

    Attributes:
        model: Takes images in [0, 1], gives logits.
        key: Stands for it in keys of stages.
        training: How it was trained; ``None`` for one that was brought.
    """

    model: nnx.Module
    key: str
    training: Training | None = None

    @property
    def trained_as(self) -> str | None:
        """Key of its training; ``None`` for one that was brought."""
        return None if self.training is None else self.training.stage.key

    @property
    def stages(self) -> tuple[Artefact, ...]:
        """What its training left, if anything."""
        return () if self.training is None else (self.training.stage,)

    @property
    def seconds(self) -> dict[str, float]:
        """Time that its training took, if it was trained."""
        return {} if self.training is None else {"train": self.training.stage.seconds}


@dataclass(frozen=True, eq=False)
class Finding:
    """What one detector found in one class.

    Attributes:
        detector: The detector's name.
        detection: How it splits the class.
        separation: How far both clusters lie apart, in the detector's own distance.
        seconds: Time taken, distances included.
        key: Of the stage that found it.
        evidence: What the network said; ``None`` of detectors that do not ask it.
    """

    detector: str
    detection: Detection
    separation: Separation
    seconds: float
    key: str
    evidence: ClassEvidence | None = None

    @property
    def verdict(self) -> Verdict:
        """What that says about the class."""
        if self.evidence is not None:
            return self.evidence.verdict
        return judged(self.detector, self.separation)


@dataclass(frozen=True, eq=False)
class RunOutcome:
    """What the search of one class found, and what a report shows.

    Attributes:
        search: How the network was asked.
        data: The data the network was trained on, with the truth where it is known.
        network: The network.
        evaluation: How well it does, and the attack on it.
        explained: The searched class.
        findings: What each detector found in it, by name.
        stages: What all stages left; they know their versions.
        config: Of the job; ``None`` of a network that was brought.

    Examples:
        >>> outcome = jp.run(jp.RunConfig(detectors=("activation_pca",)), "runs/first")
        >>> suspects = outcome.findings["activation_pca"].detection.suspects
        >>> set(outcome.data.train.labels[outcome.explained.members[suspects]].tolist())
        {5}
    """

    search: SearchOptions
    data: Splits
    network: Network
    evaluation: Evaluation
    explained: ExplainedClass
    findings: dict[str, Finding]
    stages: tuple[Artefact, ...]
    config: RunConfig | None = None

    @property
    def poisoned(self) -> Bool[np.ndarray, " n"] | None:
        """Which of the searched images are poisoned, where that is known."""
        known = self.data.train.poisoned
        return None if known is None else known[self.explained.members]

    @property
    def called(self) -> Bool[np.ndarray, " n"]:
        """Which of the searched images are called poisoned.

        By the network's own word where it was asked, else by all detectors to which the class
        is attacked; none where it is attacked to none of them.
        """
        asked = [found for found in self.findings.values() if found.evidence is not None]
        calling = [f for f in asked or self.findings.values() if f.verdict.suspicious is True]
        suspects = [found.detection.suspects for found in calling]
        return np.any([np.zeros(len(self.explained.members), bool), *suspects], axis=0)

    def rates(self, detector: str) -> DetectionRates:
        """How right a detector's suspects are; all ``None`` where the truth is not known."""
        return detection_rates(self.findings[detector].detection.suspects, self.poisoned)

    def score_rates(self, detector: str) -> ScoreRates:
        """How well a detector's score orders images, whatever it suspects."""
        return score_rates(self.findings[detector].detection.scores, self.poisoned)

    @property
    def versions(self) -> dict[str, str]:
        """Of Python, packages and platform when the stages ran; several where they differed."""
        return versions_of(self.stages)

    @property
    def seconds(self) -> dict[str, float]:
        """Time that every stage took when it ran."""
        return {
            **self.network.seconds,
            "evaluate": self.evaluation.seconds,
            "explain": self.explained.seconds,
            **{name: found.detection.seconds for name, found in self.findings.items()},
        }


@dataclass(frozen=True, eq=False)
class Carriers:
    """Images outside an attacked class that carry its trigger: on them, it turns hosts.

    Attributes:
        train: Indices of training images of other classes.
        validation: Indices of validation images, of whatever class.
        test: Indices of test images, of whatever class.
        seconds: Time taken.
    """

    train: Int[np.ndarray, " m"]
    validation: Int[np.ndarray, " v"]
    test: Int[np.ndarray, " t"]
    seconds: float


@dataclass(frozen=True, eq=False)
class ScannedClass:
    """What a scan found in one class.

    Attributes:
        label: The class.
        members: Indices of its training images.
        finding: What the last detector that looked at it found.
        carriers: What else carries its trigger; ``None`` where none was recovered.
    """

    label: int
    members: Int[np.ndarray, " n"]
    finding: Finding
    carriers: Carriers | None = None

    @property
    def suspicion(self) -> float:
        """How suspicious the class is; from 1 on it is called attacked."""
        found = self.finding.verdict.suspicion
        if found is None:
            raise ValueError(f"{self.finding.detector} cannot tell whether a class is attacked")
        return found

    @property
    def suspicious(self) -> bool:
        """Whether the class is called attacked."""
        return self.finding.verdict.suspicious is True


@dataclass(frozen=True, eq=False)
class ScanOutcome:
    """What a scan found, and what its report shows.

    Attributes:
        options: How all classes were searched.
        search: How the network was asked.
        data: The data the network was trained on, with the truth where it is known.
        network: The network.
        classes: All classes, the most suspicious first.
        left_out: Classes of too few images.
        seconds: Time taken, by what it was taken for.
        config: Of the job; ``None`` of a network that was brought.

    Examples:
        >>> outcome = jp.run_scan(jp.RunConfig(), "runs/first", detector="activation_pca")
        >>> len(outcome.classes), outcome.called.shape == (len(outcome.data.train),)
        (10, True)
    """

    options: ScanConfig
    search: SearchOptions
    data: Splits
    network: Network
    classes: tuple[ScannedClass, ...]
    left_out: tuple[int, ...]
    seconds: dict[str, float]
    config: RunConfig | None = None

    @property
    def detectors(self) -> tuple[str, ...]:
        """Names of the detectors that looked at classes, in the order in which they did."""
        return self.options.detectors

    @property
    def called(self) -> Bool[np.ndarray, " n"]:
        """Which training images are called poisoned.

        The suspects of suspicious classes, and images of other classes that carry their triggers.
        """
        called = np.zeros(len(self.data.train), bool)
        for scanned in self.classes:
            if scanned.suspicious:
                called[scanned.members[scanned.finding.detection.suspects]] = True
            if scanned.carriers is not None:
                called[scanned.carriers.train] = True
        return called

    @property
    def called_in_validation(self) -> Bool[np.ndarray, " v"]:
        """Which validation images carry the trigger of an attacked class."""
        return _at(len(self.data.validation), [c.validation for c in self._carriers])

    @property
    def called_in_test(self) -> Bool[np.ndarray, " t"]:
        """Which test images carry the trigger of an attacked class."""
        return _at(len(self.data.test), [c.test for c in self._carriers])

    @property
    def _carriers(self) -> list[Carriers]:
        return [each.carriers for each in self.classes if each.carriers is not None]

    @property
    def rank(self) -> int | None:
        """The attacked class's place among all, from 1 on; ``None`` where that is not known."""
        if self.data.backdoor is None:
            return None
        order = [scanned.label for scanned in self.classes]
        target = self.data.backdoor.target
        return order.index(target) + 1 if target in order else None


def _at(count: int, indices: Sequence[Int[np.ndarray, " m"]]) -> Bool[np.ndarray, " n"]:
    chosen = np.zeros(count, bool)
    for some in indices:
        chosen[some] = True
    return chosen


@dataclass(frozen=True, eq=False)
class Removal:
    """Images that were taken out of a network's training images.

    Attributes:
        by_detector: How many the detector suspected.
        images: Them, and those with activations like theirs.
        validation: The validation images like them, taken out too.
        judged: What the next network called the training images.
    """

    by_detector: int
    images: Dataset
    validation: Dataset
    judged: ExclusiveRetraining


@dataclass(frozen=True, eq=False)
class RepairRound:
    """One network of a repair.

    Attributes:
        train: What it was trained on.
        evaluation: How well it does, and the attack on it.
        removal: What was taken out after it; ``None`` for the last.
    """

    train: Dataset
    evaluation: Evaluation
    removal: Removal | None = None


@dataclass(frozen=True, eq=False)
class RepairOutcome:
    """What a repair took out, and what came of it.

    Attributes:
        target: The class that was searched.
        options: How data were repaired.
        data: The data before the repair.
        removed: Which training images were taken out, and stay out.
        ended: Why it ended.
        rounds: All networks, the first included.
        kept: Index of the last network whose removal stands.
        versions: Of Python, packages and platform.
        config: Of the job; ``None`` where networks were brought.
        settings: How the job trained its networks.

    Examples:
        >>> config = jp.RunConfig()
        >>> outcome = jp.run_repair(config, "runs/first", detector="activation_pca", rounds=1)
        >>> outcome.removed.shape == (len(outcome.data.train),)
        True
    """

    target: int
    options: RepairConfig
    data: Splits
    removed: Bool[np.ndarray, " n"]
    ended: str
    rounds: tuple[RepairRound, ...]
    kept: int
    versions: dict[str, str]
    config: RunConfig | None = None
    settings: TrainConfig | None = None
