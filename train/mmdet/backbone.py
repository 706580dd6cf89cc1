"""`ZooBackbone`: any model of timm's registry, ours among them, as a backbone of mmdet."""

from collections.abc import Sequence
from typing import Any

from mmdet.registry import MODELS
from mmengine.model import BaseModule
from timm.layers import LayerNorm2d
from timm.models import group_parameters
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..detection.detectors import make_body
from ..errors import UserError


@MODELS.register_module()
class ZooBackbone(BaseModule):
    """Feature maps of a model, fine to coarse. Images may have any size that the model takes.

    Args:
        model: A name that `timm.create_model` takes.
        out_reductions: Strides of the maps.
        pretrained: Start from the published weights.
        norm: A layer norm on each map.
        frozen_stages: -1: none; 0: the stem; n: the stem and n stages. They stay in evaluation mode.
        norm_eval: Batch norms stay in evaluation mode.
        with_cp: Compute activations again in the backward pass instead of keeping them.
        drop_path_rate: Stochastic depth.
        kwargs: Further arguments of the model.
        init_cfg: As all modules of mmengine have it.

    Raises:
        UserError: There is no such model, it has no such maps, it does not take these arguments, or it does not say
            which layers are a stage.
    """

    def __init__(
        self,
        model: str,
        out_reductions: Sequence[int] = (4, 8, 16, 32),
        pretrained: bool = False,
        norm: bool = False,
        frozen_stages: int = -1,
        norm_eval: bool = False,
        with_cp: bool = False,
        drop_path_rate: float | None = None,
        kwargs: dict[str, Any] | None = None,
        init_cfg: Any = None,
    ):
        super().__init__(init_cfg)
        arguments = dict(kwargs or {}, pretrained=pretrained)
        if drop_path_rate is not None:
            arguments['drop_path_rate'] = drop_path_rate
        try:
            net: Any = make_body(model, arguments, out_reductions)
        except UserError as error:  # it names the settings of `attnzoo train`
            named = str(error).replace('detection.levels', 'out_reductions').replace('model.kwargs', 'kwargs')
            raise UserError(f'ZooBackbone: {named}') from error
        self.net, self.norm_eval = net, norm_eval
        widths = net.feature_info.channels()
        self.norms = nn.ModuleList(LayerNorm2d(width) if norm else nn.Identity() for width in widths)
        inner = getattr(net, 'model', net)  # the model whose maps the net takes
        if with_cp:
            inner.set_grad_checkpointing()
        self.frozen = [] if frozen_stages < 0 else self._freeze(model, inner, frozen_stages)

    @staticmethod
    def _freeze(name: str, model: Any, stages: int) -> list[nn.Module]:
        """Freeze parameters; returns the modules that have frozen ones alone."""
        if not hasattr(model, 'group_matcher'):
            raise UserError(f'ZooBackbone: frozen_stages={stages}: {name} does not say which layers are a stage')
        layer_of = group_parameters(model, model.group_matcher(coarse=True), reverse=True)
        for parameter, layer in layer_of.items():
            if layer <= stages:
                model.get_parameter(parameter).requires_grad_(False)
        parts = [(module, list(module.parameters())) for module in model.modules() if module is not model]
        return [module for module, inside in parts if inside and not any(x.requires_grad for x in inside)]

    def train(self, mode: bool = True) -> 'ZooBackbone':
        super().train(mode)
        for module in self.frozen:
            module.eval()
        if self.norm_eval:
            for module in self.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        return self

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(norm(one) for norm, one in zip(self.norms, self.net(x), strict=True))
