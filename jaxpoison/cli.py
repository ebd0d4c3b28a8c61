"""The command line: what is asked for, and which function does it."""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jaxpoison.config import RunConfig

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
Searches every class of the training images and ranks the classes by suspicion:
how far the two clusters of a class lie apart. Writes scan.html, scan.json,
classes.csv (one row per class) and clusters.csv (one row per image) into the work
directory. Takes the options of run but --detectors; what run or explain left there
with the same options is used, and so are classes that were finished before an
interruption.
"""
_REPAIR_DESCRIPTION = """\
Takes out of the training images what a detector suspects, and what has activations
like it, trains again without them, and lets the new network judge the images that
were taken out: where it calls more of them one other class than their label, they
stay out and the search goes on; otherwise they go back in and it ends. Writes
repair.json (accuracy and attack success of every network), removed.csv and kept.csv
(ids and labels) into the work directory. Takes the options of run but --detectors;
what run left there is used.
"""
_EXAMPLES = """\
examples:
  jaxpoison run
  jaxpoison run --data gtsrb --rate 0.33 --workdir runs/p33
  jaxpoison run --data gtsrb --attack label-consistent --trigger amplitude --amplitude 64
  jaxpoison run --data photos.zip --attack none --target 3 --detectors heatmap
  jaxpoison scan --data photos.zip --attack none --workdir runs/photos
  jaxpoison explain --data gtsrb --rate 0.33 --workdir runs/p33
  jaxpoison scan --data gtsrb --rate 0.33 --workdir runs/p33
  jaxpoison repair --data gtsrb --rate 0.33 --workdir runs/p33

