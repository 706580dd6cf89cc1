"""ResNets with attention gates: CBAM, triplet attention, frequency channel attention, efficient local attention.

Papers:
- `Deep Residual Learning for Image Recognition` - https://arxiv.org/abs/1512.03385
- `CBAM: Convolutional Block Attention Module` - https://arxiv.org/abs/1807.06521
- `Rotate to Attend: Convolutional Triplet Attention Module` - https://arxiv.org/abs/2010.03045
- `FcaNet: Frequency Channel Attention Networks` - https://arxiv.org/abs/2012.11879
- `ELA: Efficient Local Attention for Deep Convolutional Neural Networks` - https://arxiv.org/abs/2403.01123

timm's ResNet with our gates, where the authors have them: behind the last norm of each block, before its shortcut is
added. Their checkpoints load through `checkpoint_filter_fn`.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from timm.models import generate_default_cfgs, register_model
from timm.models.resnet import BasicBlock, Bottleneck, ResNet
from torch import Tensor, nn

from attnzoo.blocks import CBAM, EfficientLocalAttention, FrequencyChannelAttention, TripletAttention

from ._weights import (
    OfficialFile,
    build_model,
    imagenet_cfg,
    register_official_files,
    register_top1,
    rename_keys,
    unwrap,
)

__all__ = ['AttentionResNet']

GATES = ('cbam', 'triplet', 'fca', 'ela')


class AttentionResNet(ResNet):
    """timm's ResNet with a gate in each block.

    Args:
        gate: 'cbam', 'triplet', 'fca' or 'ela'.
        gate_args: Arguments of the gate's block behind the channels.
        block: 'basic' or 'bottleneck'.
        layers: Blocks of each of the four stages.
        channels: Channels of each stage; a bottleneck puts out four times as many.
        block_args: More arguments of timm's blocks.
        kwargs: All others of timm's `ResNet`.

    Shape: [B, in_chans, H, W], H and W of 32 and more, rectangular and odd too -> [B, num_classes].

    Raises:
        ValueError: An argument is unknown or does not fit the others.
    """

    def __init__(
        self,
        gate: str = 'cbam',
        gate_args: dict[str, Any] | None = None,
        block: str = 'bottleneck',
        layers: Sequence[int] = (3, 4, 6, 3),
        channels: Sequence[int] = (64, 128, 256, 512),
        block_args: dict[str, Any] | None = None,
        **kwargs: Any,
    ):
        blocks: dict[str, Any] = {'basic': BasicBlock, 'bottleneck': Bottleneck}
        if gate not in GATES:
            raise ValueError(f'gate: expected one of {", ".join(map(repr, GATES))}, got {gate!r}')
        if block not in blocks:
            raise ValueError(f"block: expected 'basic' or 'bottleneck', got {block!r}")
        if len(layers) != 4 or len(channels) != 4:
            raise ValueError(f'layers and channels: expected four stages, got {len(layers)} and {len(channels)}')
        attention = _gate_layer(gate, channels[0] * blocks[block].expansion, gate_args or {})  # type: ignore[attr-defined]
        super().__init__(
            blocks[block],  # type: ignore[arg-type]
            tuple(layers),
            channels=tuple(channels),
            block_args=dict(block_args or {}, attn_layer=attention),
            **kwargs,
        )

    @torch.jit.ignore
    def init_weights(self, zero_init_last: bool = True) -> None:
        """As timm and, with gates of positions that are one half at first, as the gates' authors."""
        super().init_weights(zero_init_last=zero_init_last)
        for module in self.modules():
            if isinstance(module, CBAM) and module.SpatialGate is not None:
                nn.init.zeros_(module.SpatialGate.spatial.bn.weight)
            elif isinstance(module, TripletAttention) and module.hw is not None:
                nn.init.zeros_(module.hw.conv.bn.weight)


