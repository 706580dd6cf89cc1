"""MaxViT's block: a convolution, attention within blocks, attention over grids.

Papers:
- `MaxViT: Multi-Axis Vision Transformer` - https://arxiv.org/abs/2204.01697

The details are those of the official TensorFlow weights: SAME padding, tanh GELU, epsilons of 1e-3 (batch norm) and
1e-5 (layer norm).
"""

from collections import OrderedDict

import torch
from timm.layers import BatchNormAct2d, DropPath, SEModule, create_conv2d, get_act_layer
from torch import Tensor, nn
from torch.nn import functional as F

from attnzoo.kernels._fx import fx_leaf, is_symbolic
from attnzoo.kernels._math import as_dense

from ._common import check_map
from ._parts import parts, pays_by_parts
from .grid import BlockAttention, GridAttention
from .mlp import Mlp

ACTIVATION = 'gelu_tanh'


class MultiAxisAttention(nn.Module):
    """Multi-axis attention: MBConv, then block attention and grid attention, each with an MLP.

    Parameters have the names of timm's `MaxxVitBlock`.

    Args:
        dim: Channels of the input, C.
        dim_out: Channels of the output, `dim` when None; they differ only with a stride of 2.
        stride: 1, or 2 to halve the map.
        window: Tokens of a block and of a grid, a number or (Wh, Ww).
        head_dim: Channels of a head; they divide `dim_out`.
        drop_path: Stochastic depth rate of each residual branch.
        attn_drop: Dropout of the attention weights.
        proj_drop: Dropout of what the attentions put out, and in the MLPs behind their layers, as in timm.

    Shape: [B, H, W, C] -> [B, ceil(H / stride), ceil(W / stride), dim_out], any H and W.

    Raises:
        ValueError: `stride` is neither 1 nor 2, `dim_out` differs from `dim` without a stride, `head_dim` does not
            divide `dim_out`, `window` or a rate is out of range, or the input is no such map.
    """

    def __init__(
        self,
        dim: int,
        dim_out: int | None = None,
        stride: int = 1,
        window: int | tuple[int, int] = 7,
        head_dim: int = 32,
        drop_path: float = 0.0,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        device=None,
        dtype=None,
    ):
        dd = {'device': device, 'dtype': dtype}
        super().__init__()
        dim_out = dim_out or dim
        if head_dim < 1 or dim_out % head_dim:
            raise ValueError(f'head_dim: expected a divisor of {dim_out} channels, got {head_dim}')
        num_heads = dim_out // head_dim
        self.dim = dim
        self.conv = MBConv(dim, dim_out, stride, drop_path, **dd)
        block = BlockAttention(dim_out, num_heads, window, attn_drop, proj_drop, **dd)
        grid = GridAttention(dim_out, num_heads, window, attn_drop, proj_drop, **dd)
        self.attn_block = AttentionLayer(dim_out, block, drop_path, proj_drop, **dd)
        self.attn_grid = AttentionLayer(dim_out, grid, drop_path, proj_drop, **dd)

    def forward(self, x: Tensor) -> Tensor:
        check_map(x, self.dim)
        x = self.conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return self.attn_grid(self.attn_block(x))


