"""Published weights: where a model's official file is, and the one line that says so when it cannot be had.

timm loads whatever a `default_cfg` links to. Some authors' links are dead, or lead to pages that no program can
download from; for those the file's name is kept here, and a copy that the user has placed in the checkpoint folder is
found by it.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from timm.models import build_model_with_cfg, resolve_pretrained_cfg
from torch import nn

ModelT = TypeVar('ModelT', bound=nn.Module)


@dataclass(frozen=True)
class OfficialFile:
    """A checkpoint as its authors published it.

    Attributes:
        name: File name, as the authors' own loader or page calls it.
        page: Page that lists it.
        link: Address given there.
        status: What is known of the address, in words ('listed' where nobody here could try it).
    """

    name: str
    page: str
    link: str
    status: str


class WeightsNotFoundError(RuntimeError):
    """`pretrained=True` for a model whose official weights are neither downloadable nor in the checkpoint folder."""


_official_files: dict[str, OfficialFile] = {}


def register_official_files(files: dict[str, OfficialFile]) -> None:
    """Add the official files of a family, by model name with tag (`biformer_tiny.in1k`)."""
    _official_files.update(files)


def official_file(name: str) -> OfficialFile | None:
    """The official file of a model name with tag, or None."""
    return _official_files.get(name)


def checkpoint_folder() -> Path:
    """Where downloaded and hand-placed weights lie: the folder that torch.hub and timm use."""
    return Path(torch.hub.get_dir()) / 'checkpoints'


def placed_file(name: str) -> Path | None:
    """A model's weights (name with tag) in the checkpoint folder: converted ones first, then the official file."""
    candidates = [f'{name}.safetensors']
    if name in _official_files:
        candidates.append(_official_files[name].name)
    paths = (checkpoint_folder() / candidate for candidate in candidates)
    return next((path for path in paths if path.is_file()), None)


def checkpoint_filter(model: nn.Module) -> Callable[[dict[str, Any], nn.Module], dict[str, Any]]:
    """The function of the model's family that turns official (and timm) state dicts into ours."""
    return getattr(sys.modules[type(model).__module__], 'checkpoint_filter_fn', lambda state_dict, _: state_dict)


def build_model(model_cls: type[ModelT], variant: str, pretrained: bool, **kwargs) -> ModelT:
    """timm's `build_model_with_cfg`, plus the weights that only a file can give."""
    if pretrained:
        cfg = resolve_pretrained_cfg(
            variant,
            pretrained_cfg=kwargs.get('pretrained_cfg'),
            pretrained_cfg_overlay=kwargs.get('pretrained_cfg_overlay'),
        )
        if not (cfg.has_weights or cfg.state_dict):
            overlay = dict(kwargs.get('pretrained_cfg_overlay') or {}, file=str(_require_file(f'{variant}.{cfg.tag}')))
            kwargs['pretrained_cfg_overlay'] = overlay
    return build_model_with_cfg(model_cls, variant, pretrained, **kwargs)


def _require_file(name: str) -> Path:
    path = placed_file(name)
    if path is not None:
        return path
    file = official_file(name)
    if file is None:
        raise WeightsNotFoundError(
            f'{name}: no weights were published; load your own with pretrained_cfg_overlay=dict(file=...)'
        )
    raise WeightsNotFoundError(
        f'{name}: no working download link ({file.status}). Place {file.name} (see {file.page}) '
        f'in {checkpoint_folder()}, or pass pretrained_cfg_overlay=dict(file={file.name!r})'
    )
