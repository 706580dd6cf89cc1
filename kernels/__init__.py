"""Functions on tensors: each op is a plain PyTorch definition and, where there is one, a Triton kernel.

This layer imports neither timm nor any other part of attnzoo.
"""

import sys

from ._dispatch import why
from ._math import normalize
from ._sdpa import full_attention
from .aggregated_attention import aggregated_attention
from .cbam_gate import cbam_gate
from .channel_attention import channel_attention
from .channel_gate import channel_gate
from .conv_glu import conv_glu
from .deformable_attention import deformable_attention
from .depthwise_conv import depthwise_conv
from .ela_gate import ela_gate
from .focal_modulate import focal_modulate
from .halo_attention import halo_attention
from .large_kernel_attention import large_kernel_attention
from .neighborhood_attention import neighborhood_attention, neighborhood_av, neighborhood_qk
from .patch_conv import patch_conv
from .routed_attention import route_regions, routed_attention
from .triplet_gate import triplet_gate
from .window_attention import window_attention

__all__ = [
    'aggregated_attention',
    'cbam_gate',
    'channel_attention',
    'channel_gate',
    'conv_glu',
    'deformable_attention',
    'depthwise_conv',
    'ela_gate',
    'focal_modulate',
    'full_attention',
    'halo_attention',
    'large_kernel_attention',
    'neighborhood_attention',
    'neighborhood_av',
    'neighborhood_qk',
    'normalize',
    'patch_conv',
    'route_regions',
    'routed_attention',
    'triplet_gate',
    'why',
    'window_attention',
]

# An op has the name of its package and stands in its place: what `import attnzoo.kernels.<op>.<module>` looks for, and
# what is imported later, is found on the op.
for _package in (sys.modules.get(f'{__name__}.{_name}') for _name in __all__):
    if _package is not None:
        _op = globals()[_package.__name__.rpartition('.')[2]]
        vars(_package).update(vars(_op))
        _op.__dict__ = vars(_package)
