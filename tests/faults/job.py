"""A command of jaxpoison on small data and with a small network, as a process of its own."""

import signal
import sys
from pathlib import Path

import jax

from jaxpoison import synthetic
from jaxpoison.cli import main
from jaxpoison.jobs import prepare
from jaxpoison.models.named import MODELS

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent.parent))
    from small_runs import Small

    # A shell that starts tests in the background has them ignore it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    jax.config.update("jax_num_cpu_devices", 2)
    MODELS["inception"] = Small  # pyright: ignore[reportArgumentType]
    prepare.load_data = lambda *_, seed, **__: synthetic(
        train=400, validation=60, test=60, seed=seed
    )
    raise SystemExit(main(sys.argv[1:]))
