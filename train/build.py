"""What every run needs, made from its settings: accelerator, optimiser, schedule."""

from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from torch import nn

from .config import Config
from .errors import UserError, first_line


def make_accelerator(config: Config) -> Accelerator:
    available = {'cuda': torch.cuda.is_available(), 'mps': torch.backends.mps.is_available(), 'cpu': True}
    device = config.device if config.device != 'auto' else next(name for name, there in available.items() if there)
    if not available[device]:
        raise UserError(f'device={device}: there is none here; device=auto takes what there is')
    accelerator = Accelerator(
        cpu=device == 'cpu',
        mixed_precision='no' if config.precision == 'fp32' else config.precision,
        gradient_accumulation_steps=config.train.grad_accum,
        dynamo_backend='inductor' if config.train.compile else 'no',
        step_scheduler_with_optimizer=False,
    )
    if accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED):
        raise UserError(
            f'{accelerator.distributed_type.value} is not supported: checkpoints need whole parameters (DDP)'
        )
    return accelerator


def create_optimizer(config: Config, model: nn.Module, batch_size: int) -> torch.optim.Optimizer:
    optim = config.optim
    options: dict[str, Any] = {'betas': tuple(optim.betas)} if optim.betas else {}
    try:
        return create_optimizer_v2(
            model,
            opt=optim.name,
            lr=optim.lr * (batch_size / optim.lr_batch_size if optim.lr_batch_size else 1),
            weight_decay=optim.weight_decay,
            momentum=optim.momentum,
            layer_decay=optim.layer_decay,
            **options,
        )
    except (ValueError, TypeError, AssertionError, RuntimeError) as error:
        raise UserError(f'optim.name={optim.name}: {first_line(error)}') from error


def create_schedule(config: Config, optimizer: torch.optim.Optimizer, updates_per_epoch: int) -> Any:
    schedule = config.schedule
    if schedule.warmup_epochs >= config.train.epochs:
        raise UserError(
            f'schedule.warmup_epochs={schedule.warmup_epochs} leaves nothing of {config.train.epochs} epochs'
        )
    created, _ = create_scheduler_v2(
        optimizer,
        sched=schedule.name,
        num_epochs=config.train.epochs,
        decay_epochs=schedule.decay_epochs,
        decay_rate=schedule.decay_rate,
        min_lr=schedule.min_lr,
        warmup_lr=schedule.warmup_lr,
        warmup_epochs=schedule.warmup_epochs,
        step_on_epochs=False,
        updates_per_epoch=updates_per_epoch,
    )
    return created
