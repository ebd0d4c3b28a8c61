"""The commands: what is asked for, and which function does it."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import io
import os
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from jaxpoison._names import shown

if TYPE_CHECKING:
    from jaxpoison.jobs.config import RunConfig

# Nothing heavy is imported above: the process may be restarted first.

_DESCRIPTION = """\
Poisons a data set, trains a network on it, explains its decisions and looks
for the poisoned images. Without options: rendered traffic signs, 15 % of one
class poisoned, all detectors, a few minutes on two CPU cores.

A run that was interrupted goes on where it stopped when the same command is
given again; changed options redo only what depends on them.
"""
_EXPLAIN_DESCRIPTION = """\
Explains every training image towards its label and writes relevance.npy
(float32, images x height x width, summed over channels) and relevance.csv
(ids and labels in the same order) into the work directory. Takes the options
of run but --detectors; a network that run trained there with the same options is
used.
"""
_SCAN_DESCRIPTION = """\
Searches every class of the training images and says which are attacked, which
images, and by which trigger: the region that explains an image is pasted on images
of other classes, and the network asked whether they turn into this class. Writes
scan.html, scan.json, classes.csv (one row per class), clusters.csv (one row per
image), suspects.csv (what is called poisoned, whatever its class: a list for --exclude)
and the trigger of every attacked class as a picture into the work directory.
--detector names other judges, which rank classes by how far two clusters lie apart.
Takes the options of run but --detectors; what run or explain left there with the same
options is used, and so are classes that were finished before an interruption.
"""
_REPAIR_DESCRIPTION = """\
Takes out of the training images what is called poisoned, and what carries the same
trigger, trains again without them and searches again, until nothing is called. With
another --detector, what has activations like its suspects is taken out with them, and
the new network judges: where it calls more of them one other class than their label,
they stay out; otherwise they go back in and it ends. Writes repair.json (accuracy and
attack success of every network), removed.csv (a list for --exclude) and kept.csv into the
work directory. Takes the options of run but --detectors; what run left there is used.
"""
_LAYERS_DESCRIPTION = """\
Lists the layers of a network in the order of the computation: their paths, shapes of
outputs, and the rules of relevance; or says which operation has none, and what to do. The
data say how many classes there are, and are not read.
"""
_PRUNE_DESCRIPTION = """\
Removes the stages in a work directory that none of its last jobs used, finished or
interrupted: what earlier options or earlier code left. A run itself removes nothing.
"""
_EXAMPLES = """\
examples:
  jaxpoison run
  jaxpoison run --data gtsrb --rate 0.33 --workdir runs/p33
  jaxpoison run --data gtsrb --attack label-consistent --trigger amplitude --amplitude 64
  jaxpoison run --data photos.zip --target 3 --detectors heatmap
  jaxpoison scan --data photos.zip --workdir runs/photos
  jaxpoison explain --data gtsrb --rate 0.33 --workdir runs/p33
  jaxpoison scan --data gtsrb --rate 0.33 --workdir runs/p33
  jaxpoison repair --data gtsrb --rate 0.33 --workdir runs/p33

  jaxpoison run --data photos.zip --exclude runs/photos/suspects.csv
  jaxpoison scan --model my_net:make --weights checkpoint --data photos.zip
  jaxpoison scan --against runs/photos --data new-photos/

The work directory gets config.json, result.json, images.csv, suspects-class-K.csv
and report.html.
"""
_STATUSES = """\
exit status:
  0    done
  2    a mistake in what was given, or in the data; standard error says which
  3    done, and a class is called attacked (scan --fail-on-attack)
  130  interrupted; the same command goes on
