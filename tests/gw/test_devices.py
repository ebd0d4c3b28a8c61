"""The same labels on one device, on eight, on two processes, and in double precision."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

GOLDEN = Path(__file__).parent.parent / "golden" / "heatmaps.npz"
SCRIPT = """
import json, sys
import jax
devices, processes, process, port = map(int, sys.argv[2:])
jax.config.update("jax_num_cpu_devices", devices)
if processes > 1:
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"localhost:{port}", processes, process)
assert len(jax.devices()) == devices * processes
import numpy as np
from jaxpoison import GromovWassersteinKMeans
with np.load(sys.argv[1]) as file:
    # As many as no number of devices divides.
    maps = file["heatmaps"].astype(np.float32)[:31]
found = GromovWassersteinKMeans(epsilon=0.02, n_init=2).fit(maps)
distances = found.transform(maps[:7])
print(json.dumps({
    "labels": found.labels_.tolist(),
    "distances": found.clusters_.distances.tolist(),
    "transformed": distances.tolist(),
    "predicted": found.predict(maps[5:16]).tolist(),
}))
"""


def start(devices, processes=1, process=0, port=0, **environment):
    arguments = [sys.executable, "-c", SCRIPT, str(GOLDEN)]
    arguments += [str(number) for number in (devices, processes, process, port)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(arguments, env=os.environ | environment, **pipes)


def result(running):
    output, errors = running.communicate(timeout=500)
    assert running.returncode == 0, errors[-3000:]
    return json.loads(output.splitlines()[-1])


@pytest.fixture(scope="module")
def one():
    return result(start(1))


def same(found, one):
    assert found["labels"] == one["labels"]
    assert len(set(one["labels"])) == 2
    # Sums over devices are taken in another order.
    for name in ("distances", "transformed"):
        np.testing.assert_allclose(found[name], one[name], rtol=1e-3)
    assert found["predicted"] == one["predicted"] == one["labels"][5:16]


@pytest.mark.parametrize("devices", [3, 8])
def test_any_number_of_devices(one, devices):
    same(result(start(devices)), one)


def test_double_precision(one):
    same(result(start(1, JAX_ENABLE_X64="1")), one)


def test_two_processes(one):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    running = [start(2, 2, process, port) for process in range(2)]
    for process in running:
        same(result(process), one)
