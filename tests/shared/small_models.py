"""A small variant of every family: the models that tests of whole models run. A family joins with its line."""

import timm
import torch

import attnzoo  # noqa: F401  (registers our models, in a process that a test starts too)

DIMS = (16, 32, 32, 64)

SMALL_MODELS = {
    'biformer_tiny': dict(embed_dims=DIMS, depths=(1, 1, 1, 1), head_dim=8, num_classes=5),
    'biformer_stl': dict(embed_dims=DIMS, depths=(1, 1, 1, 1), head_dim=8, num_classes=5),
    'biformer_stl_nchw': dict(embed_dims=DIMS, depths=(1, 1, 1, 1), head_dim=8, num_classes=5),
    'crossformer_tiny': dict(embed_dims=DIMS, depths=(2, 1, 4, 1), head_dim=8, num_classes=5),
    'crossformer_pp_small': dict(embed_dims=DIMS, depths=(2, 1, 4, 1), head_dim=8, num_classes=5),
    'davit_tiny_fused': dict(embed_dims=DIMS, depths=(1, 1, 2, 1), head_dim=8, num_classes=5),
    'maxvit_tiny_fused': dict(stem_dim=16, embed_dims=DIMS, depths=(1, 1, 2, 1), head_dim=8, num_classes=5),
    'transnext_tiny': dict(embed_dims=DIMS, depths=(1, 1, 2, 1), head_dim=8, num_classes=5),
}


def small_model(name, **options):
    """In eval mode, with weights of some size, so that attention is more than a mean."""
    torch.manual_seed(0)
    model = timm.create_model(name, **SMALL_MODELS[name], **options).eval()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.1)
    return model
