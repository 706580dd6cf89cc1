"""`large_kernel_attention`: validation and dispatch."""

import torch
from torch import Tensor

from attnzoo.kernels._checks import check_devices, check_map, check_shape
from attnzoo.kernels._fx import fx_leaf
from attnzoo.kernels.depthwise_conv.op import check_depthwise

from .reference import large_kernel_attention_reference


@fx_leaf
def large_kernel_attention(
    x: Tensor,
    local_weight: Tensor,
    dilated_weight: Tensor,
    weight: Tensor,
    local_bias: Tensor | None = None,
    dilated_bias: Tensor | None = None,
    bias: Tensor | None = None,
    dilation: int = 3,
) -> Tensor:
    """Multiply a map by what a large kernel finds around each position: the attention of VAN (2202.09741).

    The large kernel is taken apart into a depthwise convolution, a dilated one and a linear layer; those of VAN, 5 x 5
    and 7 x 7 with dilation 3, see 23 x 23 positions. Cost grows linearly with the number of positions.

    Legend: B images, H x W map, C channels.

    Args:
        x: [B, H, W, C].
        local_weight: Of the depthwise convolution, [C, 1, kh, kw] with odd kh and kw.
        dilated_weight: Of the dilated one, likewise.
        weight: Of the linear layer, [C, C] as `nn.Linear` has it.
        local_bias: [C].
        dilated_bias: [C].
        bias: [C].
        dilation: Of the second convolution.

    Returns:
        [B, H, W, C]. All inputs get gradients.

    Raises:
        ValueError: An argument has the wrong shape, dtype, device or value; the message names it.
    """
    if not torch.jit.is_scripting():
        check_map('x', x)
        check_depthwise(x, local_weight, local_bias, 1, 'local_weight', 'local_bias')
        check_depthwise(x, dilated_weight, dilated_bias, dilation, 'dilated_weight', 'dilated_bias')
        check_shape('weight', weight, [x.shape[3], x.shape[3]], 'channels, channels')
        check_shape('bias', bias, [x.shape[3]], 'channels')
        check_devices('x', x, {'weight': weight, 'bias': bias})
    return large_kernel_attention_reference(
        x, local_weight, dilated_weight, weight, local_bias, dilated_bias, bias, dilation
    )
