"""Data sets that TensorFlow Datasets prepares, read from array_record; TensorFlow is not needed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from jaxpoison._checks import check_choice
from jaxpoison._code import hash_of_code
from jaxpoison._names import errors_shown
from jaxpoison._progress import Bar, console
from jaxpoison.datasets.cache import cached_arrays, cached_images
from jaxpoison.datasets.dataset import Dataset, Splits
from jaxpoison.datasets.decoding import RESIZES, decode_image
from jaxpoison.datasets.labels import SPLIT_NAMES
from jaxpoison.datasets.splitting import completed

# Features that name an image, the first that there is.
_IDS = ("file_name", "filename", "image/filename", "id", "image_id", "image/id")


def load_tfds(
    name: str | os.PathLike[str],
    *,
    image_size: int | None = None,
    resize: str = "stretch",
    validation_share: float = 1 / 9,
    test_share: float = 0.2,
    seed: int = 0,
    progress: bool = False,
) -> Splits:
    """Reads a data set that TensorFlow Datasets has prepared, or downloads and prepares it.

    It needs one feature ``Image`` and one ``ClassLabel``, as data for classification have, and
    the format array_record, which is read without TensorFlow. Images of one channel stay so.
    Decoded images are cached as :func:`load_folder` does it. A split without labels is left out.

    Args:
        name: As ``tfds.builder`` takes it (``mnist``, ``imagenette/160px``), or the path of the
            folder of a prepared version (``.../mnist/3.0.1``).
        image_size: If given, every image is resized to this side.
        resize: What becomes of an image that is not square, as for :func:`load_folder`.
        validation_share: Share of the training images held out where there is no validation split.
        test_share: Share of all images held out where there is no test split.
        seed: Of the splits made here.
        progress: Show a progress bar.

    Raises:
        FileNotFoundError: There is no such data set.
        OSError: It could not be downloaded.
        ValueError: It is in another format, lacks such features or training images, or its
            images are of several sizes.

    Examples:
        >>> data = jp.load_tfds("mnist")  # doctest: +SKIP
        >>> data.train.image_shape  # doctest: +SKIP
        (28, 28, 1)
    """
    check_choice("resize", resize, RESIZES)
    builder = _builder(os.fspath(name))
    image, label = _features(builder)
    splits = {}
    for split in builder.info.splits:
        place = SPLIT_NAMES.get(split.lower())
        if place is None or not len(builder.as_data_source(split)):
            continue
        found = _read(builder, split, image, label, (image_size, resize), progress)
        if found is None:
            if progress:
                console.print(f"split {split} of {builder.name} has no labels and is left out")
            continue
        splits[place] = found
    return completed(
        builder.name,
        splits,
        validation_share=validation_share,
        test_share=test_share,
        seed=seed,
        progress=progress,
    )


def class_names_of_tfds(name: str | os.PathLike[str]) -> tuple[str, ...]:
    """Names of the classes of such a data set, by number; no image is decoded."""
    builder = _builder(os.fspath(name))
    return tuple(builder.info.features[_features(builder)[1]].names)


def _builder(name: str) -> Any:
    """A builder whose data are prepared."""
    with errors_shown():
        if os.path.isdir(name):
            try:
                builder = tfds.builder_from_directory(name)
            except tfds.core.dataset_info.DatasetInfoFileError as error:
                raise FileNotFoundError(
                    f"no data prepared by TFDS in {name}: expected the folder of a version, with "
                    "dataset_info.json"
                ) from error
        else:
            try:
                builder = tfds.builder(name, file_format="array_record", try_gcs=False)
            except tfds.core.DatasetNotFoundError as error:
                raise FileNotFoundError(
                    f"TFDS knows no data set {name!r}, and there is no such folder of prepared data"
                ) from error
            config = tfds.download.DownloadConfig(try_download_gcs=False)
            try:
                builder.download_and_prepare(download_config=config)
            except tfds.download.DownloadError as error:
                raise OSError(f"{name} could not be downloaded: {error}") from error
        formats = {str(split.filename_template.filetype_suffix) for split in _parts(builder)}
        if formats - {"array_record"}:
            raise ValueError(
                f"{name} is prepared as {', '.join(sorted(formats))}, which cannot be read without "
                "TensorFlow: prepare it with file_format='array_record'"
            )
    return builder


def _parts(builder: Any) -> list[Any]:
    return [part for part in builder.info.splits.values() if part.filename_template is not None]


def _features(builder: Any) -> tuple[str, str]:
    """Names of the image and of its class."""
    kinds = tfds.features.Image, tfds.features.ClassLabel
    features = dict(builder.info.features)
    found = []
    for kind in kinds:
        names = [name for name, feature in features.items() if type(feature) is kind]
        supervised = [n for n in builder.info.supervised_keys or () if n in names]
        names = supervised or names
        if len(names) != 1:
            raise ValueError(
                f"{builder.name} must have one feature {kind.__name__}, found {len(names)} among "
                f"{', '.join(sorted(features))}"
            )
        found += names
    return found[0], found[1]


def _read(
    builder: Any,
    split: str,
    image: str,
    label: str,
    how: tuple[int | None, str],
    progress: bool,
) -> Dataset | None:
    """One split; ``None`` where it has no labels."""
    source = builder.as_data_source(split, decoders={image: tfds.decode.SkipDecoding()})
    features = builder.info.features
    named = next((name for name in _IDS if name in features), None)
    gray = features[image].shape[-1] == 1
    key = (str(builder.data_path), os.stat(builder.data_path).st_mtime_ns, split)
    code = hash_of_code(load_tfds)

    def rows(title: str) -> Iterator[dict[str, Any]]:
        with Bar(f"{title}, {split}", len(source), unit="images", show=progress) as bar:
            for row in source:
                yield row
                bar.advance(1)

    def read_labels() -> dict[str, np.ndarray]:
        labels, ids = [], []
        for row in rows("reading labels"):
            labels.append(int(row[label]))
            ids.append(None if named is None else _text(row[named]))
        if named is None or len(set(ids)) < len(ids):
            ids = [f"{split}/{k}" for k in range(len(labels))]
        return {"labels": np.array(labels, np.int32), "ids": np.array(ids)}

    found = cached_arrays((*key, "labels", code), read_labels)
    if (found["labels"] < 0).all():
        return None

    def decoded(row: dict[str, Any], k: int) -> np.ndarray:
        said = f"image {found['ids'][k]} of {builder.name}"
        pixels = decode_image(row[image], said, *how)
        return pixels[..., :1] if gray else pixels

    def fill(arrays: dict[str, np.ndarray]) -> None:
        for k, row in enumerate(rows("decoding images")):
            pixels = decoded(row, k)
            if pixels.shape != arrays[split].shape[1:]:
                height, width = arrays[split].shape[1:3]
                raise ValueError(
                    f"all images of {builder.name} must have one size: {found['ids'][0]} is "
                    f"{width}x{height}, {found['ids'][k]} is {pixels.shape[1]}x{pixels.shape[0]}; "
                    "give an image size to resize them"
                )
            arrays[split][k] = pixels

    images = cached_images(
        (*key, how, code), lambda: {split: (len(source), *decoded(source[0], 0).shape)}, fill
    )
    names = tuple(features[label].names)
    return Dataset(images[split], found["labels"], names, tuple(found["ids"].tolist()))


def _text(value: Any) -> str:
    return value.decode("utf-8", "surrogateescape") if isinstance(value, bytes) else str(value)
