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
