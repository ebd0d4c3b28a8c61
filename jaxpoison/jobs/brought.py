"""Networks and data that no job made."""

from __future__ import annotations

import warnings

import numpy as np
from flax import nnx

from jaxpoison._sampling import evenly
from jaxpoison.datasets.dataset import Dataset, Splits
from jaxpoison.jobs.outcome import Network
from jaxpoison.models.inference import class_count, fingerprint, predict
from jaxpoison.models.named import check_network

# Training images by which such a network is tried, and the share of them that it gets right.
_SAMPLE, _RIGHT = 256, 0.5


def brought(model: nnx.Module, train: Dataset) -> Network:
    """A network that no job trained.

    Args:
        model: The network.
        train: What it was trained on; where it classifies most of that wrongly, a warning says so.

    Raises:
        TypeError: It is none of NNX's.
        ValueError: It gives fewer logits than the data have classes.
    """
    check_network(model)
    count = class_count(model, train.images)
    if count < train.num_classes:
        raise ValueError(
            f"the network gives {count} logits, and the data have {train.num_classes} classes"
        )
    index = evenly(len(train), _SAMPLE)
    said = predict(model, train.images[index]).argmax(-1)
    right = float((said == train.labels[index]).mean())
    if right < _RIGHT:
        warnings.warn(
            f"the network classifies {100 * right:.0f} % of {len(index)} of the images that it was "
            "trained on as their labels: do its classes stand in another order, or does it take "
            "images in another range than [0, 1]?",
            stacklevel=3,
        )
    return Network(model, fingerprint(model))


def splits_of(data: Splits | Dataset) -> Splits:
    """Training images alone, with validation and test images, of which there are none.

    Raises:
        TypeError: It is neither.
    """
    if isinstance(data, Splits):
        return data
    if not isinstance(data, Dataset):
        raise TypeError(f"data must be a Dataset or Splits, found {type(data).__name__}")
    none = data.take(np.zeros(0, int))
    return Splits(data, none, none)
