import subprocess
import sys

import pytest

from jaxpoison.cli import main


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--data", "nowhere"], "no data at 'nowhere': expected synthetic, gtsrb, or the path"),
        (["--rate", "15"], "rate must be between 0 and 1, ends excluded (shares are fractions"),
        (["--detectors", "magic"], "detector must be one of raw_pca"),
        (["--sticker-size", "0"], "sticker size must be at least 1, found 0"),
        (["--target", "12"], "target must be a class from 0 to 9"),
        (["--source", "5"], "source and target must be different classes"),
    ],
)
def test_mistakes_take_one_line_and_exit_2(options, message, capsys, tmp_path):
    assert main(["run", "--quiet", "--workdir", str(tmp_path), *options]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_interruption_says_how_to_go_on(monkeypatch, capsys, tmp_path):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("jaxpoison.pipeline.run", interrupt)
    assert main(["run", "--workdir", str(tmp_path)]) == 130
    assert "give the same command again" in capsys.readouterr().err


def test_help_names_every_option():
    done = subprocess.run(
        [sys.executable, "-m", "jaxpoison", "run", "--help"],
        capture_output=True,
        text=True,
        check=True,
    )
    options = "data attack rate sticker-size source target model protocol epochs seed workdir"
    for option in (*options.split(), "attribution", "detectors"):
        assert f"--{option}" in done.stdout
    assert "examples:" in done.stdout
