"""The tables of the paper: rows, records, figures beside the paper's."""

import importlib
import json

import numpy as np
import pytest

from experiments import command, figures, records, rows, summary
from jaxpoison import RunConfig

NAMES = ("table1", "table2", "table3", "table4", "table5", "thesis_sizes", "thesis_rates")
TABLES = {name: importlib.import_module(f"experiments.{name}").TABLE for name in NAMES}


def found(acc, config):
    rates = {"acc": acc, "tpr": 0.9, "tnr": 0.8, "converged": True}
    detectors = ("raw_pca", "raw_ica", "activation_pca", "activation_ica")
    heatmaps = ("mean_distance", "heatmap_paper", "heatmap", "heatmap_sharp", "heatmap_density")
    return {
        "schema": 2,
        "config": config,
        "model": {"test_accuracy": 0.97},
        "attack": {"asr": 0.9512, "masr": 0.8734},
        "suspected_class": {"images": 3, "conservation": []},
        "detectors": {name: rates for name in (*detectors, *heatmaps, "transplant")},
    }


@pytest.mark.parametrize("name", NAMES)
def test_rows_are_possible_runs(name):
    table = TABLES[name]
    assert table.name == name
    assert len({row.name for row in table.rows}) == len(table.rows)
    for row in table.rows:
        config = RunConfig(**row.options, **rows.SCHEDULE)
        assert set(table.detectors) <= set(config.detectors)


def test_every_printed_row_is_there():
    of_table = {
        "table1": "table1_standard_s3",
        "table2": "table2_label_consistent_s3",
        "table4": "table4_reduced_amplitude_p33",
        "thesis_sizes": "thesis_sticker_sizes",
    }
    for name, printed in of_table.items():
        assert [row.printed for row in TABLES[name].rows] == rows.PRINTED[printed]
    seeds = [row.options["seed"] for row in TABLES["table5"].rows]
    assert sorted(seeds) == sorted([*range(10)] * 2)


def test_figures_stand_beside_the_papers():
    table = TABLES["table2"]
    row = table.rows[1]
    text = table.markdown({row.name: found(0.98765, {})})
    assert "| p = 15 % | 97.00 | 87.34 | 83.15 | AC, PCA | 98.77 / 90.00 / 80.00 |" in text
    assert "| HC, ε = 0.1 | 98.77 / 90.00 / 80.00 | 98.91 / 96.69 / 100.00 † |" in text
    assert "† p = 15 %: the printed rates fit the 544 poisoned images" in text
    assert "Not run: p = 33 %, p = 10 %, p = 5 %, p = 2 %." in text
    assert "| 95.12 | 100 | AC, PCA |" in TABLES["table1"].markdown(
        {TABLES["table1"].rows[0].name: found(0.5, {})}
    )
    assert "| raw, FastICA | 50.00 / 90.00 / 80.00 | 63.13 / 31.99 / 78.48 |" in TABLES[
        "table3"
    ].markdown({TABLES["table3"].rows[0].name: found(0.5, {})})


def test_what_a_reader_must_know_of_a_row_is_marked():
    table = TABLES["table2"]
    recorded = {row.name: found(0.5, {}) for row in table.rows[:2]}
    first, second = recorded.values()
    first["detectors"]["heatmap"] = {**first["detectors"]["heatmap"], "converged": False}
    del second["detectors"]["heatmap_sharp"]
    text = table.markdown(recorded)
    assert "| HC, ε = 0.02 | 50.00 / 90.00 / 80.00 ‡ | 99.58" in text
    assert "HC, ε = 0.02: 50.00 (paper 99.25), rows: 2; HC, ε = 0.005, quick: 50.00 (" in text
    assert "quick: 50.00 (paper 99.58), rows: 1; density: 50.00 (" in text
    assert text.count("‡") == 2
    assert "Recorded without HC, ε = 0.005, quick: p = 15 %." in text
    assert text.count("| HC, ε = 0.005, quick |") == 1
    assert "◦" not in text
    # Rows of code that is no more say so.
    del first["schema"]
    text = table.markdown(recorded)
    assert "| p = 33 % ◦ |" in text
    assert "| p = 15 % |" in text
    assert "◦ Recorded by earlier code:" in text


def test_runs_are_summed_up():
    table = TABLES["table5"]
    names = [row.name for row in table.rows if row.title.startswith("p = 33 %")][:3]
    accs = dict(zip(names, (0.96, 0.97, 0.98), strict=True))
    text = table.markdown({name: found(acc, {}) for name, acc in accs.items()})
    assert "| p = 33 % | 3 | AC, PCA | 97.00 ± 1.00 / 90.00 ± 0.00 / 80.00 ± 0.00 | " in text
    assert "90.36 ± 6.81 / 94.41 ± 2.98 / 87.16 ± 9.96 † |" in text
    assert "p = 15 %" not in text
    recorded = {name: found(acc, {}) for name, acc in accs.items()}
    del recorded[names[2]]["detectors"]["heatmap_sharp"]
    text = table.markdown(recorded)
    assert "| HC, ε = 0.005, quick (runs with it: 2) | 96.50 ± 0.71 / 90.00" in text
    assert "| HC, ε = 0.02 | 97.00 ± 1.00" in text


