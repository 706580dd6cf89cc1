"""Depthwise convolution by its definition, for the tests of the ops that are made of it."""

import torch
from torch import Tensor
from torch.nn import functional as F


def correlate(x: Tensor, kernel: Tensor, bias: Tensor | None = None, dilation: int = 1) -> Tensor:
    """A sum over the positions of the kernel [C, 1, kh, kw], each of which weighs a shifted map [B, H, W, C]."""
    _, height, width, _ = x.shape
    kernel_h, kernel_w = kernel.shape[2:]
    top, left = dilation * (kernel_h // 2), dilation * (kernel_w // 2)
    padded = F.pad(x, (0, 0, left, left, top, top))
    out = torch.zeros_like(x)
    for i in range(kernel_h):
        for j in range(kernel_w):
            rows = slice(dilation * i, dilation * i + height)
            columns = slice(dilation * j, dilation * j + width)
            out = out + padded[:, rows, columns] * kernel[:, 0, i, j]
    return out if bias is None else out + bias
