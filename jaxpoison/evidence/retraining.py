"""Exclusive retraining: a network that has not seen some images judges them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.model_selection import cross_val_predict

from jaxpoison._checks import check_class

_FOLDS = 10


@dataclass(frozen=True)
class ExclusiveRetraining:
    """What a network that was trained without some images of a class calls them.

    Attributes:
        as_label: How many it classifies as their label, *l*.
        as_other: How many as the other class that most are classified as, *q*.
        other: That class; ``None`` if all are classified as their label.

    Examples:
        >>> jp.ExclusiveRetraining(as_label=1, as_other=18, other=2).poisoned
        True
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
        TypeError: ``label`` is not an integer.
        ValueError: There are no images, or the network has no such class.

    Examples:
        >>> logits = np.eye(3)[[2, 2, 1, 2]]  # of four images of class 1, three look like 2
        >>> found = jp.exclusive_retraining(logits, 1)
        >>> found.as_label, found.as_other, found.other, found.poisoned
        (1, 3, 2, True)
    """
    if not len(logits):
        raise ValueError("exclusive retraining needs at least one image, found none")
    label = check_class("label", label, logits.shape[-1])
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

    Examples:
        >>> rng = np.random.default_rng(0)
        >>> activations = rng.normal(size=(60, 4))
        >>> activations[:20, 0] += 9  # twenty alike, of which nineteen are suspected
        >>> widened = jp.widened_suspects(np.arange(60) < 19, activations)
        >>> np.flatnonzero(widened).tolist() == list(range(20))
        True
    """
    folds = min(_FOLDS, suspects.sum(), (~suspects).sum())
    if folds < 2:
        return suspects
    learner = LinearDiscriminantAnalysis()
    return suspects | cross_val_predict(learner, _flat(activations), suspects, cv=int(folds))


def like_suspects(
    suspects: Bool[np.ndarray, " n"],
    activations: Float[np.ndarray, "n ..."],
    others: Float[np.ndarray, "m ..."],
) -> Bool[np.ndarray, " m"]:
    """Which images that no detector searched have activations like those of the suspects.

    Validation images are poisoned like training images; left in, they would prefer the
    network that keeps the backdoor. The same discriminant as in :func:`widened_suspects`.

    Args:
        suspects: Which training images of one class are suspected.
        activations: Of these images.
        others: Of other images of the class, at the same layer.

    Returns:
        With fewer than two suspects or two others among the training images, none.
    """
    if not len(others) or min(suspects.sum(), (~suspects).sum()) < 2:
        return np.zeros(len(others), bool)
    learner = LinearDiscriminantAnalysis().fit(_flat(activations), suspects)
    return learner.predict(_flat(others))


def _flat(activations: Float[np.ndarray, "n ..."]) -> Float[np.ndarray, "n d"]:
    return activations.reshape(len(activations), -1)
