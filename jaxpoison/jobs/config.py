"""Everything that decides the result of a run, each thing said once.

A field knows its default, its help, what it goes with and what it may be; the command line's
options, the checks and ``config.json`` are made from that.
"""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from jaxpoison._checks import check_choice, check_fraction, check_integer, set_fields
from jaxpoison._names import shown
from jaxpoison.attacks.pgd import PGD
from jaxpoison.attacks.triggers import AmplitudePattern, Sticker
from jaxpoison.datasets.decoding import RESIZES
from jaxpoison.datasets.loading import DATASETS
from jaxpoison.evidence.verdict import CASCADE, JUDGE, scanners
from jaxpoison.gw.kmeans import MODES
from jaxpoison.jobs.named import DETECTORS, default_detectors
from jaxpoison.lrp.attributions import ATTRIBUTIONS
from jaxpoison.models.named import check_model_name
from jaxpoison.training.protocols import PROTOCOLS

ATTACKS = ("standard", "label-consistent", "none")
TRIGGERS = ("sticker", "amplitude")
CONFIG_SCHEMA = 2


def option(
    default: Any,
    help: str,  # noqa: A002
    *,
    choices: Iterable[str] | Callable[[], Iterable[str]] | None = None,
    at_least: int | None = None,
    at_most: int | None = None,
    metavar: str | None = None,
    goes_with: tuple[str, str] | None = None,
    is_class: bool = False,
    group: str = "options",
) -> Any:
    """A field that is also an option of the command line.

    Args:
        default: Its value if it is not given; a function of nothing that makes it.
        help: What it is, for ``--help``; the default is added.
        choices: What it may be; looked at when it is needed, so that registries may grow.
        at_least: Of integers, the least.
        at_most: Of integers, the largest.
        metavar: What its value is called in ``--help``.
        goes_with: Name and value of another option, without which this one has no effect.
        is_class: Whether it is the number of a class, which is also found by its name.
        group: Under which heading ``--help`` lists it.
    """
    made: dict[str, Any] = {"default_factory" if callable(default) else "default": default}
    return field(
        **made,
        metadata={
            "help": help,
            "choices": choices,
            "at_least": at_least,
            "at_most": at_most,
            "metavar": metavar,
            "goes_with": goes_with,
            "is_class": is_class,
            "group": group,
        },
    )


def choices_of(metadata: Mapping[str, Any]) -> tuple[str, ...] | None:
    """What a field may be; ``None`` where it may be anything."""
    choices: Any = metadata.get("choices")
    if callable(choices):
        choices = choices()
    return None if choices is None else tuple(choices)


def checked(instance: Any) -> None:
    """Brings the fields of a configuration into plain Python types, and checks them.

    Raises:
        TypeError: A field has the wrong type.
        ValueError: One is none of its choices, or too small.
    """
    kinds = typing.get_type_hints(type(instance))
    values = {
        each.name: _plain(each, kinds[each.name], getattr(instance, each.name))
        for each in dataclasses.fields(instance)
    }
    set_fields(instance, **values)


def _plain(each: dataclasses.Field[Any], kind: Any, value: Any) -> Any:
    name = each.name.replace("_", " ")
    if isinstance(kind, types.UnionType):
        if value is None:
            return None
        (kind,) = (k for k in typing.get_args(kind) if k is not types.NoneType)
    choices = choices_of(each.metadata)
    if kind is bool:
        if not isinstance(value, bool | np.bool_):
            raise TypeError(f"{name} must be true or false, found {value!r}")
        return bool(value)
    if kind is int:
        at_least = each.metadata.get("at_least")
        number = check_integer(name, value, at_least=0 if at_least is None else at_least)
        at_most = each.metadata.get("at_most")
        if at_most is not None and number > at_most:
            raise ValueError(f"{name} must be at most {at_most}, found {number}")
        return number
    if kind is float:
        if isinstance(value, bool) or not isinstance(value, int | float | np.number):
            raise TypeError(f"{name} must be a number, found {value!r}")
        return float(value)
    if kind is str:
        if not isinstance(value, str | Path):
            raise TypeError(f"{name} must be a text, found {value!r}")
        return str(value) if choices is None else check_choice(name, value, choices)
    if typing.get_origin(kind) is tuple:
        if isinstance(value, str) or not isinstance(value, Iterable):
            raise TypeError(f"{name} must be several names, found {value!r}")
        singular = name.removesuffix("s")
        return tuple(check_choice(singular, each, choices or ()) for each in value)
    if not isinstance(value, kind):
        raise TypeError(f"{name} must be a {kind.__name__}, found {value!r}")
    return value


@dataclass(frozen=True)
class SearchOptions:
    """How a network is asked, whatever trained it.

    Attributes:
        attribution: What makes heatmaps.
        layer: Path of the layer whose outputs are the activations; ``None`` for what the last
            dense layer gets.
        seed: Of everything random.
    """

    attribution: str = "lrp"
    layer: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        check_choice("attribution", self.attribution, ATTRIBUTIONS)
        check_integer("seed", self.seed, at_least=0)
        if self.layer is not None and not isinstance(self.layer, str):
            raise TypeError(f"layer must be the path of a layer, found {self.layer!r}")


