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
        (["--amplitude", "64"], "--amplitude has no effect with --trigger sticker: add --trigger"),
        (
            ["--trigger", "amplitude", "--sticker-size", "2"],
            "--sticker-size has no effect with --trigger amplitude: add --trigger sticker",
        ),
        (["--pgd-steps", "2"], "--pgd-steps has no effect with --attack standard: add --attack"),
        (
            ["--attack", "label-consistent", "--source", "3"],
            "--source has no effect with --attack label-consistent: add --attack standard",
        ),
    ],
)
def test_mistakes_take_one_line_and_exit_2(options, message, capsys, tmp_path):
    assert main(["run", "--quiet", "--workdir", str(tmp_path), *options]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_options_of_other_attacks_are_accepted_where_they_belong(monkeypatch, tmp_path):
    ran = []
    monkeypatch.setattr("jaxpoison.pipeline.run", lambda config, *_, **__: ran.append(config))
    monkeypatch.setattr("jaxpoison.report.html.write_report", lambda *_: None)
    monkeypatch.setattr("jaxpoison.report.console.print_run", lambda *_: None)
    command = ["run", "--workdir", str(tmp_path), "--detectors", "raw_pca,heatmap"]
    amplitude = ["--trigger", "amplitude", "--amplitude", "64", "--four-corners"]
    assert main([*command, "--attack", "label-consistent", "--pgd-steps", "2", *amplitude]) == 0
    assert main([*command, "--attack", "standard", "--source", "3", "--sticker-size", "2"]) == 0
    assert main([*command, "--attack", "none", "--source", "3"]) == 0
    assert [config.pgd.steps for config in ran] == [2, 5, 5]
    assert [config.sticker_size for config in ran] == [3, 2, 3]
    assert ran[0].detectors == ("raw_pca", "heatmap")


def test_images_of_ones_own_are_not_poisoned_unsaid(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr("jaxpoison.screening.scan", lambda *_, **__: None)
    monkeypatch.setattr("jaxpoison.report.html.write_scan_report", lambda *_: None)
    monkeypatch.setattr("jaxpoison.report.console.print_scan", lambda *_: None)
    photos = tmp_path / "photos.zip"
    photos.touch()
    command = ["scan", "--workdir", str(tmp_path), "--data"]
    assert main([*command, str(photos), "--rate", "0.1"]) == 0
    said = capsys.readouterr().err
    assert said == (
        "10 % of class 5 are poisoned first, to try the detectors (--attack standard); "
        "--attack none takes the images as they are\n"
    )
    assert main([*command, str(photos), "--attack", "none"]) == 0
    assert main([*command, "gtsrb"]) == 0
    assert capsys.readouterr().err == ""


def test_a_scan_has_a_detector_of_its_own(capsys, tmp_path):
    with pytest.raises(SystemExit):
        main(["scan", "--workdir", str(tmp_path), "--detectors", "heatmap"])
    assert "unrecognized arguments: --detectors heatmap" in capsys.readouterr().err


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
