"""The networks a run knows by name."""

from __future__ import annotations

from collections.abc import Callable

from flax import nnx

from jaxpoison.models.inception import CompactInception
from jaxpoison.models.resnet import ResNet18

# Each is called with the number of classes and ``rngs``.
MODELS: dict[str, Callable[..., nnx.Module]] = {
    "inception": CompactInception,
    "resnet18": ResNet18,
}
