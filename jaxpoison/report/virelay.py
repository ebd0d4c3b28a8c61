"""A run as files that ViRelAy shows: data, attributions, embeddings and clusters.

ViRelAy (Anders et al. 2021, arXiv 2106.13200) is a viewer of its own, under its own licence:
``pip install virelay``, then ``virelay DIR/virelay/project.yaml``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from sklearn.decomposition import PCA

from jaxpoison._files import replace_file, write_text
from jaxpoison._names import shown
from jaxpoison.jobs.outcome import RunOutcome
from jaxpoison.models.inference import predict
from jaxpoison.report.gallery import places

_COMPONENTS = 10


def export_virelay(folder: Path, outcome: RunOutcome) -> Path:
    """Writes a project of the class that was searched.

    Args:
        folder: Made if it is not there; what it holds of an earlier export is replaced.
        outcome: Of the run.

    Returns:
        The path of ``project.yaml``.

    Raises:
        ImportError: h5py or PyYAML is not installed; the message says how to.

    Examples:
        >>> outcome = jaxpoison.run(jaxpoison.RunConfig(), "runs/first")
        >>> jaxpoison.report.virelay.export_virelay(Path("runs/first/virelay"), outcome)
    """
    try:
        import h5py
        import yaml
    except ImportError as error:
        raise ImportError(
            "an export for ViRelAy needs h5py and PyYAML: pip install 'jaxpoison[export]'"
        ) from error
    folder.mkdir(parents=True, exist_ok=True)
    train, explained = outcome.data.train, outcome.explained
    images = train.images[explained.members]
    labels = np.full(len(images), explained.label, np.uint16)
    index = np.arange(len(images), dtype=np.uint32)
    heatmaps = np.moveaxis(explained.relevance, -1, 1).astype(np.float32)
    id_of = "{:08d}".format
    files: dict[str, dict[str, np.ndarray]] = {
        "dataset.h5": {"data": np.moveaxis(images, -1, 1), "label": labels},
        "attribution.h5": {
            "attribution": heatmaps,
            "prediction": predict(outcome.network.model, images).astype(np.float32),
            "label": labels,
            "index": index,
        },
        "analysis.h5": {
            f"{id_of(explained.label)}/{name}": values
            for name, values in _analysis(outcome, index).items()
        },
    }
    for name, arrays in files.items():
        with replace_file(folder / name) as file, h5py.File(file, "w") as written:
            for key, values in arrays.items():
                written.create_dataset(key, data=values)
    names = [
        {"index": k, "word_net_id": id_of(k), "name": shown(name)}
        for k, name in enumerate(train.class_names)
    ]
    write_text(folder / "label-map.json", json.dumps(names, indent=2) + "\n")
    project = _project(outcome, heatmaps.shape[-2:])
    write_text(folder / "project.yaml", yaml.safe_dump(project, sort_keys=False))
    return folder / "project.yaml"


def _analysis(outcome: RunOutcome, index: np.ndarray) -> dict[str, np.ndarray]:
    """Embeddings, two columns or more, and clusters of all images of the class."""
    explained = outcome.explained
    found = {
        "index": index,
        "embedding/gw_mds": places(explained.relevance.sum(-1)).astype(np.float32),
        "embedding/activation_pca": _components(explained.activations),
    }
    for name, each in outcome.findings.items():
        found[f"cluster/{name}"] = each.detection.labels.astype(np.int32)
    if outcome.poisoned is not None:
        found["cluster/truth"] = outcome.poisoned.astype(np.int32)
    return found


def _components(activations: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n k"]:
    flat = activations.reshape(len(activations), -1)
    fitted = PCA(min(_COMPONENTS, *flat.shape)).fit_transform(flat).astype(np.float32)
    # At least the two that are drawn.
    return np.pad(fitted, ((0, 0), (0, max(0, 2 - fitted.shape[1]))))


def _project(outcome: RunOutcome, size: tuple[int, ...]) -> dict[str, Any]:
    config, label = outcome.config, outcome.explained.label
    data = "the data" if config is None else shown(Path(config.data).name)
    model = type(outcome.network.model).__name__ if config is None else config.model
    return {
        "project": {
            "name": f"jaxpoison, class {label} of {data}",
            "model": model,
            "label_map": "label-map.json",
            "dataset": {
                "name": data,
                "type": "hdf5",
                "path": "dataset.h5",
                "input_width": int(size[1]),
                "input_height": int(size[0]),
                "up_sampling_method": "none",
                "down_sampling_method": "none",
            },
            "attributions": {
                "attribution_method": outcome.search.attribution,
                "attribution_strategy": "true_label",
                "sources": ["attribution.h5"],
            },
            # ViRelAy looks methods up under names without hyphens.
            "analyses": [{"analysis_method": "jaxpoison", "sources": ["analysis.h5"]}],
        }
    }
