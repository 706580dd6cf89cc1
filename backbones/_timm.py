"""Every timm name that timm does not export publicly, so that an upgrade of timm touches one file."""

from timm.models._features import feature_take_indices
from timm.models._input import update_model_input_size

__all__ = ['feature_take_indices', 'update_model_input_size']
