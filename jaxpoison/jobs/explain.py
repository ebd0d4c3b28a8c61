"""Every training image explained, in one file."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
from jaxtyping import Int

from jaxpoison._code import described
from jaxpoison._files import replace_file, write_json, write_text
from jaxpoison._progress import Bar
from jaxpoison.datasets.dataset import Dataset
from jaxpoison.jobs.artefact import Artefact
from jaxpoison.jobs.config import RunConfig, SearchOptions
from jaxpoison.jobs.explaining import explain_part
from jaxpoison.jobs.outcome import Network
from jaxpoison.jobs.prepare import job_network, prepare
from jaxpoison.jobs.records import csv_text
from jaxpoison.jobs.stages import WorkDirectory
from jaxpoison.lrp.attributions import ATTRIBUTIONS
from jaxpoison.models.inference import kinds_of

# Images per stage at the most, and pixels.
_PART, _PIXELS = 2048, 2**25


def explain_all(config: RunConfig, workdir: str | Path, *, progress: bool = False) -> Path:
    """Explains every training image towards its label; trains first where that is not done.

    Works class by class with bounded memory; what is finished is not done again.
    Leaves ``relevance.npy``, float32 ``[n, h, w]``, summed over channels, and
    ``relevance.csv``, the images' ids and labels in the same order.

    Args:
        config: What to run; its detectors are not used.
        workdir: Where results and stages are kept; that of a run serves.
        progress: Show progress bars.

    Returns:
        The path of ``relevance.npy``.

    Raises:
        ValueError: The configuration does not fit the data, or another process works in the
            directory.
        FileNotFoundError: There are no data at the given path.

    Examples:
        >>> path = jp.explain_all(jp.RunConfig(), "runs/first")
        >>> np.load(path, mmap_mode="r").shape[1:]
        (32, 32)
    """
    workdir = Path(workdir)
    work = WorkDirectory(workdir)
    output = workdir / "relevance.npy"
    with work.job("explain"):
        data, settings = prepare(config, work, progress)
        network = job_network(config, settings, data, work, progress)
        train = data.train
        with (
            replace_file(output) as file,
            Bar("explaining", len(train), unit="images", show=progress) as bar,
        ):
            shape = train.images.shape[:3]
            header = {"descr": "<f4", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)
            file.flush()
            heatmaps = np.memmap(file, "<f4", "r+", file.tell(), shape)
            for label in np.unique(train.labels):
                for members, part in class_parts(config.search, network, train, int(label), work):
                    heatmaps[members] = part.arrays["heatmaps"]
                    bar.advance(len(members))
            heatmaps.flush()
        rows = [(name, int(label)) for name, label in zip(train.ids, train.labels, strict=True)]
        write_json(workdir / "config.json", config.record())
        write_text(workdir / "relevance.csv", csv_text(("id", "label"), rows))
        work.finish(network.trained_as)
    return output


def class_parts(
    search: SearchOptions, network: Network, train: Dataset, label: int, work: WorkDirectory
) -> Iterator[tuple[Int[np.ndarray, " m"], Artefact]]:
    """Explains the training images of one class, part by part; finished parts are read.

    Args:
        search: Which attribution.
        network: It is asked.
        train: Training images.
        label: The class, towards which its images are explained.
        work: Where the parts are kept.

    Yields:
        Indices of some images, and a stage with their ``heatmaps``, summed over channels.
    """
    members = np.flatnonzero(train.labels == label)
    height, width, _ = train.image_shape
    count = max(1, min(_PART, _PIXELS // (height * width)))
    for number, start in enumerate(range(0, len(members), count)):
        part = members[start : start + count]
        some = train.take(part)
        yield (
            part,
            work.stage(
                f"explain-class-{label:04d}-{number:03d}",
                {
                    "network": network.key,
                    "attribution": described(ATTRIBUTIONS[search.attribution]()),
                    "label": label,
                    "images": some.fingerprint,
                },
                partial(explain_part, network.model, some.images, label, search.attribution),
                code=(
                    explain_part,
                    type(ATTRIBUTIONS[search.attribution]()),
                    *kinds_of(network.model),
                ),
            ),
        )
