"""Published weights: where a model's official file is, and the one line that says so when it cannot be had.

timm loads whatever a `default_cfg` links to; the Hugging Face hub's own client goes on where a download broke off, and
keeps what it has. Some authors' links are dead, or lead to Google Drive or to pages that no program can download from;
for those the file's name and link are kept here. A copy that the user has placed in the checkpoint folder comes first.
"""

import inspect
import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from huggingface_hub.errors import HfHubHTTPError
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import build_model_with_cfg, clean_state_dict, get_pretrained_cfg, resolve_pretrained_cfg
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
    """`pretrained=True` for a model whose weights are neither downloadable here nor in the checkpoint folder.

    Attributes:
        problem: What is missing and where it may be placed; the whole text adds what code can pass instead.
    """

    def __init__(self, problem: str, instead: str):
        super().__init__(f'{problem}, or pass {instead}')
        self.problem = problem


_official_files: dict[str, OfficialFile] = {}


def register_official_files(files: dict[str, OfficialFile]) -> None:
    """Add the official files of a family, by model name with tag (`biformer_tiny.in1k`)."""
    _official_files.update(files)


def official_file(name: str) -> OfficialFile | None:
    """The official file of a model name with tag, or None."""
    return _official_files.get(name)


_published_top1: dict[str, float] = {}


def register_top1(published: dict[str, float]) -> None:
    """Add ImageNet-1k top-1 of a family's checkpoints in percent, as their authors publish it, by name with tag."""
    _published_top1.update(published)


def published_top1(name: str) -> float | None:
    """The published ImageNet-1k top-1 (percent) of the checkpoint of a model name with tag, or None."""
    return _published_top1.get(name)


def checkpoint_folder() -> Path:
    """Where downloaded and hand-placed weights lie: the folder that torch.hub and timm use."""
    return Path(torch.hub.get_dir()) / 'checkpoints'


def placed_file(name: str) -> Path | None:
    """A model's weights (name with tag) in the checkpoint folder: converted ones first, then the official file."""
    candidates = [f'{name}.safetensors']
    if name in _official_files:
        candidates.append(_official_files[name].name)
    elif (cfg := get_pretrained_cfg(name)) and cfg.hf_hub_filename:
        candidates.append(cfg.hf_hub_filename)
    paths = (checkpoint_folder() / candidate for candidate in candidates)
    return next((path for path in paths if path.is_file()), None)


def find_weights(name: str) -> Path:
    """The file of a model's weights (name with tag): the placed one, or else downloaded from Google Drive or from
    where its authors' link leads to the file itself.

    Raises:
        WeightsNotFoundError: There is neither; the message names the file, its page and the folder to place it in.
    """
    if path := placed_file(name):
        return path
    file = official_file(name)
    if file is None:
        raise WeightsNotFoundError(
            f'{name}: no weights were published. Place your own as {name}.safetensors in {checkpoint_folder()}',
            'pretrained_cfg_overlay=dict(file=...)',
        )
    problem = f'no working download link ({file.status})'
    drive = _DRIVE_LINK.match(file.link)
    if drive or file.link.endswith(f'/{file.name}'):
        url = DRIVE_DOWNLOAD.format(drive[1]) if drive else file.link
        try:
            return _download(url, checkpoint_folder() / file.name)
        except (OSError, ValueError) as error:
            problem = f'cannot download {file.link} ({error})'
    raise WeightsNotFoundError(
        f'{name}: {problem}. Place {file.name} (see {file.page}) in {checkpoint_folder()}',
        f'pretrained_cfg_overlay=dict(file={file.name!r})',
    )


_DRIVE_LINK = re.compile(r'https://drive\.google\.com/file/d/([\w-]+)')
DRIVE_DOWNLOAD = 'https://drive.usercontent.google.com/download?id={}&export=download&confirm=t'


