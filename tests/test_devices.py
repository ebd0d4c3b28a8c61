"""The same labels on one device, on eight, on two processes, and in double precision."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from jaxpoison.parallel import mesh_for

GOLDEN = Path(__file__).parent / "golden" / "heatmaps.npz"
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
from jaxpoison import EntropicGW, gw_kmeans, measure_spaces
with np.load(sys.argv[1]) as file:
    spaces = measure_spaces(file["heatmaps"].astype(np.float32))
found = gw_kmeans(spaces, solver=EntropicGW(0.02), n_init=2)
print(json.dumps({"labels": found.labels.tolist(), "distances": found.distances.tolist()}))
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
    np.testing.assert_allclose(found["distances"], one["distances"], rtol=1e-3)


def test_eight_devices(one):
    same(result(start(8)), one)


def test_double_precision(one):
    same(result(start(1, JAX_ENABLE_X64="1")), one)


def test_no_process_is_left_out():
    devices = [SimpleNamespace(process_index=k // 2) for k in range(4)]
    with pytest.raises(ValueError, match="a multiple of .* all processes, 4, found 5"):
        mesh_for(5, devices)


def test_two_processes(one):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    running = [start(2, 2, process, port) for process in range(2)]
    for process in running:
        same(result(process), one)
