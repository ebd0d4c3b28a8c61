import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from jaxpoison import PGD, RunConfig
from jaxpoison.cli import main
from jaxpoison.cli.options import options_of
from jaxpoison.jobs.config import RepairConfig, ScanConfig


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--data", "nowhere"],
            "no data at 'nowhere': expected synthetic, gtsrb, tfds:NAME, or the path",
        ),
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
        (["--config", "nowhere.json"], "no configuration at nowhere.json"),
        (["--seed", "4294967296"], "seed must be at most 4294967295, found 4294967296"),
        (["--seed", "99999999999999999999"], "seed must be at most 4294967295, found"),
    ],
)
def test_mistakes_take_one_line_and_exit_2(options, message, capsys, tmp_path):
    assert main(["run", "--quiet", "--workdir", str(tmp_path), *options]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.fixture
def ran(monkeypatch):
    """Configurations that would have been run."""
    ran = []

    def job(config, *_, **given):
        ran.append((config, given))
        return SimpleNamespace(classes=[])

    for name in ("run.run", "scan.run_scan", "repair.run_repair"):
        monkeypatch.setattr(f"jaxpoison.jobs.{name}", job)
    for name in ("html.write_report", "html.write_scan_report"):
        monkeypatch.setattr(f"jaxpoison.report.{name}", lambda *_: None)
    for name in ("print_run", "print_scan", "print_repair"):
        monkeypatch.setattr(f"jaxpoison.report.console.{name}", lambda *_: None)
    return ran


def test_options_of_other_attacks_are_accepted_where_they_belong(ran, tmp_path):
    command = ["run", "--workdir", str(tmp_path), "--detectors", "raw_pca,heatmap"]
    amplitude = ["--trigger", "amplitude", "--amplitude", "64", "--four-corners"]
    assert main([*command, "--attack", "label-consistent", "--pgd-steps", "2", *amplitude]) == 0
    assert main([*command, "--attack", "standard", "--source", "3", "--sticker-size", "2"]) == 0
    configs = [config for config, _ in ran]
    assert [config.pgd.steps for config in configs] == [2, 5]
    assert [config.sticker_size for config in configs] == [3, 2]
    assert configs[0].detectors == ("raw_pca", "heatmap")


def values():
    """For every option another value than the default, with what it goes with."""
    with_pattern = ["--trigger", "amplitude"]
    spoilt = ["--attack", "label-consistent"]
    return {
        "data": ("gtsrb", []),
        "attack": ("none", []),
        "rate": ("0.25", []),
        "trigger": ("amplitude", []),
        "sticker_size": ("2", []),
        "amplitude": ("64", with_pattern),
        "trigger_distance": ("4", with_pattern),
        "four_corners": (None, with_pattern),
        "pgd_steps": ("3", spoilt),
        "pgd_step_size": ("0.5", spoilt),
        "pgd_norm": ("linf", spoilt),
        "pgd_radius": ("8.5", spoilt),
        "source": ("3", []),
        "target": ("4", []),
        "image_size": ("48", []),
        "resize": ("crop", ["--image-size", "48"]),
        "exclude": ("suspects.csv", []),
        "model": ("resnet18", []),
        "protocol": ("paper", []),
        "epochs": ("7", []),
        "batch_size": ("16", []),
        "seed": ("9", []),
        "attribution": ("gradient", []),
        "layer": ("dense2", []),
        "weights": ("checkpoint", ["--attack", "none"]),
        "detectors": ("heatmap,raw_pca", []),
    }


@pytest.mark.parametrize("option", options_of(RunConfig), ids=lambda option: option.name)
def test_every_option_reaches_its_field(option, ran, tmp_path):
    value, needed = values()[option.name]
    given = [option.flag] if value is None else [option.flag, value]
    assert main(["run", "--workdir", str(tmp_path), *needed, *given]) == 0
    found = ran[0][0]
    for name in option.path:
        found = getattr(found, name)
    expected = {"four_corners": True, "detectors": ("heatmap", "raw_pca")}.get(option.name)
    if expected is None:
        expected = type(found)(value)
    assert found == expected != option.default
    # Nothing else was changed but what it goes with.
    plain = RunConfig()
    untouched = {f.name for f in dataclasses.fields(plain)} - {
        option.path[0],
        "attack",
        "trigger",
        "image_size",
    }
    assert all(getattr(ran[0][0], name) == getattr(plain, name) for name in untouched)


def test_classes_are_found_by_their_names(ran, tmp_path, capsys):
    named = ["--target", "stop", "--source", "limit 20"]
    assert main(["run", "--workdir", str(tmp_path), *named]) == 0
    assert (ran[0][0].target, ran[0][0].source) == (9, 0)
    assert main(["run", "--workdir", str(tmp_path), "--target", "stopp"]) == 2
    assert "did you mean 'stop'?" in capsys.readouterr().err


def test_images_of_a_size_that_the_network_does_not_take_are_refused(tmp_path, capsys):
    command = ["run", "--quiet", "--workdir", str(tmp_path)]
    assert main([*command, "--image-size", "48"]) == 2
    assert "the network takes images of 32x32, found the image size 48" in capsys.readouterr().err


def test_without_options_the_defaults_are_run(ran, tmp_path):
    assert main(["run", "--workdir", str(tmp_path)]) == 0
    assert main(["scan", "--workdir", str(tmp_path), "--detector", "heatmap"]) == 0
    assert main(["repair", "--workdir", str(tmp_path), "--rounds", "2"]) == 0
    assert [config for config, _ in ran] == [RunConfig()] * 3
    assert ran[1][1] == {"detector": "heatmap", "progress": True}
    assert ran[2][1] == {"rounds": 2, "progress": True}


def test_a_configuration_is_run_again_and_options_win(ran, tmp_path):
    file = tmp_path / "config.json"
    config = RunConfig(rate=0.3, pgd=PGD(steps=2), attack="label-consistent", seed=4)
    file.write_text(json.dumps(config.record()))
    command = ["run", "--workdir", str(tmp_path), "--config", str(file)]
    assert main(command) == 0
    assert main([*command, "--seed", "5", "--pgd-norm", "linf"]) == 0
    assert ran[0][0] == config
    assert ran[1][0] == dataclasses.replace(config, seed=5, pgd=PGD(steps=2, norm="linf"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "is no JSON"),
        (b"\xff\xfe", "is no text"),
        (b"[]", "must be a JSON object"),
        (b'{"schema": 2}', "lacks the keys: amplitude, attack"),
    ],
)
def test_a_configuration_that_is_none_takes_one_line(content, message, capsys, tmp_path):
    file = tmp_path / "config.json"
    file.write_bytes(content)
    assert main(["run", "--workdir", str(tmp_path), "--config", str(file)]) == 2
    error = capsys.readouterr().err
    assert str(file) in error
    assert message in error
    assert error.count("\n") == 1


