"""Focal modulation: queries times a context that is gathered level by level, in place of attention.

Papers:
- `Focal Modulation Networks` - https://arxiv.org/abs/2203.11926
"""

from torch import Tensor, nn
from torch.nn import functional as F

from attnzoo.kernels import focal_modulate

from ._common import check_map, make_dropout


class FocalModulation(nn.Module):
    """Focal modulation of a channels-last map: each query is multiplied by a context of several levels and the mean.

    Parameters have the official names and shapes; timm's differ in `norm` for `ln`, and in having 1x1 convolutions
    for the linear layers.

    Args:
        dim: Channels of input and output, C.
        focal_window: Size of the first level's kernel, odd.
        focal_level: Levels, L, beside the mean over the map.
        focal_factor: By how much the kernel grows from a level to the next, even.
        bias: Whether the projection to queries, context and gates, and the mixing of the context, have a bias.
        post_norm: Layer norm behind the product (`use_postln_in_modulation` in the official code).
        normalize_modulator: Divide the sum of the levels by L + 1.
        proj_drop: Dropout of the output.
        norm_eps: Epsilon of the layer norm; timm's is 1e-6.

    Shape: [B, H, W, C] -> [B, H, W, C], any H and W.

    Raises:
        ValueError: A size, the number of levels or the rate is out of range, or the input is no such map.
    """

    def __init__(
        self,
        dim: int,
        focal_window: int = 3,
        focal_level: int = 2,
        focal_factor: int = 2,
        bias: bool = True,
        post_norm: bool = False,
        normalize_modulator: bool = False,
        proj_drop: float = 0.0,
        norm_eps: float = 1e-5,
        device=None,
        dtype=None,
    ):
        dd = {'device': device, 'dtype': dtype}
        super().__init__()
        if focal_level < 1:
            raise ValueError(f'focal_level: expected at least 1, got {focal_level}')
        if focal_window < 1 or focal_window % 2 == 0:
            raise ValueError(f'focal_window: expected an odd number, got {focal_window}')
        if focal_factor < 0 or focal_factor % 2:
            raise ValueError(f'focal_factor: expected an even number, got {focal_factor}')
        self.dim = dim
        self.focal_level = focal_level
        self.normalize_modulator = normalize_modulator
        self.f = nn.Linear(dim, 2 * dim + focal_level + 1, bias=bias, **dd)
        self.h = nn.Conv2d(dim, dim, 1, bias=bias, **dd)
        self.proj = nn.Linear(dim, dim, **dd)
        self.proj_drop = make_dropout('proj_drop', proj_drop)
        kernels = [focal_window + focal_factor * level for level in range(focal_level)]
        # The activations are the op's; as modules they keep the official names of the weights.
        self.focal_layers = nn.ModuleList(
            nn.Sequential(nn.Conv2d(dim, dim, kernel, padding=kernel // 2, groups=dim, bias=False, **dd), nn.GELU())
            for kernel in kernels
        )
        self.ln = nn.LayerNorm(dim, eps=norm_eps, **dd) if post_norm else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        check_map(x, self.dim)
        # Three products instead of one, whose odd width would leave maps that do not begin at even places in memory.
        sizes = [self.dim, self.dim, self.focal_level + 1]
        weights, bias = self.f.weight.split(sizes), self.f.bias
        if bias is None:
            q, context, gates = F.linear(x, weights[0]), F.linear(x, weights[1]), F.linear(x, weights[2])
        else:
            biases = bias.split(sizes)
            q = F.linear(x, weights[0], biases[0])
            context = F.linear(x, weights[1], biases[1])
            gates = F.linear(x, weights[2], biases[2])
        kernels = [layer[0].weight for layer in self.focal_layers]  # type: ignore[index]
        out = focal_modulate(
            q, context, gates, kernels, self.h.weight.flatten(1), self.h.bias, self.normalize_modulator
        )
        return self.proj_drop(self.proj(self.ln(out)))
