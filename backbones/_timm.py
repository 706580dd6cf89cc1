"""Every timm name that timm does not export publicly, so that an upgrade of timm touches one file."""

from timm.models._features import feature_take_indices

__all__ = ['feature_take_indices']
