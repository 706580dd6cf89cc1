"""Models by name or from a run folder, with what they need to be built again and used: a `ModelSpec`."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from timm.data import ImageNetInfo, infer_imagenet_subset, resolve_model_data_config
from torch import nn

from .checkpoint import load_weights, read_weights
from .errors import UserError, first_line, near

METADATA_KEY = 'attnzoo'


@dataclass(frozen=True)
class ModelSpec:
    """How a model is built, what its images look like and what its outputs mean. It travels inside the checkpoint."""

    name: str
    num_classes: int
    kwargs: dict[str, Any]
    data: dict[str, Any]  # input_size (channels, height, width), interpolation, mean, std, crop_pct, crop_mode
    classes: list[str]  # empty where nobody has named them

    def metadata(self, **facts: Any) -> dict[str, str]:
        """The spec and further facts, as safetensors keeps them: under one key, for it writes several in any order."""
        return {METADATA_KEY: json.dumps({'model': asdict(self), **facts})}

    def class_name(self, index: int) -> str:
        return self.classes[index] if self.classes else f'class {index}'


def create(name: str, *, pretrained: bool = False, num_classes: int | None = None, **kwargs: Any) -> nn.Module:
    """`timm.create_model`, whose errors are one line.

    Raises:
        UserError: unknown name, an argument that the model does not take, no weights to be had.
    """
    if not name.startswith(('hf-hub:', 'hf_hub:', 'local-dir:')) and not timm.is_model(name):
        raise UserError(f'no model {name!r}{near(name.split(".")[0], timm.list_models())}')
    if num_classes is not None:
        kwargs['num_classes'] = num_classes
    try:
        return timm.create_model(name, pretrained=pretrained, **kwargs)
    except (TypeError, ValueError, AssertionError) as error:
        raise UserError(f'model.kwargs do not fit {name}: {first_line(error)}') from error
    except Exception as error:
        # What goes wrong with weights is a dozen exception types of hub, file and network.
        raise UserError(f'cannot create {name}: {first_line(error)}') from error


def spec_of(model: nn.Module, name: str, kwargs: Mapping[str, Any], classes: list[str], **data: Any) -> ModelSpec:
    """The spec of a model; `data` overrides what its pretrained_cfg says about its images.

    Args:
        data: image_size (height, width), interpolation, crop_pct, mean, std; None where the pretrained_cfg holds.
    """
    resolved = _with_image_settings(resolve_model_data_config(model), data, getattr(model, 'in_chans', 3))
    return ModelSpec(name, int(model.num_classes), dict(kwargs), resolved, classes)  # type: ignore[arg-type]


def _with_image_settings(data: Mapping[str, Any], settings: Mapping[str, Any], channels: int) -> dict[str, Any]:
    if channels not in (1, 3):
        raise UserError(f'model.kwargs.in_chans={channels}: images have 3 channels, or 1 of grey')
    changed = {key: value for key, value in settings.items() if value is not None}
    size = changed.pop('image_size', data['input_size'][1:])
    merged = {**data, **changed, 'input_size': (channels, *size)}
    if channels == 1:  # the statistics of three channels, as grey has them
        merged |= {key: (sum(merged[key]) / len(merged[key]),) for key in ('mean', 'std')}
    return merged


def load(target: str) -> tuple[nn.Module, ModelSpec, str]:
    """A model with weights, its spec and where they come from.

    Args:
        target: a run folder (its best checkpoint), a .safetensors file of `attnzoo train` or `attnzoo convert`, or the
            name of a model with pretrained weights.
    """
    path = Path(target)
    if path.is_dir():
        found = [path / name for name in ('best.safetensors', 'last.safetensors') if (path / name).is_file()]
        if not found:
            raise UserError(f'{target}: no run folder: it holds neither best.safetensors nor last.safetensors')
        path = found[0]
    if path.is_file():
        state, metadata = read_weights(path)
        if METADATA_KEY not in metadata:
            raise UserError(f'{path}: does not say which model it is; `attnzoo convert {path} DST --model NAME` does')
        spec = ModelSpec(**json.loads(metadata[METADATA_KEY])['model'])
        model = create(spec.name, num_classes=spec.num_classes, **spec.kwargs)
        load_weights(model, state, str(path))
        return model, spec, str(path)
    if not timm.is_model(target):
        raise UserError(
            f'{target!r} is neither a run folder nor a model{near(target.split(".")[0], timm.list_models())}'
        )
    model = create(target, pretrained=True)
    return model, spec_of(model, target, {}, imagenet_classes(model)), f'{target}, pretrained'


def imagenet_classes(model: nn.Module) -> list[str]:
    """The class names of a model with ImageNet's head, else nothing."""
    subset = infer_imagenet_subset(model)
    return ImageNetInfo(subset).label_descriptions() if subset else []  # type: ignore[return-value]


def count_parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def multiply_adds(name: str, input_size: tuple[int, int, int], **kwargs: Any) -> int | None:
    """Multiply-adds of one image of `input_size` (channels, height, width); None where they cannot be counted.

    Matrix products, convolutions and attention count, as in the papers' GMACs. Nothing is computed.
    """
    from torch.utils.flop_counter import FlopCounterMode

    try:
        with torch.device('meta'), torch.no_grad(), FlopCounterMode(display=False) as counter:
            create(name, **kwargs).eval()(torch.empty(1, *input_size))
    except (UserError, NotImplementedError, RuntimeError):  # a model that does not run on the meta device
        return None
    return counter.get_total_flops() // 2
