"""The package as it is installed by others: built, without the repository, and run."""

import email
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from PIL import Image

from jaxpoison import __version__, synthetic

ROOT = Path(__file__).parent.parent


def output_of(*command, cwd, **environment):
    kept = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run(
        command,
        cwd=cwd,
        env=kept | environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Source distribution and wheel."""
    folder = tmp_path_factory.mktemp("dist")
    output_of(sys.executable, "-m", "build", "--outdir", str(folder), str(ROOT), cwd=folder)
    (source,), (wheel,) = folder.glob("*.tar.gz"), folder.glob("*.whl")
    return source, wheel


def package_files():
    return {
        str(path.relative_to(ROOT))
        for path in (ROOT / "jaxpoison").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def test_the_wheel_holds_the_package_alone(built):
    with zipfile.ZipFile(built[1]) as wheel:
        names = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert names == package_files()
    assert {"jaxpoison/py.typed", "jaxpoison/report/templates/report.html.jinja"} <= names


def test_the_source_distribution_holds_what_tests_and_docs_need(built):
    with tarfile.open(built[0]) as source:
        names = {name.partition("/")[2] for name in source.getnames()}
    assert package_files() <= names
    assert {"README.md", "LICENSE", "pyproject.toml", "Makefile", "mkdocs.yml"} <= names
    assert {"tests/test_package.py", "docs/detection.md", "experiments/networks.py"} <= names
    tops = {name.partition("/")[0] for name in names}
    assert not tops & {".hypothesis", ".venv", "runs", "build", ".cache"}


def test_metadata_are_complete(built):
    with zipfile.ZipFile(built[1]) as wheel:
        (name,) = (n for n in wheel.namelist() if n.endswith("METADATA"))
        data = email.message_from_bytes(wheel.read(name))
    assert data["Name"] == "jaxpoison"
    assert data["Version"] == __version__
    assert data["License-Expression"] == "Apache-2.0"
    assert data["Requires-Python"] == ">=3.11"
    assert data["Author"]
    assert "backdoor" in data["Keywords"]
    assert "Typing :: Typed" in data.get_all("Classifier")
    extras = set(data.get_all("Provides-Extra"))
    assert {"export", "docs", "test", "dev", "bench", "browser"} == extras
    assert data.get_payload().startswith("# jaxpoison")
    # Every dependency has a lower bound, and an extra is no part of the rest.
    required = [each for each in data.get_all("Requires-Dist") if "extra ==" not in each]
    assert all(">=" in each for each in required), required
    assert not any("torch" in each or "mkdocs" in each for each in required)


def test_it_runs_where_only_the_wheel_is_installed(built, tmp_path):
    environment = tmp_path / "venv"
    if uv := shutil.which("uv"):
        output_of(uv, "venv", "--python", sys.executable, str(environment), cwd=tmp_path)
        install = [uv, "pip", "install", "--python", str(environment / "bin" / "python")]
    else:
        output_of(sys.executable, "-m", "venv", str(environment), cwd=tmp_path)
        install = [str(environment / "bin" / "python"), "-m", "pip", "install", "--quiet"]
    output_of(*install, str(built[1]), cwd=tmp_path)
    command = str(environment / "bin" / "jaxpoison")
    assert output_of(command, "--version", cwd=tmp_path).strip() == f"jaxpoison {__version__}"

    signs = synthetic(train=300, validation=10, test=10).train
    for image, label, name in zip(signs.images, signs.labels, signs.ids, strict=True):
        path = tmp_path / "photos" / f"kind {label}" / f"{name.replace('/', '-')}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    options = ["--data", "photos", "--attack", "standard", "--rate", "0.3", "--epochs", "1"]
    printed = output_of(
        command, "run", *options, "--detectors", "raw_pca,activation_pca", cwd=tmp_path
    )
    assert "activation_pca" in printed
    made = tmp_path / "jaxpoison-run"
    assert (made / "suspects-class-5.csv").read_text().startswith("part,id,label\n")
    assert "data:image/png" in (made / "report.html").read_text()
    where = "import jaxpoison; print(jaxpoison.__file__)"
    python = str(environment / "bin" / "python")
    assert output_of(python, "-c", where, cwd=tmp_path).startswith(str(environment))
