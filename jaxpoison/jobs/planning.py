"""What a job has before it: rough costs of its stages, for the time that is left in all."""

from __future__ import annotations

from collections.abc import Sequence

from jaxpoison._progress import Plan
from jaxpoison.datasets.dataset import Splits
from jaxpoison.jobs.named import DETECTORS
from jaxpoison.training.protocols import TrainConfig

# An image trained on once, and explained, in forward passes: on two CPU cores the compact Inception
# passes 437 images a second, trains 129 and explains 153, with its activations fewer.
_TRAINED, _EXPLAINED = 3.4, 4.0
# What a detector does to a class in a scan, as a share of what it does in a run.
_SCANNED = 0.2
SCANNING = "scanning"


def plan_of_search(
    target: int, data: Splits, settings: TrainConfig | None, detectors: Sequence[str]
) -> Plan:
    """A network trained and judged, its target class explained and searched.

    Args:
        target: The class.
        data: Training, validation and test images.
        settings: How the network is trained; ``None`` where it is already.
        detectors: Names of the detectors that search.
    """
    members = int((data.train.labels == target).sum())
    triggered = 0 if data.backdoor is None else len(data.backdoor.triggered)
    return Plan(
        {
            **_training(data, settings),
            "evaluate": float(len(data.test) + triggered),
            "explain": _EXPLAINED * members,
            **{f"detect-{name}": DETECTORS[name].passes * members for name in detectors},
        }
    )


def plan_of_scan(data: Splits, settings: TrainConfig | None, detectors: Sequence[str]) -> Plan:
    """A network trained, and all classes explained and searched.

    Args:
        data: Training, validation and test images.
        settings: How the network is trained; ``None`` where it is already.
        detectors: Names of the detectors that look at classes.
    """
    searched = _SCANNED * sum(DETECTORS[name].passes for name in detectors)
    return Plan({**_training(data, settings), SCANNING: (_EXPLAINED + searched) * len(data.train)})


def plan_of_carriers(data: Splits, attacked: Sequence[int]) -> Plan:
    """The triggers of attacked classes looked for in all images: each costs as much.

    Args:
        data: Training, validation and test images.
        attacked: The classes.
    """
    images = len(data.train) + len(data.validation) + len(data.test)
    return Plan({f"carriers-of-{label:04d}": float(images) for label in attacked})


def _training(data: Splits, settings: TrainConfig | None) -> dict[str, float]:
    if settings is None:
        return {}
    return {"train": _TRAINED * settings.epochs * len(data.train)}
