"""Everything that decides the result of a run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from flax import nnx

from jaxpoison._checks import check_choice, check_fraction, check_integer
from jaxpoison.attacks.pgd import PGD
from jaxpoison.attacks.triggers import AmplitudePattern, Sticker
from jaxpoison.attributions import ATTRIBUTIONS
from jaxpoison.detectors.named import DETECTORS
from jaxpoison.models.inception import CompactInception
from jaxpoison.models.resnet import ResNet18
from jaxpoison.training import PROTOCOLS

ATTACKS = ("standard", "label-consistent", "none")
TRIGGERS = ("sticker", "amplitude")
MODELS: dict[str, Callable[..., nnx.Module]] = {
    "inception": CompactInception,
    "resnet18": ResNet18,
}


@dataclass(frozen=True)
class RunConfig:
    """Everything that decides the result of a run.

    Attributes:
        data: ``"synthetic"``, ``"gtsrb"``, or the path of an image folder or zip.
        attack: ``"standard"``, ``"label-consistent"``, or ``"none"`` to take the data
            as they are.
        rate: Share of poisoned images inside the target class after the attack.
        trigger: ``"sticker"``, or ``"amplitude"`` for a pattern added to the image.
        sticker_size: Side of the sticker in pixels.
        amplitude: Of the pattern in training images, 1..255; test images get the full one.
        trigger_distance: Pixels between the pattern and the nearest two edges.
        four_corners: Put the pattern into all corners.
        pgd: How the label-consistent attack perturbs images.
        source: Class whose images are poisoned by the standard attack.
        target: Class whose label they get; the one whose images are searched.
        image_size: Side to which the images of a folder or zip are resized, or synthetic ones
            rendered; GTSRB's are 32.
        model: Name of the network.
        protocol: How to train, by name.
        epochs: Overrides the protocol's number of epochs.
        batch_size: Overrides the protocol's number of images per step.
        seed: Seed of the attack, the training and the detectors.
        attribution: Name of the method that makes the heatmaps.
        detectors: Names of the detectors to run.
    """

    data: str = "synthetic"
    attack: str = "standard"
    rate: float = 0.15
    trigger: str = "sticker"
    sticker_size: int = 3
    amplitude: int = 255
    trigger_distance: int = 10
    four_corners: bool = False
    pgd: PGD = PGD()
    source: int = 2
    target: int = 5
    image_size: int | None = None
    model: str = "inception"
    protocol: str = "fast"
    epochs: int | None = None
    batch_size: int | None = None
    seed: int = 0
    attribution: str = "lrp"
    detectors: tuple[str, ...] = tuple(DETECTORS)

    def __post_init__(self) -> None:
        check_choice("attack", self.attack, ATTACKS)
        check_fraction("rate", self.rate)
        check_choice("trigger", self.trigger, TRIGGERS)
        # Made and dropped: what is wrong with them is said here, before anything runs.
        Sticker(self.sticker_size)
        AmplitudePattern(self.amplitude, self.trigger_distance, self.four_corners)
        check_choice("model", self.model, MODELS)
        check_choice("protocol", self.protocol, PROTOCOLS)
        check_integer("seed", self.seed, at_least=0)
        check_choice("attribution", self.attribution, ATTRIBUTIONS)
        if self.image_size is not None:
            check_integer("image size", self.image_size, at_least=1)
        if self.epochs is not None:
            check_integer("epochs", self.epochs, at_least=1)
        if self.batch_size is not None:
            check_integer("batch size", self.batch_size, at_least=1)
        for name in self.detectors:
            check_choice("detector", name, DETECTORS)
