"""What the network is asked with: a class, its explanations, and images of all others."""

from __future__ import annotations

import dataclasses
import math
from functools import partial
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

from jaxpoison._sampling import evenly
from jaxpoison._storage import rows_of
from jaxpoison.datasets.dataset import Dataset, Splits
from jaxpoison.evidence.class_evidence import ClassEvidence
from jaxpoison.evidence.estimator import Case
from jaxpoison.evidence.judge import find_carriers
from jaxpoison.evidence.transplant import Hosts, hosts_for
from jaxpoison.jobs.artefact import Artefact, Made
from jaxpoison.jobs.evaluating import classify
from jaxpoison.jobs.outcome import Carriers, Network, RunOutcome
from jaxpoison.jobs.stages import WorkDirectory
from jaxpoison.models.inference import kinds_of, predict

# Images of every class from which a host is drawn: the network gets one of them right.
_OF_CLASS = 24
# Fewest hosts, where there are so many images of other classes.
_HOSTS = 24


def evidence_of(stage: Artefact | Made) -> ClassEvidence | None:
    """What the network said, where a detector's stage asked it."""
    values = stage.values["evidence"]
    return None if values is None else ClassEvidence.of_parts(values, stage.arrays)


def case_of_run(outcome: RunOutcome) -> Case:
    """The class that a run searched, as :class:`TransplantJudge` looks at it.

    Args:
        outcome: Of the run.

    Examples:
        >>> outcome = jp.run(jp.RunConfig(detectors=("activation_pca",)), "runs/first")
        >>> case = jp.case_of_run(outcome)
        >>> case.label == outcome.explained.label, len(case) == len(outcome.explained.members)
        (True, True)
    """
    train, explained = outcome.data.train, outcome.explained
    index = _some_of_all(train)
    logits = predict(outcome.network.model, train.images[index])
    hosts = _drawn(train, explained.label, index, logits, outcome.search.seed)
    heatmaps = explained.relevance.sum(-1)
    images = rows_of(train.images, explained.members)
    return Case(outcome.network.model, images, heatmaps, hosts, explained.label)


def _some_of_all(train: Dataset) -> Int[np.ndarray, " m"]:
    """Some images of every class, evenly over each."""
    chosen = []
    for label in np.unique(train.labels):
        members = np.flatnonzero(train.labels == label)
        chosen.append(members[evenly(len(members), _OF_CLASS)])
    return np.concatenate(chosen)


def possible_hosts(
    network: Network, train: Dataset, work: WorkDirectory, progress: bool
) -> tuple[Int[np.ndarray, " m"], Artefact]:
    """Some images of every class, evenly over each, and what the network says of them.

    Returns:
        Their indices, and a stage with their ``logits``.
    """
    index = _some_of_all(train)
    some = train.take(index)
    title = "possible hosts" if progress else None
    stage = work.stage(
        "hosts",
        {"network": network.key, "images": some.fingerprint},
        partial(classify, network.model, some.images, title),
        code=(classify, *kinds_of(network.model)),
    )
    return index, stage


def case_of(
    network: Network,
    train: Dataset,
    members: Int[np.ndarray, " n"],
    heatmaps: Float[np.ndarray, "n h w"],
    label: int,
    hosts: tuple[Int[np.ndarray, " m"], Artefact],
    seed: int,
) -> Case:
    """A class with what it is asked with.

    Args:
        network: It is asked.
        train: Training images.
        members: Indices of the class's images.
        heatmaps: Their relevance towards it.
        label: The class.
        hosts: Of :func:`possible_hosts`.
        seed: Of the draw of hosts.
    """
    drawn = hosts_of(train, label, hosts, seed)
    return Case(network.model, rows_of(train.images, members), heatmaps, drawn, label)


def hosts_of(
    train: Dataset, label: int, hosts: tuple[Int[np.ndarray, " m"], Artefact], seed: int
) -> Hosts:
    """What regions of a class's images are pasted on.

    Args:
        train: Training images.
        label: The class.
        hosts: Of :func:`possible_hosts`.
        seed: Of the draw.
    """
    index, logits = hosts
    return _drawn(train, label, index, logits.arrays["logits"], seed)


def _drawn(
    train: Dataset,
    label: int,
    index: Int[np.ndarray, " m"],
    logits: Float[np.ndarray, "m classes"],
    seed: int,
) -> Hosts:
    # Of few classes several images each: one host alone says little.
    per_class = max(1, math.ceil(_HOSTS / max(1, len(np.unique(train.labels)) - 1)))
    drawn = hosts_for(
        label, train.images[index], train.labels[index], logits, per_class=per_class, seed=seed
    )
    return dataclasses.replace(drawn, members=index[drawn.members])


def look_for_carriers(
    network: Network,
    data: Splits,
    evidence: ClassEvidence,
    hosts: tuple[Int[np.ndarray, " m"], Artefact],
    seed: int,
    found_by: str,
    work: WorkDirectory,
    progress: bool,
) -> Carriers:
    """Searches the images of all other classes, and all that nothing was trained on, for a trigger.

    Args:
        network: It is asked.
        data: Training, validation and test images; the last may have been held out of images
            that someone tampered with.
        evidence: Of the attacked class.
        hosts: Of :func:`possible_hosts`.
        seed: Of the draw of hosts.
        found_by: Key of the stage that made the evidence.
        work: Where the stage is kept.
        progress: Show progress bars.
    """
    label = evidence.label
    others = np.flatnonzero(data.train.labels != label)
    drawn = hosts_of(data.train, label, hosts, seed)

    def make(_: Path) -> Made:
        title = f"trigger of class {label}" if progress else None
        arrays = {}
        for name, images, among in (
            ("train", data.train.images, others),
            ("validation", data.validation.images, None),
            ("test", data.test.images, None),
        ):
            found = find_carriers(
                network.model, images, evidence, drawn, among=among, progress=title
            )
            arrays[name] = found[0]
        return Made({}, arrays)

    stage = work.stage(
        f"carriers-of-{label:04d}",
        {
            "evidence": found_by,
            "train": data.train.fingerprint,
            "validation": data.validation.fingerprint,
            "test": data.test.fingerprint,
        },
        make,
        code=(find_carriers, *kinds_of(network.model)),
    )
    found = stage.arrays
    return Carriers(found["train"], found["validation"], found["test"], stage.seconds)
