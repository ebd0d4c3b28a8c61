"""The pages that runs and scans leave."""

import csv
import dataclasses
import html
import io
import json
import re
from importlib import import_module

import numpy as np
import pytest

from jaxpoison import (
    DETECTORS,
    Dataset,
    MeanDistanceClustering,
    NamedDetector,
    Sees,
    run,
    run_scan,
    synthetic,
)
from jaxpoison.jobs import prepare
from jaxpoison.report.console import print_run, print_scan
from jaxpoison.report.figures import examples
from jaxpoison.report.html import write_report, write_scan_report

pytestmark = pytest.mark.mixes_types


def page(tmp_path):
    return (tmp_path / "page.html").read_text()


def test_report_is_self_contained(config, tmp_path):
    outcome = run(config, tmp_path)
    write_report(tmp_path / "page.html", outcome)
    text = page(tmp_path)
    assert text.count("data:image/png;base64,") == 4
    assert text.count("data:image/webp;base64,") == 2
    assert not re.findall(r'src="(?!data:)', text)
    assert not re.findall(r"url\(\"(?!data:)", text)
    links = re.findall(r'href="([^"]*)"', text)
    assert [link.rpartition("/")[2] for link in links] == ["AML.T0020", "AML.T0018"]
    assert 'alt=""' not in text
    # The answer comes first.
    assert text.index("calls the class attacked") < text.index("<h2>All images") < text.index("ACC")
    for name in outcome.findings:
        assert name in text
        assert f"{100 * outcome.rates(name).acc:.2f}" in text
    assert "Poisoned images" in text
    for row in outcome.explained.balance:
        assert row.layer in text
    assert "<td>sticker_size</td><td>3</td>" in text
    assert "<td>pgd steps</td>" not in text


def test_a_report_without_attack_shows_suspects(config, tmp_path):
    outcome = run(dataclasses.replace(config, attack="none"), tmp_path)
    write_report(tmp_path / "page.html", outcome)
    assert "No attack was made" in page(tmp_path)
    for unused in ("pgd steps", "rate", "sticker_size", "schema"):
        assert f"<td>{unused}</td>" not in page(tmp_path)
    assert "Suspects" in page(tmp_path)


def test_a_report_says_what_the_attack_was(config, tmp_path):
    config = dataclasses.replace(
        config,
        attack="label-consistent",
        trigger="amplitude",
        amplitude=64,
        attribution="gradient",
        detectors=(),
    )
    write_report(tmp_path / "page.html", run(config, tmp_path))
    text = page(tmp_path)
    assert "a 3×3 pattern of amplitude 64 in the lower right corner and kept their label" in text
    assert "on the mean over classes" in text
    assert "by gradient" in text


def test_a_scan_makes_a_page(config, tmp_path, monkeypatch):
    monkeypatch.setattr(import_module("jaxpoison.evidence.separation"), "_SAMPLE", 16)
    outcome = run_scan(config, tmp_path, detector="activation_pca")
    write_scan_report(tmp_path / "page.html", outcome)
    text = page(tmp_path)
    assert set(re.findall(r'href="(http[^"]*)/AML', text)) == {"https://atlas.mitre.org/techniques"}
    first = outcome.classes[0]
    name = outcome.data.train.class_names[first.label]
    assert f"Class {first.label} ({name}), suspects" in text
    assert "In truth class 5 was attacked" in text
    assert text.count("<img") >= 3


def test_every_class_that_is_called_has_a_page(config, tmp_path):
    outcome = run_scan(config, tmp_path, detector="transplant")
    first = dataclasses.replace(outcome.classes[0], finding=called(outcome.classes[0]))
    attacked = dataclasses.replace(outcome, classes=(first, *outcome.classes[1:]))
    write_scan_report(tmp_path / "scan.html", attacked)
    name = f"class-{first.label}.html"
    assert (
        f'<a href="{name}">All images of class {first.label}'
        in (tmp_path / "scan.html").read_text()
    )
    text = (tmp_path / name).read_text()
    assert f"Class {first.label} (" in text
    data = json.loads(re.search(r'class="data">(.*?)</script>', text)[1])
    train = outcome.data.train
    assert data["names"] == [train.ids[k] for k in first.members]
    assert sum(data["detectors"]["transplant"]["called"]) == 3
    # Pages of classes that an earlier scan called go.
    write_scan_report(tmp_path / "scan.html", dataclasses.replace(outcome, classes=outcome.classes))
    assert not (tmp_path / name).exists()
    assert "All images of class" not in (tmp_path / "scan.html").read_text()


def test_names_of_classes_are_escaped(config, tmp_path, monkeypatch):
    def loaded(*_, seed, **__):
        splits = synthetic(train=300, validation=60, test=60, seed=seed)
        names = ("<script>alert()</script>",) * 10
        parts = (splits.train, splits.validation, splits.test)
        return type(splits)(*(Dataset(p.images, p.labels, names, p.ids) for p in parts))

    monkeypatch.setattr(prepare, "load_data", loaded)
    write_report(tmp_path / "page.html", run(config, tmp_path))
    assert "<script>alert" not in page(tmp_path)


# As folders and files may be called, and as terminals, pages and pictures stumble over them.
ODD = ("[/b]", "$a_$", "\udce9t\udce9", "a\nb", "标志", "<i>&amp;", "\x1b[31m", ":smile:", "[red]x")


