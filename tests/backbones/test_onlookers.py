"""Models under everything that may look on. A family joins with its smallest variant."""

import pytest
import timm
import torch
from onlookers import ONLOOKERS, over_all_onlookers

BIFORMER = dict(embed_dims=(16, 32, 32, 64), depths=(1, 1, 1, 1), head_dim=8, num_classes=5)
CROSSFORMER = dict(embed_dims=(16, 32, 32, 64), depths=(2, 1, 4, 1), head_dim=8, num_classes=5)
MAXVIT = dict(stem_dim=16, embed_dims=(16, 32, 32, 64), depths=(1, 1, 2, 1), head_dim=8, num_classes=5)

VARIANTS = {
    'biformer_tiny': BIFORMER,
    'biformer_stl': BIFORMER,
    'biformer_stl_nchw': BIFORMER,
    'crossformer_tiny': CROSSFORMER,
    'crossformer_pp_small': CROSSFORMER,
    'maxvit_tiny_fused': MAXVIT,
}


def make_model(name, size, **arguments):
    """With weights of some size, so that attention is more than a mean."""
    torch.manual_seed(0)
    model = timm.create_model(name, **arguments).eval()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.1)
    return model, torch.randn(2, 3, *size)


@pytest.mark.parametrize('name', VARIANTS)
@over_all_onlookers
def test_does_the_same_whoever_looks_on(name, looks_on):
    looks_on(*make_model(name, (64, 96), **VARIANTS[name]))


@pytest.mark.filterwarnings('ignore::torch.jit.TracerWarning', 'ignore::DeprecationWarning')
@pytest.mark.parametrize(
    'name', [pytest.param(name, marks=[] if 'biformer' in name else pytest.mark.slow) for name in VARIANTS]
)
def test_the_older_onnx_exporter_gives_the_logits_of_the_full_model(name):
    torch.manual_seed(0)
    ONLOOKERS['onnx_by_tracing'](timm.create_model(name).eval(), torch.randn(2, 3, 224, 224))
