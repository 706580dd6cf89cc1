"""The MLP of transformer blocks."""

import timm.layers
import torch
from torch import Tensor
from torch.fx import Proxy

from attnzoo.kernels._cpu import LARGE_BYTES, runs_by_hand

PART_BYTES = 4 << 20  # of the hidden layer, where it is computed by parts


class Mlp(timm.layers.Mlp):
    """timm's MLP, which on a CPU computes a large hidden layer by parts that fit into the caches.

    As a whole it would be memory that is new at each call, and getting that takes longer than filling it. Parameters,
    arguments and results are timm's.

    Shape: [..., in_features] -> [..., out_features].
    """

    def forward(self, x: Tensor) -> Tensor:
        if torch.jit.is_scripting():
            return self.layers(x)
        else:
            return self.by_parts(x) if self.pays_by_parts(x) else self.layers(x)

    def layers(self, x: Tensor) -> Tensor:
        return self.drop2(self.fc2(self.norm(self.drop1(self.act(self.fc1(x))))))

    @torch.jit.ignore
    def by_parts(self, x: Tensor) -> Tensor:
        rows = max(1, PART_BYTES // (self.fc1.out_features * x.element_size()))
        return torch.cat([self.layers(part) for part in x.flatten(0, -2).split(rows)]).unflatten(0, x.shape[:-1])

    @torch.jit.ignore
    def pays_by_parts(self, x: Tensor) -> bool:
        if isinstance(x, Proxy) or not runs_by_hand(x):
            return False
        if x.numel() // x.shape[-1] * self.fc1.out_features * x.element_size() < LARGE_BYTES:
            return False
        # Whoever listens to a layer wants to hear it once.
        return not any(
            m._forward_hooks or m._forward_pre_hooks or m._backward_hooks or m._backward_pre_hooks
            for m in self.modules()
            if m is not self
        )