def test_any_name_is_shown_everywhere(config, tmp_path, monkeypatch):
    def renamed(part, where):
        ids = tuple(f"{where}/{ODD[k % len(ODD)]}{k}.png" for k in range(len(part)))
        names = (*ODD, "last")[: part.num_classes]
        return Dataset(part.images, part.labels, names, ids)

    splits = synthetic(train=300, validation=60, test=60)
    parts = {k: renamed(getattr(splits, k), k) for k in ("train", "validation", "test")}
    monkeypatch.setattr(prepare, "load_data", lambda *_, **__: dataclasses.replace(splits, **parts))
    monkeypatch.setattr(import_module("jaxpoison.evidence.separation"), "_SAMPLE", 16)
    work = tmp_path / "[/b] <i> 标志"
    # A terminal that takes ASCII alone takes least.
    out = io.TextIOWrapper(io.BytesIO(), encoding="ascii", errors="backslashreplace")
    monkeypatch.setattr("sys.stdout", out)
    config = dataclasses.replace(config, source=5, target=2)
    ran = run(config, work, progress=True)
    write_report(work / "report.html", ran)
    print_run(ran, work, 1.0)
    for detector in ("activation_pca", "transplant"):
        scanned = run_scan(config, work, detector=detector, progress=True)
        # All classes are called, so that all are shown.
        everywhere = [dataclasses.replace(each, finding=called(each)) for each in scanned.classes]
        shown_all = dataclasses.replace(scanned, classes=tuple(everywhere))
        write_scan_report(work / "scan.html", shown_all)
        print_scan(shown_all, work, 1.0)
    out.flush()
    printed = out.buffer.getvalue().decode("ascii")
    written = html.unescape((work / "scan.html").read_text("utf-8"))
    for text in (printed, written):
        for name in ("[/b]", "$a_$", "\\xe9t\\xe9", "a\\nb", "<i>&amp;", ":smile:", "[red]x"):
            assert name in text
        assert "\x1b[31m" not in text
    # Files hold the names as they are.
    table = (work / "clusters.csv").read_bytes().decode("utf-8", "surrogateescape")
    rows = list(csv.reader(io.StringIO(table, newline="")))
    assert {row[0] for row in rows[1:]} == set(ran.data.train.ids)


def called(scanned):
    """What a scan found in a class, with its three first images called."""
    found, evidence = scanned.finding, scanned.finding.evidence
    labels = (np.arange(len(found.detection.labels)) < 3).astype(int)
    if evidence is not None:
        # Of the images asked, three turn all hosts.
        shares = np.where(np.arange(len(evidence.asked)) < 3, 1.0, evidence.shares)
        flips = evidence.flips.copy()
        flips[:, :3] = True
        distinct = np.ones(len(shares), bool)
        leaves = np.isin(np.arange(len(labels)), evidence.asked[:3])
        evidence = dataclasses.replace(
            evidence, shares=shares, flips=flips, distinct=distinct, leaves=leaves
        )
    return dataclasses.replace(
        found,
        detection=dataclasses.replace(found.detection, labels=labels),
        separation=dataclasses.replace(found.separation, silhouette=0.9),
        evidence=evidence,
    )


def test_constant_heatmaps_are_drawn(heatmaps):
    black = np.zeros((2, *heatmaps.shape[1:]), np.float32)
    images = np.zeros((3, *heatmaps.shape[1:], 3), np.uint8)
    drawn = examples(images, np.stack([black[0], heatmaps[0], black[1]])[..., None], ["a"] * 3)
    assert [len(axis.collections) for axis in drawn.axes[6:]] == [0, 1, 0]
    examples(images[:2], black[..., None], ["a"] * 2)


class OwnDetector(MeanDistanceClustering):
    """One more detector, as a user would add it."""


def test_one_more_detector_is_a_file_and_an_entry(config, tmp_path, monkeypatch, capsys):
    """It goes through run, scan, report, options and tables without another word."""
    entry = NamedDetector(
        "my own",
        "one number per heatmap",
        Sees.RELEVANCE,
        lambda seed: OwnDetector(random_state=seed),
        counterpart="hc",
    )
    monkeypatch.setitem(DETECTORS, "own", entry)
    # Its threshold is the verdict's to know.
    verdict = import_module("jaxpoison.evidence.verdict")
    monkeypatch.setitem(verdict.SUSPICIOUS_FROM, "own", 0.5)
    monkeypatch.setattr(import_module("jaxpoison.evidence.separation"), "_SAMPLE", 16)

    run_config = type(config)(rate=0.25, epochs=1)
    assert "own" in run_config.detectors
    outcome = run(dataclasses.replace(config, detectors=("own",)), tmp_path)
    assert outcome.findings["own"].verdict.suspicious is not None
    write_report(tmp_path / "page.html", outcome)
    assert "<td>own</td>" in page(tmp_path)
    print_run(outcome, tmp_path, 1.0)
    scanned = run_scan(config, tmp_path, detector="own")
    assert {found.finding.detector for found in scanned.classes} == {"own"}
    write_scan_report(tmp_path / "page.html", scanned)
    assert "0.5 (own)" in page(tmp_path)
    print_scan(scanned, tmp_path, 1.0)
    assert "own" in capsys.readouterr().out

    assert "own" in options_help()
    table_module = import_module("experiments.table")
    rows = import_module("experiments.rows")
    table = table_module.Table("t", "T", [rows.Row(*rows.standard(33), "p = 33 %")])
    assert "own" in table.detectors
    recorded = {"own": {"acc": 0.5, "tpr": 0.5, "tnr": 0.5, "converged": True}}
    found = {
        "schema": 2,
        "detectors": recorded,
        "model": {"test_accuracy": 0.9},
        "attack": {"asr": 1.0},
    }
    assert "| my own | 50.00 / 50.00 / 50.00" in table.markdown({table.rows[0].name: found})


def options_help():
    """The words of ``jaxpoison run --help``."""
    parser = import_module("jaxpoison.cli.commands")._parser()
    (commands,) = (action for action in parser._actions if action.choices)
    return re.findall(r"\w+", commands.choices["run"].format_help())
