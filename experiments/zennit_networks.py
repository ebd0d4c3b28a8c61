"""The package's networks in PyTorch, and its composites in zennit, for comparison.

zennit imports two ResNet classes from torchvision, which has no small build
for CPUs; an empty stand-in serves, since the networks here use neither.

    pip install torch==2.13.0 && pip install --no-deps zennit==0.5.1
"""

import sys
import types
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from flax import nnx
from torch import nn

from jaxpoison import CompactInception, ResNet18


def import_zennit() -> types.SimpleNamespace:
    """Zennit's modules, without torchvision."""
    if "torchvision" not in sys.modules:
        resnet = types.ModuleType("torchvision.models.resnet")
        for name in ("Bottleneck", "BasicBlock"):
            setattr(resnet, name, type(name, (nn.Module,), {}))
        sys.modules["torchvision"] = types.ModuleType("torchvision")
        sys.modules["torchvision.models"] = types.ModuleType("torchvision.models")
        sys.modules["torchvision.models.resnet"] = resnet
    from zennit import canonizers, composites, core, layer, rules

    return types.SimpleNamespace(
        canonizers=canonizers, composites=composites, core=core, layer=layer, rules=rules
    )


class Block(nn.Module):
    """Convolution, batch normalisation, ReLU."""

    def __init__(self, c: int, d: int, k: int, padding: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(c, d, k, padding=padding)
        self.norm = nn.BatchNorm2d(d)
        self.relu = nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.relu(self.norm(self.conv(x)))


class TorchInception(nn.Module):
    """``jaxpoison.CompactInception`` in PyTorch, with the same names."""

    first = ("branch1x1.conv", "branch5x5_1.conv", "branch3x3_1.conv", "branch_pool_1.conv")

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.branch1x1 = Block(3, 64, 1, 0)
        self.branch5x5_1, self.branch5x5_2 = Block(3, 48, 1, 0), Block(48, 64, 5, 2)
        self.branch3x3_1, self.branch3x3_2 = Block(3, 64, 1, 0), Block(64, 96, 3, 1)
        self.branch3x3_3 = Block(96, 96, 3, 1)
        self.branch_pool = nn.AvgPool2d(3, 1, 1)
        self.branch_pool_1 = Block(3, 32, 1, 0)
        self.pool = nn.MaxPool2d(2)
        for k in range(1, 4):
            setattr(self, f"conv{k}", Block(256, 256, 2, 0))
        self.dense1, self.dense2 = nn.Linear(256, 256), nn.Linear(256, 128)
        self.relu1, self.relu2 = nn.ReLU(), nn.ReLU()
        self.dense3 = nn.Linear(128, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        branches = (
            self.branch1x1(x),
            self.branch5x5_2(self.branch5x5_1(x)),
            self.branch3x3_3(self.branch3x3_2(self.branch3x3_1(x))),
            self.branch_pool_1(self.branch_pool(x)),
        )
        x = self.pool(torch.cat(branches, 1))
        for block in (self.conv1, self.conv2, self.conv3):
            x = self.pool(block(x))
        x = self.relu1(self.dense1(x.flatten(1)))
        return self.dense3(self.relu2(self.dense2(x)))


class Normed(nn.Module):
    """Convolution without bias, batch normalisation."""

    def __init__(self, c: int, d: int, k: int, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(c, d, k, stride, k // 2, bias=False)
        self.norm = nn.BatchNorm2d(d)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.conv(x))


class Residual(nn.Module):
    """A basic block, with zennit's layer for the sum."""

    def __init__(self, c: int, d: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.relu1 = Normed(c, d, 3, stride), nn.ReLU()
        self.conv2 = Normed(d, d, 3)
        self.shortcut = Normed(c, d, 1, stride) if stride != 1 or c != d else None
        self.sum, self.relu2 = import_zennit().layer.Sum(), nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv2(self.relu1(self.conv1(x)))
        short = x if self.shortcut is None else self.shortcut(x)
        return self.relu2(self.sum(torch.stack([short, y], -1)))


class TorchResNet18(nn.Module):
    """``jaxpoison.ResNet18`` in PyTorch, with the same names."""

    first = ("stem.conv",)

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.stem, self.relu = Normed(3, 64, 3), nn.ReLU()
        blocks, c = [], 64
        for d, stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
            blocks += [Residual(c, d, stride), Residual(d, d, 1)]
            c = d
        self.blocks = nn.Sequential(*blocks)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.dense = nn.Linear(512, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.dense(self.pool(self.blocks(self.relu(self.stem(x)))).flatten(1))


NETWORKS: dict[str, tuple[Callable[..., nnx.Module], Callable[[int], nn.Module]]] = {
    "inception": (CompactInception, TorchInception),
    "resnet18": (ResNet18, TorchResNet18),
}


def with_weights_of(model: nnx.Module, network: nn.Module) -> nn.Module:
    """The PyTorch network with the weights of the NNX model, in evaluation mode."""
    modules: dict[str, Any] = {".".join(map(str, p)): m for p, m in nnx.iter_modules(model)}
    with torch.no_grad():
        for name, target in network.named_modules():
            if isinstance(target, nn.Conv2d | nn.Linear):
                # A dense block holds its layer under another name.
                source = modules.get(f"{name}.linear", modules.get(name))
                kernel = np.asarray(source.kernel[...])
                order = (3, 2, 0, 1) if kernel.ndim == 4 else (1, 0)
                target.weight.copy_(torch.from_numpy(kernel.transpose(order).copy()))
                if target.bias is not None:
                    target.bias.copy_(torch.from_numpy(np.array(source.bias[...])))
            elif isinstance(target, nn.BatchNorm2d):
                source = modules[name]
                for ours, theirs in (
                    ("scale", target.weight),
                    ("bias", target.bias),
                    ("mean", target.running_mean),
                    ("var", target.running_var),
                ):
                    theirs.copy_(torch.from_numpy(np.array(getattr(source, ours)[...])))
    return network.eval()


def zennit_composites(first: tuple[str, ...]) -> dict[str, Any]:
    """Zennit's composites under the names of ours; first layers are given by name.

    zennit itself takes only the first layer in the order of attributes.
    """
    z = import_zennit()
    squared = z.core.BasicHook(
        input_modifiers=[lambda x: x**2],
        param_modifiers=[z.core.ParamMod(lambda p, _: p**2, zero_params=["bias"])],
        output_modifiers=[lambda y: y],
        gradient_mapper=lambda g, ys: [g / z.core.stabilize(ys[0])],
        reducer=lambda xs, gs: xs[0] * gs[0],
    )
    linear = (nn.Conv2d, nn.Linear)
    base = z.composites.layer_map_base()

    def with_first(rule: Any, composite: Any) -> Any:
        named = z.composites.NameMapComposite([(first, rule)])
        return z.composites.MixedComposite([named, composite])

    plus, alpha = z.composites.EpsilonPlus, z.composites.EpsilonAlpha2Beta1
    gamma = [(nn.Conv2d, z.rules.Gamma(0.25)), (nn.Linear, z.rules.Epsilon())]
    return {
        "Paper": z.composites.LayerMapComposite([*base, (linear, squared)]),
        "EpsilonPlus": plus(),
        "EpsilonPlusFlat": with_first(z.rules.Flat(), plus()),
        "EpsilonAlpha2Beta1": alpha(),
        "EpsilonAlpha2Beta1Flat": with_first(z.rules.Flat(), alpha()),
        "EpsilonGammaBox": with_first(
            z.rules.ZBox(0.0, 1.0), z.composites.LayerMapComposite([*base, *gamma])
        ),
        "EpsilonPlus, merged": plus(canonizers=[z.canonizers.SequentialMergeBatchNorm()]),
    }


def zennit_relevance(
    network: nn.Module, composite: Any, images: np.ndarray, classes: np.ndarray
) -> np.ndarray:
    """Relevance ``[n, h, w, c]`` of images in [0, 1], starting from the logits' magnitudes."""
    parameter = next(network.parameters())
    x = torch.from_numpy(images.transpose(0, 3, 1, 2).copy()).to(parameter.dtype)
    x.requires_grad_()
    with composite.context(network) as changed:
        logits = changed(x)
        start = nn.functional.one_hot(torch.from_numpy(classes), logits.shape[1])
        (relevance,) = torch.autograd.grad(logits, x, logits.detach().abs() * start)
    return relevance.detach().numpy().transpose(0, 2, 3, 1)