def test_images_of_ones_own_are_not_poisoned_unsaid(ran, tmp_path, capsys):
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
    assert main([*command, str(photos), "--target", "3"]) == 0
    assert [config.attack for config, *_ in ran] == ["standard", "none", "none"]
    assert main([*command, "gtsrb"]) == 0
    assert capsys.readouterr().err == ""


def test_a_scan_has_a_detector_of_its_own(capsys, tmp_path):
    with pytest.raises(SystemExit):
        main(["scan", "--workdir", str(tmp_path), "--detectors", "heatmap"])
    assert "unknown: --detectors heatmap (did you mean --detector?)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--triger", "sticker"], "unknown: --triger sticker (did you mean --trigger?)"),
        (["--epoch", "1"], "unknown: --epoch 1 (did you mean --epochs?)"),
        (["--epochs", "many"], "argument --epochs: invalid int value: 'many'"),
    ],
)
def test_mistyped_options_take_one_line(given, message, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["run", *given])
    error = capsys.readouterr().err
    assert error == f"jaxpoison run: {message}; jaxpoison run --help lists what there is\n"


def test_a_configuration_goes_on_where_its_job_was(monkeypatch, tmp_path):
    file, where = tmp_path / "config.json", []
    file.write_text(json.dumps(RunConfig().record()))
    monkeypatch.setattr(
        "jaxpoison.jobs.explain.explain_all", lambda _, workdir, **__: where.append(workdir)
    )
    main(["explain", "--config", str(file)])
    (tmp_path / "jobs").mkdir()
    main(["explain", "--config", str(file)])
    main(["explain", "--config", str(file), "--workdir", str(tmp_path / "other")])
    assert where == [Path("jaxpoison-run"), tmp_path, tmp_path / "other"]


@pytest.mark.parametrize("given", [["--rate", "0.3"], ["--source", "3"], ["--pgd-steps", "3"]])
def test_options_of_an_attack_go_with_one(given, ran, capsys, tmp_path):
    assert main(["run", "--workdir", str(tmp_path), "--attack", "none", *given]) == 2
    assert f"{given[0]} has no effect with --attack none" in capsys.readouterr().err
    assert not ran


def test_interruption_says_how_to_go_on(monkeypatch, capsys, tmp_path):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("jaxpoison.jobs.run.run", interrupt)
    assert main(["run", "--workdir", str(tmp_path)]) == 130
    assert "give the same command again" in capsys.readouterr().err


class Scanned:
    def __init__(self, suspicious):
        self.suspicious = suspicious


@pytest.mark.parametrize(
    ("called", "options", "status"),
    [
        ((False, None), ["--fail-on-attack"], 0),
        ((False, True), ["--fail-on-attack"], 3),
        ((False, True), [], 0),
    ],
)
def test_a_pipeline_learns_of_an_attack(called, options, status, ran, monkeypatch, tmp_path):
    outcome = SimpleNamespace(classes=[Scanned(suspicious) for suspicious in called])
    monkeypatch.setattr("jaxpoison.jobs.scan.run_scan", lambda *_, **__: outcome)
    command = ["scan", "--attack", "none", "--quiet", "--workdir", str(tmp_path)]
    assert main([*command, *options]) == status
    assert f"  {status} " in parser_help(["scan"])


