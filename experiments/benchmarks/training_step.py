"""Images per second of one training step of the compact Inception, batch 128.

Forward, backward and Adam, compilation excluded; JAX with plain Flax
convolutions, with this package's (the batch split over one device per core,
as the command line does it, and on one device), and PyTorch on the same
network, one after the other in the same run. About two minutes:

    pip install -e '.[bench]'
    GLIBC_TUNABLES=glibc.malloc.hugetlb=1 python -m experiments.benchmarks.training_step

Expected on two cores of a server CPU: at least 120 images/s for this
package's step in bfloat16, and 3 times the plain Flax step. The quality
beside the speed is the largest relative difference of the first loss and of
the gradient's direction from those of the plain float32 step.
"""

import gc
import os
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax import lax

from experiments.benchmarks.reporting import machine, record, versions
from jaxpoison import CompactInception, TrainConfig
from jaxpoison.training.step import make_train_steps

BATCH, CLASSES, ROUNDS = 128, 43, 8


def seconds(step: Callable[[], object]) -> float:
    """The fastest of several calls after two that warm up; machines are noisy."""
    best = float("inf")
    for k in range(ROUNDS + 2):
        started = time.perf_counter()
        step()
        if k >= 2:
            best = min(best, time.perf_counter() - started)
    return best


def data() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (BATCH, 32, 32, 3)).astype(np.uint8)
    return images, rng.integers(0, CLASSES, BATCH)


def flax_model(plain: bool) -> CompactInception:
    model = CompactInception(CLASSES, rngs=nnx.Rngs(0))
    if plain:
        model.set_attributes(nnx.Conv, conv_general_dilated=lax.conv_general_dilated)
    return model


def jax_step(plain: bool, dtype: str, devices: int | None = None) -> float:
    config = TrainConfig(batch_size=BATCH, augmentation=None, compute_dtype=dtype)
    # Plain Flax would not split the batch.
    some = jax.local_devices()[:devices]
    state, steps = make_train_steps(flax_model(plain), config, 100, devices=some)
    images, labels = (jnp.asarray(x) for x in data())
    order, key = np.arange(BATCH, dtype=np.int32)[None], jax.random.key(0)
    holder = [state]

    def run() -> None:
        holder[0], metrics = steps(holder[0], images, labels, order, 1, key, 0)
        metrics.block_until_ready()

    return seconds(run)


def gradient(plain: bool, dtype: str) -> tuple[float, np.ndarray]:
    """Loss and gradient at the initial weights, dropout off."""
    model = flax_model(plain)
    model.set_attributes(nnx.Conv, dtype=jnp.dtype(dtype))
    model.set_attributes(nnx.Dropout, deterministic=True)
    graphdef, parameters, rest = nnx.split(model, nnx.Param, ...)
    images, labels = data()

    def loss(parameters: nnx.State) -> jax.Array:
        logits = nnx.merge(graphdef, parameters, rest, copy=True)(jnp.asarray(images) / 255.0)
        return optax.softmax_cross_entropy_with_integer_labels(logits, jnp.asarray(labels)).mean()

    value, grads = jax.jit(jax.value_and_grad(loss))(parameters)
    flat = np.concatenate([np.ravel(g) for g in jax.tree.leaves(grads)])
    return float(value), flat


def torch_step(bfloat16: bool) -> float:
    import torch
    from torch import nn

    torch.set_num_threads(os.cpu_count() or 1)

    def conv(c: int, d: int, k: int, padding: int) -> nn.Module:
        return nn.Sequential(nn.Conv2d(c, d, k, padding=padding), nn.BatchNorm2d(d), nn.ReLU())

    class Inception(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.branches = nn.ModuleList(
                [
                    conv(3, 64, 1, 0),
                    nn.Sequential(conv(3, 48, 1, 0), conv(48, 64, 5, 2)),
                    nn.Sequential(conv(3, 64, 1, 0), conv(64, 96, 3, 1), conv(96, 96, 3, 1)),
                    nn.Sequential(nn.AvgPool2d(3, 1, 1), conv(3, 32, 1, 0)),
                ]
            )
            rest = [nn.MaxPool2d(2)]
            for _ in range(3):
                rest += [conv(256, 256, 2, 0), nn.MaxPool2d(2)]
            rest += [nn.Flatten(), nn.Linear(256, 256), nn.ReLU(), nn.Dropout(0.5)]
            rest += [nn.Linear(256, 128), nn.ReLU(), nn.Dropout(0.5), nn.Linear(128, CLASSES)]
            self.rest = nn.Sequential(*rest)

        def forward(self, x: "torch.Tensor") -> "torch.Tensor":
            return self.rest(torch.cat([b(x) for b in self.branches], 1))

    model = Inception().to(memory_format=torch.channels_last)
    count = sum(p.numel() for p in model.parameters())
    if count != 1_110_027:
        raise RuntimeError(f"the PyTorch network must have 1,110,027 parameters, found {count}")
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    images, labels = data()
    x = torch.from_numpy(images).permute(0, 3, 1, 2).float().div(255)
    x = x.contiguous(memory_format=torch.channels_last)
    y = torch.from_numpy(labels)

    def run() -> None:
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()

    return seconds(run)


def main() -> None:
    # As the command line does; plain Flax and PyTorch use both cores by themselves.
    jax.config.update("jax_num_cpu_devices", os.cpu_count())
    rows = {}
    for name, step in (
        ("Flax, lax.conv, float32", lambda: jax_step(True, "float32", devices=1)),
        ("jaxpoison, float32", lambda: jax_step(False, "float32")),
        ("jaxpoison, bfloat16", lambda: jax_step(False, "bfloat16")),
        ("jaxpoison, bfloat16, one device", lambda: jax_step(False, "bfloat16", devices=1)),
        ("PyTorch, float32, channels last", lambda: torch_step(False)),
        ("PyTorch, bfloat16 autocast, channels last", lambda: torch_step(True)),
    ):
        rows[name] = BATCH / step()
        gc.collect()
        print(f"{name}: {rows[name]:.0f} images/s", flush=True)
    plain = rows["Flax, lax.conv, float32"]
    loss, reference = gradient(True, "float32")
    quality = {}
    for dtype in ("float32", "bfloat16"):
        value, grads = gradient(False, dtype)
        cosine = grads @ reference / np.linalg.norm(grads) / np.linalg.norm(reference)
        quality[f"jaxpoison, {dtype}"] = {
            "loss_relative_difference": abs(value / loss - 1),
            "gradient_cosine": float(cosine),
        }
    result = {
        "batch": BATCH,
        "images_per_second": rows,
        "ratio_to_plain_flax": {name: rate / plain for name, rate in rows.items()},
        "against_plain_flax_float32": quality,
        "glibc_tunables": os.environ.get("GLIBC_TUNABLES", ""),
        "machine": machine(),
        "versions": versions("jax", "flax", "torch"),
    }
    lines = [
        f"# Training step of the compact Inception, batch {BATCH}",
        "",
        f"`{result['machine']['cpu']}`, {result['machine']['cores']} cores, "
        f"{', '.join(result['machine']['units'])}; JAX {result['versions']['jax']}, "
        f"PyTorch {result['versions']['torch']}.",
        "",
        "| | images/s | ratio to plain Flax | gradient's cosine with it |",
        "|---|---:|---:|---:|",
    ]
    for name, rate in rows.items():
        cosine = f"{quality[name]['gradient_cosine']:.5f}" if name in quality else "–"
        lines.append(f"| {name} | {rate:.0f} | {rate / plain:.2f} | {cosine} |")
    record("training_step", result, "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
