"""All classes of a training set searched: which of them is attacked?"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
from flax import nnx
from sklearn.exceptions import ConvergenceWarning

from jaxpoison._files import write_json, write_text
from jaxpoison._names import shown
from jaxpoison._progress import Bar
from jaxpoison._storage import empty_array
from jaxpoison.datasets.dataset import Dataset, Splits
from jaxpoison.detectors.detection import Sees
from jaxpoison.evidence.estimator import Case
from jaxpoison.evidence.verdict import passed_on
from jaxpoison.gw.kmeans import UninformativeCouplingsWarning
from jaxpoison.jobs.against import KnownAttack, write_known_attacks
from jaxpoison.jobs.artefact import Artefact, Made
from jaxpoison.jobs.asking import case_of, hosts_of, look_for_carriers, possible_hosts
from jaxpoison.jobs.brought import brought, splits_of
from jaxpoison.jobs.config import RunConfig, ScanConfig, SearchOptions
from jaxpoison.jobs.detecting import FEWEST
from jaxpoison.jobs.explain import class_parts
from jaxpoison.jobs.explaining import activations
from jaxpoison.jobs.named import DETECTORS
from jaxpoison.jobs.outcome import Network, ScannedClass, ScanOutcome
from jaxpoison.jobs.planning import SCANNING, plan_of_carriers, plan_of_scan
from jaxpoison.jobs.prepare import job_network, prepare
from jaxpoison.jobs.records import classes_table, clusters_table, scan_record, suspects_of_scan
from jaxpoison.jobs.search import detected, finding_of
from jaxpoison.jobs.stages import WorkDirectory, working
from jaxpoison.models.inference import kinds_of


def scan(
    model: nnx.Module,
    data: Splits | Dataset,
    *,
    detector: str = ScanConfig.detector,
    mode: str = ScanConfig.mode,
    attribution: str = SearchOptions.attribution,
    layer: str | None = None,
    seed: int = 0,
    workdir: str | Path | None = None,
    progress: bool = False,
) -> ScanOutcome:
    """Searches every class of the data that a network was trained on: which are attacked?

    By default the network itself is asked (:class:`TransplantJudge`): do the regions that
    explain images of a class turn images of other classes into it? The trigger of a class that
    is called attacked is searched for in all other images, too. The other detectors rank
    classes by how far the two clusters found lie apart, from a silhouette on that was fixed for
    each. ``cascade`` is the paper's conclusion: Activation Clustering looks at every class,
    Heatmap Clustering at those whose clusters have a silhouette of 0.5 or more, and only these
    are explained.

    One class is worked on at a time. Classes of fewer than twelve images are left out.

    Args:
        model: Takes images in [0, 1], gives logits; in whatever mode, and not changed.
        data: What it was trained on, perhaps with validation and test images.
        detector: ``transplant``, ``cascade``, or the name of a detector that can tell suspicious
            classes.
        mode: Of Heatmap Clustering, ``quick`` or ``exact``; see :class:`HeatmapClustering`.
        attribution: What makes heatmaps.
        layer: Path of the layer whose outputs are the activations that detectors see; by default
            what the last dense layer gets.
        seed: Of everything random.
        workdir: Where classes that are finished are kept, so that a scan that was interrupted goes
            on, and where the files of :func:`run_scan` are left; nowhere by default.
        progress: Show progress bars.

    Returns:
        What was found; :func:`write_scan_report` makes pages of it.

    Raises:
        TypeError: A value has the wrong type.
        ValueError: An option is out of range, no class has enough images, or another process
            works in the directory.

    Examples:
        >>> outcome = jp.scan(model, train, detector="activation_pca")
        >>> len(outcome.classes), outcome.called.shape == (len(train),)
        (10, True)
    """
    options, how = ScanConfig(detector, mode), SearchOptions(attribution, layer, seed)
    splits = splits_of(data)
    with working(workdir, "scan") as work:
        work.plan = plan_of_scan(splits, None, options.detectors)
        outcome = _scan_classes(how, options, brought(model, splits.train), splits, work, progress)
        if workdir is not None:
            _write_records(Path(workdir), outcome, work)
        work.finish(None)
    return outcome


def run_scan(
    config: RunConfig,
    workdir: str | Path,
    *,
    detector: str = ScanConfig.detector,
    mode: str = ScanConfig.mode,
    progress: bool = False,
) -> ScanOutcome:
    """Attacks data, trains a network on them, and searches every class as :func:`scan` does.

    A finished class is not searched again. Leaves ``config.json``; ``scan.json``;
    ``classes.csv``, one row per class; ``clusters.csv``, one row per image: id,
    class, cluster (1 for suspects) and score; and ``suspects.csv``, the images that are called
    poisoned, those outside attacked classes that carry their triggers among them: a list for
    :func:`without_listed`.

    Args:
        config: What to run; its target is where the attack goes, its detectors are not used.
        workdir: Where results and stages are kept; that of a run serves.
        detector: ``cascade``, or the name of a detector that can tell suspicious classes.
        mode: Of Heatmap Clustering, ``quick`` or ``exact``; see :class:`HeatmapClustering`.
        progress: Show progress bars.

    Raises:
        ValueError: The configuration does not fit the data, no class has enough images,
            an option is out of range, or another process works in the directory.
        FileNotFoundError: There are no data at the given path.

    Examples:
        >>> outcome = jp.run_scan(jp.RunConfig(), "runs/first")
        >>> [scanned.label for scanned in outcome.classes if scanned.suspicious]  # called attacked
        []
    """
    options = ScanConfig(detector, mode)
    workdir = Path(workdir)
    with working(workdir, "scan") as work:
        data, settings = prepare(config, work, progress)
        work.plan = plan_of_scan(data, settings, options.detectors)
        network = job_network(config, settings, data, work, progress)
        found = _scan_classes(config.search, options, network, data, work, progress)
        outcome = dataclasses.replace(found, config=config)
        write_json(workdir / "config.json", config.record())
        _write_records(workdir, outcome, work)
        work.finish(network.trained_as)
    return outcome


def _scan_classes(
    how: SearchOptions,
    options: ScanConfig,
    network: Network,
    data: Splits,
    work: WorkDirectory,
    progress: bool,
) -> ScanOutcome:
    names = options.detectors
    searcher = _Searcher(how, options, network, data.train, work, progress)
    with work.plan.doing(SCANNING):
        found = searcher.search(names[0], searcher.classes)
        for following in names[1:]:
            chosen = [k for k in searcher.classes if passed_on(found[k].finding.separation)]
            found |= searcher.search(following, chosen)
    found |= searcher.with_carriers(found.values(), data)
    return ScanOutcome(
        options,
        how,
        data,
        network,
        tuple(sorted(found.values(), key=lambda scanned: -scanned.suspicion)),
        tuple(searcher.left_out),
        searcher.seconds,
    )


def _write_records(workdir: Path, outcome: ScanOutcome, work: WorkDirectory) -> None:
    write_json(workdir / "scan.json", scan_record(outcome))
    write_text(workdir / "classes.csv", classes_table(outcome))
    write_text(workdir / "clusters.csv", clusters_table(outcome))
    write_text(workdir / "suspects.csv", suspects_of_scan(outcome))
    write_known_attacks(workdir, _known(outcome, work))


def _known(outcome: ScanOutcome, work: WorkDirectory) -> Iterator[KnownAttack]:
    """Attacked classes whose trigger is known."""
    train, search = outcome.data.train, outcome.search
    for scanned in outcome.classes:
        evidence = scanned.finding.evidence
        if evidence is not None and evidence.trigger is not None:
            possible = possible_hosts(outcome.network, train, work, progress=False)
            hosts = hosts_of(train, scanned.label, possible, search.seed)
            yield KnownAttack(train.class_names, evidence, hosts)


class _Searcher:
    """Detectors on single classes, with their stages and the time they take."""

    def __init__(
        self,
        how: SearchOptions,
        options: ScanConfig,
        network: Network,
        train: Dataset,
        work: WorkDirectory,
        progress: bool,
    ) -> None:
        self.how, self.options, self.network, self.train = how, options, network, train
        self.work, self.progress = work, progress
        labels, counts = np.unique(train.labels, return_counts=True)
        self.classes: list[int] = labels[counts >= FEWEST].tolist()
        self.left_out: list[int] = labels[counts < FEWEST].tolist()
        if not self.classes:
            raise ValueError(
                f"no class has {FEWEST} training images or more, found {len(train)} in all"
            )
        self.seconds = dict(network.seconds)

    def search(self, name: str, classes: list[int]) -> dict[int, ScannedClass]:
        """One detector on some classes."""
        entry = DETECTORS[name]
        seen = {
            Sees.IMAGES: self._images,
            Sees.ACTIVATIONS: self._activations,
            Sees.RELEVANCE: self._heatmaps,
            Sees.NETWORK: self._cases,
        }[entry.sees]()
        members = {k: np.flatnonzero(self.train.labels == k) for k in classes}
        found = {}
        total = sum(map(len, members.values()))
        with Bar(f"scanning, {name}", total, unit="images", show=self.progress) as bar:
            for label, index in members.items():
                detector = entry.make(self.how.seed)
                detector.set_params(**entry.when_scanning)
                if "mode" in detector.get_params():
                    detector.set_params(mode=self.options.mode)
                rows, key = seen(label)
                with warnings.catch_warnings():
                    # Reported as data, class by class.
                    warnings.simplefilter("ignore", UninformativeCouplingsWarning)
                    warnings.simplefilter("ignore", ConvergenceWarning)
                    made = detected(
                        f"{name}-of-{label:04d}",
                        entry.sees,
                        detector,
                        rows,
                        key,
                        self.work,
                        progress=False,
                    )
                self._took(name, made)
                found[label] = ScannedClass(label, index, finding_of(name, made))
                suspicion = found[label].finding.verdict.suspicion
                bar.line(
                    f"{name}, class {label} ({shown(self.train.class_names[label])}), "
                    f"{len(index)} images: "
                    + ("attacked" if found[label].suspicious else "not called attacked")
                    + ("" if suspicion is None else f", suspicion {suspicion:.2f}")
                )
                bar.advance(len(index), f"class {label}")
        return found

    def with_carriers(
        self, classes: Iterable[ScannedClass], data: Splits
    ) -> dict[int, ScannedClass]:
        """Attacked classes whose trigger is known, and what else carries it."""
        found = {}
        known = []
        for scanned in classes:
            evidence = scanned.finding.evidence
            if evidence is not None and evidence.trigger is not None:
                known.append((scanned, evidence))
        self.work.plan = plan_of_carriers(data, [scanned.label for scanned, _ in known])
        for scanned, evidence in known:
            hosts = possible_hosts(self.network, self.train, self.work, self.progress)
            carriers = look_for_carriers(
                self.network,
                data,
                evidence,
                hosts,
                self.how.seed,
                scanned.finding.key,
                self.work,
                self.progress,
            )
            self.seconds["carriers"] = self.seconds.get("carriers", 0.0) + carriers.seconds
            found[scanned.label] = dataclasses.replace(scanned, carriers=carriers)
        return found

    def _took(self, what: str, made: Artefact) -> None:
        self.seconds[what] = self.seconds.get(what, 0.0) + made.seconds

    def _cases(self) -> Callable[[int], tuple[Case, str]]:
        hosts = possible_hosts(self.network, self.train, self.work, self.progress)
        self._took("hosts", hosts[1])
        heatmaps = self._heatmaps()

        def of_class(label: int) -> tuple[Case, str]:
            maps, key = heatmaps(label)
            members = np.flatnonzero(self.train.labels == label)
            case = case_of(self.network, self.train, members, maps, label, hosts, self.how.seed)
            return case, f"{key} {hosts[1].key}"

        return of_class

    def _images(self) -> Callable[[int], tuple[np.ndarray, str]]:
        def of_class(label: int) -> tuple[np.ndarray, str]:
            some = self.train.take(self.train.labels == label)
            return some.images, some.fingerprint

        return of_class

    def _activations(self) -> Callable[[int], tuple[np.ndarray, str]]:
        title = "activations" if self.progress else None
        model, images, layer = self.network.model, self.train.images, self.how.layer

        def make(_: Path) -> Made:
            return Made({}, {"activations": activations(model, images, layer, title)})

        outputs = self.work.stage(
            "activations",
            {"network": self.network.key, "layer": layer, "images": self.train.fingerprint},
            make,
            code=(activations, *kinds_of(model)),
        )
        self._took("activations", outputs)

        def of_class(label: int) -> tuple[np.ndarray, str]:
            chosen = self.train.labels == label
            return outputs.arrays["activations"][chosen], f"{outputs.key} of {label}"

        return of_class

    def _heatmaps(self) -> Callable[[int], tuple[np.ndarray, str]]:
        def of_class(label: int) -> tuple[np.ndarray, str]:
            count = int((self.train.labels == label).sum())
            heatmaps = empty_array((count, *self.train.image_shape[:2]), np.float32)
            keys, done = [], 0
            for members, part in class_parts(self.how, self.network, self.train, label, self.work):
                heatmaps[done : done + len(members)] = part.arrays["heatmaps"]
                done += len(members)
                keys.append(part.key)
                self._took("explain", part)
            return heatmaps, " ".join(keys)

        return of_class
