"""Functions on tensors: each op is a plain PyTorch definition and, where there is one, a Triton kernel.

This layer imports neither timm nor any other part of attnzoo.
"""

from .routed_attention import route_regions, routed_attention

__all__ = ['route_regions', 'routed_attention']
