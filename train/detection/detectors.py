"""Detectors on backbones of timm's registry: torchvision's, on a feature pyramid over `features_only` maps.

A detector takes images (3, height, width) of 0..1 and of any size. In training it returns its losses by name; else for
each image the boxes (x1, y1, x2, y2 in pixels of the image), labels from 1 on, scores and, where it has them, masks.
"""

import dataclasses
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from timm.layers import LayerNorm2d
from torch import Tensor, nn
from torch.nn.functional import interpolate
from torchvision.models.detection import FCOS, FasterRCNN, MaskRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.fcos import FCOSHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool, LastLevelP6P7

from ..checkout import hide_kernels
from ..errors import UserError, one_line
from ..models import ModelSpec, create

STRIDE = 32  # what batches of images are padded to a multiple of
_OWN_ARGUMENTS = ('features_only', 'out_indices', 'in_chans')


class Settings:
    """The settings of a detector, `detection.*`, by attribute: of a configuration, or of a checkpoint."""

    def __init__(self, values: Mapping[str, Any]):
        self.__dict__.update(values)

    def __getattr__(self, name: str) -> Any:
        raise UserError(f'the checkpoint does not say its detection.{name}: it is of another version of attnzoo')


class Detector(nn.Module):
    """What all detectors share: losses or detections, and what timm's optimisers ask of a model.

    Args:
        net: one of torchvision's detectors, or a module with its signature.
        classifiers: names of its modules whose outputs are classes.

    Attributes:
        body: the backbone, a module of timm with `feature_info`.
    """

    def __init__(self, net: nn.Module, classifiers: Sequence[str]):
        super().__init__()
        self.net, self.classifiers = net, classifiers

    @property
    def body(self) -> nn.Module:
        return getattr(self.net, 'backbone', self.net).body  # type: ignore[union-attr, return-value]

    def forward(self, images: list[Tensor], targets: list[dict[str, Any]] | None = None) -> Any:
        if targets is not None:
            targets = [{key: target[key] for key in target if key != 'item'} for target in targets]
        return self.net(images, targets)

    def get_classifier(self) -> tuple[nn.Module, ...]:
        return tuple(self.net.get_submodule(name) for name in self.classifiers)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        model, _ = self._inner()
        model.set_grad_checkpointing(enable)

    def no_weight_decay(self) -> set[str]:
        model, prefix = self._inner()
        return {f'{prefix}{name}' for name in getattr(model, 'no_weight_decay', set)()}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Layers of the backbone, as its model says; all that stands on it is the last layer."""
        model, prefix = self._inner()
        if not hasattr(model, 'group_matcher'):
            raise UserError('optim.layer_decay: this backbone does not say which layer of its maps follows which')
        start = '^' + prefix.replace('.', r'\.')

        def moved(pattern: Any) -> Any:
            if isinstance(pattern, str):
                return start + pattern.removeprefix('^')
            return pattern and [(moved(inner), suffix) for inner, suffix in pattern]

        return {name: moved(pattern) for name, pattern in model.group_matcher(coarse).items()}

    def _inner(self) -> tuple[Any, str]:
        """The model whose maps the body takes, and the prefix of its parameters."""
        model = getattr(self.body, 'model', self.body)
        return model, next(f'{name}.' for name, module in self.named_modules() if module is model)


def check_arguments(kwargs: Mapping[str, Any]) -> None:
    for name in _OWN_ARGUMENTS:
        if name in kwargs:
            raise UserError(f'model.kwargs.{name}: detectors choose it; detection.levels names the maps that they take')


def build(spec: ModelSpec, state: Mapping[str, Tensor] | None = None) -> Detector:
    """The detector that a spec describes.

    Args:
        state: weights of the classifier that its backbone starts from.

    Raises:
        UserError: the backbone has no such maps, or settings that do not go together.
    """
    assert spec.detection
    settings: Any = Settings(spec.detection['settings'])
    arguments = dict(spec.kwargs)
    if state is not None:
        arguments |= {'pretrained': True, 'pretrained_cfg_overlay': {'state_dict': dict(state)}}
    makers = {'retinanet': _retinanet, 'fcos': _fcos, 'faster_rcnn': _faster_rcnn, 'mask_rcnn': _mask_rcnn}
    if settings.detector == 'rt_detr':
        hide_kernels()
        from .rt_detr import make

        return make(spec, settings, arguments)
    two_stages = settings.detector.endswith('rcnn')
    levels = settings.levels or ([4, 8, 16, 32] if two_stages else [8, 16, 32])
    extra = settings.extra_levels if settings.extra_levels is not None else (1 if two_stages else 2)
    if not two_stages and settings.channels % 32:
        raise UserError(f'detection.channels={settings.channels}: {settings.detector} needs a multiple of 32')
    backbone = _Backbone(make_body(spec.name, arguments, levels), settings.channels, extra, settings.level_norms)
    strides = [*levels, *(levels[-1] * 2**number for number in range(1, extra + 1))]
    # Label 0 is the background in the R-CNNs; the others have an output for it that nothing is labelled with.
    detector = makers[settings.detector](backbone, spec.num_classes + 1, settings, strides)
    mean, std = list(spec.data['mean']), list(spec.data['std'])
    detector.net.transform = Inputs(settings.min_size, settings.max_size, mean, std, STRIDE)
    return detector


def make_body(name: str, arguments: Mapping[str, Any], levels: Sequence[int]) -> nn.Module:
    """The backbone with its maps of these strides, fine to coarse. Their places differ from model to model.

    Raises:
        UserError: it has no map of one of them.
    """
    plain = {key: value for key, value in arguments.items() if not key.startswith('pretrained')}
    model = create(name, **plain)
    found = [info['reduction'] for info in getattr(model, 'feature_info', ())]
    if missing := [stride for stride in levels if stride not in found]:
        there = ', '.join(map(str, found)) or 'none'
        raise UserError(f'detection.levels={list(levels)}: {name} has no map of stride {missing[0]}, but of {there}')
    # Of several maps of one stride the last, which has seen most.
    places = [len(found) - 1 - found[::-1].index(stride) for stride in levels]
    getter: Any = {'feature_cls': 'getter'} if hasattr(model, 'forward_intermediates') else {}
    return create(name, features_only=True, out_indices=places, **getter, **arguments)


def check_on_images(detector: Detector, spec: ModelSpec) -> None:
    """Run the backbone of a detector on a small image.

    Raises:
        UserError: its backbone does not take them.
    """
    try:
        with torch.no_grad():
            detector.eval().body(torch.zeros(1, 3, 96, 160))
    except Exception as error:  # whatever a model says of images that it cannot take
        raise UserError(f'{spec.name} does not take images of any size: {one_line(error)}') from error


def with_settings(spec: ModelSpec, **changes: Any) -> ModelSpec:
    """The spec with other settings of its detector."""
    assert spec.detection
    settings = {**spec.detection['settings'], **changes}
    return dataclasses.replace(spec, detection={**spec.detection, 'settings': settings})


class Inputs(GeneralizedRCNNTransform):
    """Normalised images in one padded batch. Training images come in their size, others are resized as those were."""

    def resize(self, image: Tensor, target: dict[str, Tensor] | None = None) -> tuple[Tensor, dict[str, Tensor] | None]:
        height, width = image.shape[-2:]
        scale = min(self.min_size[-1] / min(height, width), self.max_size / max(height, width))
        if self.training or scale == 1:
            return image, target
        size = (max(1, int(height * scale)), max(1, int(width * scale)))
        return interpolate(image[None], size, mode='bilinear', antialias=True)[0], target


class _Backbone(nn.Module):
    """Maps of a backbone, each with a norm where asked for, and a feature pyramid on them."""

    def __init__(self, body: nn.Module, channels: int, extra: int, norms: bool):
        super().__init__()
        self.body = body
        widths = body.feature_info.channels()  # type: ignore[union-attr, operator]
        self.norms = nn.ModuleList(LayerNorm2d(width) if norms else nn.Identity() for width in widths)
        blocks = {0: None, 1: LastLevelMaxPool(), 2: LastLevelP6P7(channels, channels)}
        self.fpn = FeaturePyramidNetwork(widths, channels, blocks[extra])
        self.out_channels = channels

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        maps = [norm(one) for norm, one in zip(self.norms, self.body(images), strict=True)]
        return self.fpn(OrderedDict((str(level), one) for level, one in enumerate(maps)))


class _Anchors(AnchorGenerator):
    """Anchors in float32 whatever the maps are of: bfloat16 knows no number between 1032 and 1040."""

    def set_cell_anchors(self, dtype: torch.dtype, device: torch.device) -> None:
        super().set_cell_anchors(torch.float32, device)


def _anchors(settings: Any, strides: Sequence[int], sizes: Sequence[float], scales: Sequence[float]) -> _Anchors:
    sizes = settings.anchor_sizes or sizes
    if len(sizes) != len(strides):
        raise UserError(
            f'detection.anchor_sizes={list(sizes)}: expected {len(strides)}, one for each level '
            f'(strides {", ".join(map(str, strides))})'
        )
    ratios = (1.0,) if settings.detector == 'fcos' else tuple(settings.anchor_ratios)
    scales = settings.anchor_scales or scales
    return _Anchors(tuple(tuple(size * scale for scale in scales) for size in sizes), (ratios,) * len(sizes))


def _octaves(strides: Sequence[int]) -> list[float]:
    return [32.0 * 2**level for level in range(len(strides))]


def _retinanet(backbone: _Backbone, outputs: int, settings: Any, strides: Sequence[int]) -> Detector:
    anchors = _anchors(settings, strides, _octaves(strides), [2 ** (third / 3) for third in range(3)])
    channels, norm = backbone.out_channels, partial(nn.GroupNorm, 32)
    head = RetinaNetHead(channels, anchors.num_anchors_per_location()[0], outputs, norm_layer=norm)
    for part in (head.classification_head, head.regression_head):
        if settings.head_convs > len(part.conv):
            raise UserError(f'detection.head_convs={settings.head_convs}: retinanet has at most {len(part.conv)}')
        part.conv = part.conv[: settings.head_convs]
    net = RetinaNet(
        backbone,
        outputs,
        anchor_generator=anchors,
        head=head,
        score_thresh=settings.score_threshold,
        nms_thresh=settings.nms_threshold,
        detections_per_img=settings.max_detections,
    )
    return Detector(net, ['head.classification_head.cls_logits'])


def _fcos(backbone: _Backbone, outputs: int, settings: Any, strides: Sequence[int]) -> Detector:
    net = FCOS(
        backbone,
        outputs,
        anchor_generator=_anchors(settings, strides, [float(stride) for stride in strides], [1.0]),
        head=FCOSHead(backbone.out_channels, 1, outputs, settings.head_convs),
        score_thresh=settings.score_threshold,
        nms_thresh=settings.nms_threshold,
        detections_per_img=settings.max_detections,
    )
    return Detector(net, ['head.classification_head.cls_logits'])


def _faster_rcnn(
    backbone: _Backbone,
    outputs: int,
    settings: Any,
    strides: Sequence[int],
    kind: Callable[..., FasterRCNN] = FasterRCNN,
    **parts: Any,
) -> Detector:
    hidden, side = settings.head_channels, settings.roi_size
    net = kind(
        backbone,
        rpn_anchor_generator=_anchors(settings, strides, _octaves(strides), [1.0]),
        rpn_pre_nms_top_n_train=2 * settings.proposals,
        rpn_pre_nms_top_n_test=2 * settings.proposals,
        rpn_post_nms_top_n_train=settings.proposals,
        rpn_post_nms_top_n_test=settings.proposals,
        rpn_fg_iou_thresh=settings.proposal_iou,
        rpn_batch_size_per_image=settings.proposal_samples,
        box_roi_pool=_pool(backbone, side, settings.roi_samples),
        box_head=TwoMLPHead(backbone.out_channels * side**2, hidden),
        box_predictor=FastRCNNPredictor(hidden, outputs),
        box_score_thresh=settings.score_threshold,
        box_nms_thresh=settings.nms_threshold,
        box_detections_per_img=settings.max_detections,
        box_batch_size_per_image=settings.box_samples,
        **parts,
    )
    return Detector(net, ['roi_heads.box_predictor'])


def _mask_rcnn(backbone: _Backbone, outputs: int, settings: Any, strides: Sequence[int]) -> Detector:
    channels = backbone.out_channels
    parts = {
        'mask_roi_pool': _pool(backbone, 14, settings.roi_samples),
        'mask_head': MaskRCNNHeads(channels, (channels,) * settings.head_convs, 1),
        'mask_predictor': MaskRCNNPredictor(channels, channels, outputs),
    }
    detector = _faster_rcnn(backbone, outputs, settings, strides, MaskRCNN, **parts)
    detector.classifiers = [*detector.classifiers, 'roi_heads.mask_predictor.mask_fcn_logits']
    return detector


def _pool(backbone: _Backbone, side: int, samples: int) -> MultiScaleRoIAlign:
    return MultiScaleRoIAlign([str(level) for level in range(len(backbone.norms))], side, samples)
