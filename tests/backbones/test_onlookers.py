"""Models under everything that may look on."""

import pytest
import timm
import torch
from onlookers import ONLOOKERS, over_all_onlookers
from small_models import SMALL_MODELS, small_model


# Ops and blocks meet all onlookers in every run of the tests; of the models made of them, one does.
@pytest.mark.parametrize(
    'name', [pytest.param(name, marks=[] if name == 'biformer_tiny' else pytest.mark.slow) for name in SMALL_MODELS]
)
@over_all_onlookers
def test_does_the_same_whoever_looks_on(name, looks_on):
    looks_on(small_model(name), torch.randn(2, 3, 64, 96))


@pytest.mark.filterwarnings('ignore::torch.jit.TracerWarning', 'ignore::DeprecationWarning')
@pytest.mark.parametrize(
    'name', [pytest.param(name, marks=[] if name == 'biformer_tiny' else pytest.mark.slow) for name in SMALL_MODELS]
)
def test_the_older_onnx_exporter_gives_the_logits_of_the_full_model(name):
    torch.manual_seed(0)
    ONLOOKERS['onnx_by_tracing'](timm.create_model(name).eval(), torch.randn(2, 3, 224, 224))
