"""Large kernel attention: a map times what a large kernel, taken apart, finds around each position."""

from .op import large_kernel_attention

__all__ = ['large_kernel_attention']
