"""Training again without the suspects, until they prove clean."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.model_selection import cross_val_predict

from jaxpoison._checks import check_choice, check_integer
from jaxpoison._files import write_json, write_text
from jaxpoison.attacks.poisoned import PoisonedSplits
from jaxpoison.config import RunConfig
from jaxpoison.datasets.dataset import Dataset, Splits
from jaxpoison.detectors.named import DETECTORS
from jaxpoison.models.inference import predict
from jaxpoison.pipeline import FEWEST, RunOutcome, search
from jaxpoison.preparation import prepare
from jaxpoison.results import config_record, csv_text
from jaxpoison.stages import SCHEMA, WorkDirectory

_FOLDS = 10


@dataclass(frozen=True)
class ExclusiveRetraining:
    """What a network that was trained without some images of a class calls them.

    Attributes:
        as_label: How many it classifies as their label, *l*.
        as_other: How many as the other class that most are classified as, *q*.
        other: That class; ``None`` if all are classified as their label.
    """

    as_label: int
    as_other: int
    other: int | None

    @property
    def poisoned(self) -> bool:
        """Whether l / q is below 1: more of them look like another class."""
        return self.as_label < self.as_other


def exclusive_retraining(logits: Float[np.ndarray, "n classes"], label: int) -> ExclusiveRetraining:
    """Judges images by a network that has not seen them (Chen et al. 2018; Schulth's thesis).

    Args:
        logits: Of that network, for the images.
        label: Their label.

    Raises:
        ValueError: There are no images.
    """
    if not len(logits):
        raise ValueError("exclusive retraining needs at least one image, found none")
    counts = np.bincount(logits.argmax(-1), minlength=logits.shape[-1])
    as_label = int(counts[label])
    counts[label] = 0
    other = int(counts.argmax()) if counts.any() else None
    return ExclusiveRetraining(as_label, int(counts.max()), other)


def widened_suspects(
    suspects: Bool[np.ndarray, " n"], activations: Float[np.ndarray, "n ..."]
) -> Bool[np.ndarray, " n"]:
    """Adds the images whose activations are like those of the suspects.

    What heatmaps miss, activations may show, and a handful of missed images keeps a
    backdoor alive. A linear discriminant (Fisher 1936) learns the suspects from the
    activations of nine tenths of the images and judges the last tenth, in turn; the
    suspects' mistakes are too few to be learnt.

    Args:
        suspects: Which images of one class are suspected.
        activations: Of these images, at a layer that knows what decides.

    Returns:
        The suspects, and those called so by the discriminant. With fewer than two
        suspects or two others, the suspects.
    """
    folds = min(_FOLDS, suspects.sum(), (~suspects).sum())
    if folds < 2:
        return suspects
    flat = activations.reshape(len(activations), -1)
    learner = LinearDiscriminantAnalysis()
    return suspects | cross_val_predict(learner, flat, suspects, cv=int(folds))


def repair(
    config: RunConfig,
    workdir: Path,
    *,
    detector: str = "heatmap",
    max_rounds: int = 5,
    progress: bool = False,
) -> Path:
    """Takes out what a detector suspects and trains again, until nothing is suspicious.

    Every round trains a network without the suspects of the one before and the images
    whose activations are like theirs (:func:`widened_suspects`), and lets it classify
    them. If it calls more of them one other class than their label, they stay out,
    and the target class is searched again; otherwise they were clean, go back in, and
    the network before was the last. So it is where the two clusters of the class do not
    lie far enough apart to look suspicious. All networks are trained by the settings of
    the first. Validation images, poisoned or not, are left as they are. Finished rounds
    are read from the work directory, not trained again.

    Leaves ``repair.json``, ``removed.csv`` and ``kept.csv``: ids and labels of the
    training images that were taken out, and of the others.

    Args:
        config: What to run; the class searched is its target.
        workdir: Where results and stages are kept; that of a run serves.
        detector: Whose suspects are taken out.
        max_rounds: Most trainings after the first.
        progress: Show progress bars.

    Returns:
        The path of ``repair.json``.

    Raises:
        TypeError: ``max_rounds`` is not an integer.
        ValueError: There is no such detector, ``max_rounds`` is below 1, or the
            configuration does not fit the data.
        FileNotFoundError: There are no data at the given path.
    """
    check_choice("detector", detector, DETECTORS)
    check_integer("max_rounds", max_rounds, at_least=1)
    searching = dataclasses.replace(config, detectors=(detector,))
    judging = dataclasses.replace(config, detectors=())
    work = WorkDirectory(workdir)
    data, splits, settings = prepare(config, work, progress)
    outcome = search(searching, data, settings, work, progress)
    networks = [_judged(outcome)]
    kept = 0
    removed = np.zeros(len(splits.train), bool)
    ended = "rounds used up"
    for number in range(1, max_rounds + 1):
        suspected = outcome.detections[detector].suspects
        # A detector that cannot tell leaves it to the next network.
        if outcome.result["detectors"][detector]["suspicious"] is False or not suspected.any():
            ended = "class not suspicious"
            break
        taken = np.zeros(len(outcome.splits.train), bool)
        taken[outcome.suspected[widened_suspects(suspected, outcome.activations)]] = True
        suspects = outcome.splits.train.take(taken)
        without = _without(outcome.data, taken)
        folder = WorkDirectory(workdir / "repair" / detector / f"round-{number}")
        following = search(judging, without, settings, folder, progress)
        found = exclusive_retraining(predict(following.model, suspects.images), config.target)
        networks[-1]["suspects"] = {
            "by_detector": int(suspected.sum()),
            **_suspects(outcome, taken, found),
        }
        networks.append(_judged(following))
        if not found.poisoned:
            ended = "suspects proved clean"
            break
        kept = number
        removed[np.flatnonzero(~removed)[taken]] = True
        if len(following.suspected) < FEWEST:
            ended = "class too small to be searched"
            break
        if number < max_rounds:
            outcome = search(searching, without, settings, folder, progress)
    output = workdir / "repair.json"
    write_text(workdir / "removed.csv", _listed(splits.train, removed))
    write_text(workdir / "kept.csv", _listed(splits.train, ~removed))
    write_json(
        output,
        {
            "schema": SCHEMA,
            "config": config_record(config, settings),
            "detector": detector,
            "removed": int(removed.sum()),
            "ended": ended,
            "before": networks[0],
            "after": networks[kept],
            "networks": networks,
        },
    )
    return output


def _judged(outcome: RunOutcome) -> dict[str, Any]:
    """A network's accuracy, and the attack's success with it; suspects come later."""
    attack = outcome.result["attack"]
    return {
        "training_images": len(outcome.splits.train),
        "poisoned_images": None if outcome.poisoned is None else int(outcome.poisoned.sum()),
        "test_accuracy": outcome.result["model"]["test_accuracy"],
        "asr": attack["asr"],
        "masr": attack["masr"],
        "suspects": None,
    }


def _suspects(
    outcome: RunOutcome, taken: Bool[np.ndarray, " n"], found: ExclusiveRetraining
) -> dict[str, Any]:
    poisoned = None
    if isinstance(outcome.data, PoisonedSplits):
        poisoned = int(outcome.data.poisoned[taken].sum())
    return {
        "images": int(taken.sum()),
        "poisoned_images": poisoned,
        "as_label": found.as_label,
        "as_other": found.as_other,
        "other": found.other,
        "called_poisoned": found.poisoned,
    }


def _without(data: PoisonedSplits | Splits, taken: Bool[np.ndarray, " n"]) -> Any:
    """The data without some training images."""
    if isinstance(data, PoisonedSplits):
        return dataclasses.replace(
            data, splits=_without(data.splits, taken), poisoned=data.poisoned[~taken]
        )
    return Splits(data.train.take(~taken), data.validation, data.test)


def _listed(data: Dataset, chosen: Bool[np.ndarray, " n"]) -> str:
    rows = [(data.ids[i], int(data.labels[i])) for i in np.flatnonzero(chosen)]
    return csv_text(("id", "label"), rows)
