"""How well an attack works, and how well it is found; the only judges that know the truth."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int
from sklearn.metrics import average_precision_score, roc_auc_score


@dataclass(frozen=True)
class DetectionRates:
    """Shares, fractions of 1; ``None`` where there is nothing to take a share of.

    Attributes:
        acc: Images called rightly.
        tpr: Poisoned images called poisoned.
        tnr: Clean images called clean.

    Examples:
        >>> jp.DetectionRates(acc=0.99, tpr=1.0, tnr=0.98).tpr
        1.0
    """

    acc: float | None
    tpr: float | None
    tnr: float | None


def detection_rates(
    suspects: Bool[np.ndarray, " n"], poisoned: Bool[np.ndarray, " n"] | None
) -> DetectionRates:
    """Rates of a call against the truth; all ``None`` if the truth is not known.

    Raises:
        ValueError: The two have different lengths.

    Examples:
        >>> truth = np.array([True, True, False, False])
        >>> jp.detection_rates(np.array([True, False, False, False]), truth)
        DetectionRates(acc=0.75, tpr=0.5, tnr=1.0)
    """
    if poisoned is None:
        return DetectionRates(None, None, None)
    if suspects.shape != poisoned.shape:
        raise ValueError(
            f"the truth must have one entry per image ({len(suspects)}), found {len(poisoned)}"
        )
    return DetectionRates(
        _share(suspects == poisoned), _share(suspects[poisoned]), _share(~suspects[~poisoned])
    )


@dataclass(frozen=True)
class ScoreRates:
    """How well a score orders images; ``None`` unless there are both poisoned and clean ones.

    Attributes:
        auroc: Area under the curve of true over false positives: how often a poisoned image
            scores higher than a clean one.
        average_precision: Area under the curve of precision over recall.
        tpr_at_1_percent_fpr: Poisoned images above all but one in a hundred of the clean ones.

    Examples:
        >>> truth = np.array([False, True, True, False])
        >>> rates = jp.score_rates(np.array([0.1, 0.9, 0.8, 0.2]), truth)
        >>> rates.auroc, rates.average_precision, rates.tpr_at_1_percent_fpr
        (1.0, 1.0, 1.0)
    """

    auroc: float | None
    average_precision: float | None
    tpr_at_1_percent_fpr: float | None


def score_rates(
    scores: Float[np.ndarray, " n"], poisoned: Bool[np.ndarray, " n"] | None
) -> ScoreRates:
    """Rates of a score against the truth, whatever is called.

    Args:
        scores: Higher is more suspicious.
        poisoned: The truth, where it is known.

    Raises:
        ValueError: The two have different lengths.

    Examples:
        >>> jp.score_rates(np.array([0.1, 0.9, 0.2]), np.array([False, True, False])).auroc
        1.0
    """
    if poisoned is None or poisoned.all() or not poisoned.any():
        return ScoreRates(None, None, None)
    if scores.shape != poisoned.shape:
        raise ValueError(
            f"the truth must have one entry per image ({len(scores)}), found {len(poisoned)}"
        )
    clean = np.quantile(scores[~poisoned], 0.99, method="higher")
    return ScoreRates(
        float(roc_auc_score(poisoned, scores)),
        float(average_precision_score(poisoned, scores)),
        float((scores[poisoned] > clean).mean()),
    )


def attack_success_rate(logits: Float[np.ndarray, "n classes"], target: int) -> float | None:
    """Share of triggered images classified as the target; ``None`` without images.

    Examples:
        >>> jp.attack_success_rate(np.eye(3)[[2, 2, 1, 2]], target=2)
        0.75
    """
    return _share(logits.argmax(-1) == target)


def success_rate_by_class(
    logits: Float[np.ndarray, "n classes"], labels: Int[np.ndarray, " n"], target: int
) -> dict[int, float]:
    """Share of every class's triggered images classified as the target.

    Their mean over classes is the mean attack success rate, MASR.

    Args:
        logits: Of triggered images.
        labels: Their true classes.
        target: The attacked class.

    Examples:
        >>> jp.success_rate_by_class(np.eye(3)[[2, 2, 1, 2]], np.array([0, 0, 1, 1]), target=2)
        {0: 1.0, 1: 0.5}
    """
    hits = logits.argmax(-1) == target
    return {int(c): float(hits[labels == c].mean()) for c in np.unique(labels)}


def accuracy(logits: Float[np.ndarray, "n classes"], labels: Int[np.ndarray, " n"]) -> float | None:
    """Share of images classified as their label; ``None`` without images.

    Examples:
        >>> jp.accuracy(np.eye(3)[[0, 1, 2, 2]], np.array([0, 1, 2, 0]))
        0.75
    """
    return _share(logits.argmax(-1) == labels)


def _share(hits: Bool[np.ndarray, " n"]) -> float | None:
    return float(hits.mean()) if len(hits) else None
