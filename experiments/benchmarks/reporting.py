"""What every benchmark records: the machine, the versions, a JSON and a Markdown file."""

import json
import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from jaxpoison import RunOutcome, read_config, run

RESULTS = Path(__file__).parent.parent / "results"


def machine() -> dict[str, Any]:
    """The processor, its cores and its matrix units."""
    cpu, flags = platform.processor(), ""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        fields = dict(
            (part.strip() for part in line.split(":", 1))
            for line in info.read_text().splitlines()
            if ":" in line
        )
        cpu, flags = fields.get("model name", cpu), fields.get("flags", "")
    units = [f for f in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if f in flags.split()]
    return {"cpu": cpu, "cores": os.cpu_count(), "units": units}


def versions(*packages: str) -> dict[str, str]:
    """Versions of the packages that are installed."""
    found = {"python": platform.python_version()}
    for name in packages:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def record(name: str, result: dict[str, Any], markdown: str) -> None:
    """Writes ``results/<name>/result.json`` and ``result.md``."""
    folder = RESULTS / name
    folder.mkdir(parents=True, exist_ok=True)
    # Renamed when complete: a record that an interruption cut would take all rows with it.
    text = json.dumps(result, indent=2, allow_nan=False) + "\n"
    for name, content in (("result.json", text), ("result.md", markdown)):
        temporary = folder / f".{name}"
        temporary.write_text(content, encoding="utf-8")
        temporary.replace(folder / name)
    print(markdown)


def finished(workdir: Path) -> RunOutcome:
    """A run that has ended, from its work directory; what is missing is run."""
    return run(read_config(workdir / "config.json"), workdir, progress=True)
