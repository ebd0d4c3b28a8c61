"""The paper's relevance of the compact Inception in plain PyTorch, step by step.

No hooks and no package for relevance: each step is written out, so that it
checks both this package's and zennit's route to the same numbers.
"""

import numpy as np
import torch
from torch.nn import functional as F

from experiments.zennit_networks import Block, TorchInception

EPSILON = 1e-6


def _share(x: torch.Tensor, z: torch.Tensor, relevance: torch.Tensor) -> torch.Tensor:
    """``x * d(z)/dx`` applied to ``R / z``: relevance by share in the sum ``z`` of products."""
    quotient = relevance / (z + torch.where(z < 0, -EPSILON, EPSILON))
    return x.detach() * torch.autograd.grad(z, x, quotient)[0]


def _linear(layer: torch.nn.Module, x: torch.Tensor, relevance: torch.Tensor) -> torch.Tensor:
    """``R_j = sum_k x_j^2 w_jk^2 / (sum_j x_j^2 w_jk^2 + eps) R_k``, no bias."""
    squared = x.detach().square().requires_grad_()
    weight = layer.weight.detach().square()
    if isinstance(layer, torch.nn.Conv2d):
        z = F.conv2d(squared, weight, padding=layer.padding)
    else:
        z = F.linear(squared, weight)
    return _share(squared, z, relevance)


def _max_pool(x: torch.Tensor, relevance: torch.Tensor) -> torch.Tensor:
    _, winner = F.max_pool2d(x, 2, return_indices=True)
    return F.max_unpool2d(relevance, winner, 2, output_size=x.shape[2:])


def _avg_pool(x: torch.Tensor, relevance: torch.Tensor) -> torch.Tensor:
    x = x.detach().requires_grad_()
    return _share(x, F.avg_pool2d(x, 3, 1, 1), relevance)


def paper_relevance(network: TorchInception, images: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Relevance ``[n, h, w, c]`` of images in [0, 1], starting from the logits' magnitudes."""
    parameter = next(network.parameters())
    x = torch.from_numpy(images.transpose(0, 3, 1, 2).copy()).to(parameter.dtype)
    n = network
    branches: list[list[Block]] = [
        [n.branch1x1],
        [n.branch5x5_1, n.branch5x5_2],
        [n.branch3x3_1, n.branch3x3_2, n.branch3x3_3],
        [n.branch_pool_1],
    ]
    averaged = n.branch_pool(x)
    seen: list[list[torch.Tensor]] = []
    for blocks, start in zip(branches, (x, x, x, averaged), strict=True):
        values = [start]
        for block in blocks:
            values.append(block(values[-1]))
        seen.append(values)
    joined = torch.cat([values[-1] for values in seen], 1)
    trunk = [(None, joined, n.pool(joined))]
    for block in (n.conv1, n.conv2, n.conv3):
        pooled = trunk[-1][2]
        after = block(pooled)
        trunk.append((block, after, n.pool(after)))
    flat = trunk[-1][2].flatten(1)
    hidden1 = torch.relu(n.dense1(flat))
    hidden2 = torch.relu(n.dense2(hidden1))
    logits = n.dense3(hidden2)

    start = F.one_hot(torch.from_numpy(classes), logits.shape[1])
    relevance = logits.detach().abs() * start
    for layer, inputs in ((n.dense3, hidden2), (n.dense2, hidden1), (n.dense1, flat)):
        relevance = _linear(layer, inputs, relevance)
    relevance = relevance.reshape(trunk[-1][2].shape)
    # ReLU and batch normalisation pass relevance on as it is.
    for k in range(3, 0, -1):
        block, after, _ = trunk[k]
        relevance = _linear(block.conv, trunk[k - 1][2], _max_pool(after, relevance))
    relevance = _max_pool(joined, relevance)
    widths = [values[-1].shape[1] for values in seen]
    total = torch.zeros_like(x)
    for blocks, values, part in zip(branches, seen, relevance.split(widths, 1), strict=True):
        handed = part
        for block, inputs in zip(blocks[::-1], values[-2::-1], strict=True):
            handed = _linear(block.conv, inputs, handed)
        total += _avg_pool(x, handed) if values[0] is averaged else handed
    return total.detach().numpy().transpose(0, 2, 3, 1)