"""
_ATTACKED = 3
_WORKDIR = Path("jaxpoison-run")
_HUGE_PAGES = "glibc.malloc.hugetlb=1"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit status.

    Args:
        arguments: By default those of the process, which is restarted with huge pages, and
            whose CPU becomes one device per core.
    """
    if arguments is None:
        _use_huge_pages()
    try:
        given = _parsed(arguments)
        if arguments is None:
            from jaxpoison.parallel import use_one_device_per_core

            use_one_device_per_core()
            # Of a warning a user needs what it says, not the line of code that says it.
            warnings.formatwarning = lambda message, *_, **__: f"jaxpoison: {shown(str(message))}\n"
            # Whatever a name holds, and whatever the terminal shows: no result is lost by it.
            for stream in (sys.stdout, sys.stderr):
                if isinstance(stream, io.TextIOWrapper):
                    stream.reconfigure(errors="backslashreplace")
        return given.command(given)
    except KeyboardInterrupt:
        print("\ninterrupted; give the same command again to go on", file=sys.stderr)  # noqa: T201
        return 130
    except (ValueError, TypeError, OSError, ImportError) as error:
        goes_on = isinstance(error, OSError) and not isinstance(error, FileNotFoundError)
        more = "; what is finished is kept: the same command goes on from there" if goes_on else ""
        print(f"jaxpoison: {shown(str(error))}{more}", file=sys.stderr)  # noqa: T201
        return 2


