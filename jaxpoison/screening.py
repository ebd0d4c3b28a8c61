"""All classes of a training set searched: which of them is attacked?"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx
from jaxtyping import Int
from sklearn.exceptions import ConvergenceWarning

from jaxpoison._checks import check_choice
from jaxpoison._files import write_json, write_text
from jaxpoison._progress import Bar
from jaxpoison.attacks.poisoned import PoisonedSplits
from jaxpoison.clustering import MODES, UninformativeCouplingsWarning
from jaxpoison.config import RunConfig
from jaxpoison.datasets.dataset import Dataset
from jaxpoison.detectors.detection import Detection
from jaxpoison.detectors.named import DETECTORS, SUSPICIOUS, suspicion
from jaxpoison.metrics import detection_rates
from jaxpoison.models.inference import layer_outputs
from jaxpoison.pipeline import FEWEST, detection_of, explain_class, search_class, separation_of
from jaxpoison.preparation import prepare, train_model
from jaxpoison.results import config_record, csv_text
from jaxpoison.separation import Separation
from jaxpoison.stages import SCHEMA, Artefact, Made, WorkDirectory, hash_of

CASCADE = ("activation_pca", "heatmap")
# From which silhouette of the first on the second looks at a class.
_PASSED_ON = 0.5
SCANNERS = ("cascade", *SUSPICIOUS)
# Of k-means on every class; the ten of a single search would take three times as long.
_RUNS = 3
_COLUMNS = (
    "class",
    "name",
    "detector",
    "suspicion",
    "suspicious",
    "images",
    "suspects",
    "share",
    "silhouette",
    "near_zero_eigenvalues",
    "eigengap",
    "converged",
    "seconds",
)


@dataclass(frozen=True, eq=False)
class ScannedClass:
    """What a scan found in one class.

    Attributes:
        label: The class.
        members: Indices of its training images.
        detector: Whose word this is.
        detection: How it splits them.
        separation: How far both clusters lie apart, in the detector's own distance.
    """

    label: int
    members: Int[np.ndarray, " n"]
    detector: str
    detection: Detection
    separation: Separation

    @property
    def suspicion(self) -> float:
        """Silhouette over that from which on the detector calls a class suspicious."""
        found = suspicion(self.detector, self.separation)
        if found is None:
            raise ValueError(
                f"detector must be one of {', '.join(SUSPICIOUS)}, found {self.detector}"
            )
        return found

    @property
    def suspicious(self) -> bool:
        """Whether the class is called attacked."""
        return self.suspicion >= 1


@dataclass(frozen=True, eq=False)
class ScanOutcome:
    """What a scan found, and what its report shows.

    Attributes:
        result: The content of ``scan.json``.
        classes: All classes, the most suspicious first.
        train: The training images.
        model: The network.
        attribution: Name of the method that makes heatmaps.
    """

    result: dict[str, Any]
    classes: list[ScannedClass]
    train: Dataset
    model: nnx.Module
    attribution: str


def scan(
    config: RunConfig,
    workdir: Path,
    *,
    detector: str = "cascade",
    mode: str = "quick",
    progress: bool = False,
) -> ScanOutcome:
    """Searches every class and ranks them by how far the two clusters found lie apart.

    A class is called suspicious from a silhouette on that was fixed for each
    detector. ``cascade`` is the paper's conclusion: Activation Clustering looks at
    every class, Heatmap Clustering at those whose clusters have a silhouette of 0.5
    or more, and only these are explained.

    One class is worked on at a time, all padded to the size of the largest, so
    that one compilation serves; a finished class is not searched again. Classes
    of fewer than twelve images are left out. Leaves ``scan.json``;
    ``classes.csv``, one row per class; and ``clusters.csv``, one row per image: id,
    class, cluster (1 for suspects) and score.

    Args:
        config: What to run; its target is where the attack goes, its detectors are not used.
        workdir: Where results and stages are kept; that of a run serves.
        detector: One of ``SCANNERS``.
        mode: Of Heatmap Clustering, ``quick`` or ``exact``; see :class:`HeatmapClustering`.
        progress: Show progress bars.

    Raises:
        ValueError: The configuration does not fit the data, no class has enough images,
            or an option is out of range.
        FileNotFoundError: There are no data at the given path.
    """
    check_choice("detector", detector, SCANNERS)
    check_choice("mode", mode, MODES)
    work = WorkDirectory(workdir)
    data, splits, settings = prepare(config, work, progress)
    model, trained = train_model(config.model, settings, splits, work, progress)
    searcher = _Searcher(config, model, trained, splits.train, mode, work, progress)
    detectors = CASCADE if detector == "cascade" else (detector,)
    found = searcher.search(detectors[0], searcher.classes)
    for following in detectors[1:]:
        passed_on = [
            k for k in searcher.classes if (found[k].separation.silhouette or 0) >= _PASSED_ON
        ]
        found |= searcher.search(following, passed_on)
    ranked = sorted(found.values(), key=lambda of: -of.suspicion)
    result = {
        "schema": SCHEMA,
        "config": config_record(config, settings),
        "detector": detector,
        "mode": mode,
        "suspicious_silhouettes": {name: SUSPICIOUS[name] for name in detectors},
        "left_out": searcher.left_out,
        "seconds": searcher.seconds,
        "classes": [_row(of, splits.train) for of in ranked],
        "truth": _truth(ranked, data, config) if isinstance(data, PoisonedSplits) else None,
    }
    write_json(workdir / "scan.json", result)
    rows = [[row[column] for column in _COLUMNS] for row in result["classes"]]
    write_text(workdir / "classes.csv", csv_text(_COLUMNS, rows))
    write_text(workdir / "clusters.csv", _of_images(ranked, splits.train))
    return ScanOutcome(result, ranked, splits.train, model, config.attribution)


class _Searcher:
    """Detectors on single classes, with their stages and the time they take."""

    def __init__(
        self,
        config: RunConfig,
        model: nnx.Module,
        trained: Artefact,
        train: Dataset,
        mode: str,
        work: WorkDirectory,
        progress: bool,
    ) -> None:
        self.config, self.model, self.trained, self.train = config, model, trained, train
        self.mode, self.work, self.progress = mode, work, progress
        labels, counts = np.unique(train.labels, return_counts=True)
        self.classes = labels[counts >= FEWEST].tolist()
        self.left_out = labels[counts < FEWEST].tolist()
        if not self.classes:
            raise ValueError(
                f"no class has {FEWEST} training images or more, found {len(train)} in all"
            )
        self.most = int(counts.max())
        self.seconds = {"train": trained.seconds}

    def search(self, name: str, classes: list[int]) -> dict[int, ScannedClass]:
        """One detector on some classes."""
        sees, make = DETECTORS[name]
        detector, attribution = make(self.config.seed), None
        if name == "heatmap":
            detector.set_params(mode=self.mode, n_init=_RUNS, padded_to=self.most)
            attribution = self.config.attribution
        key = hash_of(
            train=self.trained.key, attribution=attribution, options=detector.get_params()
        )
        seen = self._heatmaps if sees == "relevance" else self._activations()
        members = {k: np.flatnonzero(self.train.labels == k) for k in classes}
        total = sum(map(len, members.values()))
        found = {}
        with Bar(f"scanning, {name}", total, unit="images", show=self.progress) as bar:
            for label, index in members.items():
                made = self.work.stage(
                    f"scan-{name}-{label:04d}", key, partial(_searched, sees, detector, seen(label))
                )
                self._took(name, made)
                found[label] = ScannedClass(
                    label, index, name, detection_of(made), separation_of(made)
                )
                bar.advance(len(index), f"class {label}")
        return found

    def _took(self, what: str, made: Artefact) -> None:
        self.seconds[what] = self.seconds.get(what, 0.0) + made.seconds

    def _activations(self) -> Callable[[int], np.ndarray]:
        layer: str = self.model.feature_layer  # pyright: ignore[reportAttributeAccessIssue]
        title = "activations" if self.progress else None

        def make() -> Made:
            outputs = layer_outputs(self.model, self.train.images, layer, progress=title)
            return Made({}, {"activations": outputs})

        outputs = self.work.stage("activations-all", hash_of(train=self.trained.key), make)
        self._took("activations", outputs)
        return lambda label: outputs.arrays["activations"][self.train.labels == label]

    def _heatmaps(self, label: int) -> np.ndarray:
        parts = []
        for _, part in explain_class(
            self.config, self.model, self.trained, self.train, label, self.work
        ):
            self._took("explain", part)
            parts.append(part.arrays["heatmaps"])
        return np.concatenate(parts)


def _searched(sees: str, detector: Any, seen: np.ndarray) -> Made:
    with warnings.catch_warnings():
        # Reported as data, class by class.
        warnings.simplefilter("ignore", UninformativeCouplingsWarning)
        warnings.simplefilter("ignore", ConvergenceWarning)
        # A scan's time is that of distances too.
        return dataclasses.replace(search_class(sees, detector, seen), seconds=None)


def _row(of: ScannedClass, train: Dataset) -> dict[str, Any]:
    suspects = of.detection.cluster_sizes[1]
    return {
        "class": of.label,
        "name": train.class_names[of.label],
        "detector": of.detector,
        "suspicion": of.suspicion,
        "suspicious": of.suspicious,
        "images": len(of.members),
        "suspects": suspects,
        "share": suspects / len(of.members),
        "silhouette": of.separation.silhouette,
        "near_zero_eigenvalues": of.separation.near_zero_eigenvalues,
        "eigengap": of.separation.eigengap,
        "converged": of.detection.converged,
        "seconds": round(of.detection.seconds, 2),
        "notes": of.detection.notes,
    }


def _truth(ranked: list[ScannedClass], data: PoisonedSplits, config: RunConfig) -> dict[str, Any]:
    """How right a scan is: the images called poisoned are the suspects of suspicious classes."""
    called = np.zeros(len(data.poisoned), bool)
    for of in ranked:
        if of.suspicious:
            called[of.members] = of.detection.suspects
    order = [of.label for of in ranked]
    rank = order.index(config.target) + 1 if config.target in order else None
    return {
        "attacked_class": config.target,
        "rank": rank,
        "falsely_suspicious": [
            of.label for of in ranked if of.suspicious and of.label != config.target
        ],
        **vars(detection_rates(called, data.poisoned)),
    }


def _of_images(ranked: list[ScannedClass], train: Dataset) -> str:
    rows = [
        (train.ids[i], of.label, int(cluster), f"{score:.6g}")
        for of in ranked
        for i, cluster, score in zip(
            of.members, of.detection.labels, of.detection.scores, strict=True
        )
    ]
    return csv_text(("id", "class", "cluster", "score"), rows)