@dataclass(frozen=True)
class RunConfig:
    """Everything that decides the result of a run; ``jaxpoison run --help`` says what each is.

    The attack is ``standard`` by default, of data of one's own, too: say ``attack="none"`` for the
    images as they are. (The command line does so for a folder or zip.)

    Raises:
        TypeError: A value has the wrong type.
        ValueError: A value is out of range, or none of its choices.

    Examples:
        >>> jp.RunConfig(data="gtsrb", rate=0.33).target
        5
    """

    # Options whose values are of a class of their own: by field, what names of options begin with.
    NESTED: ClassVar[Mapping[str, str]] = {"pgd": "pgd"}
    # Options that files of this schema may lack, being older: the default is what was done then.
    ADDED: ClassVar[frozenset[str]] = frozenset({"exclude", "layer", "resize", "weights"})

    data: str = option(
        "synthetic",
        "synthetic, gtsrb (downloads it), tfds:NAME (what TensorFlow Datasets prepares), or the "
        "path of an image folder or zip (split/class/file or class/file), or of a directory with "
        "GTSRB's archives",
        metavar="NAME_OR_PATH",
        group="data",
    )
    attack: str = option(
        "standard",
        "standard (dirty label), label-consistent (clean label; trains a second network "
        "on the clean data first, once) or none: the images as they are, which is what a folder or "
        "zip gets unless an option of an attack is given",
        choices=ATTACKS,
        group="attack",
    )
    rate: float = option(
        0.15,
        "share of poisoned images inside the target class, between 0 and 1",
        metavar="SHARE",
        group="attack",
    )
    trigger: str = option(
        "sticker",
        "sticker, or amplitude: a 3x3 pattern added to the image",
        choices=TRIGGERS,
        group="attack",
    )
    sticker_size: int = option(
        3,
        "side of the sticker",
        metavar="PIXELS",
        at_least=1,
        goes_with=("trigger", "sticker"),
        group="attack",
    )
    amplitude: int = option(
        255,
        "what the pattern adds to or takes from pixel values of 0..255 in training "
        "images; test images get the full one, black and white",
        at_least=1,
        goes_with=("trigger", "amplitude"),
        group="attack",
    )
    trigger_distance: int = option(
        10,
        "between the pattern and the nearest two edges of a 32x32 image",
        metavar="PIXELS",
        goes_with=("trigger", "amplitude"),
        group="attack",
    )
    four_corners: bool = option(
        False,
        "the pattern in all corners, mirrored",
        goes_with=("trigger", "amplitude"),
        group="attack",
    )
    pgd: PGD = option(
        PGD(),
        "how the label-consistent attack perturbs images",
        goes_with=("attack", "label-consistent"),
        group="attack",
    )
    source: int = option(
        2,
        "class that the standard attack poisons, by its number or name",
        metavar="CLASS",
        is_class=True,
        goes_with=("attack", "standard"),
        group="attack",
    )
    target: int = option(
        5,
        "class whose label the poisoned images get, and whose images are searched, by its number "
        "or name",
        metavar="CLASS",
        is_class=True,
        group="attack",
    )
    image_size: int | None = option(
        None,
        "resize images to this side, or render synthetic ones so; the Inception takes 32",
        metavar="PIXELS",
        at_least=1,
        group="data",
    )
    resize: str = option(
        "stretch",
        "what becomes of an image that is not square: stretch, crop (its middle is kept) or pad "
        "(with black)",
        choices=RESIZES,
        group="data",
    )
    exclude: str | None = option(
        None,
        "leave out of training and search the images that a CSV file names in its column id, such "
        "as the suspects.csv of a scan",
        metavar="FILE",
        group="data",
    )
    model: str = option(
        "inception",
        "inception, resnet18, resnet34, resnet50 (with -imagenet behind it: torchvision's form), "
        "or package.module:function, which makes a network of your own: of the arguments "
        "num_classes and rngs it is given those that it has",
        metavar="NAME",
        group="network",
    )
    weights: str | None = option(
        None,
        "weights of the network, which is then not trained: a directory that Orbax wrote, or a "
        ".safetensors file, of a resnet also with torchvision's names",
        metavar="PATH",
        group="network",
    )
    protocol: str = option(
        "fast",
        "fast (Muon, one cycle, 2 epochs; more on small data) or paper (Adam, up to 100 epochs)",
        choices=PROTOCOLS,
        group="network",
    )
    epochs: int | None = option(
        None, "overrides the protocol's number of epochs", at_least=1, group="network"
    )
    batch_size: int | None = option(
        None, "overrides the protocol's number of images per step", at_least=1, group="network"
    )
    seed: int = option(0, "seed of everything random", at_most=2**32 - 1, group="network")
    attribution: str = option(
        "lrp", "what makes the heatmaps", choices=ATTRIBUTIONS, group="search"
    )
    layer: str | None = option(
        None,
        "path of the layer whose outputs are the activations that detectors see; by default what "
        "the last dense layer gets",
        metavar="PATH",
        group="search",
    )
    detectors: tuple[str, ...] = option(
        default_detectors, "separated by commas", choices=DETECTORS, metavar="NAMES", group="search"
    )

    def __post_init__(self) -> None:
        checked(self)
        check_fraction("rate", self.rate)
        check_model_name(self.model)
        if self.weights is not None and self.attack != "none":
            raise ValueError(
                f"weights are of a network that is trained: nothing can be attacked before, found "
                f"the attack {self.attack} (none is needed)"
            )
        if self.resize != "stretch" and self.image_size is None:
            raise ValueError(f"resize {self.resize} needs an image size, found none")
        # Made and dropped: what is wrong with them is said here, before anything runs.
        Sticker(self.sticker_size)
        AmplitudePattern(self.amplitude, self.trigger_distance, self.four_corners)

    def unused(self) -> frozenset[str]:
        """Names of the fields that play no part with the values of others."""
        attacked = self.attack != "none"
        names = set() if attacked else {"rate", "trigger"}
        for each in dataclasses.fields(self):
            goes_with = each.metadata["goes_with"]
            if goes_with and (not attacked or getattr(self, goes_with[0]) != goes_with[1]):
                names.add(each.name)
        return frozenset(names)

    @property
    def search(self) -> SearchOptions:
        """How the network is asked, whatever trained it."""
        return SearchOptions(self.attribution, self.layer, self.seed)

    def record(self) -> dict[str, Any]:
        """The configuration as JSON values, from which :meth:`from_record` makes it again."""
        values = dataclasses.asdict(self) | {"detectors": list(self.detectors)}
        data = Path(self.data)
        # The same from wherever it is read.
        named = self.data in DATASETS or not data.exists()
        return {
            "schema": CONFIG_SCHEMA,
            **values,
            "data": self.data if named else str(data.resolve()),
            "exclude": None if self.exclude is None else str(Path(self.exclude).resolve()),
            "weights": None if self.weights is None else str(Path(self.weights).resolve()),
        }

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> RunConfig:
        """The configuration that :meth:`record` describes.

        Raises:
            TypeError: A value has the wrong type.
            ValueError: Keys are unknown or missing, the schema is another, or a value is out
                of range; the message names it.
        """
        if record.get("schema") != CONFIG_SCHEMA:
            raise ValueError(
                f"a configuration must have the schema {CONFIG_SCHEMA}, found "
                f"{record.get('schema')!r}"
            )
        values: dict[str, Any] = {key: v for key, v in record.items() if key != "schema"}
        _check_keys("the configuration", values, cls)
        _check_keys("pgd", values["pgd"], PGD)
        values["pgd"] = PGD(**values["pgd"])
        return cls(**values)


