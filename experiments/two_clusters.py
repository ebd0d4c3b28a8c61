"""Where two clusters fail on a run, why, and what still tells the poisoned heatmaps apart.

On a row of the tables 1, 2, 4 or 5, whose run is made where it is not there (some
fifteen minutes on two CPU cores; the analysis takes a few):

    python -m experiments.two_clusters --data gtsrb32.zip
    python -m experiments.two_clusters --data gtsrb32.zip --row standard-s3-p5-seed0
    python -m experiments.two_clusters --data gtsrb32.zip --row label-consistent-a64-p33-seed0

Expected of the standard attack at 2 %: at epsilon 0.1 k-means drifts, round by round,
from a few of the poisoned images to cutting the clean ones in half, because that has
the lower inertia. At 0.02 the detector, the best of ten starts, ends below the inertia
of the true labels, with one structured centre that draws clean heatmaps; the
barycentre of the poisoned ones would draw nearly every heatmap. The share of relevance in
the nine largest pixels still orders poisoned before clean (area under the curve
0.94), and poisoned heatmaps have poisoned neighbours. The detectors look at none
of this; the truth is used throughout. In two epochs the attack itself succeeds
at a third of the images only. At 5 % it succeeds, and nine pixels order all but
perfectly: only the split in two fails, though the true labels have a slightly
lower inertia at 0.02 than what the detector finds.

A pattern of reduced amplitude has one place, so that its share of the relevance can
be told: at amplitude 64 two fifths of the poisoned images have less there than a
clean one has. Where the network does not look at the pattern, a heatmap cannot show it.
Activations differ all the same, which may be the perturbation's doing.

At epsilon 0.005, on quantised heatmaps, both centres have a structure, and k-means
finds most of what it misses at 0.02 at 5 % and at amplitude 128.
"""

from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure
from sklearn.metrics import roc_auc_score

from experiments import table1, table2, table4, table5
from experiments.benchmarks.reporting import RESULTS, machine, record, versions
from experiments.command import command, outcome_of
from experiments.figures import evenly, pictures
from experiments.table import percent
from jaxpoison import (
    DETECTORS,
    AmplitudePattern,
    EntropicGW,
    HeatmapClustering,
    MeanDistanceClustering,
    MeasureSpaces,
    RunConfig,
    RunOutcome,
    SmallSpaces,
    barycenters,
    debiased_distances,
    detection_rates,
    distances_to_centers,
    gw_kmeans,
    measure_spaces,
    quantised,
    use_one_device_per_core,
)

Spaces = MeasureSpaces | SmallSpaces
ROWS = {row.name: row for t in (table1, table2, table4, table5) for row in t.TABLE.rows}
NAMES = ("heatmap_paper", "heatmap", "heatmap_sharp")
ROUNDS, SIZE, NEIGHBORS, COMPARED = 15, 10, 5, 250
SHOWN = 12


def smaller(labels: np.ndarray) -> np.ndarray:
    return labels == np.bincount(labels, minlength=2).argmin()


def drift(spaces: Spaces, truth: np.ndarray, epsilon: float) -> list[dict[str, Any]]:
    """Rates after every round of k-means from one start, until no label changes or 15 rounds."""
    solver = EntropicGW(epsilon)
    found = gw_kmeans(spaces, solver=solver, max_rounds=1)
    course = []
    for done in range(1, ROUNDS + 1):
        rates = detection_rates(smaller(found.labels), truth)
        course.append({"round": done, "inertia": found.inertia, **vars(rates)})
        if found.converged:
            break
        found = gw_kmeans(spaces, solver=solver, max_rounds=1, start=found.centers)
    return course


def oracle(spaces: Spaces, truth: np.ndarray, epsilon: float) -> dict[str, Any]:
    """Barycentres of the true groups, and the split that is nearest to them."""
    solver = EntropicGW(epsilon)
    first = np.array([np.flatnonzero(~truth)[0], np.flatnonzero(truth)[0]])
    few = spaces.take(first)
    start = jnp.asarray(
        few.distances if isinstance(few, SmallSpaces) else quantised(few, SIZE).distances
    )
    labels = jnp.asarray(truth.astype(np.int32))
    centers, _ = barycenters(spaces, labels, jnp.ones(len(truth)), start, solver)
    distances = np.asarray(distances_to_centers(spaces, centers, solver).values)
    nearest = distances.argmin(1)
    return {
        # Of the true groups, and after the one assignment that k-means would make next.
        "inertia_of_truth": float(distances[np.arange(len(truth)), truth.astype(int)].sum()),
        "inertia": float(distances.min(1).sum()),
        # Standard deviation of the entries, of clean and poisoned; about 0: constant.
        "center_spreads": np.asarray(centers.distances).std((1, 2)).tolist(),
        **vars(detection_rates(nearest == 1, truth)),
    }


