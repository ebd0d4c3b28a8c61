"""Disks that are full or must not be written to: one line, and nothing written before is lost."""

import subprocess

import pytest
from test_kills import end, results, start

pytestmark = pytest.mark.skipif(
    subprocess.run(["unshare", "--mount", "true"], capture_output=True, check=False).returncode
    != 0,
    reason="small disks are mounted, which needs the right to",
)


@pytest.fixture
def disk(tmp_path):
    """A function that makes a disk of so many kilobytes, or grows it."""
    path = tmp_path / "disk"
    path.mkdir()

    def sized(kilobytes, *, writable=True):
        options = f"size={kilobytes}k" + ("" if writable else ",ro")
        if path.is_mount():
            options += ",remount"
        mounted = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(path)]
        subprocess.run(mounted, check=True)
        return path

    yield sized
    if path.is_mount():
        subprocess.run(["umount", str(path)], check=True)


def said_by(job, work):
    process = start(job, work)
    output = process.communicate(timeout=300)[0]
    return process.returncode, output


def test_a_full_disk_takes_one_line_and_loses_nothing(disk, tmp_path):
    """Full while it trains."""
    status, said = said_by("run", str(disk(1300) / "work"))
    assert status == 2
    assert said.count("\n") == 1, said
    assert "No space left on device" in said
    assert "what is finished is kept: the same command goes on" in said
    end("run", str(disk(20_000) / "work"))
    end("run", str(tmp_path / "elsewhere"))
    names = ("result.json", "images.csv", "suspects-class-5.csv")
    found, expected = results(disk(20_000) / "work"), results(tmp_path / "elsewhere")
    assert {k: found[k] for k in names} == {k: expected[k] for k in names}


def test_a_disk_that_must_not_be_written_to_takes_one_line(disk, tmp_path):
    status, said = said_by("run", str(disk(100, writable=False) / "work"))
    assert (status, said.count("\n")) == (2, 1)
    assert "Read-only file system" in said
    (tmp_path / "file").touch()
    status, said = said_by("run", str(tmp_path / "file"))
    assert (status, said.count("\n")) == (2, 1)
    assert "file is a file: give another work directory" in said
