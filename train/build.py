"""What every run needs, made from its settings: accelerator, optimiser, schedule."""

from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from torch import nn

from .config import Config
from .errors import UserError, one_line
from .models import pick_device


def make_accelerator(config: Config) -> Accelerator:
    accelerator = Accelerator(
        cpu=pick_device(config.device).type == 'cpu',
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


def checkpoint_gradients(model: nn.Module) -> None:
    """Have the model keep less for its backward.

    Raises:
        UserError: it cannot.
    """
    try:
        model.set_grad_checkpointing(True)  # type: ignore[operator]
    except (AttributeError, AssertionError) as error:
        raise UserError(f'train.grad_checkpointing=true: {type(model).__name__} cannot do that') from error


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
        raise UserError(f'optim.name={optim.name}: {one_line(error)}') from error


def head_lr(optimizer: torch.optim.Optimizer) -> float:
    """The learning rate of the head: layer decay scales that of every other layer down from it."""
    return max(optimizer.param_groups, key=lambda group: group.get('lr_scale', 1.0))['lr']


def check_batch_size(config: Config, processes: int) -> str | None:
    """What to do where the images of one step are far from the number that the recipe was made for."""
    meant, accumulate = config.optim.recipe_batch_size, config.train.grad_accum
    total = config.data.batch_size * processes * accumulate
    if not meant or meant / 2 <= total <= meant * 2:
        return None
    steps = max(1, round(meant / (config.data.batch_size * processes)))
    advice = f'train.grad_accum={steps} keeps to it' if steps > 1 else 'a smaller data.batch_size keeps to it'
    return (
        f'a step sees {total} images ({config.data.batch_size} x {processes} processes x {accumulate} batches), and '
        f'this recipe is for {meant}: {advice}, and so do more processes'
    )


def create_schedule(config: Config, optimizer: torch.optim.Optimizer, updates_per_epoch: int) -> Any:
    schedule = config.schedule
    if schedule.warmup_epochs >= config.train.epochs:
        raise UserError(
            f'schedule.warmup_epochs={schedule.warmup_epochs:g} leaves nothing of {config.train.epochs} epochs'
        )
    created, _ = create_scheduler_v2(
        optimizer,
        sched=schedule.name,
        num_epochs=config.train.epochs,
        decay_epochs=schedule.decay_epochs,
        decay_milestones=schedule.milestones,  # type: ignore[arg-type]
        decay_rate=schedule.decay_rate,
        min_lr=schedule.min_lr,
        warmup_lr=schedule.warmup_lr,
        warmup_epochs=schedule.warmup_epochs,  # type: ignore[arg-type]
        step_on_epochs=False,
        updates_per_epoch=updates_per_epoch,
    )
    return created
