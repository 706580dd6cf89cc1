"""What timm asks of every staged model, once: a family brings its stem, stages, norm and head."""

from collections.abc import Sequence
from typing import Any, cast

import torch
from timm.layers import (
    ClassifierHead,
    DropPath,
    NormMlpClassifierHead,
    calculate_drop_path_rates,
    get_device_dtype,
    trunc_normal_,
)
from timm.models import checkpoint_seq
from torch import Tensor, nn

from ._timm import feature_take_indices


class Stage(nn.Module):
    """Downsampling, blocks and, in some families, a norm.

    Maps between stages are [B, C, H, W], of channels-last memory; the blocks and the norm see them as [B, H, W, C].

    Args:
        downsample: Patch embedding, merging or strided convolution, [B, C, H, W] -> [B, D, h, w]; nn.Identity() where
            the stem or the first block does it.
        blocks: The blocks, [B, h, w, D] -> [B, h, w, D] (the first may change the size). Activation checkpointing
            stores what lies between them.
        norm: Norm of the stage's output, which also feeds the next stage (TransNeXt, VAN).

    Shape: [B, C, H, W] -> [B, D, h, w].
    """

    def __init__(self, downsample: nn.Module, blocks: Sequence[nn.Module], norm: nn.Module | None = None):
        super().__init__()
        self.grad_checkpointing = False
        self.downsample = downsample
        self.blocks = nn.Sequential(*blocks)
        self.norm = nn.Identity() if norm is None else norm

    def forward(self, x: Tensor) -> Tensor:
        x = self.downsample(x).permute(0, 2, 3, 1).contiguous()
        if self.grad_checkpointing and not torch.jit.is_scripting():
            x = checkpoint_seq(self.blocks, x)
        else:
            x = self.blocks(x)
        return self.norm(x).permute(0, 3, 1, 2)


