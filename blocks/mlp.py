"""The MLP of transformer blocks."""

from typing import cast

import timm.layers
import torch
from torch import Tensor

from ._parts import parts, pays_by_parts


class Mlp(timm.layers.Mlp):
    """timm's MLP, which on a CPU computes a large hidden layer by parts that fit into the caches.

    Parameters, arguments and results are timm's.

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
        rows = x.flatten(0, -2)
        return torch.cat([self.layers(part) for part in parts(rows, self.growth())]).unflatten(0, x.shape[:-1])

    @torch.jit.ignore
    def pays_by_parts(self, x: Tensor) -> bool:
        return pays_by_parts(self, x, self.growth())

    @torch.jit.ignore
    def growth(self) -> float:
        hidden, features = cast(Tensor, self.fc1.weight).shape[:2]
        return hidden / features