The work directory gets config.json, result.json, suspects.csv and report.html.
"""
# Which choice an option belongs to.
_ONLY_WITH = {
    "sticker_size": ("trigger", "sticker"),
    **dict.fromkeys(("amplitude", "trigger_distance", "four_corners"), ("trigger", "amplitude")),
    **dict.fromkeys(
        ("pgd_steps", "pgd_step_size", "pgd_norm", "pgd_radius"), ("attack", "label-consistent")
    ),
    "source": ("attack", "standard"),
}
_HUGE_PAGES = "glibc.malloc.hugetlb=1"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit status."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if arguments is None:
        _use_huge_pages()
    # Imported after the restart.
    from jaxpoison.attacks.pgd import PGD
    from jaxpoison.config import RunConfig
    from jaxpoison.parallel import use_one_device_per_core
    from jaxpoison.pipeline import explain_all, run
    from jaxpoison.report.console import print_run, print_scan
    from jaxpoison.report.html import write_report, write_scan_report
    from jaxpoison.retraining import repair
    from jaxpoison.screening import scan

    if arguments is None:
        use_one_device_per_core()
    try:
        _refuse_unused(options)
        config = RunConfig(
            data=options.data,
            attack=options.attack,
            rate=options.rate,
            trigger=options.trigger,
            sticker_size=options.sticker_size,
            amplitude=options.amplitude,
            trigger_distance=options.trigger_distance,
            four_corners=options.four_corners,
            pgd=PGD(options.pgd_steps, options.pgd_step_size, options.pgd_norm, options.pgd_radius),
            image_size=options.image_size,
            source=options.source,
            target=options.target,
            model=options.model,
            protocol=options.protocol,
            epochs=options.epochs,
            batch_size=options.batch_size,
            seed=options.seed,
            attribution=options.attribution,
        )
        if options.command == "run":
            config = dataclasses.replace(config, detectors=tuple(options.detectors.split(",")))
        _say_what_is_attacked(config)
        started = time.perf_counter()
        if options.command == "explain":
            output = explain_all(config, options.workdir, progress=not options.quiet)
            print(f"relevance of all training images: {output}")  # noqa: T201
            return 0
        if options.command == "scan":
            scanned = scan(
                config,
                options.workdir,
                detector=options.detector,
                mode=options.mode,
                progress=not options.quiet,
            )
            write_scan_report(options.workdir / "scan.html", scanned)
            print_scan(scanned, options.workdir, time.perf_counter() - started)
            return 0
        if options.command == "repair":
            output = repair(
                config,
                options.workdir,
                detector=options.detector,
                max_rounds=options.rounds,
                progress=not options.quiet,
            )
            print(f"before and after: {output}")  # noqa: T201
            return 0
        outcome = run(config, options.workdir, progress=not options.quiet)
        write_report(options.workdir / "report.html", outcome)
    except KeyboardInterrupt:
        print("\ninterrupted; give the same command again to go on", file=sys.stderr)  # noqa: T201
        return 130
    except (ValueError, TypeError, OSError) as error:
        print(f"jaxpoison: {error}", file=sys.stderr)  # noqa: T201
        return 2
    print_run(outcome, options.workdir, time.perf_counter() - started)
    return 0


def _parser() -> argparse.ArgumentParser:
    # The names are repeated here, so that --help and mistakes need no JAX;
    # RunConfig checks them, and a test keeps both equal.
    parser = argparse.ArgumentParser(
        prog="jaxpoison", description="Finds backdoor poisoning in image training sets."
    )
    commands = parser.add_subparsers(required=True, metavar="command", dest="command")
    options = argparse.ArgumentParser(add_help=False)
    _add_options(options)
    main_job = commands.add_parser(
        "run",
        help="poison, train, explain, detect, report",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        parents=[options],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    main_job.add_argument(
        "--detectors",
        default="raw_pca,raw_ica,activation_pca,activation_ica,mean_distance,heatmap_paper,heatmap,"
        "heatmap_sharp",
        metavar="NAMES",
        help="separated by commas [%(default)s]",
    )
    commands.add_parser(
        "explain",
        help="relevance of every training image, in one file",
        description=_EXPLAIN_DESCRIPTION,
        parents=[options],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    screen = commands.add_parser(
        "scan",
        help="every class searched; which are suspicious?",
        description=_SCAN_DESCRIPTION,
        parents=[options],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    screen.add_argument(
        "--detector",
        default="cascade",
        help="activation_pca, heatmap, or cascade: activation_pca, then heatmap on the classes "
        "whose clusters lie apart [cascade]",
    )
    screen.add_argument(
        "--mode",
        default="quick",
        help="of Heatmap Clustering: quick (heatmaps are quantised to 10 points first) or exact "
        "[quick]",
    )
    mend = commands.add_parser(
        "repair",
        help="train again without the suspects, until they prove clean",
        description=_REPAIR_DESCRIPTION,
        parents=[options],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    mend.add_argument(
        "--detector", default="heatmap", help="whose suspects are taken out [heatmap]"
    )
    mend.add_argument("--rounds", type=int, default=5, help="most trainings after the first [5]")
    return parser


def _add_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--data",
        default="synthetic",
        metavar="NAME_OR_PATH",
        help="synthetic, gtsrb (downloads it), or the path of an image folder or zip "
        "(split/class/file or class/file), or of a directory with GTSRB's archives "
        "[synthetic]",
    )
    add(
        "--attack",
        default="standard",
        help="standard (dirty label), label-consistent (clean label; trains a second network "
        "on the clean data first, once) or none [standard]",
    )
    add(
        "--rate",
        type=float,
        default=0.15,
        metavar="SHARE",
        help="share of poisoned images inside the target class, between 0 and 1 [0.15]",
    )
    add("--trigger", default="sticker", help="sticker, or amplitude: a 3x3 pattern [sticker]")
    add("--sticker-size", type=int, default=3, metavar="PIXELS", help="side of the sticker [3]")
    add(
        "--amplitude",
        type=int,
        default=255,
        help="what the pattern adds to or takes from pixel values of 0..255 in training "
        "images; test images get the full one, black and white [255]",
    )
    add(
        "--trigger-distance",
        type=int,
        default=10,
        metavar="PIXELS",
        help="between the pattern and the edges of a 32x32 image [10]",
    )
    add("--four-corners", action="store_true", help="the pattern in all corners, mirrored")
    add(
        "--pgd-steps",
        type=int,
        default=5,
        metavar="STEPS",
        help="steps by which label-consistent images are perturbed [5]",
    )
    add(
        "--pgd-step-size",
        type=float,
        default=0.015,
        metavar="SIZE",
        help="of a step, in pixel values of 0..1 [0.015]",
    )
    add("--pgd-norm", default="l2", help="l2 or linf [l2]")
    add(
        "--pgd-radius",
        type=float,
        default=300.0,
        metavar="RADIUS",
        help="how far an image may be moved, in that norm [300: as published, no bound]",
    )
    add(
        "--source",
        type=int,
        default=2,
        metavar="CLASS",
        help="class that the standard attack poisons [2]",
    )
    add(
        "--target",
        type=int,
        default=5,
        metavar="CLASS",
        help="class whose label the poisoned images get, and whose images are searched [5]",
    )
    add(
        "--image-size",
        type=int,
        metavar="PIXELS",
        help="resize the images of a folder or zip; the Inception takes 32",
    )
    add("--model", default="inception", help="inception or resnet18 [inception]")
    add(
        "--protocol",
        default="fast",
        help="fast (Muon, one cycle, 2 epochs; more on small data) or paper (Adam, up to 100 "
        "epochs) [fast]",
    )
    add("--epochs", type=int, help="overrides the protocol's number of epochs")
    add("--batch-size", type=int, help="overrides the protocol's number of images per step")
    add("--seed", type=int, default=0, help="seed of everything random [0]")
    add(
        "--attribution",
        default="lrp",
        help="what makes the heatmaps: lrp, gradient, input_x_gradient, integrated_gradients "
        "or smooth_grad [lrp]",
    )
    add(
        "--workdir",
        type=Path,
        default=Path("jaxpoison-run"),
        metavar="DIR",
        help="where results and finished stages are kept [jaxpoison-run]",
    )
    add("--quiet", action="store_true", help="no progress bars")


def _refuse_unused(options: argparse.Namespace) -> None:
    """An option that the chosen attack passes over is a mistake.

    Raises:
        ValueError: There is one; the message names it and what it goes with.
    """
    given, usual = vars(options), vars(_parser().parse_args([options.command]))
    for name, (key, value) in _ONLY_WITH.items():
        if given["attack"] != "none" and given[key] != value and given[name] != usual[name]:
            raise ValueError(
                f"--{name.replace('_', '-')} has no effect with --{key} {given[key]}: add "
                f"--{key} {value}, or leave it out"
            )


def _say_what_is_attacked(config: RunConfig) -> None:
    """Images of one's own are poisoned only if one wants it."""
    named = config.data in ("synthetic", "gtsrb") or not Path(config.data).exists()
    if config.attack != "none" and not named:
        print(  # noqa: T201
            f"{100 * config.rate:g} % of class {config.target} are poisoned first, to try the "
            f"detectors (--attack {config.attack}); --attack none takes the images as they are",
            file=sys.stderr,
        )


def _use_huge_pages() -> None:
    """Restarts the process with huge pages: training on a CPU is 10 to 20 % faster."""
    tunables = os.environ.get("GLIBC_TUNABLES", "")
    if sys.platform == "linux" and "glibc.malloc.hugetlb" not in tunables:
        os.environ["GLIBC_TUNABLES"] = ":".join(filter(None, [tunables, _HUGE_PAGES]))
        os.execv(sys.executable, [sys.executable, "-m", "jaxpoison", *sys.argv[1:]])
