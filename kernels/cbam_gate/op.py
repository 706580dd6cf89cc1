"""`cbam_gate`: validation and dispatch."""

import torch
from torch import Tensor

from attnzoo.kernels._checks import check_devices, check_map
from attnzoo.kernels._fx import fx_leaf
from attnzoo.kernels._gates import check_gated, check_mlp
from attnzoo.kernels._spatial_gate import check_spatial_gate

from .reference import cbam_gate_reference

POOLS = ('avg', 'max', 'lp', 'lse')


@fx_leaf
def cbam_gate(
    x: Tensor,
    fc1_weight: Tensor,
    fc2_weight: Tensor,
    fc1_bias: Tensor | None = None,
    fc2_bias: Tensor | None = None,
    conv_weight: Tensor | None = None,
    norm_weight: Tensor | None = None,
    norm_bias: Tensor | None = None,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.01,
    eps: float = 1e-5,
    pools: list[str] | None = None,
    residual: Tensor | None = None,
    activation: str | None = None,
) -> Tensor:
    """The convolutional block attention module (CBAM, 1807.06521): a gate of channels, then a gate of positions.

        y = x * sigmoid(sum over pools of fc2(relu(fc1(pool(x)))))
        z = y * sigmoid(norm(conv(maximum and mean of y over the channels)))

    `norm` is a batch norm of the one map that the convolution gives.

    Legend: B images, C channels, H x W map, D hidden channels, kernel of kh x kw.

    Args:
        x: [B, C, H, W], of any memory format.
        fc1_weight: [D, C].
        fc2_weight: [C, D].
        fc1_bias: [D].
        fc2_bias: [C].
        conv_weight: [1, 2, kh, kw], kh and kw odd: for the maximum, then the mean. None: no gate of positions.
        norm_weight: [1].
        norm_bias: [1].
        running_mean: [1]. Without it and `running_var` the batch's own statistics normalise.
        running_var: [1].
        training: Normalise by the batch's statistics, and update the running ones in place.
        momentum: Share of the batch in an update.
        eps: Added to the variance.
        pools: Which pools of a channel make its gate: some of 'avg', 'max', 'lp' (the root of the sum of squares) and
            'lse' (the logarithm of the sum of exponentials); None for 'avg' and 'max'.
        residual: [B, C, H, W], added behind the gates.
        activation: What comes last, such as 'relu' (see `channel_gate`); None for nothing.

    Returns:
        activation(z + residual), [B, C, H, W], in the dtype and memory format of x. All inputs but the running
        statistics get gradients. Equal maxima share theirs, where the published code gives it to the first.

    Raises:
        ValueError: An argument has the wrong shape, dtype, device or value; the message names it.
    """
    if not torch.jit.is_scripting():
        _check(x, fc1_weight, fc2_weight, fc1_bias, fc2_bias, pools)
        if conv_weight is not None:
            check_spatial_gate(
                x,
                {
                    'conv_weight': conv_weight,
                    'norm_weight': norm_weight,
                    'norm_bias': norm_bias,
                    'running_mean': running_mean,
                    'running_var': running_var,
                },
            )
        check_gated(x, residual, activation)
    return cbam_gate_reference(
        x, residual, activation, ['avg', 'max'] if pools is None else pools, fc1_weight, fc2_weight, fc1_bias, fc2_bias,
        conv_weight, norm_weight, norm_bias, running_mean, running_var, training, momentum, eps,
    )  # fmt: skip


def _check(
    x: Tensor,
    fc1_weight: Tensor,
    fc2_weight: Tensor,
    fc1_bias: Tensor | None,
    fc2_bias: Tensor | None,
    pools: list[str] | None,
) -> None:
    check_map('x', x, channels_first=True)
    check_mlp(x.shape[1], fc1_weight, fc2_weight, fc1_bias, fc2_bias)
    layers = {'fc1_weight': fc1_weight, 'fc2_weight': fc2_weight, 'fc1_bias': fc1_bias, 'fc2_bias': fc2_bias}
    check_devices('x', x, layers)
    if pools is not None and (not pools or any(pool not in POOLS for pool in pools)):
        raise ValueError(f'pools: expected some of {", ".join(map(repr, POOLS))}, got {list(pools)}')
