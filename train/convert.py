"""Official checkpoints as safetensors, with the keys and layouts of our models."""

from pathlib import Path

from .checkpoint import load_weights, read_weights, save_weights, translate_weights
from .console import say
from .errors import UserError
from .models import create, imagenet_classes, spec_of


def convert(source: str, destination: str, name: str) -> None:
    """Read an official file, check that it fits the model `name`, and write it as safetensors.

    Raises:
        UserError: the file is missing, damaged, holds code, or is of another architecture.
    """
    target = Path(destination)
    if target.suffix != '.safetensors':
        raise UserError(f'{destination}: the file to write must end in .safetensors')
    if not target.parent.is_dir():
        raise UserError(f'{destination}: no folder {target.parent}')
    model = create(name)
    state, _ = read_weights(Path(source))
    load_weights(model, translate_weights(model, state), source)
    save_weights(target, model.state_dict(), spec_of(model, name, {}, imagenet_classes(model)).metadata())
    say(f'{destination}: {name}, {len(model.state_dict())} tensors, {target.stat().st_size / 2**20:.1f} MiB')
    say(f"use it: timm.create_model('{name}', pretrained=True, pretrained_cfg_overlay=dict(file='{destination}'))")
