"""The paper's tables as Markdown: ours beside the printed figures."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from experiments.records import of_earlier_code
from experiments.rows import Row
from jaxpoison import DETECTORS

RATES = ("acc", "tpr", "tnr")
# Of a score; rows recorded by earlier code have none.
OF_SCORES = ("auroc", "average_precision", "tpr_at_1_percent_fpr")
# Rows with a weaker attack are marked: what the network has not learned, it cannot show.
LEARNED_FROM = 0.8
EARLIER = (
    "◦ Recorded by earlier code: the network was trained with other random draws, and is not made "
    "again bit by bit; detectors are the same."
)


def shown_detectors() -> tuple[str, ...]:
    """Those that stand in tables of many detectors."""
    return tuple(name for name, d in DETECTORS.items() if not d.baseline)


def counterpart(name: str, printed: Mapping[str, Any]) -> Any:
    """What the paper printed of the detector that one of ours stands beside."""
    return printed.get(DETECTORS[name].counterpart or "")


@dataclass(frozen=True)
class Table:
    """A table of the paper.

    Attributes:
        name: Folder of its results.
        title: Heading.
        rows: Its rows.
        detectors: The detectors it shows.
    """

    name: str
    title: str
    rows: Sequence[Row]
    detectors: Sequence[str] = field(default_factory=shown_detectors)

    def markdown(self, recorded: Mapping[str, Any]) -> str:
        """The table, ours beside the paper's."""
        shown = [row for row in self.rows if row.name in recorded]
        lines = [
            f"# {self.title}",
            "",
            "Percent; ACC / TPR / TNR. *Success*: of the attack, ASR (standard) or MASR "
            "(label-consistent). HC stands at the paper's setting (ε = 0.1), at the package's "
            "default (ε = 0.02) and on quantised heatmaps (ε = 0.005); *mean distance* is "
            "two-means on one number per heatmap; *density* and *transplant* are no two-means: "
            "they have no counterpart in the paper, and stand beside its HC. AUROC, average "
            "precision (AP) and TPR at 1 % FPR are of the score, whatever is called. §: attack "
            f"success below {percent(LEARNED_FROM)} %.",
            "",
            "| | test accuracy | success | paper | detector | ours | paper | AUROC | AP | "
            "TPR at 1 % FPR |",
            "|---|---:|---:|---:|---|---|---|---:|---:|---:|",
        ]
        for row in shown:
            found = recorded[row.name]
            success = found["attack"]["masr" if row.options["attack"] != "standard" else "asr"]
            weak = " §" if success is not None and success < LEARNED_FROM else ""
            for k, name in enumerate(d for d in self.detectors if d in found["detectors"]):
                ours = [percent(found["detectors"][name][rate]) for rate in RATES]
                theirs = counterpart(name, row.printed)
                cells = ["", "", "", ""]
                if k == 0:
                    printed = row.printed.get("masr", row.printed.get("asr"))
                    cells = [
                        row.title + (" ◦" if of_earlier_code(found) else ""),
                        percent(found["model"]["test_accuracy"]),
                        percent(success) + weak,
                        "–" if printed is None else f"{printed:g}",
                    ]
                rival = DETECTORS[name].counterpart
                doubted = " †" if row.doubt and rival in row.doubted else ""
                ended = "" if found["detectors"][name]["converged"] else " ‡"
                of_scores = [percent(found["detectors"][name].get(rate)) for rate in OF_SCORES]
                lines.append(
                    f"| {' | '.join([*cells, DETECTORS[name].title, ' / '.join(ours)])}{ended} | "
                    f"{'–' if theirs is None else beside(theirs)}{doubted} | "
                    f"{' | '.join(of_scores)} |"
                )
        lines += ["", *self._means(shown, recorded)]
        lines += [*(f"† {row.title}: {row.doubt}." for row in shown if row.doubt)]
        if any("‡" in line for line in lines):
            lines += ["‡ Labels still moved in the last round."]
        if any(of_earlier_code(recorded[row.name]) for row in shown):
            lines += [EARLIER]
        for name in self.detectors:
            without = [r.title for r in shown if name not in recorded[r.name]["detectors"]]
            if without:
                lines += [f"Recorded without {DETECTORS[name].title}: {', '.join(without)}."]
        missing = [row.title for row in self.rows if row.name not in recorded]
        if missing:
            lines += [f"Not run: {', '.join(missing)}."]
        return "\n".join(lines).rstrip() + "\n"

    def _means(self, shown: Sequence[Row], recorded: Mapping[str, Any]) -> list[str]:
        """One setting is to be chosen for a whole table, not row by row."""
        means = []
        for name in self.detectors:
            having = [row for row in shown if name in recorded[row.name]["detectors"]]
            is_heatmap = DETECTORS[name].counterpart == "hc" and name != "mean_distance"
            if is_heatmap and having:
                accs = [recorded[row.name]["detectors"][name]["acc"] for row in having]
                theirs = [row.printed["hc"]["acc"] for row in having if "hc" in row.printed]
                paper = f" (paper {sum(theirs) / len(theirs):.2f})" if theirs else ""
                mean = percent(sum(accs) / len(accs))
                means.append(f"{DETECTORS[name].title}: {mean}{paper}, rows: {len(having)}")
        return [f"Mean ACC. {'; '.join(means)}.", ""] if means else []


def beside(figures: dict[str, Any]) -> str:
    return " / ".join(f"{figures[rate]:.2f}" for rate in RATES)


def percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.2f}"