def read_config(path: str | Path) -> RunConfig:
    """A configuration from the ``config.json`` that a job left.

    Raises:
        FileNotFoundError: There is no such file.
        TypeError: A value has the wrong type.
        ValueError: It is no JSON, keys are unknown or missing, or a value is out of range; the
            message names the file.

    Examples:
        >>> outcome = jp.run(jp.RunConfig(detectors=("activation_pca",)), "runs/first")
        >>> jp.read_config("runs/first/config.json") == outcome.config
        True
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no configuration at {path}")
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(record, dict):
            raise TypeError(f"a configuration must be a JSON object, found {record!r}")
        return RunConfig.from_record(record)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is no JSON: {error}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no text: {error}") from error
    except (TypeError, ValueError) as error:
        raise type(error)(f"{path}: {error}") from error


def _check_keys(what: str, values: Any, cls: type) -> None:
    if not isinstance(values, Mapping):
        raise TypeError(f"{what} must be a JSON object, found {values!r}")
    known = {each.name for each in dataclasses.fields(cls)}
    if unknown := sorted(set(values) - known):
        raise ValueError(f"{what} has unknown keys: {shown(', '.join(unknown))}")
    if missing := sorted(known - set(values) - getattr(cls, "ADDED", frozenset())):
        raise ValueError(f"{what} lacks the keys: {', '.join(missing)}")


@dataclass(frozen=True)
class ScanConfig:
    """How all classes are searched; ``jaxpoison scan --help`` says what each is."""

    detector: str = option(
        JUDGE,
        "whose word counts; transplant: the network's own, asked with the regions that explain "
        "images; cascade: activation_pca looks at every class, heatmap at those whose clusters lie "
        "apart",
        choices=scanners,
        group="search",
    )
    mode: str = option(
        "quick",
        "of Heatmap Clustering: quick (heatmaps are quantised to 10 points first) or exact",
        choices=MODES,
        group="search",
    )

    def __post_init__(self) -> None:
        checked(self)

    @property
    def detectors(self) -> tuple[str, ...]:
        """Names of the detectors that look at classes, in the order in which they do."""
        return CASCADE if self.detector == "cascade" else (self.detector,)


@dataclass(frozen=True)
class RepairConfig:
    """How data are repaired; ``jaxpoison repair --help`` says what each is."""

    detector: str = option(JUDGE, "whose suspects are taken out", choices=DETECTORS, group="search")
    rounds: int = option(5, "most trainings after the first", at_least=1, group="search")

    def __post_init__(self) -> None:
        checked(self)