def parser_help(command):
    return command_line(SCRIPT, *command, "--help").stdout


@pytest.mark.parametrize(
    ("command", "file"), [("run", "result"), ("scan", "scan"), ("repair", "repair")]
)
def test_json_is_all_that_is_printed(command, file, ran, tmp_path, capsys):
    (tmp_path / f"{file}.json").write_text('{"schema": 2, "name": "\\u00e9"}\n')
    assert main([command, "--attack", "none", "--json", "--workdir", str(tmp_path)]) == 0
    assert json.loads(capsys.readouterr().out) == {"schema": 2, "name": "é"}


def test_help_is_grouped_and_has_every_group_once(capsys):
    for command in ("run", "scan", "repair"):
        with pytest.raises(SystemExit):
            main([command, "--help"])
        headings = re.findall(r"^(\w[\w ]*):$", capsys.readouterr().out, re.MULTILINE)
        expected = ["options", "data", "attack", "network", "search", "where and how"]
        assert [name for name in headings if name in expected] == expected
    with pytest.raises(SystemExit):
        main(["--version"])
    assert re.fullmatch(r"jaxpoison \d+\.\d+\.\S+\n", capsys.readouterr().out)


def test_pruning_says_what_it_freed(tmp_path, capsys):
    (tmp_path / "jobs").mkdir()
    stage = tmp_path / "stages" / "train" / "abc"
    stage.mkdir(parents=True)
    (stage / "file").write_bytes(bytes(2**20))
    assert main(["prune", "--workdir", str(tmp_path)]) == 0
    assert capsys.readouterr().out == "1 stages removed, 1.0 MiB freed\n"
    assert not stage.exists()
    assert main(["prune", "--workdir", str(tmp_path / "none")]) == 2


def command_line(*arguments, cwd=None, **environment):
    return subprocess.run(
        arguments,
        capture_output=True,
        text=True,
        check=False,
        cwd=cwd,
        env=os.environ | environment,
    )


SCRIPT = Path(sys.executable).parent / "jaxpoison"


@pytest.mark.parametrize("command", ["run", "explain", "scan", "repair", "prune"])
def test_help_names_every_option(command):
    done = command_line(SCRIPT, command, "--help")
    assert done.returncode == 0, done.stderr
    own = {"scan": ScanConfig, "repair": RepairConfig}.get(command)
    expected = [] if command == "prune" else [option.flag for option in options_of(RunConfig)]
    expected += [option.flag for option in options_of(own)] if own else []
    expected = [flag for flag in expected if command == "run" or flag != "--detectors"]
    found = re.findall(r"^  (--[\w-]+)", done.stdout, re.MULTILINE)
    assert set(expected) | {"--workdir"} <= set(found)
    for option in options_of(RunConfig) if command == "run" else ():
        first = option.metadata["help"].split()[0]
        assert first in done.stdout
        if option.default not in (None, False) and option.name != "detectors":
            assert f"[{option.default}]" in done.stdout.replace("\n", "")
    if command == "run":
        assert "examples:" in done.stdout


@pytest.fixture
def hostile(tmp_path):
    """A folder of images beside files that take the place of modules."""
    for name in ("secrets", "random", "json", "numpy", "jax"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('hijacked')")
    (tmp_path / "jaxpoison").mkdir()
    (tmp_path / "jaxpoison" / "__init__.py").write_text("raise SystemExit('hijacked')")
    return tmp_path


def test_the_restart_keeps_the_module_search_path(hostile):
    """The process sets itself up, and runs nothing that lies beside the user's images."""
    environment = {name: "" for name in ("GLIBC_TUNABLES", "PYTHONPATH")}
    mistaken = command_line(SCRIPT, "run", "--data", "nowhere", cwd=hostile, **environment)
    assert mistaken.returncode == 2
    assert mistaken.stderr == (
        "jaxpoison: no data at 'nowhere': expected synthetic, gtsrb, tfds:NAME, or the path "
        "of an image folder or zip\n"
    )


REPORT = """
import os, sys
import jaxpoison.cli.commands as commands
def shown(given):
    import jax
    print(os.environ["GLIBC_TUNABLES"], len(jax.devices()), sys.flags.optimize, sys.argv[1:])
commands._run = shown
sys.argv[0] = "jaxpoison"
sys.exit(commands.main())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="huge pages are asked for on Linux alone")
def test_the_process_is_restarted_once_with_its_flags_and_arguments(tmp_path):
    from jaxpoison.parallel import usable_cores

    script = tmp_path / "started.py"
    script.write_text(REPORT)
    command = [sys.executable, "-O", script, "run", "--workdir", "with space"]
    done = command_line(*command, GLIBC_TUNABLES="glibc.malloc.check=0")
    assert done.returncode == 0, done.stderr
    tunables, devices, optimize, *arguments = done.stdout.split(maxsplit=3)
    assert tunables == "glibc.malloc.check=0:glibc.malloc.hugetlb=1"
    assert int(devices) == usable_cores()
    assert optimize == "1"
    assert arguments == ["['run', '--workdir', 'with space']\n"]