def _gate_layer(gate: str, first_channels: int, gate_args: dict[str, Any]) -> Callable[..., nn.Module]:
    """What timm's blocks call with their channels, `device` and `dtype`."""

    def frequencies(channels: int, **dd: Any) -> nn.Module:
        # As large as the maps of an image of 224 x 224 are where there are so many channels.
        size = max(7, 56 * first_channels // channels)
        return FrequencyChannelAttention(channels, **{'dct_h': size, 'dct_w': size, **gate_args}, **dd)

    layers = {'cbam': CBAM, 'triplet': TripletAttention, 'ela': EfficientLocalAttention}
    return frequencies if gate == 'fca' else partial(layers[gate], **gate_args)


def checkpoint_filter_fn(state_dict: dict[str, Any], model: nn.Module | None) -> dict[str, Tensor]:
    """Checkpoints of the gates' authors -> ours; ours pass through.

    Written by the names in the authors' code; no file of theirs could be tried.
    """
    return rename_keys(
        unwrap(state_dict),
        (
            (r'\.(?:cbam|att)\.', '.se.'),
            (r'\.triplet_attention\.ChannelGateH\.spatial\.', '.se.cw.conv.'),
            (r'\.triplet_attention\.ChannelGateW\.spatial\.', '.se.hc.conv.'),
            (r'\.triplet_attention\.SpatialGate\.spatial\.', '.se.hw.conv.'),
        ),
    )


_CBAM = 'https://github.com/Jongchan/attention-module'
_TRIPLET = 'https://github.com/LandskapeAI/triplet-attention'
_FCA = 'https://github.com/cfzd/FcaNet'

_cfg = partial(imagenet_cfg, interpolation='bilinear', first_conv='conv1', classifier='fc', license='mit')

_GATE_CFGS = {
    'cbam': _cfg(
        paper_ids='arXiv:1807.06521', paper_name='CBAM: Convolutional Block Attention Module', origin_url=_CBAM
    ),
    'triplet': _cfg(
        paper_ids='arXiv:2010.03045',
        paper_name='Rotate to Attend: Convolutional Triplet Attention Module',
        origin_url=_TRIPLET,
    ),
    'fca': _cfg(
        paper_ids='arXiv:2012.11879', paper_name='FcaNet: Frequency Channel Attention Networks', origin_url=_FCA
    ),
    # Its authors published no code.
    'ela': _cfg(
        paper_ids='arXiv:2403.01123',
        paper_name='ELA: Efficient Local Attention for Deep Convolutional Neural Networks',
        origin_url='https://arxiv.org/abs/2403.01123',
        license='apache-2.0',
    ),
}


def _listed(name: str, page: str, link: str) -> OfficialFile:
    return OfficialFile(name, page, link, status='listed')


def _on_drive(name: str, page: str, file: str) -> OfficialFile:
    return _listed(name, page, f'https://drive.google.com/file/d/{file}/view?usp=sharing')


# The names of triplet attention's files are ours: its page has none.
_FILES = {
    'resnet50_cbam': _on_drive('RESNET50_CBAM_new_name_wrap.pth', _CBAM, '1mvAVvhLR_2XY_bPYxh-SEz4vDmGzSArO'),
    'resnet18_triplet': _on_drive('resnet18_triplet_k7.pth', _TRIPLET, '1jIDfA0Psce10L06hU0Rtz8t7s2U1oqLH'),
    'resnet50_triplet': _on_drive('resnet50_triplet_k7.pth', _TRIPLET, '1ptKswHzVmULGbE3DuX6vMCjEbqwUvGiG'),
    'resnet50_fca': _listed('fca50.pth', _FCA, f'{_FCA}/releases/download/v1.0/fca50.pth'),
    'resnet101_fca': _listed('fca101.pth', _FCA, f'{_FCA}/releases/download/v1.0/fca101.pth'),
}
_TOP1 = {
    'resnet50_cbam': 77.622,
    'resnet18_triplet': 71.09,
    'resnet50_triplet': 77.48,
    'resnet50_fca': 78.57,
    'resnet101_fca': 79.63,
}
_SIZES: dict[int, dict[str, Any]] = {
    18: dict(block='basic', layers=(2, 2, 2, 2)),
    50: dict(block='bottleneck', layers=(3, 4, 6, 3)),
    101: dict(block='bottleneck', layers=(3, 4, 23, 3)),
}


def _name(depth: int, gate: str) -> str:
    """With the tag of its file, where one is listed."""
    name = f'resnet{depth}_{gate}'
    return f'{name}.in1k' if name in _FILES else name


default_cfgs = generate_default_cfgs({_name(depth, gate): _GATE_CFGS[gate] for gate in GATES for depth in _SIZES})
register_official_files({f'{name}.in1k': file for name, file in _FILES.items()})
register_top1({f'{name}.in1k': top1 for name, top1 in _TOP1.items()})


def _create(variant: str, pretrained: bool, **kwargs: Any) -> AttentionResNet:
    depth, gate = variant.removeprefix('resnet').split('_')
    return build_model(
        AttentionResNet,
        variant,
        pretrained,
        feature_cfg=dict(out_indices=(0, 1, 2, 3, 4), flatten_sequential=False),
        **dict(dict(_SIZES[int(depth)], gate=gate), **kwargs),
    )


@register_model
def resnet18_cbam(pretrained: bool = False, **kwargs) -> AttentionResNet:
    """ResNet-18 with CBAM."""
    return _create('resnet18_cbam', pretrained, **kwargs)


@register_model
def resnet50_cbam(pretrained: bool = False, **kwargs) -> AttentionResNet:
    """ResNet-50 with CBAM."""
    return _create('resnet50_cbam', pretrained, **kwargs)


@register_model
def resnet101_cbam(pretrained: bool = False, **kwargs) -> AttentionResNet:
    """ResNet-101 with CBAM."""
    return _create('resnet101_cbam', pretrained, **kwargs)


@register_model
def resnet18_triplet(pretrained: bool = False, **kwargs) -> AttentionResNet:
    """ResNet-18 with triplet attention."""
    return _create('resnet18_triplet', pretrained, **kwargs)


@register_model
def resnet50_triplet(pretrained: bool = False, **kwargs) -> AttentionResNet:
    """ResNet-50 with triplet attention."""
    return _create('resnet50_triplet', pretrained, **kwargs)


@register_model
def resnet101_triplet(pretrained: bool = False, **kwargs) -> AttentionResNet:
    """ResNet-101 with triplet attention."""
    return _create('resnet101_triplet', pretrained, **kwargs)


@register_model
def resnet18_fca(pretrained: bool = False, **kwargs) -> AttentionResNet:
    """ResNet-18 with frequency channel attention."""
    return _create('resnet18_fca', pretrained, **kwargs)


@register_model
def resnet50_fca(pretrained: bool = False, **kwargs) -> AttentionResNet:
    """ResNet-50 with frequency channel attention."""
    return _create('resnet50_fca', pretrained, **kwargs)


@register_model
def resnet101_fca(pretrained: bool = False, **kwargs) -> AttentionResNet:
    """ResNet-101 with frequency channel attention."""
    return _create('resnet101_fca', pretrained, **kwargs)


@register_model
def resnet18_ela(pretrained: bool = False, **kwargs) -> AttentionResNet:
    """ResNet-18 with efficient local attention."""
    return _create('resnet18_ela', pretrained, **kwargs)


@register_model
def resnet50_ela(pretrained: bool = False, **kwargs) -> AttentionResNet:
    """ResNet-50 with efficient local attention."""
    return _create('resnet50_ela', pretrained, **kwargs)


@register_model
def resnet101_ela(pretrained: bool = False, **kwargs) -> AttentionResNet:
    """ResNet-101 with efficient local attention."""
    return _create('resnet101_ela', pretrained, **kwargs)