class Pyramid(nn.Module):
    """A staged model: stem, stages, norm, head, and timm's methods on them.

    Args:
        stem: Images [B, in_chans, H, W] -> the map [B, C, h, w] that the first stage takes.
        stages: A `Stage` each, or a module with its signature and its attribute `grad_checkpointing`.
        norm: Norm of the last map, [B, C, h, w] -> [B, C, h, w]; nn.Identity() where the stages or the head hold it.
        head: Pooling and classifier.
        channels: Channels of each stage's map.
        in_chans: Channels of the image.
        num_classes: Classes of the head, 0 for none.
        drop_rate: Dropout before the classifier, for the record.
        reduction: Pixels of the image along an axis for one position of the first stage's map; each further stage has
            twice as many.
        stem_channels: Channels of the stem's map, where that is the first of the features, at half the first stage's
            reduction (MaxViT). None: the features are those of the stages.
    """

    def __init__(
        self,
        stem: nn.Module,
        stages: Sequence[nn.Module],
        norm: nn.Module,
        head: ClassifierHead | NormMlpClassifierHead,
        channels: Sequence[int],
        in_chans: int,
        num_classes: int,
        drop_rate: float = 0.0,
        reduction: int = 4,
        stem_channels: int | None = None,
    ):
        super().__init__()
        self.num_classes = num_classes
        self.in_chans = in_chans
        self.num_features = channels[-1]
        self.drop_rate = drop_rate
        self.grad_checkpointing = False
        self.stem_taps = 0 if stem_channels is None else 1
        self.feature_info = [
            dict(num_chs=dim, reduction=reduction * 2**i, module=f'stages.{i}') for i, dim in enumerate(channels)
        ]
        if stem_channels is not None:
            self.feature_info.insert(0, dict(num_chs=stem_channels, reduction=reduction // 2, module='stem'))

        self.stem = stem
        self.stages = nn.Sequential(*stages)
        self.norm: nn.Module = norm
        self.head = head
        self.head_hidden_size = head.num_features
        self.init_weights(needs_reset=False)

    @staticmethod
    def init_module(module: nn.Module) -> None:
        """Initialise one module beyond its own `reset_parameters`; a family overrides this where its authors differ."""
        if isinstance(module, nn.Linear):
            trunc_normal_(module.weight, std=0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)

    @torch.jit.ignore
    def init_weights(self, needs_reset: bool = True) -> None:
        """Initialise all weights; `needs_reset` also resets the layers that have initialised themselves on creation."""
        if not needs_reset and next(self.parameters()).is_meta:
            return  # nothing to fill, and drawing nothing takes time too
        for module in self.modules():
            if needs_reset and callable(reset := getattr(module, 'reset_parameters', None)):
                reset()
            self.init_module(module)

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        return set()

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        # Downsampling counts with the first block of its stage, a norm (99999) with what lies before it.
        blocks = [
            (r'^stages\.(\d+)\.downsample', (0,)),
            (r'^stages\.(\d+)\.blocks\.(\d+)', None),
            (r'^stages\.(\d+)\.norm', (99999,)),
            (r'^norm', (99999,)),
        ]
        return dict(stem=r'^stem', blocks=r'^stages\.(\d+)' if coarse else blocks)

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Keep only what lies between the blocks for the backward, which computes the rest again."""
        self.grad_checkpointing = enable
        for stage in cast(list[Stage], self.stages):
            stage.grad_checkpointing = enable

    @torch.jit.ignore
    def get_classifier(self) -> nn.Module:
        return self.head.fc

    @torch.jit.ignore
    def reset_classifier(self, num_classes: int, global_pool: str | None = None, reset_other: bool = False) -> None:
        dd = get_device_dtype(self)
        self.num_classes = num_classes
        self.head.reset(num_classes, global_pool, reset_other=reset_other, in_features=self.num_features, **dd)
        self.head_hidden_size = self.head.num_features

    @torch.jit.ignore
    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = 'NCHW',
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Features by their place in `feature_info`, [B, C, H, W] each, after the final ones unless
        `intermediates_only`.

        Args:
            x: Images [B, in_chans, H, W].
            indices: The last n features if an int, all if None, these if a list.
            norm: Apply the final norm to the last stage's map.
            stop_early: Run no stage beyond the last one asked for.
            output_fmt: 'NCHW'.
            intermediates_only: Return the list alone.
        """
        if output_fmt != 'NCHW':
            raise ValueError(f"output_fmt: expected 'NCHW', got {output_fmt!r}")
        take_indices, max_index = feature_take_indices(self.stem_taps + len(self.stages), indices)
        x = self.stem(x)
        intermediates = [x] if self.stem_taps and 0 in take_indices else []
        stages = self.stages[: max_index + 1 - self.stem_taps] if stop_early else self.stages
        for i, stage in enumerate(stages, self.stem_taps):
            x = raw = stage(x)
            if i == self.stem_taps + len(self.stages) - 1:
                x = self.norm(x)
            if i in take_indices:
                intermediates.append(x if norm else raw)
        return intermediates if intermediates_only else (x, intermediates)

    @torch.jit.ignore
    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop the stages, norm and head that the chosen intermediates do not need."""
        taps = self.stem_taps + len(self.stages)
        take_indices, max_index = feature_take_indices(taps, indices)
        prune_end = max_index < taps - 1
        if prune_norm or prune_end:
            self.norm = nn.Identity()
        self.stages = self.stages[: max_index + 1 - self.stem_taps]
        if prune_end:
            self.num_features = self.head_hidden_size = self.feature_info[max_index]['num_chs']
        if prune_head or prune_end:
            self.reset_classifier(0, '', reset_other=True)
        return take_indices

    def forward_features(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = self.stages(x)
        return self.norm(x)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        return self.head(x, pre_logits=True) if pre_logits else self.head(x)

    def forward(self, x: Tensor) -> Tensor:
        x = self.forward_features(x)
        return self.forward_head(x)


def check_stages(**settings: Sequence[Any]) -> None:
    """Raises a ValueError unless all these settings have one entry for each stage."""
    lengths = [len(setting) for setting in settings.values()]
    if len(set(lengths)) > 1:
        names, got = list(settings), [str(length) for length in lengths]
        raise ValueError(
            f'{", ".join(names[:-1])} and {names[-1]}: expected one entry for each stage, '
            f'got {", ".join(got[:-1])} and {got[-1]}'
        )


def drop_path_rates(rate: float, depths: Sequence[int]) -> list[list[float]]:
    """Stochastic depth rates of all blocks, by stage: they grow linearly from 0 to `rate`."""
    return cast(list[list[float]], calculate_drop_path_rates(rate, list(depths), stagewise=True))


def make_drop_path(rate: float) -> nn.Module:
    """Stochastic depth of one residual branch."""
    return DropPath(rate) if rate > 0.0 else nn.Identity()
