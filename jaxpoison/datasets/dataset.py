"""The type every loader returns and every later stage takes."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Int, UInt8

from jaxpoison._checks import check_images
from jaxpoison._storage import rows_of


@dataclass(frozen=True, eq=False)
class Dataset:
    """Labelled images at rest, and the truth about them where it is known.

    Only attacks, metrics, reports and what jobs record beside them read the truth; detectors
    and evidence are given arrays without it.

    Images may be mapped from a file (``np.load(path, mmap_mode="r")``): memory then holds what is
    being looked at, and what is made of one gibibyte of them or more stands in files, too.

    Attributes:
        images: Pixels in 0..255, channels last.
        labels: Class of each image, an index into ``class_names``.
        class_names: One name per class.
        ids: A stable name per image: its file name, or its index as text.
        poisoned: Which images are poisoned; ``None`` where that is not known.

    Raises:
        TypeError: ``images`` is not ``uint8``, ``labels`` are not integers, or ``poisoned``
            is not boolean.
        ValueError: Shapes do not fit, or a label has no class.

    Examples:
        >>> black = np.zeros((4, 32, 32, 3), np.uint8)
        >>> data = jp.Dataset.from_arrays(black, np.array([0, 0, 1, 1]))
        >>> len(data), data.num_classes, data.ids
        (4, 2, ('0', '1', '2', '3'))
    """

    images: UInt8[np.ndarray, "n h w c"]
    labels: Int[np.ndarray, " n"]
    class_names: tuple[str, ...]
    ids: tuple[str, ...]
    poisoned: Bool[np.ndarray, " n"] | None = None

    def __post_init__(self) -> None:
        check_images("images", self.images)
        if self.images.shape[-1] not in (1, 3):
            raise ValueError(
                "images must have shape [n, height, width, channels] with 1 or 3 channels, "
                f"found {self.images.shape}"
            )
        if not np.issubdtype(self.labels.dtype, np.integer):
            raise TypeError(f"labels must be integers, found {self.labels.dtype}")
        n = len(self.images)
        if self.labels.shape != (n,):
            raise ValueError(f"labels must have shape ({n},), found {self.labels.shape}")
        if len(self.ids) != n:
            raise ValueError(f"ids must name all {n} images, found {len(self.ids)}")
        if self.poisoned is not None:
            if self.poisoned.dtype != bool:
                raise TypeError(f"poisoned must be boolean, found {self.poisoned.dtype}")
            if self.poisoned.shape != (n,):
                raise ValueError(f"poisoned must have shape ({n},), found {self.poisoned.shape}")
        if n and not 0 <= self.labels.min() <= self.labels.max() < self.num_classes:
            raise ValueError(
                f"labels must lie in 0..{self.num_classes - 1} ({self.num_classes} class names), "
                f"found {self.labels.min()}..{self.labels.max()}"
            )

    @classmethod
    def from_arrays(
        cls,
        images: UInt8[np.ndarray, "n h w c"],
        labels: Int[np.ndarray, " n"],
        *,
        class_names: Sequence[str] | None = None,
        ids: Sequence[str] | None = None,
    ) -> Dataset:
        """Wraps arrays; names of classes and images default to their indices."""
        images, labels = np.asarray(images), np.asarray(labels)
        if class_names is None:
            class_names = [str(k) for k in range(int(labels.max(initial=-1)) + 1)]
        if ids is None:
            ids = [str(i) for i in range(len(images))]
        return cls(images, labels, tuple(class_names), tuple(ids))

    def __len__(self) -> int:
        return len(self.images)

    @property
    def num_classes(self) -> int:
        """Number of classes, empty ones included."""
        return len(self.class_names)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of every image."""
        h, w, c = self.images.shape[1:]
        return h, w, c

    def take(self, where: Int[np.ndarray, " m"] | Bool[np.ndarray, " n"]) -> Dataset:
        """The images at the given indices, or where a mask is true.

        Raises:
            OSError: They are large, and there is no room for them in the cache directory.
        """
        index = np.flatnonzero(where) if where.dtype == bool else where
        return Dataset(
            rows_of(self.images, index),
            self.labels[index],
            self.class_names,
            tuple(self.ids[i] for i in index),
            None if self.poisoned is None else self.poisoned[index],
        )

    @cached_property
    def fingerprint(self) -> str:
        """A hash of pixels, labels and class names, equal for equal data; truth is not in it."""
        digest = hashlib.sha256(repr((self.images.shape, self.class_names)).encode())
        digest.update(np.ascontiguousarray(self.images).data)
        digest.update(np.ascontiguousarray(self.labels, dtype=np.int64).data)
        return digest.hexdigest()


@dataclass(frozen=True, eq=False)
class Backdoor:
    """What an attack put into data, and what shows whether a network learned it.

    Attributes:
        source: The class whose images are turned into another; ``None`` where the
            trigger turns images of every class.
        target: The class they are turned into.
        triggered: Test images that carry the trigger, true labels kept.

    Examples:
        >>> backdoor = jp.standard_backdoor(splits, source=2, target=5).backdoor
        >>> backdoor.source, backdoor.target, set(backdoor.triggered.labels.tolist())
        (2, 5, {2})
    """

    source: int | None
    target: int
    triggered: Dataset


@dataclass(frozen=True, eq=False)
class Splits:
    """Training, validation and test images over the same classes.

    Attributes:
        train: Training images; after an attack with the truth about them.
        validation: Images that choose when a training ends; an attack poisons them, too.
        test: Images that nothing is chosen by.
        backdoor: The attack that was made, where one was made here.

    Raises:
        ValueError: The parts differ in classes or in image shape.

    Examples:
        >>> parts = jp.Splits(splits.train, splits.validation, splits.test)
        >>> len(parts.train), len(parts.validation), len(parts.test)
        (200, 40, 40)
    """

    train: Dataset
    validation: Dataset
    test: Dataset
    backdoor: Backdoor | None = None

    def __post_init__(self) -> None:
        for name, part in (("validation", self.validation), ("test", self.test)):
            if part.class_names != self.train.class_names:
                raise ValueError(
                    f"the {name} images must have the training images' "
                    f"{self.train.num_classes} classes, found {part.num_classes}"
                )
            if part.image_shape != self.train.image_shape:
                raise ValueError(
                    f"the {name} images must have the training images' shape "
                    f"{self.train.image_shape}, found {part.image_shape}"
                )

    @cached_property
    def fingerprint(self) -> str:
        """A hash over the three parts."""
        parts = (self.train, self.validation, self.test)
        return hashlib.sha256("".join(p.fingerprint for p in parts).encode()).hexdigest()
