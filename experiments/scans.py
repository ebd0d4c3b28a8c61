"""Which class is attacked? Scans of attacked and of clean networks, alone and as a cascade.

The networks are those of Table 1 at p = 33 % and 15 %, and one trained on clean
data; they are trained where they are not there. The silhouettes from which on a
class is suspicious were fixed on the first.

    python -m experiments.scans --data gtsrb32.zip

Expected: class 5 comes first where it is attacked. Activation Clustering and the
cascade call it alone, and none in the clean network; Heatmap Clustering on all classes
calls class 21 too, at 15 % and in the clean network. A row takes about fifteen minutes
on two CPU cores after its training.
"""

import json
import resource
from typing import Any

from experiments.benchmarks.reporting import machine, record, versions
from experiments.command import command, parsed, refuse_other_data, run_of
from experiments.records import read
from experiments.rows import standard
from experiments.table import percent
from jaxpoison import run_scan, use_one_device_per_core

ROWS: dict[str, tuple[str, dict[str, Any]]] = {
    "p = 33 %": standard(33),
    "p = 15 %": standard(15),
    # The network that perturbs the images of Table 2.
    "clean": ("clean-seed20000", {"attack": "none", "seed": 20_000}),
}
DETECTORS = ("heatmap", "activation_pca", "cascade")
BEST = 3
# Of every class.
KEPT = ("class", "detector", "suspicious", "images", "suspects", "silhouette", "eigengap")


def scanned(result: dict[str, Any]) -> dict[str, Any]:
    """What is kept of a scan."""
    classes = [{k: row[k] for k in KEPT} for row in result["classes"]]
    return {**result, "classes": classes, "total_seconds": total(result["seconds"])}


def total(seconds: dict[str, float]) -> float:
    """Without the training."""
    return sum(value for name, value in seconds.items() if name != "train")


def peak_gib() -> float:
    """Most memory that this process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def markdown(rows: dict[str, Any]) -> str:
    lines = [
        "# Scans of all classes",
        "",
        "The network of each row is searched for the class that is attacked. Silhouettes of the "
        f"{BEST} most suspicious classes; *from*: the silhouette that makes a class suspicious. "
        "ACC / TPR / TNR in percent of all images, with the suspects of suspicious classes called "
        "poisoned. Seconds without training; Heatmap Clustering in the quick mode.",
        "",
        "| network | detector | most suspicious classes | from | suspicious | rates | "
        "classes explained | s |",
        "|---|---|---|---:|---|---|---:|---:|",
    ]
    for name, scans in rows.items():
        for k, (detector, found) in enumerate(scans.items()):
            first = [f"{row['class']} ({row['silhouette']:.3f})" for row in found["classes"][:BEST]]
            called = [str(row["class"]) for row in found["classes"] if row["suspicious"]]
            least = " / ".join(f"{v:g}" for v in found["suspicious_silhouettes"].values())
            truth = found["truth"]
            rates = "–"
            if truth is not None:
                rates = " / ".join(percent(truth[rate]) for rate in ("acc", "tpr", "tnr"))
            explained = sum(row["detector"].startswith("heatmap") for row in found["classes"])
            lines.append(
                f"| {name if k == 0 else ''} | {detector} | {', '.join(first)} | {least} | "
                f"{', '.join(called) or 'none'} | {rates} | {explained} | "
                f"{found['total_seconds']:.0f} |"
            )
    most = max(found["peak_gib"] for scans in rows.values() for found in scans.values())
    lines += ["", f"Most memory held by the process, trainings included: {most:.2f} GiB."]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = command(__doc__)
    options = parsed(parser, (name for name, _ in ROWS.values()))
    use_one_device_per_core()
    rows = read("scans")
    recorded = (found for scans in rows.values() for found in scans.values())
    refuse_other_data(parser, options, "scans", recorded)
    for title, (name, changes) in ROWS.items():
        if name not in options.only:
            continue
        config, workdir = run_of(options, name, changes)
        made = rows.get(title, {})
        for detector in DETECTORS:
            if detector not in made:
                print(f"{title}: {detector}", flush=True)
                run_scan(config, workdir, detector=detector, progress=True)
                found = json.loads((workdir / "scan.json").read_text())
                made[detector] = {**scanned(found), "peak_gib": peak_gib()}
                made[detector] |= {"machine": machine(), "versions": versions("jax")}
                rows[title] = made
                record("scans", {"rows": rows}, markdown(rows))


if __name__ == "__main__":
    main()
