"""All classes of a training set, searched in one go."""

from __future__ import annotations

import csv
import hashlib
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from jaxpoison._checks import check_choice
from jaxpoison._files import write_text
from jaxpoison._progress import Bar
from jaxpoison.clustering import MODES, GWClusters, gw_kmeans, spaces_in_mode
from jaxpoison.config import RunConfig
from jaxpoison.detectors.detection import two_way_detection
from jaxpoison.gw.solver import EPSILON, EntropicGW
from jaxpoison.pipeline import explain_all
from jaxpoison.results import csv_text
from jaxpoison.separation import separation
from jaxpoison.stages import Artefact, Made, WorkDirectory, hash_of

_MASS, _CENTER_SIZE = 0.99, 10
_COLUMNS = (
    "class",
    "images",
    "smaller_cluster",
    "share",
    "silhouette",
    "near_zero_eigenvalues",
    "eigengap",
    "inertia",
    "information_nats",
    "improvable_share",
    "unsolved_share",
    "rounds",
    "converged",
    "seconds",
)


def cluster_classes(
    config: RunConfig,
    workdir: Path,
    *,
    epsilon: float = EPSILON,
    mode: str = "exact",
    progress: bool = False,
) -> Path:
    """Splits every class's training images in two by their heatmaps.

    Explains all of them first where that is not done. One class is worked on
    at a time, all padded to the size of the largest, so that one compilation
    serves; a finished class is not clustered again. Classes of fewer than three
    images are left out. Leaves ``classes.csv``, one row per class, and
    ``clusters.csv``, one row per image: id, class, cluster (1 for the smaller)
    and score.

    Args:
        config: What to run; its detectors are not used.
        workdir: Where results and stages are kept; that of a run serves.
        epsilon: Entropic regularisation in POT's convention; the paper's is 0.1.
        mode: ``exact`` or ``quick``; see :class:`HeatmapClustering`.
        progress: Show progress bars.

    Returns:
        The path of ``classes.csv``.

    Raises:
        ValueError: The configuration does not fit the data, or an option is out of range.
        FileNotFoundError: There are no data at the given path.
    """
    solver = EntropicGW(epsilon)
    check_choice("mode", mode, MODES)
    relevance = np.load(explain_all(config, workdir, progress=progress), mmap_mode="r")
    with (workdir / "relevance.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    ids = [row["id"] for row in rows]
    labels = np.array([int(row["label"]) for row in rows])
    members = {int(k): np.flatnonzero(labels == k) for k in np.unique(labels)}
    members = {k: index for k, index in members.items() if len(index) > 2}
    if not members:
        raise ValueError(f"no class has three training images or more, found {len(labels)} in all")
    most = max(map(len, members.values()))
    work = WorkDirectory(workdir)

    def cluster(name: int, index: np.ndarray) -> Artefact:
        heatmaps = np.asarray(relevance[index])

        def make() -> Made:
            return _clustered(heatmaps, most, solver, mode, config.seed)

        digest = hashlib.sha256(heatmaps.tobytes()).hexdigest()
        key = hash_of(
            heatmaps=digest, epsilon=epsilon, mode=mode, seed=config.seed, columns=_COLUMNS
        )
        return work.stage(f"cluster-{name:04d}", key, make)

    of_classes: list[tuple[Any, ...]] = []
    of_images: list[tuple[Any, ...]] = []
    total = sum(map(len, members.values()))
    with Bar("clustering classes", total, unit="images", show=progress) as bar:
        for name, index in members.items():
            found = cluster(name, index)
            values = {"class": name, "seconds": round(found.seconds, 2), **found.values}
            of_classes.append(tuple(values[column] for column in _COLUMNS))
            of_images += [
                (ids[i], name, int(label), float(score))
                for i, label, score in zip(
                    index, found.arrays["labels"], found.arrays["scores"], strict=True
                )
            ]
            bar.advance(len(index), f"class {name}")
    output = workdir / "classes.csv"
    write_text(workdir / "clusters.csv", csv_text(("id", "class", "cluster", "score"), of_images))
    write_text(output, csv_text(_COLUMNS, of_classes))
    return output


def _clustered(
    heatmaps: Float[np.ndarray, "n h w"], most: int, solver: EntropicGW, mode: str, seed: int
) -> Made:
    # Repeated heatmaps fill the shape of the largest class, and are dropped again.
    filled = spaces_in_mode(heatmaps[np.arange(most) % len(heatmaps)], mode, _MASS, _CENTER_SIZE)
    spaces = filled.take(np.arange(len(heatmaps)))
    found: GWClusters = gw_kmeans(
        spaces,
        center_size=_CENTER_SIZE,
        solver=solver,
        random_state=seed,
        padded_to=most,
    )
    detection = two_way_detection(
        found.labels, found.distances, seconds=0.0, converged=found.converged
    )
    smaller = detection.cluster_sizes[1]
    apart = separation(spaces, found.labels, solver, points=_CENTER_SIZE)
    return Made(
        {
            "images": len(heatmaps),
            "smaller_cluster": smaller,
            "share": smaller / len(heatmaps),
            "silhouette": apart.silhouette,
            "near_zero_eigenvalues": apart.near_zero_eigenvalues,
            "eigengap": apart.eigengap,
            "inertia": found.inertia,
            "information_nats": found.information,
            "improvable_share": found.improvable,
            "unsolved_share": found.unsolved,
            "rounds": found.rounds,
            "converged": found.converged,
        },
        {"labels": detection.labels, "scores": detection.scores},
    )
