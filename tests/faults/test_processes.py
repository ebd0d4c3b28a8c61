"""One of two processes that work together dies: the other ends with an error, and soon.

``JAXPOISON_KILLS=2 pytest tests/faults`` kills either of them; by default the one that coordinates.
"""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

GOLDEN = Path(__file__).parent.parent / "golden" / "heatmaps.npz"
KILLS = int(os.environ.get("JAXPOISON_KILLS", "1"))
HEARTBEAT = 10  # Seconds without a sign of life; jax.distributed waits for 100 by default.
SCRIPT = """
import sys
import jax
process, port, heartbeat = map(int, sys.argv[2:])
jax.config.update("jax_num_cpu_devices", 1)
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.distributed.initialize(
    f"localhost:{port}", 2, process, heartbeat_timeout_seconds=heartbeat
)
import numpy as np
from jaxpoison import GromovWassersteinKMeans
with np.load(sys.argv[1]) as file:
    maps = file["heatmaps"].astype(np.float32)
while True:
    GromovWassersteinKMeans(epsilon=0.005, mode="quick").fit(maps)
    print("clustered", flush=True)
"""


@pytest.mark.parametrize("killed", [0, 1][:KILLS], ids=["the coordinator", "the other"][:KILLS])
def test_the_process_that_is_left_ends_with_an_error(killed):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    running = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT, str(GOLDEN), str(process), str(port), str(HEARTBEAT)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ,
        )
        for process in range(2)
    ]
    try:
        for process in running:
            # The library that connects them says so first.
            assert "clustered\n" in iter(process.stdout.readline, "")
        running[killed].send_signal(signal.SIGKILL)
        started = time.perf_counter()
        _, errors = running[1 - killed].communicate(timeout=120)
        seconds = time.perf_counter() - started
    finally:
        for process in running:
            process.kill()
            process.communicate()
    assert running[1 - killed].returncode not in (0, -signal.SIGKILL)
    assert errors.strip()
    # The heartbeat, and what the machine needs besides.
    assert seconds < HEARTBEAT + 50
