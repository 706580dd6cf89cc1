"""Training and scoring of a classifier: one loop.

Accelerate carries device, precision, gradient accumulation and processes; timm the data, optimiser, schedule, losses
and average of the weights. What is drawn at random in a step is seeded by where in the run the step is (see data.py),
so a run that stops and goes on ends with the same bits as one that did not.
"""

import dataclasses
import math
import resource
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path
from statistics import median
from typing import Any

import torch
from accelerate import Accelerator
from timm.data import Mixup
from timm.loss import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from timm.utils import ModelEmaV3
from torch import nn
from torch.utils.data import IterableDataset

from . import models, report
from .build import create_optimizer, create_schedule, make_accelerator
from .checkpoint import load_state, load_weights, read_weights, save_state, save_weights
from .config import FREE_TO_CHANGE, Config, flatten
from .console import Interruption, say, track
from .data import (
    BadImages,
    Batch,
    TrainLoader,
    class_names,
    eval_loader,
    eval_transform,
    open_dataset,
    seed_everything,
    train_transform,
)
from .errors import UserError, first_line
from .evaluation import Scores, evaluate
from .run_folder import RunFolder, command_line, environment, write_json

INTERRUPTED = 130  # exit status, as a shell gives it to what Ctrl-C has ended


@dataclasses.dataclass
class Progress:
    """How far a run has come. All of it is in the checkpoint."""

    epoch: int = 0  # epochs done
    batch: int = 0  # batches of this epoch done, by each process
    update: int = 0  # steps of the optimiser done
    loss: float = 0.0  # summed over this epoch's batches
    best_epoch: int = 0
    best_top1: float = -1.0
    best_loss: float = math.inf
    seconds: float = 0.0  # spent in training and scoring


class _Stopped(Exception):
    """Ctrl-C during the scoring."""


