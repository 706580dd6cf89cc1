"""What kernels of several ops share. Imports Triton: only a kernel.py may import this."""

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)


@triton.jit
def dot(a, b):
    """a @ b, summed in float32 and, for float32, without rounding the factors to TF32."""
    if INTERPRETED:  # which would multiply the bit patterns of bfloat16
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, input_precision='ieee')


@triton.jit
def narrow(x, dtype: tl.constexpr):
    """A float32 block in another dtype, rounded to nearest."""
    if INTERPRETED and dtype == tl.bfloat16:  # which would cut the bits off
        bits = x.to(tl.uint32, bitcast=True)
        x = (bits + 0x7FFF + ((bits >> 16) & 1)).to(tl.float32, bitcast=True)
    return x.to(dtype)


def constant(value: int) -> Any:
    """An element of a tuple of numbers that is known when a kernel is compiled."""
    return value if INTERPRETED.value else tl.constexpr(value)  # the interpreter divides by numbers only


_ONE, _EIGHT = constant(1), constant(8)


def strides_of(heads: Tensor, like: Tensor | None = None) -> tuple[Any, ...] | None:
    """Strides of a map [B, H, W, heads, d], in units of as many elements as come last; None where they are like's."""
    if like is not None and like.stride() == heads.stride():
        return None
    b, h, w, head, d = heads.stride()
    if d == 1 and (b | h | w | head) % 8 == 0:  # so that the compiler knows whole vectors to be aligned
        return b // 8, h // 8, w // 8, head // 8, _ONE, _EIGHT
    return b, h, w, head, d, _ONE
