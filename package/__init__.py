"""attnzoo: attention backbones for timm, on exact and fast blocks and kernels.

Importing this package registers its models with timm:

    import timm, attnzoo
    model = timm.create_model('biformer_tiny', features_only=True)
"""

from importlib.metadata import version

from attnzoo import backbones
from attnzoo.backbones import WeightsNotFoundError

__version__ = version('attnzoo')

__all__ = ['WeightsNotFoundError', '__version__', 'backbones']