class MBConv(nn.Module):
    """Inverted bottleneck with squeeze and excitation, on a channels-first map.

    Batch norm, 1x1 convolution to four times the output's width, depthwise 3x3 (which strides), gate, 1x1 convolution.
    In inference on a CPU it takes large maps a few images at a time.

    Args:
        dim: Channels of the input, C.
        dim_out: Channels of the output; they differ from `dim` only with a stride of 2.
        stride: 1, or 2 to halve the map; the shortcut is then pooled.
        drop_path: Stochastic depth rate.

    Shape: [B, C, H, W] -> [B, dim_out, ceil(H / stride), ceil(W / stride)].
    """

    def __init__(self, dim: int, dim_out: int, stride: int = 1, drop_path: float = 0.0, device=None, dtype=None):
        dd = {'device': device, 'dtype': dtype}
        super().__init__()
        if stride not in (1, 2):
            raise ValueError(f'stride: expected 1 or 2, got {stride}')
        if stride == 1 and dim_out != dim:
            raise ValueError(f'dim_out: expected the {dim} channels of the input where the stride is 1, got {dim_out}')
        self.dim = dim
        hidden = 4 * dim_out
        self.shortcut = nn.Identity() if stride == 1 else _pooled_shortcut(dim, dim_out, **dd)
        self.pre_norm = BatchNormAct2d(dim, eps=1e-3, apply_act=False, **dd)
        self.conv1_1x1 = create_conv2d(dim, hidden, 1, **dd)
        self.norm1 = BatchNormAct2d(hidden, eps=1e-3, act_layer=ACTIVATION, **dd)
        self.pad = PadSame(3) if stride == 2 else nn.Identity()
        self.conv2_kxk = DepthwiseConv2d(hidden, hidden, 3, stride, padding=2 - stride, groups=hidden, bias=False, **dd)
        self.norm2 = BatchNormAct2d(hidden, eps=1e-3, act_layer=ACTIVATION, **dd)
        self.se = SEModule(hidden, rd_channels=dim_out // 4, act_layer=nn.SiLU, **dd)
        self.conv3_1x1 = create_conv2d(hidden, dim_out, 1, bias=True, **dd)
        self.drop_path = DropPath(drop_path) if drop_path > 0.0 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        check_map(x, self.dim, channels_first=True)
        if torch.jit.is_scripting():
            return self.layers(x)
        else:
            return self.by_parts(x) if self.pays_by_parts(x) else self.layers(x)

    def layers(self, x: Tensor) -> Tensor:
        shortcut = self.shortcut(x)
        x = self.norm1(self.conv1_1x1(self.pre_norm(x)))
        x = self.norm2(self.conv2_kxk(self.pad(x)))
        x = self.conv3_1x1(self.se(x))
        return shortcut + self.drop_path(x)

    @torch.jit.ignore
    def by_parts(self, x: Tensor) -> Tensor:
        return torch.cat([self.layers(part) for part in parts(x, self.growth())])

    @torch.jit.ignore
    def pays_by_parts(self, x: Tensor) -> bool:
        # In training, the images of a batch are normalised together.
        return not self.training and pays_by_parts(self, x, self.growth())

    @torch.jit.ignore
    def growth(self) -> float:
        return self.conv1_1x1.out_channels / self.dim


class DepthwiseConv2d(nn.Conv2d):
    """A depthwise convolution, of any stride, whose gradient is dense in memory as its weight is."""

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, as_dense(self.weight), self.bias, self.stride, self.padding, self.dilation, self.groups)


class PadSame(nn.Module):
    """TensorFlow's SAME padding for what runs over a map in steps of 2: if uneven, it is more at the bottom and right.

    timm has convolutions and pooling that do it themselves, which no torch.fx tracer but its own takes.

    Args:
        kernel: Size of the kernel, 2 or more.

    Shape: [B, C, H, W] -> [B, C, 2 * ceil(H / 2) + kernel - 2, 2 * ceil(W / 2) + kernel - 2].
    """

    def __init__(self, kernel: int):
        super().__init__()
        self.kernel = kernel

    def forward(self, x: Tensor) -> Tensor:
        return pad_same(x, self.kernel)


@fx_leaf  # reason: it looks at sizes
def pad_same(x: Tensor, kernel: int) -> Tensor:
    """What PadSame does."""
    bottom, right = x.shape[2] % 2 + kernel - 2, x.shape[3] % 2 + kernel - 2
    if not is_symbolic(x.shape[2]) and not is_symbolic(x.shape[3]) and bottom == 0 and right == 0:
        return x
    return F.pad(x, (right // 2, right - right // 2, bottom // 2, bottom - bottom // 2))


def _pooled_shortcut(dim: int, dim_out: int, device=None, dtype=None) -> nn.Module:
    layers: OrderedDict[str, nn.Module] = OrderedDict(pad=PadSame(2), pool=nn.AvgPool2d(2))
    if dim_out != dim:
        layers['expand'] = nn.Conv2d(dim, dim_out, 1, device=device, dtype=dtype)
    return nn.Sequential(layers)


class AttentionLayer(nn.Module):
    """An attention and an MLP of four times its width, each behind a layer norm and on a residual branch.

    Args:
        dim: Channels of input and output, C.
        attn: The attention, [B, H, W, C] -> [B, H, W, C].
        drop_path: Stochastic depth rate of each branch.
        drop: Dropout behind both layers of the MLP.

    Shape: [B, H, W, C] -> [B, H, W, C].
    """

    def __init__(self, dim: int, attn: nn.Module, drop_path: float = 0.0, drop: float = 0.0, device=None, dtype=None):
        dd = {'device': device, 'dtype': dtype}
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, **dd)
        self.attn = attn
        self.norm2 = nn.LayerNorm(dim, **dd)
        self.mlp = Mlp(dim, 4 * dim, act_layer=get_act_layer(ACTIVATION), drop=drop, **dd)
        self.drop_path = DropPath(drop_path) if drop_path > 0.0 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self.attn(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))
