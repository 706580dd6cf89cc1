"""The MLP of transformer blocks."""

import timm.layers
import torch
from torch import Tensor, nn

from attnzoo.kernels._mlp import mlp

from ._parts import may_skip_layers


class Mlp(timm.layers.Mlp):
    """timm's MLP, which on a CPU keeps half as much for the backward pass and takes large hidden layers by parts.

    Parameters, arguments and results are timm's. With another activation than GELU, a norm between the layers, dropout
    in training, layers of another class or hooks on them, its layers run one after the other, as timm's do.

    Shape: [..., in_features] -> [..., out_features].
    """

    def forward(self, x: Tensor) -> Tensor:
        if torch.jit.is_scripting():
            return self.layers(x)
        else:
            return self.by_hand(x) if self.runs_by_hand(x) else self.layers(x)

    def layers(self, x: Tensor) -> Tensor:
        return self.drop2(self.fc2(self.norm(self.drop1(self.act(self.fc1(x))))))

    @torch.jit.ignore
    def by_hand(self, x: Tensor) -> Tensor:
        approximate = 'tanh' if isinstance(self.act, timm.layers.GELUTanh) else getattr(self.act, 'approximate', 'none')
        return mlp(x, self.fc1.weight, self.fc2.weight, self.fc1.bias, self.fc2.bias, approximate)

    @torch.jit.ignore
    def runs_by_hand(self, x: Tensor) -> bool:
        plain = type(self.fc1) is type(self.fc2) is nn.Linear and type(self.norm) is nn.Identity
        plain &= type(self.act) in (nn.GELU, timm.layers.GELU, timm.layers.GELUTanh)
        plain &= all(drop.p == 0.0 or not drop.training for drop in (self.drop1, self.drop2))
        return plain and may_skip_layers(self, x)