def test_recorded_rows_are_kept(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("experiments.benchmarks.reporting.RESULTS", tmp_path)
    for module in (command, records):
        monkeypatch.setattr(module, "RESULTS", tmp_path)
    made = []

    meanwhile = []

    def run(config, workdir, progress):
        made.append((config.rate, workdir.name))
        for write in meanwhile:
            write()

        workdir.mkdir(exist_ok=True)
        result = found(0.99, {**rows.SCHEDULE, "data": config.data})
        (workdir / "result.json").write_text(json.dumps(result))

    monkeypatch.setattr(command, "run", run)
    # Devices were chosen when the tests began.
    monkeypatch.setattr(command, "use_one_device_per_core", lambda: None)
    first, second = (row.name for row in TABLES["table1"].rows[:2])

    def run_table(*arguments, table="table1"):
        options = ["--data", "signs.zip", "--workdir", str(tmp_path)]
        monkeypatch.setattr("sys.argv", [table, *options, *arguments])
        command.main(TABLES[table], "")

    run_table("--only", second)
    assert made == [(0.15, f"{second}-fast")]
    run_table("--only", f"{first},{second}")
    assert made[1:] == [(0.33, f"{first}-fast")]
    kept = json.loads((tmp_path / "table1" / "result.json").read_text())["rows"]
    assert list(kept) == [first, second]
    assert "conservation" not in kept[first]["suspected_class"]
    workdir = tmp_path / f"{second}-fast"
    stage = workdir / "stages" / "train"
    stage.mkdir(parents=True)
    (workdir / "result.json").unlink()
    run_table("--only", second, "--again")
    assert len(made) == 3
    assert stage.is_dir()  # That run was not finished, and went on.
    run_table("--only", second, "--again")
    assert not stage.exists()
    made.pop()
    # A detector that came later is added where the network still is.
    trained = tmp_path / f"{first}-fast" / "stages" / "train"
    trained.mkdir(parents=True)
    path = tmp_path / "table1" / "result.json"
    record = json.loads(path.read_text())
    for row in record["rows"].values():
        del row["detectors"]["heatmap_sharp"]
    path.write_text(json.dumps(record))
    run_table("--only", f"{first},{second}")
    assert made[3:] == []  # Neither network was trained to its end there.
    jobs = tmp_path / f"{first}-fast" / "jobs"
    jobs.mkdir()
    (jobs / "run.json").write_text("{}")
    run_table("--only", f"{first},{second}")
    assert made[3:] == [(0.33, f"{first}-fast")]
    made.pop()
    kept = json.loads(path.read_text())["rows"]
    assert ["heatmap_sharp" in kept[name]["detectors"] for name in (first, second)] == [True, False]
    # Table 5 has the same run among its own.
    run_table("--only", first, table="table5")
    assert len(made) == 3
    assert list(json.loads((tmp_path / "table5" / "result.json").read_text())["rows"]) == [first]
    assert records.elsewhere(first, "signs.zip", rows.SCHEDULE)
    assert records.elsewhere(first, "others.zip", rows.SCHEDULE) is None
    with pytest.raises(SystemExit):
        run_table("--only", "none")
    assert "no row is called none" in capsys.readouterr().err
    # Rows of other data are not mixed in.
    with pytest.raises(SystemExit):
        run_table("--only", second, "--data", "others.zip")
    assert "the recorded rows are of signs.zip, not of others.zip" in capsys.readouterr().err
    # What another process records in the meantime stays.
    third, fourth = (row.name for row in TABLES["table1"].rows[2:4])

    def by_another():
        record = json.loads(path.read_text())
        record["rows"][fourth] = record["rows"][first]
        path.write_text(json.dumps(record))

    meanwhile.append(by_another)
    run_table("--only", third)
    assert list(json.loads(path.read_text())["rows"]) == [first, second, third, fourth]
    meanwhile.clear()
    made.pop()
    # A longer training has a folder, a heading and a run of its own.
    run_table("--only", second, "--epochs", "4")
    assert made[3:] == [(0.15, f"{second}-fast-4-epochs")]
    text = (tmp_path / "table1_4_epochs" / "result.md").read_text()
    assert text.startswith("# Table 1: standard attack, 3x3 sticker; 4 epochs\n")
    made.pop()
    # A row of another schedule is not one of this table, and is not lost.
    monkeypatch.setattr(command, "SCHEDULE", {**rows.SCHEDULE, "epochs": 9})
    with pytest.raises(SystemExit):
        run_table("--only", first)
    assert "was trained by another schedule" in capsys.readouterr().err
    assert len(made) == 3


def test_success_by_class_is_drawn():
    drawn = TABLES["table4"].rows[:2]
    recorded = {row.name: found(0.9, {}) for row in drawn}
    for k, row in enumerate(drawn):
        shares = {str(c): (c + k) / 50 for c in range(43) if c != 5}
        recorded[row.name]["attack"]["per_class_asr"] = shares
    (axis,) = figures.figure6(recorded).axes
    first, second = axis.containers
    assert [bar.get_height() for bar in first][:7] == pytest.approx([0, 2, 4, 6, 8, 12, 14])
    assert len(second) == 42
    assert [text.get_text() for text in axis.get_legend().texts] == [
        "amplitude 128",
        "amplitude 64",
    ]
    with pytest.raises(FileNotFoundError, match="needs rows of Table 4"):
        figures.figure6({})


def test_data_figures_show_every_class(signs):
    assert len(figures.figure1(signs.train).axes) == 12
    assert len(figures.figure2(signs.train).axes) == 6
    titles = [a.get_title() for a in figures.figure5(signs.train).axes if a.get_images()]
    assert titles == [str(c) for c in np.unique(signs.train.labels)]


def test_the_page_of_results_shows_the_recorded_rows():
    text = summary.PAGE.read_text()
    shown = text.split(summary.BEGIN)[1].split(summary.END)[0]
    assert shown == summary.text(), "run python -m experiments.summary"
    assert shown.count("experiments/results/table1/result.md") >= 1
