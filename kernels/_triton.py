"""What kernels of several ops share. Imports Triton: only a kernel.py may import this."""

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)


@triton.jit
def dot(a, b, PRECISION: tl.constexpr):
    """a @ b, summed in float32. PRECISION is that of float32 factors: `_launch.Target` tells each target's."""
    if INTERPRETED:
        if PRECISION == 'tf32x3' and a.dtype == tl.float32:
            return _tf32x3(a, b)
        else:  # the interpreter would multiply the bit patterns of bfloat16
            return tl.dot(a.to(tl.float32), b.to(tl.float32), input_precision='ieee')
    else:
        return tl.dot(a, b, input_precision=PRECISION)


@triton.jit
def _tf32x3(a, b):
    """What the compiler makes of it, but for how a tensor core rounds sums: factors as two numbers, three products."""
    big_a, big_b = _tf32(a, 0x1000), _tf32(b, 0x1000)
    small_a, small_b = _tf32(a - big_a, 0), _tf32(b - big_b, 0)
    small_a = tl.where(small_a == small_a, small_a, 0.0)  # inf - inf
    small_b = tl.where(small_b == small_b, small_b, 0.0)
    small = tl.dot(small_a, big_b, input_precision='ieee') + tl.dot(big_a, small_b, input_precision='ieee')
    return small + tl.dot(big_a, big_b, input_precision='ieee')


@triton.jit
def _tf32(x, half):
    """The bits that a tensor core reads: the nearest number, or with a half of zero what is left when others go."""
    return ((x.to(tl.uint32, bitcast=True) + half) & 0xFFFFE000).to(tl.float32, bitcast=True)


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
