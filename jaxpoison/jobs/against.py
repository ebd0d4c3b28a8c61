"""New images looked at with what a scan found: which of them carry a trigger that it knows?"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx
from jaxtyping import Bool, Float, Int

from jaxpoison._files import read_arrays, write_arrays
from jaxpoison.datasets.dataset import Dataset
from jaxpoison.evidence.class_evidence import ClassEvidence
from jaxpoison.evidence.judge import find_carriers
from jaxpoison.evidence.transplant import Hosts
from jaxpoison.evidence.trigger import trigger_distances
from jaxpoison.jobs.config import read_config
from jaxpoison.jobs.prepare import trained_network
from jaxpoison.jobs.records import SCHEMA, csv_text
from jaxpoison.models.inference import predict
from jaxpoison.models.named import check_network, made_network
from jaxpoison.models.weights import load_weights

# Beside the scan's other files: what it knows of every attacked class.
_FOLDER = "attacked"
_HOSTS = ("members", "images", "labels", "margins")
# Share of the hosts that the scan's network gets right; those of a scan are.
_RIGHT = 0.8


@dataclass(frozen=True, eq=False)
class KnownAttack:
    """What a scan knows of an attacked class.

    Attributes:
        class_names: Of all classes.
        evidence: With the trigger.
        hosts: What regions were pasted on.
    """

    class_names: tuple[str, ...]
    evidence: ClassEvidence
    hosts: Hosts

    @property
    def name(self) -> str:
        """Of the attacked class."""
        return self.class_names[self.evidence.label]


def write_known_attacks(workdir: Path, known: Iterable[KnownAttack]) -> None:
    """Leaves what :func:`scan_against` needs of the classes that a scan calls attacked.

    Args:
        workdir: Of the scan.
        known: Those whose triggers are known.
    """
    folder = workdir / _FOLDER
    # Perhaps an earlier scan called others.
    shutil.rmtree(folder, ignore_errors=True)
    for attack in known:
        folder.mkdir(exist_ok=True)
        values, arrays = attack.evidence.parts()
        text = json.dumps({**values, "class_names": attack.class_names})
        arrays |= {f"hosts_{each}": getattr(attack.hosts, each) for each in _HOSTS}
        path = folder / f"class-{attack.evidence.label:04d}.npz"
        write_arrays(path, {**arrays, "values": np.array(text)})


def known_attacks(workdir: str | Path) -> tuple[KnownAttack, ...]:
    """The attacked classes whose triggers a scan left in its work directory.

    Raises:
        FileNotFoundError: No scan has ended there.
        ValueError: A file is damaged.
    """
    workdir = Path(workdir)
    if not (workdir / "scan.json").is_file():
        raise FileNotFoundError(f"no scan has ended in {workdir}: run jaxpoison scan first")
    found = []
    for path in sorted((workdir / _FOLDER).glob("class-*.npz")):
        arrays = read_arrays(path)
        if arrays is None:
            raise ValueError(f"{path} is damaged: run the scan again")
        values = json.loads(str(arrays["values"]))
        names = tuple(values.pop("class_names"))
        hosts = Hosts(*(arrays[f"hosts_{each}"] for each in _HOSTS))
        found.append(KnownAttack(names, ClassEvidence.of_parts(values, arrays), hosts))
    return tuple(found)


@dataclass(frozen=True, eq=False)
class Carrying:
    """New images that carry the trigger of an attacked class.

    Attributes:
        attack: The class.
        members: Their indices, ascending.
        shares: Of the hosts that each turns, weighed.
        places: Of the trigger in each: row and column of the upper left corner.
    """

    attack: KnownAttack
    members: Int[np.ndarray, " m"]
    shares: Float[np.ndarray, " m"]
    places: Int[np.ndarray, "m 2"]


@dataclass(frozen=True, eq=False)
class AgainstOutcome:
    """What :func:`scan_against` found.

    Attributes:
        data: The new images.
        found: For every attacked class of the scan.
        seconds: Time taken.

    Examples:
        >>> _ = jp.scan(model, train, detector="activation_pca", workdir="runs/scanned")
        >>> outcome = jp.scan_against("runs/scanned", splits.test, model=model)
        >>> outcome.called.shape == (len(splits.test),)
        True
    """

    data: Dataset
    found: tuple[Carrying, ...]
    seconds: float

    @property
    def called(self) -> Bool[np.ndarray, " n"]:
        """Which images carry a trigger."""
        called = np.zeros(len(self.data), bool)
        for each in self.found:
            called[each.members] = True
        return called


def scan_against(
    workdir: str | Path,
    data: Dataset,
    *,
    model: nnx.Module | None = None,
    progress: bool = False,
) -> AgainstOutcome:
    """Searches new images for the triggers of a scan that has ended; their labels play no part.

    As the scan itself does it with all other images (:func:`find_carriers`): where an image is
    most like the trigger, its window is pasted on the scan's hosts, and it is called if it turns
    as many as an image of the class must. Nothing is trained or explained. An attack that the scan
    did not find is not found here.

    Args:
        workdir: Of a scan that has ended.
        data: The new images, of the size of the scan's.
        model: That was scanned; by default the one that the scan trained or read.
        progress: Show progress bars.

    Raises:
        FileNotFoundError: No scan has ended there, or its network is not there any more.
        ValueError: The images have another size, or the model other classes.

    Examples:
        >>> outcome = jp.scan(model, train, detector="activation_pca", workdir="runs/scanned")
        >>> new = jp.scan_against("runs/scanned", splits.test, model=model)
        >>> len(new.found), int(new.called.sum())  # nothing was called attacked
        (0, 0)
    """
    started = time.perf_counter()
    known = known_attacks(workdir)
    if not known:
        return AgainstOutcome(data, (), time.perf_counter() - started)
    size = known[0].hosts.images.shape[1:]
    if data.images.shape[1:] != size:
        raise ValueError(
            f"expected images of the scan's size {size}, found {data.images.shape[1:]}"
        )
    if model is None:
        model = _scanned_network(Path(workdir), len(known[0].class_names))
    model = check_network(model)
    found = []
    for attack in known:
        hosts, trigger, label = attack.hosts, attack.evidence.trigger, attack.evidence.label
        right = float((predict(model, hosts.images).argmax(-1) == hosts.labels).mean())
        if right < _RIGHT:
            raise ValueError(
                f"the network gets {100 * right:.0f} % of the scan's {len(hosts.labels)} hosts "
                "right, and the scan's network gets all: give the network that was scanned"
            )
        title = f"trigger of class {label}" if progress else None
        members, shares = find_carriers(model, data.images, attack.evidence, hosts, progress=title)
        places = np.zeros((0, 2), int)
        if len(members) and trigger is not None:
            places = trigger_distances(trigger, data.images[members])[1]
        found.append(Carrying(attack, members, shares, places))
    return AgainstOutcome(data, tuple(found), time.perf_counter() - started)


def _scanned_network(workdir: Path, num_classes: int) -> nnx.Module:
    """The network that a job scanned: trained by it, or with the weights it was given.

    Raises:
        FileNotFoundError: It is not there any more, or was handed over in Python.
    """
    path = workdir / "config.json"
    if not path.is_file():
        raise FileNotFoundError(
            f"the network that was scanned in {workdir} was handed over in Python: hand it over"
        )
    config = read_config(path)
    if config.weights is None:
        return trained_network(workdir, job="scan")
    model = made_network(config.model, num_classes, config.seed)
    load_weights(Path(config.weights), model)
    return model


def against_record(outcome: AgainstOutcome) -> dict[str, Any]:
    """The content of ``against.json``."""
    return {
        "schema": SCHEMA,
        "images": len(outcome.data),
        "called": int(outcome.called.sum()),
        "attacks": [
            {
                "class": each.attack.evidence.label,
                "name": each.attack.name,
                "called": len(each.members),
            }
            for each in outcome.found
        ],
        "seconds": outcome.seconds,
    }


def new_suspects(outcome: AgainstOutcome) -> str:
    """The content of the new images' ``suspects.csv``, a list for :func:`without_listed`."""
    rows = []
    for each in outcome.found:
        for index, share, (row, column) in zip(each.members, each.shares, each.places, strict=True):
            name = outcome.data.ids[index]
            rows.append((name, each.attack.name, f"{share:.4g}", int(row), int(column)))
    return csv_text(("id", "attack_on", "hosts_turned", "row", "column"), rows)
