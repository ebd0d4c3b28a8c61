"""GTSRB from its official archives, as a TFDS builder that needs no TensorFlow.

TFDS itself ships GTSRB only inside ``visual_domain_decathlon``, without test
labels. The archive torchvision loads is the smaller one of the competition.
"""

from __future__ import annotations

import csv
import hashlib
import io
import os
import zipfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from jaxpoison._code import hash_of_code
from jaxpoison._names import errors_shown
from jaxpoison._progress import Bar
from jaxpoison._storage import cache_directory
from jaxpoison.datasets.archive import is_system_file, open_archive, read_member
from jaxpoison.datasets.cache import cached_arrays
from jaxpoison.datasets.dataset import Dataset, Splits
from jaxpoison.datasets.decoding import decode_image

_URL = "https://sid.erda.dk/public/archives/daaeac0d7ce1152aea9b61d9f1e19370/"
# Only MD5 sums are published.
ARCHIVES = {
    "GTSRB_Final_Training_Images.zip": "f33fd80ac59bff73c82d25ab499e03a3",
    "GTSRB_Final_Test_Images.zip": "c7e4e6327067d32654124b0fe9e82185",
    "GTSRB_Final_Test_GT.zip": "fe31e9c9270bbcd7b84b7f21a9d9d9e5",
}
NUM_CLASSES = 43
SIDE = 32
_TRAINING = "GTSRB/Final_Training/Images"
_TESTING = "GTSRB/Final_Test/Images"
_TEST_LABELS = "GT-final_test.csv"
CLASS_NAMES = tuple(f"{k:05d}" for k in range(NUM_CLASSES))


class Gtsrb(tfds.core.GeneratorBasedBuilder):
    """German Traffic Sign Recognition Benchmark, resized to 32x32.

    Configurations: ``full`` takes the whole frame, ``roi`` the sign's box.

    Args:
        source: Directory with the official archives or their extracted tree;
            without it they are downloaded.
        verify: Whether archives must have the published MD5 sums.
        **kwargs: Those of :class:`tfds.core.GeneratorBasedBuilder`.
    """

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = [  # noqa: RUF012 (TFDS's way)
        tfds.core.BuilderConfig(name="full", description="whole frames"),
        tfds.core.BuilderConfig(name="roi", description="frames cropped to the sign's box"),
    ]

    def __init__(
        self, *, source: str | os.PathLike[str] | None = None, verify: bool = True, **kwargs: Any
    ) -> None:
        self._source = None if source is None else Path(source)
        self._verify = verify
        super().__init__(file_format="array_record", **kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="German Traffic Sign Recognition Benchmark (Stallkamp et al. 2012).",
            homepage="https://benchmark.ini.rub.de/",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(SIDE, SIDE, 3), encoding_format="png"),
                    "label": tfds.features.ClassLabel(names=list(CLASS_NAMES)),
                    "track": np.int64,
                    "id": tfds.features.Text(),
                }
            ),
            supervised_keys=("image", "label"),
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        if self._source is None:
            downloaded = dl_manager.download({name: _URL + name for name in ARCHIVES})
            archives = {name: Path(os.fspath(path)) for name, path in downloaded.items()}
            files = _Files.of_archives(archives, verify=True)
        else:
            files = _Files.of_directory(self._source, verify=self._verify)
        return {split: self._generate_examples(files, split) for split in ("train", "test")}

    def _generate_examples(self, files: _Files, split: str) -> Iterator[tuple[str, dict[str, Any]]]:
        rows = files.training() if split == "train" else files.testing()
        for name, row in rows:
            label = int(row["ClassId"])
            if not 0 <= label < NUM_CLASSES:
                raise ValueError(f"{name}: class {label} is not one of {NUM_CLASSES}")
            crop = _box(row) if self.builder_config.name == "roi" else None
            track = int(Path(name).stem.split("_")[0]) if split == "train" else -1
            key = name.removeprefix("GTSRB/")
            yield (
                key,
                {
                    "image": io.BytesIO(_resized_png(files.read(name), name, crop)),
                    "label": label,
                    "track": track,
                    "id": key,
                },
            )


