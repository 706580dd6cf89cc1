"""Functions on tensors: each op is a plain PyTorch definition and, where there is one, a Triton kernel.

This layer imports neither timm nor any other part of attnzoo.
"""

from ._dispatch import why
from ._sdpa import full_attention
from .routed_attention import route_regions, routed_attention
from .window_attention import window_attention

# fx must not trace into these: they check shapes and choose a backend, which takes tensors, not proxies.
PUBLIC_FUNCTIONS = (full_attention, route_regions, routed_attention, window_attention)

__all__ = ['PUBLIC_FUNCTIONS', 'full_attention', 'route_regions', 'routed_attention', 'why', 'window_attention']
