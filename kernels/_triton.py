"""What kernels of several ops share. Imports Triton: only a kernel.py may import this."""

import triton
import triton.language as tl

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
