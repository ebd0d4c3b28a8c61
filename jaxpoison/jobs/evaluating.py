"""What a network says of images: how well it does on test images, and on triggered ones."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from flax import nnx
from jaxtyping import UInt8

from jaxpoison.datasets.dataset import Splits
from jaxpoison.jobs.artefact import Artefact, Made
from jaxpoison.metrics import accuracy, attack_success_rate, success_rate_by_class
from jaxpoison.models.inference import parameter_count, predict


@dataclass(frozen=True)
class Evaluation:
    """How well a network does, and the attack on it.

    Attributes:
        test_accuracy: Share of the test images classified as their label; ``None`` without any.
        parameters: Number of trainable parameters.
        asr: Share of the triggered images of the source class classified as the target;
            ``None`` without an attack on one class.
        per_class_asr: Where the trigger turns images of every class: the same by class.
        seconds: Time taken.
    """

    test_accuracy: float | None
    parameters: int
    asr: float | None
    per_class_asr: dict[int, float]
    seconds: float

    @property
    def masr(self) -> float | None:
        """Mean attack success rate over classes."""
        shares = list(self.per_class_asr.values())
        return float(np.mean(shares)) if shares else None


def evaluate(model: nnx.Module, data: Splits, progress: bool, _: Path) -> Made:
    """Accuracy on test images, and the attack's success; read by :func:`evaluation_of`."""
    title = "testing" if progress else None
    asr, by_class = None, {}
    backdoor = data.backdoor
    if backdoor is not None and len(backdoor.triggered):
        triggered = predict(model, backdoor.triggered.images, progress=title)
        if backdoor.source is None:
            by_class = success_rate_by_class(triggered, backdoor.triggered.labels, backdoor.target)
        else:
            asr = attack_success_rate(triggered, backdoor.target)
    test = None
    if len(data.test):
        logits = predict(model, data.test.images, progress=title)
        test = accuracy(logits, data.test.labels)
    return Made(
        {
            "test_accuracy": test,
            "parameters": parameter_count(model),
            "asr": asr,
            "per_class_asr": {str(c): share for c, share in by_class.items()},
        },
        {},
    )


def evaluation_of(stage: Artefact) -> Evaluation:
    """What :func:`evaluate` made."""
    by_class = {int(c): share for c, share in stage.values["per_class_asr"].items()}
    values = {**stage.values, "per_class_asr": by_class}
    return Evaluation(**values, seconds=stage.seconds)


def classify(
    model: nnx.Module, images: UInt8[np.ndarray, "n h w c"], title: str | None, _: Path
) -> Made:
    """What the network says of images."""
    return Made({}, {"logits": predict(model, images, progress=title)})
