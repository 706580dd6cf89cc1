"""RT-DETR of transformers on a backbone of timm's registry, with the signature of torchvision's detectors.

RT-DETR: https://arxiv.org/abs/2304.08069
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from torchvision.ops import box_convert, clip_boxes_to_image
from transformers import (
    AutoBackbone,
    AutoConfig,
    RTDetrConfig,
    RTDetrForObjectDetection,
    TimmBackbone,
    TimmBackboneConfig,
)

from ..errors import UserError
from ..models import ModelSpec
from .detectors import STRIDE, Detector, Inputs, make_body

_DIVISOR = 16  # of the channels: eight heads, and sines and cosines of two axes


class _BackboneConfig(TimmBackboneConfig):
    """As its base, with arguments of the model."""

    model_type = 'attnzoo'
    arguments: dict[str, Any] | None = None


class _Backbone(TimmBackbone):
    """As its base, with arguments of the model."""

    config_class = _BackboneConfig

    def __init__(self, config: _BackboneConfig, **options: Any):
        super().__init__(config, **(config.arguments or {}), **options)


AutoConfig.register(_BackboneConfig.model_type, _BackboneConfig, exist_ok=True)
AutoBackbone.register(_BackboneConfig, _Backbone, exist_ok=True)


def make(spec: ModelSpec, settings: Any, arguments: Mapping[str, Any]) -> Detector:
    """The detector that a spec describes; see `detectors.build`."""
    channels, levels = settings.channels, list(settings.levels or [8, 16, 32])
    if channels % _DIVISOR:
        raise UserError(f'detection.channels={channels}: rt_detr needs a multiple of {_DIVISOR}')
    body = make_body(spec.name, arguments, levels)
    shown: Any = body.feature_info
    getter = {'feature_cls': 'getter'} if hasattr(body, 'model') else {}
    backbone: Any = {'backbone': spec.name, 'out_indices': list(shown.out_indices)}
    backbone['arguments'] = {**spec.kwargs, **getter}
    classes: Any = {'num_labels': spec.num_classes}
    config = RTDetrConfig(
        backbone_config=_BackboneConfig(**backbone),
        freeze_backbone_batch_norms=False,
        encoder_in_channels=shown.channels(),
        feat_strides=levels,
        encode_proj_layers=[len(levels) - 1],
        encoder_hidden_dim=channels,
        encoder_ffn_dim=4 * channels,
        d_model=channels,
        decoder_in_channels=[channels] * len(levels),
        decoder_ffn_dim=4 * channels,
        num_feature_levels=len(levels),
        decoder_layers=settings.decoder_layers,
        num_queries=settings.queries,
        **classes,
    )
    detr = RTDetrForObjectDetection(config)
    for name, module in detr.named_modules():
        if isinstance(module, nn.BatchNorm2d) and not name.startswith('model.backbone.'):
            module.reset_parameters()  # transformers draws weights around 0, from which nothing is learnt for long
    detr.model.backbone.model._backbone = body  # as timm has initialised it, or with the weights that it starts from
    mean, std = list(spec.data['mean']), list(spec.data['std'])
    transform = Inputs(settings.min_size, settings.max_size, mean, std, STRIDE)
    net = RtDetr(detr, transform, levels, settings.score_threshold, settings.max_detections)
    decoder = [f'detr.model.decoder.class_embed.{layer}' for layer in range(settings.decoder_layers)]
    return Detector(net, [*decoder, 'detr.model.enc_score_head', 'detr.model.denoising_class_embed'])


class RtDetr(nn.Module):
    """Images and targets as torchvision's detectors take and return them.

    Args:
        levels: strides of the backbone's maps.
    """

    def __init__(
        self,
        detr: RTDetrForObjectDetection,
        transform: Inputs,
        levels: list[int],
        score_threshold: float,
        max_detections: int,
    ):
        super().__init__()
        self.detr, self.transform, self.levels = detr, transform, levels
        self.score_threshold, self.max_detections = score_threshold, max_detections

    @property
    def body(self) -> nn.Module:
        return self.detr.model.backbone.model._backbone

    def forward(self, images: list[Tensor], targets: list[dict[str, Any]] | None = None) -> Any:
        sizes = [(image.shape[-2], image.shape[-1]) for image in images]
        batch, targets = self.transform(images, targets)
        pixels = self._enlarged(batch.tensors)
        height, width = pixels.shape[-2:]
        scale = pixels.new_tensor([width, height, width, height])
        if self.training:
            assert targets is not None
            labels = [
                {
                    'class_labels': target['labels'] - 1,
                    'boxes': box_convert(target['boxes'], 'xyxy', 'cxcywh') / scale,
                }
                for target in targets
            ]
            output = self.detr(pixels, labels=labels)
            # Without any object in the batch nothing is denoised, and processes would wait for the gradient.
            return {'loss': output.loss + 0 * self.detr.model.denoising_class_embed.weight.sum()}
        output = self.detr(pixels)
        found = [
            self._detections(logits, box_convert(boxes, 'cxcywh', 'xyxy') * scale, size)
            for logits, boxes, size in zip(output.logits, output.pred_boxes, batch.image_sizes, strict=True)
        ]
        return self.transform.postprocess(found, batch.image_sizes, sizes)

    def _enlarged(self, pixels: Tensor) -> Tensor:
        """The batch, padded where its maps have fewer places than there are queries."""
        height, width = pixels.shape[-2:]
        while sum(math.ceil(height / stride) * math.ceil(width / stride) for stride in self.levels) < self._queries:
            height, width = height + STRIDE, width + STRIDE
        return pad(pixels, (0, width - pixels.shape[-1], 0, height - pixels.shape[-2]))

    @property
    def _queries(self) -> int:
        return self.detr.config.num_queries

    def _detections(self, logits: Tensor, boxes: Tensor, size: tuple[int, int]) -> dict[str, Tensor]:
        """The best pairs of query and class, of (queries, classes) and (queries, 4)."""
        scores, chosen = logits.float().sigmoid().flatten().sort(descending=True, stable=True)
        kept = (scores > self.score_threshold)[: self.max_detections].nonzero().flatten()
        queries = torch.div(chosen[kept], logits.shape[-1], rounding_mode='floor')
        boxes = clip_boxes_to_image(boxes[queries], size)
        return {'boxes': boxes, 'labels': chosen[kept] % logits.shape[-1] + 1, 'scores': scores[kept]}
