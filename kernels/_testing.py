"""How close a kernel must come: one rule for every op, dtype and device."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

ERROR_RATIO = 2.0  # of the kernel's error to that of the reference in the same dtype
ROUNDING = 4.0  # in units of the dtype's epsilon at the largest value: what both may be off by chance


def results(
    function: Callable[..., Tensor],
    inputs: dict[str, Any],
    dtype: torch.dtype,
    device: torch.device | str,
    d_out: Tensor,
) -> dict[str, Tensor]:
    """The output, and the gradients of all floating-point inputs for that of the output, in a dtype and on a device."""
    inputs = {
        name: x.detach().to(device, dtype if x.is_floating_point() else x.dtype).requires_grad_(x.is_floating_point())
        if isinstance(x, Tensor)
        else x
        for name, x in inputs.items()
    }
    out = function(**inputs)
    differentiable = {name: x for name, x in inputs.items() if isinstance(x, Tensor) and x.requires_grad}
    grads = torch.autograd.grad(out, list(differentiable.values()), d_out.to(device, dtype))
    return {'output': out.detach()} | {
        f'gradient of {name}': grad for name, grad in zip(differentiable, grads, strict=True)
    }


def assert_as_exact_as(
    kernel: dict[str, Tensor], reference: dict[str, Tensor], exact: dict[str, Tensor], dtype: torch.dtype
) -> None:
    """Each largest error of the kernel, against float64, is at most twice the reference's in the kernel's dtype."""
    assert kernel.keys() == exact.keys()
    for name, true in exact.items():
        true = true.cpu()
        error, allowed = ((x[name].cpu().double() - true).abs().amax() for x in (kernel, reference))
        chance = ROUNDING * torch.finfo(dtype).eps * true.abs().amax()
        assert kernel[name].dtype == dtype and error <= ERROR_RATIO * allowed + chance, (
            f'{name}: error {error:.2e}, the reference in {dtype} has {allowed:.2e}'
        )
