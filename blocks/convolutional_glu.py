"""Convolutional GLU: an MLP with a gate that sees neighbours.

Papers:
- `TransNeXt: Robust Foveal Visual Perception for Vision Transformers` - https://arxiv.org/abs/2311.17132
"""

from torch import Tensor, nn

from attnzoo.kernels import conv_glu

from ._common import check_map, make_dropout


class ConvolutionalGLU(nn.Module):
    """Convolutional gated linear unit over a channels-last map, as a channel mixer in place of an MLP.

    Parameters have the official names, but for `dwconv` (`dwconv.dwconv` there).

    Args:
        dim: Channels of input and output, C.
        hidden: Width of the MLP that it stands for, 4 * dim when None; its own is two thirds of that, rounded down,
            because the gate takes the third part.
        drop: Dropout behind the gate, and of the output.

    Shape: [B, H, W, C] -> [B, H, W, C], any H and W.

    Raises:
        ValueError: `hidden` is less than 2, the rate is out of range, or the input is no such map.
    """

    def __init__(self, dim: int, hidden: int | None = None, drop: float = 0.0, device=None, dtype=None):
        dd = {'device': device, 'dtype': dtype}
        super().__init__()
        width = 2 * (4 * dim if hidden is None else hidden) // 3
        if width < 1:
            raise ValueError(f'hidden: expected at least 2, got {hidden}')
        self.dim = dim
        self.fc1 = nn.Linear(dim, 2 * width, **dd)
        self.dwconv = nn.Conv2d(width, width, 3, padding=1, groups=width, **dd)
        self.fc2 = nn.Linear(width, dim, **dd)
        self.drop = make_dropout('drop', drop)

    def forward(self, x: Tensor) -> Tensor:
        check_map(x, self.dim)
        out = conv_glu(
            x,
            self.fc1.weight,
            self.dwconv.weight,
            self.fc2.weight,
            self.fc1.bias,
            self.dwconv.bias,
            self.fc2.bias,
            dropout=self.drop.p if self.drop.training else 0.0,
        )
        return self.drop(out)