def _download(url: str, path: Path) -> Path:
    """Google Drive answers with a page where a file is gone or asked for too often: that is no file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f'{path.name}.{os.getpid()}.part')  # of this process, should another load the same model
    try:
        torch.hub.download_url_to_file(url, str(part), progress=sys.stderr.isatty())
        with open(part, 'rb') as file:
            if file.read(64).lstrip()[:1] == b'<':
                raise ValueError('it answers with a web page in place of the file')
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    return path


def imagenet_cfg(**facts: Any) -> dict[str, Any]:
    """A `default_cfg` with what most ImageNet-1k models share, and the facts of this one over it."""
    return {
        'num_classes': 1000,
        'input_size': (3, 224, 224),
        'pool_size': (7, 7),
        'crop_pct': 0.875,
        'interpolation': 'bicubic',
        'mean': IMAGENET_DEFAULT_MEAN,
        'std': IMAGENET_DEFAULT_STD,
        'classifier': 'head.fc',
        **facts,
    }


def checkpoint_filter(model: nn.Module | type[nn.Module]) -> Callable[[dict[str, Any], nn.Module], dict[str, Any]]:
    """The function of the model's family that turns official (and timm) state dicts into ours."""
    family = sys.modules[(model if isinstance(model, type) else type(model)).__module__]
    return getattr(family, 'checkpoint_filter_fn', lambda state_dict, _: state_dict)


def unwrap(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """The state dict of a checkpoint that may hold it under a name, its keys without the prefixes of wrappers."""
    for key in ('model', 'state_dict'):
        if isinstance(checkpoint.get(key), Mapping):
            return clean_state_dict(checkpoint[key])
    return clean_state_dict(dict(checkpoint))


def rename_keys(
    state_dict: Mapping[str, Any], rules: Iterable[tuple[str, str | Callable[[re.Match[str]], str]]]
) -> dict[str, Any]:
    """A state dict with every rule (pattern, replacement) of `re.sub` applied to its keys, one after the other."""
    renamed = {}
    for key, value in state_dict.items():
        for pattern, replacement in rules:
            key = re.sub(pattern, replacement, key)
        renamed[key] = value
    return renamed


def build_model(model_cls: type[ModelT], variant: str, pretrained: bool, **kwargs) -> ModelT:
    """timm's `build_model_with_cfg` with our families' filter and features, weights that only a file can give, and, for
    models that take an `img_size`, the one of the cfg."""
    cfg = resolve_pretrained_cfg(
        variant,
        pretrained_cfg=kwargs.get('pretrained_cfg'),
        pretrained_cfg_overlay=kwargs.get('pretrained_cfg_overlay'),
    )
    name = f'{variant}.{cfg.tag}' if cfg.tag else variant
    given = bool(cfg.file or cfg.state_dict)
    if pretrained and not given:
        file = placed_file(name) if cfg.has_weights else find_weights(name)
        if file:
            kwargs['pretrained_cfg_overlay'] = dict(kwargs.get('pretrained_cfg_overlay') or {}, file=str(file))
    if 'img_size' in inspect.signature(model_cls).parameters:
        kwargs.setdefault('img_size', cfg.input_size[-2:])
    feature_cfg = {'out_indices': (0, 1, 2, 3), 'flatten_sequential': True, **kwargs.pop('feature_cfg', {})}
    try:
        return build_model_with_cfg(
            model_cls,
            variant,
            pretrained,
            pretrained_filter_fn=checkpoint_filter(model_cls),
            feature_cfg=feature_cfg,
            **kwargs,
        )
    except (OSError, HfHubHTTPError) as error:  # no network, no such file on the hub, a full disk
        if given or not (pretrained and cfg.hf_hub_id):
            raise
        wanted = cfg.hf_hub_filename or f'{name}.safetensors'
        reason = str(error).strip().partition('\n')[0]
        raise WeightsNotFoundError(
            f'{name}: cannot download {cfg.hf_hub_id} from the Hugging Face hub ({reason}). '
            f'Place its weights as {wanted} in {checkpoint_folder()}',
            f'pretrained_cfg_overlay=dict(file={wanted!r})',
        ) from error