def _box(row: dict[str, str]) -> tuple[int, int, int, int]:
    return (int(row["Roi.X1"]), int(row["Roi.Y1"]), int(row["Roi.X2"]), int(row["Roi.Y2"]))


def _resized_png(data: bytes, name: str, crop: tuple[int, int, int, int] | None) -> bytes:
    image = Image.fromarray(decode_image(data, name))
    if crop is not None:
        image = image.crop(crop)
    out = io.BytesIO()
    image.resize((SIDE, SIDE), Image.Resampling.BILINEAR).save(out, "png")
    return out.getvalue()


class _Files:
    """The official files by their names, from archives or from a directory."""

    def __init__(self, names: dict[str, zipfile.ZipFile | Path], origin: str) -> None:
        self._names = names
        self._origin = origin

    @classmethod
    def of_archives(cls, archives: dict[str, Path], *, verify: bool) -> _Files:
        names: dict[str, zipfile.ZipFile | Path] = {}
        for archive, path in archives.items():
            if verify and (found := _md5(path)) != ARCHIVES[archive]:
                raise ValueError(
                    f"{archive} is damaged or another version: expected MD5 {ARCHIVES[archive]}, "
                    f"found {found}; delete {path} and load it again"
                )
            opened = open_archive(path)
            names.update(dict.fromkeys(opened.namelist(), opened))
        return cls(names, ", ".join(str(p) for p in archives.values()))

    @classmethod
    def of_directory(cls, directory: Path, *, verify: bool) -> _Files:
        archives = {name: directory / name for name in ARCHIVES if (directory / name).is_file()}
        if len(archives) == len(ARCHIVES):
            return cls.of_archives(archives, verify=verify)
        if not (directory / _TRAINING).is_dir():
            missing = [name for name in ARCHIVES if name not in archives]
            raise FileNotFoundError(
                f"GTSRB in {directory}: expected {', '.join(ARCHIVES)} or their extracted tree, "
                f"missing {', '.join(missing)}"
            )
        files = {
            p.relative_to(directory).as_posix(): p for p in directory.rglob("*") if p.is_file()
        }
        return cls(dict(files), str(directory))

    def read(self, name: str) -> bytes:
        """The bytes of a file.

        Raises:
            FileNotFoundError: It is not there.
        """
        holder = self._names.get(name)
        if holder is None:
            raise FileNotFoundError(f"GTSRB in {self._origin} has no file {name}")
        return holder.read_bytes() if isinstance(holder, Path) else read_member(holder, name)

    def training(self) -> Iterator[tuple[str, dict[str, str]]]:
        """Names and rows of the training images."""
        for k, folder in enumerate(CLASS_NAMES):
            rows = self._table(f"{_TRAINING}/{folder}/GT-{folder}.csv")
            if not rows:
                raise ValueError(f"GTSRB in {self._origin}: class {k} has no training images")
            for row in rows:
                yield f"{_TRAINING}/{folder}/{row['Filename']}", row

    def testing(self) -> Iterator[tuple[str, dict[str, str]]]:
        """Names and rows of the test images."""
        places = (_TEST_LABELS, f"{_TESTING}/{_TEST_LABELS}", f"GTSRB/{_TEST_LABELS}")
        table = next((p for p in places if p in self._names), _TEST_LABELS)
        for row in self._table(table):
            yield f"{_TESTING}/{row['Filename']}", row

    def _table(self, name: str) -> list[dict[str, str]]:
        rows = list(csv.DictReader(io.StringIO(self.read(name).decode()), delimiter=";"))
        if rows and not {"Filename", "ClassId", "Roi.X1"} <= rows[0].keys():
            raise ValueError(f"{name} must have the columns Filename, Roi.* and ClassId")
        return rows


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()


def holds_gtsrb(path: Path) -> bool:
    """Whether a directory holds one of the official archives, or their extracted tree."""
    return path.is_dir() and (
        (path / _TRAINING).is_dir() or any((path / name).is_file() for name in ARCHIVES)
    )


