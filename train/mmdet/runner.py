"""mmengine's runner as `python -m attnzoo.mmdet` starts it: plain checkpoints, CPUs, data in any folder."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.hooks import Hook
from mmengine.logging import HistoryBuffer, print_log
from mmengine.registry import HOOKS, RUNNERS
from mmengine.runner import Runner

_DATA_ROOT = 'attnzoo_data_root'


@HOOKS.register_module()
class PlainCheckpoint(Hook):
    """Writes checkpoints of tensors and plain values alone, which `torch.load` reads as weights only.

    mmengine puts objects of its own into them, which torch refuses to read since it reads weights only by default. A
    runner without this hook resumes from such a checkpoint too, but for the running means in its log.
    """

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        for key in ('message_hub', 'meta'):
            checkpoint[key] = _as_plain(checkpoint[key])

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        scalars = checkpoint.get('message_hub', {}).get('log_scalars', {})
        for name, value in scalars.items():
            if isinstance(value, Mapping):
                scalars[name] = HistoryBuffer(**value)


def _as_plain(value: Any) -> Any:
    if isinstance(value, HistoryBuffer):
        history, counts = value.data
        return {'log_history': history.tolist(), 'count_history': counts.tolist(), 'max_length': value.max_length}
    if isinstance(value, Mapping):
        return {key: _as_plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_as_plain(inner) for inner in value)
    if isinstance(value, (np.generic, np.ndarray)):
        return value.tolist()
    return value


@RUNNERS.register_module()
class ZooRunner(Runner):
    """A runner whose settings are first fitted to where it runs."""

    @classmethod
    def from_cfg(cls, cfg: Config) -> Runner:
        cfg.custom_hooks = [*cfg.get('custom_hooks', []), {'type': 'PlainCheckpoint'}]
        if root := cfg.pop(_DATA_ROOT, None):
            _read_data_from(cfg, root)
        if get_device() == 'cpu':
            _fit_to_cpu(cfg)
        return super().from_cfg(cfg)


def _read_data_from(cfg: Config, root: str) -> None:
    """Let all data sets, and the metrics with files of their own, lie in another folder."""
    root = root.rstrip('/') + '/'
    for split in ('train', 'val', 'test'):
        dataset = (cfg.get(f'{split}_dataloader') or {}).get('dataset')
        while dataset is not None and 'dataset' in dataset:  # wrapped, as to be repeated
            dataset = dataset.dataset
        if dataset is None or 'data_root' not in dataset:
            continue
        before, dataset.data_root = dataset.data_root, root
        metrics = cfg.get(f'{split}_evaluator') or []
        for metric in metrics if isinstance(metrics, list) else [metrics]:
            if metric.get('ann_file', '').startswith(before):
                metric.ann_file = root + metric.ann_file[len(before) :]


def _fit_to_cpu(cfg: Config) -> None:
    wrapper = cfg.get('optim_wrapper')
    if wrapper and wrapper.get('type') == 'AmpOptimWrapper':
        print_log('There is no GPU: the run is in float32, not in half precision.', logger='current')
        wrapper.type = 'OptimWrapper'
        for key in ('loss_scale', 'dtype', 'use_fsdp'):
            wrapper.pop(key, None)
    _replace(cfg.get('model'), 'SyncBN', 'BN')
    if cfg.get('launcher', 'none') != 'none':
        # mmengine would choose a GPU for each process.
        if not torch.distributed.is_initialized():
            torch.distributed.init_process_group('gloo')
        cfg.model_wrapper_cfg = {
            'type': 'MMDistributedDataParallel',
            'device_ids': None,
            'broadcast_buffers': False,
            'find_unused_parameters': cfg.get('find_unused_parameters', False),
        }


def _replace(settings: Any, name: str, other: str) -> None:
    """Another `type` wherever this one stands."""
    if isinstance(settings, dict):
        if settings.get('type') == name:
            settings['type'] = other
        settings = list(settings.values())
    if isinstance(settings, (list, tuple)):
        for inner in settings:
            _replace(inner, name, other)