def constant_from(heatmaps: MeasureSpaces) -> float:
    """The epsilon from which on a constant barycentre of the heatmaps attracts.

    Four times the variance, over its mass, of the mean distance that a point of a heatmap
    sees, meaned over heatmaps: to first order, where the iteration leaves a constant start.
    """
    small = quantised(heatmaps, SIZE)
    distances, weights = np.asarray(small.distances), np.asarray(small.weights)
    seen = np.einsum("nij,nj->ni", distances, weights)
    mean = (seen * weights).sum(1, keepdims=True)
    return float(4 * ((seen - mean) ** 2 * weights).sum(1).mean())


def of_detector(outcome: RunOutcome, name: str) -> dict[str, Any]:
    """What the detector of a run found, which takes the best of several starts."""
    notes = outcome.findings[name].detection.notes
    return {"inertia": notes["inertia"], **vars(outcome.rates(name))}


def numbers(spaces: MeasureSpaces, heatmaps: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """How well single numbers of a heatmap order poisoned before clean: area under the curve."""
    weights = np.sort(np.asarray(spaces.weights), 1)[:, ::-1]
    mean = MeanDistanceClustering().fit(heatmaps).mean_distances_
    return {
        "largest weight": float(roc_auc_score(truth, weights[:, 0])),
        "nine largest weights": float(roc_auc_score(truth, weights[:, :9].sum(1))),
        "mean distance": float(roc_auc_score(truth, mean)),
    }


def at_pattern(
    spaces: MeasureSpaces, truth: np.ndarray, pattern: AmplitudePattern
) -> dict[str, float]:
    """How much of a heatmap's weight lies on the pixels of a pattern that has one place."""
    grey = np.full((1, spaces.height, spaces.width, 1), 128, np.uint8)
    place = np.flatnonzero(pattern(grey) != grey)
    shares = np.asarray(spaces.weights[:, place].sum(1))
    usual = np.median(shares[~truth])
    return {
        "median_of_poisoned": float(np.median(shares[truth])),
        "median_of_clean": float(usual),
        "poisoned_below_clean": float((shares[truth] < usual).mean()),
        "area": float(roc_auc_score(truth, shares)),
    }


def neighborhoods(spaces: MeasureSpaces, truth: np.ndarray, epsilon: float) -> dict[str, float]:
    """Who the nearest neighbours of poisoned heatmaps are, among some of either kind."""
    kinds = [np.flatnonzero(truth), np.flatnonzero(~truth)]
    chosen = np.concatenate([evenly(kind, COMPARED) for kind in kinds])
    distances = debiased_distances(quantised(spaces.take(chosen), SIZE), EntropicGW(epsilon))
    np.fill_diagonal(distances, np.inf)
    nearest = truth[chosen][np.argsort(distances, 1)[:, :NEIGHBORS]]
    return {
        "compared": len(chosen),
        "poisoned_share": float(truth[chosen].mean()),
        "poisoned_among_neighbors_of_poisoned": float(nearest[truth[chosen]].mean()),
        "poisoned_among_neighbors_of_clean": float(nearest[~truth[chosen]].mean()),
    }


def analysed(heatmaps: np.ndarray, truth: np.ndarray) -> dict[str, Any]:
    """Everything about the heatmaps of one class."""
    spaces = measure_spaces(heatmaps)
    parts = []
    for name in NAMES:
        detector = DETECTORS[name].make(0)
        if not isinstance(detector, HeatmapClustering):
            raise TypeError(f"{name} does not cluster heatmaps")
        clustered = quantised(spaces, SIZE) if detector.mode == "quick" else spaces
        parts.append(
            {
                "detector": name,
                "epsilon": detector.epsilon,
                "mode": detector.mode,
                "drift": drift(clustered, truth, detector.epsilon),
                "oracle": oracle(clustered, truth, detector.epsilon),
                "neighborhoods": neighborhoods(spaces, truth, detector.epsilon),
            }
        )
    groups = {"clean": ~truth, "poisoned": truth}
    return {
        "images": len(truth),
        "poisoned": int(truth.sum()),
        "numbers": numbers(spaces, heatmaps, truth),
        "constant_from": {
            name: constant_from(spaces.take(np.flatnonzero(group)))
            for name, group in groups.items()
        },
        "settings": parts,
    }


def picture(heatmaps: np.ndarray, groups: dict[str, np.ndarray]) -> Figure:
    """Heatmaps of some groups of images, evenly over each; every map has its own scale."""
    members = {name: np.flatnonzero(group) for name, group in groups.items()}
    chosen = {name: evenly(index, SHOWN) for name, index in members.items()}
    titles = [name for name, index in chosen.items() for _ in index]
    return pictures(heatmaps[np.concatenate(list(chosen.values()))], titles, SHOWN)


def on_pattern(found: dict[str, float]) -> list[str]:
    return [
        f"The pattern's nine pixels hold {percent(found['median_of_poisoned'])} % of the weight of "
        f"a poisoned heatmap and {percent(found['median_of_clean'])} % of a clean one (medians; "
        f"area under the curve {found['area']:.4f}). In "
        f"{percent(found['poisoned_below_clean'])} % of the poisoned heatmaps they hold less than "
        "that clean median.",
        "",
    ]


def markdown(title: str, found: dict[str, Any]) -> str:
    lines = [
        f"# Two clusters: {title}",
        "",
        f"{found['poisoned']} poisoned among {found['images']} images of one class; the attack "
        f"succeeds at {percent(found['success'])} % of the test images.",
        "",
        "Numbers of a heatmap that order poisoned before clean, area under the curve (1 or 0: "
        "without an error; 0.5: by chance): "
        + ", ".join(f"{name} {area:.4f}" for name, area in found["numbers"].items())
        + ".",
        "",
        *(on_pattern(found["pattern"]) if "pattern" in found else ()),
        "A constant barycentre attracts, to first order, from ε = "
        + " and ".join(f"{least:.4f} ({name})" for name, least in found["constant_from"].items())
        + " on.",
        "",
        "![Heatmaps of poisoned and clean images, and of those that HC calls poisoned]"
        "(heatmaps.png)",
    ]
    for part in found["settings"]:
        best, near, ends = part["oracle"], part["neighborhoods"], part["found"]
        lines += [
            "",
            f"## ε = {part['epsilon']}, {part['mode']}",
            "",
            "| one start, round | inertia | ACC % | TPR % | TNR % |",
            "|---:|---:|---:|---:|---:|",
            *(
                f"| {row['round']} | {row['inertia']:.3f} | "
                + " | ".join(percent(row[rate]) for rate in ("acc", "tpr", "tnr"))
                + " |"
                for row in part["drift"]
            ),
            "",
            f"The detector ends at {ends['inertia']:.3f} and calls {percent(ends['acc'])} % "
            f"rightly (TPR {percent(ends['tpr'])}, TNR {percent(ends['tnr'])}). "
            f"From the barycentres of the true groups: inertia {best['inertia_of_truth']:.3f} with "
            f"the true labels, {best['inertia']:.3f} with the nearest centre, which calls "
            f"{percent(best['acc'])} % rightly (TPR {percent(best['tpr'])}, TNR "
            f"{percent(best['tnr'])}). Their entries spread by "
            f"{best['center_spreads'][0]:.3f} (clean) and {best['center_spreads'][1]:.3f} "
            "(poisoned); 0 is constant.",
            "",
            f"Among the {NEIGHBORS} nearest neighbours of a poisoned heatmap "
            f"{percent(near['poisoned_among_neighbors_of_poisoned'])} % are poisoned, of a clean "
            f"one {percent(near['poisoned_among_neighbors_of_clean'])} % "
            f"({percent(near['poisoned_share'])} % of those compared).",
        ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = command(__doc__)
    add = parser.add_argument
    add("--row", default="standard-s3-p2-seed0", help="the run [%(default)s]", metavar="ROW")
    add("--again", action="store_true", help="replace what is recorded")
    options = parser.parse_args()
    if options.row not in ROWS:
        parser.error(f"no row is called {options.row}; there are {', '.join(ROWS)}")
    row = ROWS[options.row]
    name = f"two_clusters/{row.name}"
    if (RESULTS / name / "heatmaps.png").is_file() and not options.again:
        print(f"{RESULTS / name} is there; --again makes it anew")
        return
    use_one_device_per_core()
    outcome = outcome_of(options, row.name, row.options)
    if outcome.poisoned is None:
        raise RuntimeError("the run has no poisoned images")
    heatmaps, config = outcome.explained.relevance.sum(-1), RunConfig(**row.options)
    found = analysed(heatmaps, outcome.poisoned)
    evaluation = outcome.evaluation
    found["success"] = evaluation.asr if config.attack == "standard" else evaluation.masr
    if config.trigger == "amplitude":
        pattern = AmplitudePattern(config.amplitude, config.trigger_distance)
        found["pattern"] = at_pattern(measure_spaces(heatmaps), outcome.poisoned, pattern)
    for part in found["settings"]:
        part["found"] = of_detector(outcome, part["detector"])
    result = {"config": {**outcome.config.record(), "data": Path(options.data).name}, **found}
    result |= {"machine": machine(), "versions": versions("jax")}
    record(name, result, markdown(f"{config.attack}, {row.title}", found))
    groups = {
        "poisoned": outcome.poisoned,
        "clean": ~outcome.poisoned,
        "called at 0.02": outcome.findings["heatmap"].detection.suspects,
        "called at 0.005": outcome.findings["heatmap_sharp"].detection.suspects,
    }
    picture(heatmaps, groups).savefig(RESULTS / name / "heatmaps.png", dpi=80)


if __name__ == "__main__":
    main()