def load_gtsrb(
    source: str | os.PathLike[str] | None = None,
    *,
    crop: bool = False,
    verify: bool = True,
    data_dir: str | os.PathLike[str] | None = None,
    seed: int = 0,
    progress: bool = False,
) -> Splits:
    """GTSRB at 32x32: 43 classes, 39,209 training and 12,630 test images.

    Validation holds out whole tracks (30 consecutive images of one physical
    sign), one in nine of every class.

    Args:
        source: Directory with the official archives or their extracted tree;
            without it the archives are downloaded (once) with their checksums.
        crop: Crop to the sign's box before resizing.
        verify: Whether archives must have the published MD5 sums.
        data_dir: Where TFDS keeps the prepared data; its default if not given
            and the archives are downloaded, the cache folder if they are local.
        seed: Seed of the validation split.
        progress: Show a progress bar.

    Raises:
        FileNotFoundError: An archive or a file inside is missing.
        OSError: The download failed.
        ValueError: An archive has another checksum, a class is empty, or a
            file is damaged; the message names it.
    """
    if source is not None and data_dir is None:
        data_dir = cache_directory() / "tfds" / _place(Path(source))
    builder = Gtsrb(
        source=source,
        verify=verify,
        config="roi" if crop else "full",
        data_dir=None if data_dir is None else os.fspath(data_dir),
    )
    # TFDS would first look for prepared data on Google's storage.
    config = tfds.download.DownloadConfig(try_download_gcs=False)
    try:
        with errors_shown():
            builder.download_and_prepare(download_config=config)
    except tfds.download.DownloadError as error:
        raise OSError(f"GTSRB could not be downloaded: {error}") from error
    arrays = cached_arrays(
        (str(builder.data_path), os.stat(builder.data_path).st_mtime_ns, hash_of_code(_read)),
        lambda: _read(builder, progress),
    )
    test = _dataset(arrays, "test", slice(None))
    held = _held_out_tracks(arrays["train_labels"], arrays["train_tracks"], seed)
    return Splits(_dataset(arrays, "train", ~held), _dataset(arrays, "train", held), test)


def _place(source: Path) -> str:
    """A name that changes with the archives, or with any file of the extracted tree."""
    archives = [source / name for name in ARCHIVES if (source / name).is_file()]
    files = archives
    if len(archives) < len(ARCHIVES):
        files = [p for p in source.rglob("*") if p.is_file() and not is_system_file(p.as_posix())]
    stats = [(p.relative_to(source).as_posix(), p.stat()) for p in sorted(files)]
    marks = [(name, s.st_size, s.st_mtime_ns) for name, s in stats]
    return hashlib.sha256(repr((str(source.resolve()), marks)).encode()).hexdigest()[:16]


def _read(builder: Gtsrb, progress: bool) -> dict[str, np.ndarray]:
    arrays = {}
    for split in ("train", "test"):
        source = builder.as_data_source(split=split)
        rows = []
        with Bar(f"reading {split} images", len(source), unit="images", show=progress) as bar:
            for row in source:
                rows.append(row)
                bar.advance(1)
        # TFDS shuffles by hashed key; back to the order of the names.
        rows.sort(key=lambda row: row["id"])
        arrays[f"{split}_images"] = np.stack([row["image"] for row in rows])
        arrays[f"{split}_labels"] = np.array([row["label"] for row in rows], np.int32)
        arrays[f"{split}_tracks"] = np.array([row["track"] for row in rows], np.int32)
        arrays[f"{split}_ids"] = np.array([_text(row["id"]) for row in rows])
    return arrays


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else value


def _dataset(arrays: dict[str, np.ndarray], split: str, where: Any) -> Dataset:
    return Dataset(
        arrays[f"{split}_images"][where],
        arrays[f"{split}_labels"][where],
        CLASS_NAMES,
        tuple(arrays[f"{split}_ids"][where].tolist()),
    )


def _held_out_tracks(labels: np.ndarray, tracks: np.ndarray, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    members: dict[int, set[int]] = defaultdict(set)
    for label, track in zip(labels.tolist(), tracks.tolist(), strict=True):
        members[label].add(track)
    held = np.zeros(len(labels), bool)
    for label in sorted(members):
        of_class = np.array(sorted(members[label]))
        if len(of_class) < 2:
            raise ValueError(f"class {label} has one track only: none can be held out")
        count = max(1, round(len(of_class) / 9))
        chosen = rng.choice(of_class, count, replace=False)
        held |= (labels == label) & np.isin(tracks, chosen)
    return held