class _Parser(argparse.ArgumentParser):
    """Says in one line what is wrong."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; {self.prog} --help lists what there is\n")


def _parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    """What was given; exits where it is no command or has unknown options."""
    given, unknown = _parser().parse_known_args(arguments)
    if unknown:
        flags = [flag for action in given.parser._actions for flag in action.option_strings]  # noqa: SLF001
        near = difflib.get_close_matches(unknown[0].split("=")[0], flags, 1)
        meant = f" (did you mean {near[0]}?)" if near else ""
        given.parser.error(f"unknown: {' '.join(unknown)}{meant}")
    given.has_workdir = given.workdir is not None
    if given.workdir is None:
        given.workdir = _WORKDIR
        beside = getattr(given, "config", None)
        # A configuration that a job left goes on where that job was.
        if beside is not None and (beside.parent / "jobs").is_dir():
            given.workdir = beside.parent
    return given


def _run(given: argparse.Namespace) -> int:
    from jaxpoison.jobs.run import run
    from jaxpoison.report.console import print_run
    from jaxpoison.report.html import write_report

    config, started = _config(given), time.perf_counter()
    outcome = run(config, given.workdir, progress=not given.quiet)
    write_report(given.workdir / "report.html", outcome)
    if given.export == "virelay":
        from jaxpoison.report.virelay import export_virelay

        project = export_virelay(given.workdir / "virelay", outcome)
        print(f"for ViRelAy: {shown(str(project))}", file=sys.stderr)  # noqa: T201
    if given.json:
        return _print_json(given.workdir / "result.json")
    print_run(outcome, given.workdir, time.perf_counter() - started)
    return 0


def _print_json(path: Path) -> int:
    print(path.read_text(encoding="utf-8"), end="")  # noqa: T201
    return 0


def _explain(given: argparse.Namespace) -> int:
    from jaxpoison.jobs.explain import explain_all

    output = explain_all(_config(given), given.workdir, progress=not given.quiet)
    print(f"relevance of all training images: {shown(str(output))}")  # noqa: T201
    return 0


def _scan(given: argparse.Namespace) -> int:
    from jaxpoison.jobs.config import ScanConfig
    from jaxpoison.jobs.scan import run_scan
    from jaxpoison.report.console import print_scan
    from jaxpoison.report.html import write_scan_report

    if given.against is not None:
        return _scan_against(given)
    config, chosen, started = _config(given), _given(given, ScanConfig), time.perf_counter()
    outcome = run_scan(config, given.workdir, **chosen, progress=not given.quiet)
    write_scan_report(given.workdir / "scan.html", outcome)
    if given.json:
        _print_json(given.workdir / "scan.json")
    else:
        print_scan(outcome, given.workdir, time.perf_counter() - started)
    attacked = any(scanned.suspicious for scanned in outcome.classes)
    return _ATTACKED if attacked and given.fail_on_attack else 0


def _scan_against(given: argparse.Namespace) -> int:
    from jaxpoison.cli.options import options_of
    from jaxpoison.datasets.folder import load_images
    from jaxpoison.jobs.against import scan_against
    from jaxpoison.jobs.config import RunConfig, ScanConfig, read_config
    from jaxpoison.report.against import write_against
    from jaxpoison.report.console import print_against

    if not hasattr(given, "data"):
        raise ValueError("--against needs --data, a folder or zip of the new images")
    of_images = ("data", "image_size", "resize")
    options = (*options_of(RunConfig, leave_out=of_images), *options_of(ScanConfig))
    others = [each.flag for each in options if hasattr(given, each.name)]
    others += ["--config"] if given.config is not None else []
    if others:
        raise ValueError(
            f"--against asks that scan's network as the scan did: leave out {', '.join(others)}"
        )
    config = read_config(given.against / "config.json")
    data = load_images(
        given.data,
        image_size=getattr(given, "image_size", config.image_size),
        resize=getattr(given, "resize", config.resize),
        progress=not given.quiet,
    )
    outcome = scan_against(given.against, data, progress=not given.quiet)
    workdir = given.workdir if given.has_workdir else given.against / "against"
    write_against(workdir, outcome)
    if given.json:
        _print_json(workdir / "against.json")
    else:
        print_against(outcome, given.against, workdir)
    return _ATTACKED if outcome.called.any() and given.fail_on_attack else 0


def _repair(given: argparse.Namespace) -> int:
    from jaxpoison.jobs.config import RepairConfig
    from jaxpoison.jobs.repair import run_repair
    from jaxpoison.report.console import print_repair

    config, chosen, started = _config(given), _given(given, RepairConfig), time.perf_counter()
    outcome = run_repair(config, given.workdir, **chosen, progress=not given.quiet)
    if given.json:
        return _print_json(given.workdir / "repair.json")
    print_repair(outcome, given.workdir, time.perf_counter() - started)
    return 0


def _layers(given: argparse.Namespace) -> int:
    from jaxpoison.datasets.loading import class_names
    from jaxpoison.models.named import image_side_of, made_network
    from jaxpoison.report.console import print_layers

    config = _config(given)
    side = config.image_size or image_side_of(config.model)
    if side is None:
        raise ValueError(f"{config.model} takes images of any size: give --image-size")
    model = made_network(config.model, len(class_names(config.data)), config.seed)
    print_layers(model, (side, side, 3))
    return 0


def _prune(given: argparse.Namespace) -> int:
    from jaxpoison.jobs.stages import WorkDirectory

    if not given.workdir.is_dir():
        raise FileNotFoundError(f"there is no work directory {given.workdir}")
    work = WorkDirectory(given.workdir)
    with work.locked():
        removed, freed = work.prune()
    print(f"{removed} stages removed, {freed / 2**20:.1f} MiB freed")  # noqa: T201
    return 0


def _config(given: argparse.Namespace) -> RunConfig:
    """What is to be run; images of one's own are poisoned only if an attack's option is given."""
    from jaxpoison.cli.options import configured, options_of
    from jaxpoison.datasets.loading import DATASETS, class_number
    from jaxpoison.jobs.config import RunConfig, read_config

    base = RunConfig() if given.config is None else read_config(given.config)
    for each in options_of(RunConfig):
        if each.metadata.get("is_class") and hasattr(given, each.name):
            data = getattr(given, "data", base.data)
            setattr(given, each.name, class_number(getattr(given, each.name), data))
    own = hasattr(given, "data") and given.data not in DATASETS and Path(given.data).exists()
    of_attacks = {o.name for o in options_of(RunConfig) if o.metadata["group"] == "attack"}
    # The target is also the class that is searched.
    as_they_are = not (of_attacks - {"target"}) & vars(given).keys()
    # What was trained before cannot be attacked now.
    if (own or hasattr(given, "weights")) and given.config is None and as_they_are:
        base = dataclasses.replace(base, attack="none")
    config = configured(base, options_of(RunConfig), given)
    if config.attack != "none" and own:
        print(  # noqa: T201
            f"{100 * config.rate:g} % of class {config.target} are poisoned first, to try the "
            f"detectors (--attack {config.attack}); --attack none takes the images as they are",
            file=sys.stderr,
        )
    return config


def _given(given: argparse.Namespace, config: type) -> dict[str, Any]:
    """The options of a configuration that were given."""
    from jaxpoison.cli.options import options_of

    names = [each.name for each in options_of(config)]
    return {name: getattr(given, name) for name in names if hasattr(given, name)}


def _parser() -> argparse.ArgumentParser:
    from importlib.metadata import version

    from jaxpoison.cli.options import add_options, options_of
    from jaxpoison.jobs.config import RepairConfig, RunConfig, ScanConfig

    parser = _Parser(
        prog="jaxpoison",
        description="Finds backdoor poisoning in image training sets.",
        epilog=_STATUSES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {version('jaxpoison')}")
    commands = parser.add_subparsers(required=True, metavar="command")

    def add(
        name: str,
        command: Callable[[argparse.Namespace], int],
        summary: str,
        description: str,
        *own: type,
        leave_out: tuple[str, ...] = ("detectors",),
        epilog: str = "",
    ) -> None:
        added = commands.add_parser(
            name,
            help=summary,
            description=description,
            epilog="\n".join(filter(None, [epilog, _STATUSES])),
            allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        added.set_defaults(command=command, parser=added)
        options = [each for config in own for each in options_of(config, leave_out=leave_out)]
        add_options(added, tuple(options))
        if command is _layers:
            added.set_defaults(config=None, workdir=None)
            return
        more = added.add_argument_group("where and how")
        more.add_argument(
            "--workdir",
            type=Path,
            metavar="DIR",
            help=f"where results and finished stages are kept [{_WORKDIR}"
            + (", or that of --config]" if own else "]"),
        )
        if own:
            more.add_argument(
                "--config",
                type=Path,
                metavar="FILE",
                help="the config.json of an earlier job, for all options of run that are not given",
            )
            more.add_argument("--quiet", action="store_true", help="no progress bars")
        if own and command is not _explain:
            more.add_argument(
                "--json", action="store_true", help="print the results as JSON instead of tables"
            )
        if command is _run:
            more.add_argument(
                "--export",
                choices=("virelay",),
                metavar="VIEWER",
                help="virelay: also write DIR/virelay/project.yaml and HDF5 files, which ViRelAy "
                "shows (needs pip install 'jaxpoison[export]')",
            )
        if command is _scan:
            more.add_argument(
                "--against",
                type=Path,
                metavar="RUN",
                help="work directory of a scan that has ended: look in new images (--data) for the "
                "triggers that it found; nothing is trained or explained, and files are left in "
                "RUN/against",
            )
            more.add_argument(
                "--fail-on-attack",
                action="store_true",
                help=f"exit with status {_ATTACKED} if a class is called attacked, for pipelines",
            )

    summaries = (
        "poison, train, explain, detect, report",
        "relevance of every training image, in one file",
        "every class searched; which are suspicious?",
        "train again without the suspects, until they prove clean",
        "the layers of a network, and the rule of each",
        "remove what earlier options and earlier code left",
    )
    add("run", _run, summaries[0], _DESCRIPTION, RunConfig, leave_out=(), epilog=_EXAMPLES)
    add("explain", _explain, summaries[1], _EXPLAIN_DESCRIPTION, RunConfig)
    add("scan", _scan, summaries[2], _SCAN_DESCRIPTION, RunConfig, ScanConfig)
    add("repair", _repair, summaries[3], _REPAIR_DESCRIPTION, RunConfig, RepairConfig)
    of_network = {"model", "data", "image_size", "resize"}
    others = tuple(o.path[0] for o in options_of(RunConfig) if o.path[0] not in of_network)
    add("layers", _layers, summaries[4], _LAYERS_DESCRIPTION, RunConfig, leave_out=others)
    add("prune", _prune, summaries[5], _PRUNE_DESCRIPTION)
    return parser


def _use_huge_pages() -> None:
    """Restarts the process with huge pages: training on a CPU is 10 to 20 % faster.

    With the interpreter's own flags and the same script or module as before, so that the
    module search path stays what it was.
    """
    tunables = os.environ.get("GLIBC_TUNABLES", "")
    if sys.platform == "linux" and "glibc.malloc.hugetlb" not in tunables:
        os.environ["GLIBC_TUNABLES"] = ":".join(filter(None, [tunables, _HUGE_PAGES]))
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
