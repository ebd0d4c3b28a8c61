"""The networks a run knows by name."""

from __future__ import annotations

from typing import Protocol

from flax import nnx

from jaxpoison.models.inception import CompactInception
from jaxpoison.models.resnet import ResNet18


class NamedModel(Protocol):
    """A network's class.

    Attributes:
        image_side: Of the images it takes; ``None`` if any will do.
    """

    image_side: int | None

    def __call__(self, num_classes: int, *, rngs: nnx.Rngs) -> nnx.Module: ...


MODELS: dict[str, NamedModel] = {
    "inception": CompactInception,
    "resnet18": ResNet18,
}
