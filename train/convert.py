"""Official checkpoints as safetensors, with the keys and layouts of our models."""

import shlex
from pathlib import Path

import timm
import torch
from torch import Tensor, nn

from .checkpoint import check_finite, load_weights, read_weights, save_weights, translate_weights
from .classes import imagenet_classes
from .console import say
from .errors import UserError, program
from .models import create, spec_of


def convert(source: str, destination: str, name: str, *, force: bool = False) -> None:
    """Read an official file, check that it fits the model `name`, and write it as safetensors.

    Args:
        force: write over a file that is there.

    Raises:
        UserError: the file is missing, damaged, holds code, or is of another architecture.
    """
    target = Path(destination)
    if target.suffix != '.safetensors':
        raise UserError(f'{destination}: the file to write must end in .safetensors')
    if not target.parent.is_dir():
        raise UserError(f'{destination}: no folder {target.parent}')
    if target.exists() and not force:
        raise UserError(f'{destination} is there: another DST leaves it alone, --force writes over it')
    model = create(name)
    state, _ = read_weights(Path(source))
    try:
        load_weights(model, translate_weights(model, state), source)
    except UserError as error:
        fitting = _fitting_names(model, name, state)
        raise UserError(f'{error}; it fits --model {" or ".join(fitting)}' if fitting else str(error)) from error
    check_finite(model, source)
    save_weights(target, model.state_dict(), spec_of(model, name, {}, imagenet_classes(model)).metadata())
    say(f'{destination}: {name}, {len(model.state_dict())} tensors, {target.stat().st_size / 2**20:.1f} MiB')
    say(f"use it: timm.create_model('{name}', pretrained=True, pretrained_cfg_overlay=dict(file='{destination}'))")
    say(f'or:     {program()} predict {shlex.quote(destination)} IMAGE...')


def _fitting_names(model: nn.Module, name: str, state: dict[str, Tensor]) -> list[str]:
    """The other models of a family of ours that a state dict fits. Nothing is computed or kept."""
    family = type(model).__module__
    if not family.startswith('attnzoo.'):  # some of timm's families have hundreds
        return []
    fitting = []
    for other in timm.list_models(module=family.rpartition('.')[2]):
        with torch.device('meta'):
            candidate = create(other)
        translated, own = translate_weights(candidate, state), candidate.state_dict()
        if translated.keys() == own.keys() and all(translated[key].shape == own[key].shape for key in own):
            fitting.append(other)
    return [other for other in fitting if other != name]