def train(config: Config) -> int:
    """Train as `config` says and leave everything in its run folder.

    Returns:
        Exit status: 0, or 130 after Ctrl-C, with a checkpoint to go on from.
    """
    accelerator = make_accelerator(config)
    main, rank, processes = accelerator.is_main_process, accelerator.process_index, accelerator.num_processes
    folder = RunFolder(config.output)
    origin, state = _state_to_resume(config, folder, processes)
    progress = Progress(**state['progress']) if state else Progress()
    if progress.epoch == config.train.epochs and folder.summary.exists():
        if main:
            say(f'{folder.path} has done its {progress.epoch} epochs; resume=never starts it over')
            report.show_summary(folder)
        return 0

    dataset = open_dataset(config.data, config.data.train_split)
    classes = class_names(dataset)
    held_out = open_dataset(config.data, config.data.val_split, classes=classes)
    num_classes = config.model.num_classes or len(classes)
    if not num_classes:
        raise UserError(f'data.format={config.data.format} does not say how many classes it has: set model.num_classes')
    if num_classes < len(classes):
        raise UserError(f'model.num_classes={config.model.num_classes}, and the data names {len(classes)} classes')

    seed_everything(config.seed)
    model, spec = _create_model(config, num_classes, classes)
    ema = ModelEmaV3(model, config.train.ema, use_warmup=config.train.ema_warmup) if config.train.ema else None
    accumulate = config.train.grad_accum
    transform = train_transform(config.data.augment, spec.data)
    loader = TrainLoader(config.data, dataset, transform, config.seed, accumulate, rank, processes)
    scoring = eval_loader(config.data, held_out, eval_transform(spec.data), rank, processes)
    optimizer = create_optimizer(config, model, config.data.batch_size * processes * accumulate)
    schedule = create_schedule(config, optimizer, loader.batches // accumulate)
    mixup, criterion = _create_loss(config, num_classes)
    bad = BadImages(config.data.max_bad_images, state['bad_images'] if state else [], say)

    wrapped, optimizer = accelerator.prepare(model, optimizer)
    scored: nn.Module = ema.to(accelerator.device).module if ema else model
    if state:
        load_weights(model, state['model'], str(origin))
        optimizer.load_state_dict(state['optimizer'])
        schedule.step_update(progress.update)
        if ema:
            scored.load_state_dict(state['ema'])
        if accelerator.scaler:
            accelerator.scaler.load_state_dict(state['scaler'])

    if main:
        folder.start(config, environment(accelerator.device.type, processes), progress.epoch, origin)
        size = 'x'.join(map(str, spec.data['input_size'][1:]))
        say(
            f'{spec.name}, {models.count_parameters(model) / 1e6:.2f} M parameters, {num_classes} classes, images of '
            f'{size}: {loader.batches} batches of {config.data.batch_size} an epoch on {processes} x '
            f'{accelerator.device.type}, {config.precision}'
        )
        if state:
            say(f'going on from {origin}: epoch {progress.epoch + 1}, batch {progress.batch + 1}')
    tensorboard = _open_tensorboard(config, folder, progress.epoch) if main and config.log.tensorboard else None

    def save() -> None:
        if not main:
            return
        save_weights(folder.last, model.state_dict(), spec.metadata(epoch=progress.epoch, update=progress.update))
        # The weights are in here again: one file, replaced in one go, is all that a resumed run depends on.
        save_state(
            folder.state,
            {
                'model': dict(model.state_dict()),
                'ema': dict(scored.state_dict()) if ema else None,
                'optimizer': optimizer.state_dict(),
                'scaler': accelerator.scaler.state_dict() if accelerator.scaler else None,
                'progress': dataclasses.asdict(progress),
                'bad_images': sorted(bad.names),
                'processes': processes,
                'config': dataclasses.asdict(config),
            },
        )

    def stop() -> int:
        save()
        if main:
            say(f'stopped in epoch {progress.epoch + 1} after batch {progress.batch} of {loader.batches}, and saved')
            say(f'to go on: {command_line(drop="resume=")} resume=auto')
        return INTERRUPTED

    with Interruption() as interruption:
        while progress.epoch < config.train.epochs:
            wrapped.train()
            started, first, stopping = time.perf_counter(), progress.batch, False
            loss_sum = torch.tensor(progress.loss, device=accelerator.device)
            label = f'epoch {progress.epoch + 1}/{config.train.epochs}'
            batches = loader.epoch(progress.epoch, first)
            with closing(track(batches, label, loader.batches, config.log.seconds, first, show=main)) as tracked:
                for images, labels, problems in tracked:
                    bad.add(problems)
                    if not len(labels):
                        raise UserError(f'not one image of a batch of {config.data.batch_size} can be read')
                    images = images.to(accelerator.device, non_blocking=True)
                    labels = labels.to(accelerator.device, non_blocking=True)
                    seed_everything(config.seed, progress.epoch, progress.batch, rank, 1)
                    if mixup:
                        images, labels = mixup(images, labels)
                    with accelerator.accumulate(wrapped):
                        loss = criterion(wrapped(images), labels)
                        accelerator.backward(loss)
                        if accelerator.sync_gradients and config.train.clip is not None:
                            accelerator.clip_grad_norm_(wrapped.parameters(), config.train.clip)
                        optimizer.step()
                        optimizer.zero_grad()
                    loss_sum += loss.detach()
                    progress.batch += 1
                    if accelerator.sync_gradients:
                        progress.update += 1
                        schedule.step_update(progress.update)
                        if ema:
                            ema.update(model, progress.update)
                        if stopping := _agree_to_stop(accelerator, interruption, progress.update):
                            break
            trained = time.perf_counter() - started
            progress.loss = float(accelerator.reduce(loss_sum, 'mean'))
            if not math.isfinite(progress.loss):
                raise UserError(
                    f'the training loss is {progress.loss} in epoch {progress.epoch + 1}: try a lower optim.lr, '
                    'train.clip=1 or precision=fp32; the checkpoint before this epoch is intact'
                )
            if stopping:
                progress.seconds += trained
                return stop()
            try:
                scores = evaluate(scored, _until(interruption, scoring, processes), num_classes, accelerator, bad)
            except _Stopped:
                progress.seconds += trained
                return stop()

            seconds = time.perf_counter() - started
            line = {
                'epoch': progress.epoch + 1,
                'update': progress.update,
                'train_loss': progress.loss / loader.batches,
                'loss': scores.loss,
                'top1': scores.top1,
                'top5': scores.top5,
                'lr': optimizer.param_groups[0]['lr'],
                'images_per_second': (progress.batch - first) * config.data.batch_size * processes / trained,
                'seconds': seconds,
            }
            progress.epoch, progress.batch, progress.loss = progress.epoch + 1, 0, 0.0
            progress.seconds += seconds
            if (scores.top1, -scores.loss) > (progress.best_top1, -progress.best_loss):
                progress.best_epoch, progress.best_top1, progress.best_loss = progress.epoch, scores.top1, scores.loss
                if main:
                    facts = spec.metadata(epoch=progress.epoch, update=progress.update, top1=scores.top1)
                    save_weights(folder.best, scored.state_dict(), facts)
            if main:
                folder.append_metrics(line)
                _tell(line, config)
            if tensorboard:
                for name in ('train_loss', 'loss', 'top1', 'top5', 'lr', 'images_per_second'):
                    tensorboard.add_scalar(name, line[name], progress.epoch)
                tensorboard.flush()
            save()

    accelerator.wait_for_everyone()
    weights, _ = read_weights(folder.best)
    load_weights(scored, weights, str(folder.best))
    scores = evaluate(scored, scoring, num_classes, accelerator, bad)
    if main:
        metrics = folder.read_metrics()
        write_json(
            folder.summary,
            {
                'model': spec.name,
                **scores.numbers(),
                'best_epoch': progress.best_epoch,
                'last_top1': metrics[-1]['top1'],
                'epochs': progress.epoch,
                'seconds': progress.seconds,
                'images_per_second': median(line['images_per_second'] for line in metrics),
                'peak_memory_bytes': _peak_memory(accelerator),
                'parameters': models.count_parameters(model),
                'bad_images': sorted(bad.names),
                'seed': config.seed,
            },
        )
        report.draw(folder, scores, spec)
        report.show_summary(folder)
    accelerator.end_training()
    return 0


def score(config: Config, model: nn.Module, spec: models.ModelSpec, classes: list[str] | None) -> Scores:
    """Score a model with weights on the held-out split that `config.data` names.

    Args:
        classes: the folders' names by label, where the model was trained on folders.
    """
    accelerator = make_accelerator(config)
    dataset = open_dataset(config.data, config.data.val_split, classes=classes)
    if (found := len(class_names(dataset))) > spec.num_classes:
        raise UserError(f'the data has {found} classes, and {spec.name} has {spec.num_classes} outputs')
    transform = eval_transform(spec.data)
    batches = eval_loader(config.data, dataset, transform, accelerator.process_index, accelerator.num_processes)
    total = None if isinstance(dataset, IterableDataset) else len(batches)
    tracked = track(batches, 'scoring', total, config.log.seconds, show=accelerator.is_main_process)
    bad = BadImages(config.data.max_bad_images, [], say)
    return evaluate(model.to(accelerator.device), tracked, spec.num_classes, accelerator, bad)


def _create_model(config: Config, num_classes: int, classes: list[str]) -> tuple[nn.Module, models.ModelSpec]:
    asked = config.model
    model = models.create(asked.name, pretrained=asked.pretrained, num_classes=num_classes, **asked.kwargs)
    keys = ('image_size', 'interpolation', 'crop_pct', 'mean', 'std')
    spec = models.spec_of(model, asked.name, asked.kwargs, classes, **{key: getattr(config.data, key) for key in keys})
    try:
        with torch.no_grad():
            model.eval()(torch.zeros(2, *spec.data['input_size']))
    except Exception as error:  # whatever a model says of images that it cannot take
        size = spec.data['input_size'][1]
        raise UserError(
            f'{asked.name} does not take images of {tuple(spec.data["input_size"])}: {first_line(error)}; '
            f'try another data.image_size, or model.kwargs.img_size={size} where the model has that argument'
        ) from error
    return model, spec


def _create_loss(config: Config, num_classes: int) -> tuple[Mixup | None, nn.Module]:
    augment, smoothing = config.data.augment, config.train.smoothing
    if not (augment.mixup or augment.cutmix):
        return None, LabelSmoothingCrossEntropy(smoothing)
    if config.data.batch_size % 2:
        raise UserError(f'data.batch_size={config.data.batch_size}: Mixup and CutMix pair images, so it must be even')
    mixup = Mixup(augment.mixup, augment.cutmix, label_smoothing=smoothing, num_classes=num_classes)
    return mixup, SoftTargetCrossEntropy()


def _state_to_resume(config: Config, folder: RunFolder, processes: int) -> tuple[Path | None, dict[str, Any] | None]:
    """The run folder and the state in it to go on from, if there is one and the settings are still its."""
    if config.resume == 'never':
        return None, None
    origin = folder.path if config.resume == 'auto' else Path(config.resume)
    path = origin / folder.state.name
    if not path.is_file():
        if config.resume == 'auto':
            return None, None
        raise UserError(f'resume={config.resume}: no {folder.state.name} in it; expected auto, never or a run folder')
    state = load_state(path)
    now = flatten(dataclasses.asdict(config))
    changed = [
        f'{key}={value} (now {now.get(key)})'
        for key, value in flatten(state['config']).items()
        if now.get(key) != value and not key.startswith(FREE_TO_CHANGE)
    ]
    if state['processes'] != processes:
        changed.append(f'{state["processes"]} processes (now {processes})')
    if changed:
        raise UserError(
            f'{origin} was begun with {", ".join(changed)}: output=DIR leaves it alone, resume=never starts it over'
        )
    return origin, state


def _agree_to_stop(accelerator: Accelerator, interruption: Interruption, update: int) -> bool:
    """Whether any process was asked to stop. They find out together, or one would wait for the others' gradients."""
    if accelerator.num_processes == 1:
        return interruption.wanted
    if update % 10:  # asking costs a round of messages
        return False
    return bool(accelerator.reduce(torch.tensor(float(interruption.wanted), device=accelerator.device)) > 0)


def _until(interruption: Interruption, batches: Iterable[Batch], processes: int) -> Iterator[Batch]:
    for batch in batches:
        if interruption.wanted and processes == 1:
            raise _Stopped
        yield batch


def _open_tensorboard(config: Config, folder: RunFolder, epoch: int) -> Any:
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(folder.events), purge_step=epoch + 1)


def _tell(line: dict[str, Any], config: Config) -> None:
    say(
        f'epoch {line["epoch"]}/{config.train.epochs}  train loss {line["train_loss"]:.4f}  loss {line["loss"]:.4f}  '
        f'top-1 {line["top1"]:.2f} %  top-5 {line["top5"]:.2f} %  {line["images_per_second"]:.0f} images/s  '
        f'{line["seconds"]:.1f} s'
    )


def _peak_memory(accelerator: Accelerator) -> int:
    if accelerator.device.type == 'cuda':
        return torch.cuda.max_memory_allocated()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == 'darwin' else peak * 1024  # of bytes there, of KiB here
