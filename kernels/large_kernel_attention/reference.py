"""Large kernel attention in plain PyTorch: the definition of the op, and what runs where a kernel does not."""

import torch
from torch import Tensor
from torch.nn import functional as F

from attnzoo.kernels._cpu import infers_by_hand, some_images_at_a_time
from attnzoo.kernels._dispatch import cast_for_autocast
from attnzoo.kernels.depthwise_conv.reference import depthwise_conv_reference


def large_kernel_attention_reference(
    x: Tensor,
    local_weight: Tensor,
    dilated_weight: Tensor,
    weight: Tensor,
    local_bias: Tensor | None,
    dilated_bias: Tensor | None,
    bias: Tensor | None,
    dilation: int,
) -> Tensor:
    """The op on arguments that `large_kernel_attention` has checked."""
    if torch.jit.is_scripting():
        return _plain(x, local_weight, dilated_weight, weight, local_bias, dilated_bias, bias, dilation)
    else:
        return _unscripted(x, local_weight, dilated_weight, weight, local_bias, dilated_bias, bias, dilation=dilation)


def _unscripted(*tensors: Tensor | None, dilation: int) -> Tensor:
    x, *weights = cast_for_autocast(*tensors)
    if infers_by_hand(x, *weights):
        return some_images_at_a_time(lambda part: _plain(part, *weights, dilation), x, x.shape[3])
    return _plain(x, *weights, dilation)


def _plain(
    x: Tensor,
    local_weight: Tensor,
    dilated_weight: Tensor,
    weight: Tensor,
    local_bias: Tensor | None,
    dilated_bias: Tensor | None,
    bias: Tensor | None,
    dilation: int,
) -> Tensor:
    around = depthwise_conv_reference(x, local_weight, local_bias)
    around = depthwise_conv_reference(around, dilated_weight, dilated_bias, False, dilation)
    return x * F.linear(around, weight, bias)
