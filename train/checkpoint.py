"""Checkpoints: weights as safetensors, the state of a run beside them, both written so that a crash leaves the old one.

Files of others are read with `weights_only`, so nothing in them runs.
"""

import argparse
import io
import os
import pickle
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from timm.models import clean_state_dict
from torch import Tensor, nn

from attnzoo.backbones import checkpoint_filter

from .errors import DISK_IS_FULL, UserError, one_line


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file that is either the old or the new one, whole, whenever the machine stops.

    Raises:
        UserError: no room on the disk. The old file is intact and nothing else is left behind.
    """
    # In the same folder, because only a rename within one file system is atomic; under a fixed name, so that the next
    # run overwrites what a killed one left.
    temporary = path.with_name(f'{path.name}.part')
    try:
        with open(temporary, 'wb') as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        if error.errno not in DISK_IS_FULL:
            raise
        raise UserError(
            f'cannot write {path} ({len(data) / 2**20:.1f} MiB): {error.strerror}; what was saved before is intact'
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def save_weights(path: Path, state: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
    """Save a state dict as safetensors. Tensors that share memory (tied weights) are written one by one."""
    tensors: dict[str, Tensor] = {}
    stored = set()
    for key, value in state.items():
        tensor = value.detach().cpu().contiguous()
        memory = tensor.untyped_storage().data_ptr()
        tensors[key] = tensor.clone() if memory in stored else tensor
        stored.add(memory)
    write_atomically(path, safetensors.torch.save(tensors, metadata))


def save_state(path: Path, state: Mapping[str, Any]) -> None:
    """Save nested dicts and lists of tensors, numbers and strings."""
    buffer = io.BytesIO()
    torch.save(dict(state), buffer)
    write_atomically(path, buffer.getvalue())


def load_state(path: Path) -> dict[str, Any]:
    return _load_pickle(path)


def read_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The state dict of a .safetensors or PyTorch file, and the metadata of the former.

    Raises:
        UserError: no such file, not a checkpoint, or a pickle with anything but data in it.
    """
    if not path.is_file():
        raise UserError(f'{path}: {"a folder, expected a file" if path.is_dir() else "no such file"}')
    if path.suffix == '.safetensors':
        try:
            with safetensors.safe_open(path, 'pt') as file:  # type: ignore[attr-defined]
                return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118
        except Exception as error:  # of damaged bytes, not only SafetensorError
            raise UserError(f'{path}: not a safetensors file, or a damaged one: {one_line(error)}') from error
    state = _load_pickle(path)
    # Training scripts keep the weights beside the optimizer, under one of these names.
    for key in ('model', 'state_dict', 'module'):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
            break
    weights = state.items() if isinstance(state, dict) else ()
    if not weights or not all(isinstance(key, str) and isinstance(value, Tensor) for key, value in weights):
        raise UserError(f'{path}: holds no state dict, neither at the top nor under model, state_dict or module')
    return clean_state_dict(state), {}


def translate_weights(model: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Official names and layouts as the model's family translates them; as they are where that fails."""
    try:
        return checkpoint_filter(model)(dict(state), model)
    except Exception:  # the filter met another family's keys; whoever loads the result says what does not fit
        return state


def load_weights(model: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Load a state dict that fits exactly.

    Raises:
        UserError: it does not fit; lists what is missing, unexpected or of another shape or type.
    """
    own = model.state_dict()
    problems = {
        'missing': [key for key in own if key not in state],
        'unexpected': [key for key in state if key not in own],
        'of another shape': [
            f'{key} {tuple(state[key].shape)} instead of {tuple(own[key].shape)}'
            for key in own
            if key in state and state[key].shape != own[key].shape
        ],
        'of another type': [
            f'{key} {state[key].dtype} instead of {own[key].dtype}'
            for key in own
            if key in state and not _can_become(state[key], own[key])
        ],
    }
    told = [
        f'{len(keys)} {problem} ({", ".join(keys[:3])}{", ..." if len(keys) > 3 else ""})'
        for problem, keys in problems.items()
        if keys
    ]
    if told:
        raise UserError(f'{source} does not fit {type(model).__name__} ({len(own)} tensors): {"; ".join(told)}')
    model.load_state_dict(state)


def check_finite(model: nn.Module, source: str) -> None:
    """Check that no weight of a model is NaN or infinite.

    Raises:
        UserError: one is; names the first.
    """
    state = model.state_dict()
    broken = [key for key, value in state.items() if not value.isfinite().all()]
    if broken:
        count = f'{len(broken)} of {len(state)} tensors hold'
        raise UserError(f'{source}: {count} NaN or infinity, the first is {broken[0]}')


def _can_become(given: Tensor, own: Tensor) -> bool:
    """Whether a conversion keeps what the numbers mean: float16 becomes float32, and int8 does not."""
    weights = given.is_floating_point() or not own.is_floating_point()
    return weights and given.is_complex() == own.is_complex() and given.layout == own.layout


def _load_pickle(path: Path) -> Any:
    try:
        # Official checkpoints carry the parsed arguments of their training beside the weights.
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
            warnings.simplefilter('ignore')  # about the protocol of a file that is then refused
            return torch.load(path, map_location='cpu', weights_only=True)
    except Exception as error:  # UnpicklingError of foreign content, a dozen others of damaged bytes
        reason = re.search(r'GLOBAL [\w.]+|Unsupported \w+ \w+', str(error))
        with open(path, 'rb') as file:
            known = file.read(2).startswith((b'PK', b'\x80'))  # as zip files and pickles begin
        if not known:
            what = 'not a PyTorch checkpoint' if path.stat().st_size else 'an empty file'
            raise UserError(f'{path}: {what}, expected a file of torch.save or a .safetensors file') from error
        if isinstance(error, pickle.UnpicklingError) and reason:
            raise UserError(
                f'{path}: refused: it holds more than weights, which could run code when loaded ({reason[0]})'
            ) from error
        raise UserError(f'{path}: not a PyTorch checkpoint, or a damaged one: {one_line(error)}') from error
