import json

import pytest
from small_runs import config as config
from small_runs import small as small

from experiments import needed, records
from experiments.benchmarks import reporting
from jaxpoison import run_scan

pytestmark = pytest.mark.mixes_types


@pytest.mark.usefixtures("small")
def test_the_classes_that_turn_most_are_measured(config, tmp_path, monkeypatch):  # noqa: F811
    for module in (reporting, records):
        monkeypatch.setattr(module, "RESULTS", tmp_path / "results")
    outcome = run_scan(config, tmp_path / "scanned")
    monkeypatch.setattr("sys.argv", ["needed", str(tmp_path / "scanned")])
    needed.main()
    found = json.loads((tmp_path / "results" / "needed" / "result.json").read_text())
    rows = found["rows"]["scanned"]
    assert [row["class"] for row in rows] == [each.label for each in outcome.classes[:3]]
    for row in rows:
        shares = [row[name] for name in ("of_called", "of_most", "of_others")]
        assert all(share is None or 0 <= share <= 1 for share in shares)
        assert row["called"] or row["of_called"] is None
    text = (tmp_path / "results" / "needed" / "result.md").read_text()
    assert text.count("| scanned |") == 3
