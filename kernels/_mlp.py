"""Two linear layers with a GELU between them, both passes written out by hand for a CPU.

Autograd keeps the hidden layer before the GELU and behind it. Here the backward pass computes the latter again, and the
former too where it is large, by parts that fit into the caches: new memory costs about as much as this arithmetic.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from ._cpu import LARGE_BYTES, by_hand, slices, sum_of_rows, wants_gradient
from ._dispatch import cast_for_autocast

PART_BYTES = 8 << 20  # of the hidden layer


def mlp(
    x: Tensor,
    fc1_weight: Tensor,
    fc2_weight: Tensor,
    fc1_bias: Tensor | None,
    fc2_bias: Tensor | None,
    approximate: str,
) -> Tensor:
    """GELU MLP for calls that `_cpu.runs_by_hand` has let through.

    Args:
        x: [..., C].
        fc1_weight: [hidden, C].
        fc2_weight: [D, hidden].
        fc1_bias: [hidden].
        fc2_bias: [D].
        approximate: GELU's formula, 'none' or 'tanh'.

    Returns:
        [..., D].
    """
    cast = cast_for_autocast(x, fc1_weight, fc2_weight, fc1_bias, fc2_bias)
    arguments = [*cast, approximate]
    if wants_gradient(*cast):
        return by_hand(_forward, _backward, _plain, *arguments)
    return _forward(*arguments, keep=False)[0]


def _plain(
    x: Tensor,
    fc1_weight: Tensor,
    fc2_weight: Tensor,
    fc1_bias: Tensor | None,
    fc2_bias: Tensor | None,
    approximate: str,
) -> Tensor:
    return F.linear(F.gelu(F.linear(x, fc1_weight, fc1_bias), approximate=approximate), fc2_weight, fc2_bias)


def _parts(rows: Tensor, fc1_weight: Tensor) -> list[slice]:
    return slices(rows.shape[0], fc1_weight.shape[0] * rows.element_size(), PART_BYTES)


def _forward(
    x: Tensor,
    fc1_weight: Tensor,
    fc2_weight: Tensor,
    fc1_bias: Tensor | None,
    fc2_bias: Tensor | None,
    approximate: str,
    *,
    keep: bool = True,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    rows = x.reshape(-1, x.shape[-1])
    out = rows.new_empty(rows.shape[0], fc2_weight.shape[0])
    keep &= rows.shape[0] * fc1_weight.shape[0] * rows.element_size() < LARGE_BYTES
    kept = []
    for part in _parts(rows, fc1_weight):
        hidden = F.linear(rows[part], fc1_weight, fc1_bias)
        if keep:
            kept.append(hidden)
            active = F.gelu(hidden, approximate=approximate)
        else:
            active = torch.ops.aten.gelu_(hidden, approximate=approximate)
        if fc2_bias is None:
            torch.mm(active, fc2_weight.mT, out=out[part])
        else:
            torch.addmm(fc2_bias, active, fc2_weight.mT, out=out[part])
    return out.view(*x.shape[:-1], -1), tuple(kept)


def _backward(
    grad: Tensor,
    needs: list[bool],
    kept: list[Tensor],
    x: Tensor,
    fc1_weight: Tensor,
    fc2_weight: Tensor,
    fc1_bias: Tensor | None,
    fc2_bias: Tensor | None,
    approximate: str,
) -> tuple[Tensor | None, ...]:
    rows, d_rows = x.reshape(-1, x.shape[-1]), grad.reshape(-1, grad.shape[-1])
    d_x = torch.empty_like(rows) if needs[0] else None
    sums: list[Tensor | None] = [None] * 4
    for i, part in enumerate(_parts(rows, fc1_weight)):
        hidden = kept[i] if kept else F.linear(rows[part], fc1_weight, fc1_bias)
        d_out = d_rows[part]
        if needs[2]:
            sums[1] = _added(sums[1], d_out.mT @ F.gelu(hidden, approximate=approximate))
        if needs[4]:
            sums[3] = _added(sums[3], sum_of_rows(d_out))
        d_active = d_out @ fc2_weight
        d_hidden = torch.ops.aten.gelu_backward.grad_input(
            d_active, hidden, approximate=approximate, grad_input=d_active
        )
        if needs[1]:
            sums[0] = _added(sums[0], d_hidden.mT @ rows[part])
        if needs[3]:
            sums[2] = _added(sums[2], sum_of_rows(d_hidden))
        if d_x is not None:
            torch.mm(d_hidden, fc1_weight, out=d_x[part])
    d_x = None if d_x is None else d_x.view(x.shape)
    return d_x, *(None if total is None else total.to(x.dtype) for total in sums), None


def _added(total: Tensor | None, one: Tensor) -> Tensor:
    """The sum, in float32 at least, so that it is rounded once."""
    exact = one.to(torch.promote_types(one.dtype, torch.float32))
    return exact if total is None else total.add_(exact)
