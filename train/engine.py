"""A run from its first step to its report, whatever is trained: the engine. What is trained is a `Task`.

Accelerate carries device, precision, gradient accumulation and processes; timm the optimiser, schedule and average of
the weights. What is drawn at random in a step is seeded by where in the run the step is (see data/loading.py), so a
run that stops and goes on ends with the same bits as one that did not.
"""

import dataclasses
import math
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import closing
from dataclasses import dataclass, field
from statistics import fmean, median
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from .build import check_batch_size, checkpoint_gradients, create_optimizer, create_schedule, head_lr, make_accelerator
from .checkpoint import load_weights, read_weights, save_state, save_weights
from .config import Config
from .console import Interruption, say, track
from .data.loading import BadImages, Batch, TrainLoader, seed_everything
from .errors import UserError
from .launch import command_line
from .models import ModelSpec, count_parameters
from .processes import Stopped, StopVote, on_main_process, share_buffers
from .resume import Origin, check_data, find_origin
from .run_folder import RunFolder, environment, write_json


class Task(Protocol):
    """What is trained: data, a model, a loss, scores and a report.

    Attributes:
        facts: what the data is, so that a run goes on with the same: its format, class names, images in each split.
        model, spec, loader: there once `build` has been called.
    """

    facts: dict[str, Any]
    model: nn.Module
    spec: ModelSpec
    loader: TrainLoader

    def build(self, *, start: bool) -> None:
        """Make the model and the loaders; `start`: with the weights that training starts from."""

    def loss(self, model: nn.Module, images: Any, targets: Any) -> Tensor: ...

    def score(self, model: nn.Module, watch: Callable[[Iterable], Iterable], bad: BadImages) -> Any:
        """The scores on the held-out split. `watch` wraps its batches, and raises `Stopped` where the run must stop."""

    def metrics(self, scores: Any) -> dict[str, float]:
        """The scores as metrics.jsonl has them."""

    def rank(self, scores: Any) -> list[float]:
        """By what the best epoch is chosen: larger is better, the first number first."""

    def describe(self, metrics: dict[str, Any]) -> str:
        """The metrics of an epoch in words."""

    def report(self, folder: RunFolder, scores: Any, raw: Any, metrics: list[dict[str, Any]]) -> dict[str, Any]:
        """Draw the pictures of a finished run; return what is the task's own in its summary.

        Args:
            raw: the scores of the last weights themselves, where an average of them was scored; else None.
        """

    def show_summary(self, folder: RunFolder) -> None: ...


@dataclass
class Progress:
    """How far a run has come. All of it is in the checkpoint."""

    epoch: int = 0  # epochs done
    batch: int = 0  # batches of this epoch done, by each process
    update: int = 0  # steps of the optimiser done
    losses: list[float] = field(default_factory=list)  # of each process, summed over this epoch's batches
    best_epoch: int = 0
    best: list[float] = field(default_factory=list)  # the rank of its scores
    epoch_seconds: float = 0.0  # spent on this epoch's batches
    seconds: float = 0.0  # spent on all training and scoring


def run(config: Config, make_task: Callable[[Config, Accelerator], Task]) -> int:
    """Train as `config` says and leave everything in its run folder.

    Returns:
        Exit status: 0, or that of an interruption, with a checkpoint to go on from.
    """
    accelerator = make_accelerator(config)
    folder = RunFolder(config.output)
    on_main_process(accelerator, folder.claim)
    try:
        origin = find_origin(config, folder, accelerator.num_processes)
        done = origin is not None and origin.epochs_done == config.train.epochs and folder.summary.exists()
        task = make_task(config, accelerator)
        if origin:
            check_data(task.facts, origin, config.data.root)
        if done:
            if accelerator.is_main_process:
                say(f'{folder.path} has done its {config.train.epochs} epochs; resume=never starts it over')
                task.show_summary(folder)
            return 0
        return Run(config, task, accelerator, folder, origin).finish()
    finally:
        if accelerator.is_main_process:
            folder.release()
        accelerator.end_training()


class Run:
    """One run in its folder, built and brought to where it starts or goes on."""

    def __init__(self, config: Config, task: Task, accelerator: Accelerator, folder: RunFolder, origin: Origin | None):
        self.config, self.task, self.accelerator, self.folder = config, task, accelerator, folder
        self.main, self.rank = accelerator.is_main_process, accelerator.process_index
        self.processes, self.device = accelerator.num_processes, accelerator.device
        self.progress = Progress(**origin.state['progress']) if origin else Progress()
        self.bad = BadImages(config.data.max_bad_images, origin.state['bad_images'] if origin else [], say)

        seed_everything(config.seed)
        task.build(start=origin is None)
        self.model, self.loader = task.model, task.loader
        if config.train.grad_checkpointing:
            checkpoint_gradients(self.model)
        average = config.train.ema
        self.ema = ModelEmaV3(self.model, average, use_warmup=config.train.ema_warmup) if average else None
        accumulate = config.train.grad_accum
        optimizer = create_optimizer(config, self.model, config.data.batch_size * self.processes * accumulate)
        self.schedule = create_schedule(config, optimizer, self.loader.batches // accumulate)
        self.wrapped, self.optimizer = accelerator.prepare(self.model, optimizer)
        self.scored: nn.Module = self.ema.to(self.device).module if self.ema else self.model
        if origin:
            self._restore(origin)
        on_main_process(accelerator, lambda: self._start(origin))
        self.tensorboard = self._open_tensorboard()

    def _restore(self, origin: Origin) -> None:
        state = origin.state
        load_weights(self.model, state['model'], str(origin.folder))
        self.optimizer.load_state_dict(state['optimizer'])
        self.schedule.step_update(self.progress.update)
        if self.ema:
            self.scored.load_state_dict(state['ema'])
        if self.accelerator.scaler:
            self.accelerator.scaler.load_state_dict(state['scaler'])

    def _start(self, origin: Origin | None) -> None:
        """Save before the first step, so that a run that cannot be saved ends here, and say what will be done."""
        left = self.folder.leftovers() if origin is None else []
        self._save()
        place = origin.folder if origin else None
        self.folder.start(self.config, environment(self.device.type, self.processes), self.progress.epoch, place)
        if left:
            names = ', '.join(path.name for path in left)
            say(f'{self.folder.path} is started over, without the {names} of the run before')
        spec, config = self.task.spec, self.config
        size = 'x'.join(map(str, spec.data['input_size'][1:]))
        say(
            f'{spec.title}, {count_parameters(self.model) / 1e6:.2f} M parameters, {spec.num_classes} classes, '
            f'images of {size}: {self.loader.batches} batches of {config.data.batch_size} an epoch '
            f'on {self.processes} x {self.device.type}, {config.precision}'
        )
        if warning := check_batch_size(config, self.processes):
            say(warning)
        if origin:
            say(f'going on from {place}: epoch {self.progress.epoch + 1}, batch {self.progress.batch + 1}')
            if origin.planned != config.train.epochs:
                say(
                    f'{origin.planned} epochs become {config.train.epochs}: the learning rate follows the longer '
                    f'schedule from here, at {head_lr(self.optimizer):.3g}'
                )

    def _open_tensorboard(self) -> Any:
        if not (self.main and self.config.log.tensorboard):
            return None
        from torch.utils.tensorboard import SummaryWriter

        return SummaryWriter(str(self.folder.events), purge_step=self.progress.epoch + 1)

    def finish(self) -> int:
        """Train what is left, score the best epoch and report.

        Returns:
            Exit status.
        """
        with Interruption() as interruption:
            self.vote = StopVote(self.accelerator, interruption, self.bad.share)
            try:
                while self.progress.epoch < self.config.train.epochs:
                    self._train_epoch()
                    self._score_epoch()
                self._report()
            except Stopped:
                self._stop()
                return interruption.status
        return 0

    def _train_epoch(self) -> None:
        """Train to the end of the epoch, from wherever in it the run is."""
        progress, config = self.progress, self.config
        self.wrapped.train()
        self.vote.begin()
        started, stopping = time.perf_counter(), False
        loss = torch.tensor(progress.losses[self.rank] if progress.losses else 0.0, device=self.device)
        label = f'epoch {progress.epoch + 1}/{config.train.epochs}'
        batches = self.loader.epoch(progress.epoch, progress.batch)
        shown = track(batches, label, self.loader.batches, config.log.seconds, progress.batch, show=self.main)
        with closing(shown) as tracked:
            for batch in tracked:
                loss += self._step(batch)
                stopping = self.accelerator.sync_gradients and self.vote.stops()
                if stopping:
                    break
        progress.losses = self.accelerator.gather(loss.reshape(1)).tolist()  # type: ignore[union-attr]
        seconds = time.perf_counter() - started
        progress.epoch_seconds += seconds
        progress.seconds += seconds
        self._check_loss()
        if stopping:
            raise Stopped

    def _step(self, batch: Batch) -> Tensor:
        """One batch, and its loss. With gradient accumulation the optimiser waits for the last of several."""
        *batch_here, problems = batch
        progress, clip = self.progress, self.config.train.clip
        self.bad.add(problems)
        images, targets = send_to_device(batch_here, self.device, non_blocking=True)
        seed_everything(self.config.seed, progress.epoch, progress.batch, self.rank, 1)
        with self.accelerator.accumulate(self.wrapped):
            loss = self.task.loss(self.wrapped, images, targets)
            self.accelerator.backward(loss)
            if self.accelerator.sync_gradients and clip:
                self.accelerator.clip_grad_norm_(self.wrapped.parameters(), clip)
            self.optimizer.step()
            self.optimizer.zero_grad()
        progress.batch += 1
        if self.accelerator.sync_gradients:
            progress.update += 1
            self.schedule.step_update(progress.update)
            if self.ema:
                self.ema.update(self.model, progress.update)
        return loss.detach()

    def _check_loss(self) -> None:
        loss = sum(self.progress.losses)
        if math.isfinite(loss):
            return
        done = self.progress.epoch
        kept = f'; {self.folder.path} keeps its checkpoint of epoch {done}' if done else ''
        raise UserError(
            f'the training loss is {loss} in epoch {done + 1}: try a lower optim.lr, train.clip=1 or '
            f'precision=fp32, with resume=never or another output=DIR{kept}'
        )

    def _score_epoch(self) -> None:
        """Score the epoch, save it, and then say so: a reader of stdout may have gone."""
        progress, images = self.progress, self.progress.batch * self.config.data.batch_size * self.processes
        started = time.perf_counter()
        scores = self._score(self.scored)
        seconds = time.perf_counter() - started
        line = {
            'epoch': progress.epoch + 1,
            'update': progress.update,
            'train_loss': fmean(progress.losses) / progress.batch,
            **self.task.metrics(scores),
            'lr': head_lr(self.optimizer),
            'images_per_second': images / progress.epoch_seconds,
            'seconds': progress.epoch_seconds + seconds,
        }
        progress.epoch, progress.batch, progress.losses, progress.epoch_seconds = progress.epoch + 1, 0, [], 0.0
        progress.seconds += seconds
        rank = self.task.rank(scores)
        if not progress.best or rank > progress.best:
            progress.best_epoch, progress.best = progress.epoch, rank
        if self.main:
            if progress.best_epoch == progress.epoch:
                self._save_best(self.task.metrics(scores))
            self.folder.append_metrics(line)
            self._save()
            self._record(line)
            say(
                f'epoch {line["epoch"]}/{self.config.train.epochs}  train loss {line["train_loss"]:.4f}  '
                f'{self.task.describe(line)}  {line["images_per_second"]:.0f} images/s  {line["seconds"]:.1f} s'
            )

    def _score(self, model: nn.Module) -> Any:
        share_buffers(model)
        return self.task.score(model, self.vote.until_stopped, self.bad)

    def _record(self, line: dict[str, Any]) -> None:
        if self.tensorboard:
            for name, value in line.items():
                if name not in ('epoch', 'update', 'seconds'):
                    self.tensorboard.add_scalar(name, value, line['epoch'])
            self.tensorboard.flush()

    def _save_best(self, metrics: dict[str, float]) -> None:
        progress = self.progress
        facts = self.task.spec.metadata(epoch=progress.epoch, update=progress.update, **metrics)
        save_weights(self.folder.best, self.scored.state_dict(), facts)

    def _save(self) -> None:
        """Write last.safetensors and last.state, on the main process."""
        progress = self.progress
        facts = self.task.spec.metadata(epoch=progress.epoch, update=progress.update)
        save_weights(self.folder.last, self.model.state_dict(), facts)
        # The weights are in here again: one file, replaced in one go, is all that a resumed run depends on.
        scaler = self.accelerator.scaler
        save_state(
            self.folder.state,
            {
                'model': dict(self.model.state_dict()),
                'ema': dict(self.scored.state_dict()) if self.ema else None,
                'optimizer': self.optimizer.state_dict(),
                'scaler': scaler.state_dict() if scaler else None,
                'progress': dataclasses.asdict(progress),
                'bad_images': sorted(self.bad.names),
                'processes': self.processes,
                'data': self.task.facts,
                'config': dataclasses.asdict(self.config),
            },
        )

    def _stop(self) -> None:
        progress = self.progress
        if self.main:
            if progress.epoch < self.config.train.epochs:
                self._save()
                batches = f'batch {progress.batch} of {self.loader.batches}'
                say(f'stopped in epoch {progress.epoch + 1} after {batches}, and saved')
            else:
                say('stopped before the report; all epochs are done and saved')
            say(f'to go on: {command_line(self.processes, drop="resume=", add="resume=auto")}')
        self.accelerator.wait_for_everyone()  # a launcher would end the process that saves, once another has ended

    def _report(self) -> None:
        """Score the best epoch, and draw and write what a finished run leaves."""
        raw = self._score(self.model) if self.ema else None
        self.accelerator.wait_for_everyone()
        weights, _ = read_weights(self.folder.best)
        load_weights(self.scored, weights, str(self.folder.best))
        scores = self._score(self.scored)
        if not self.main:
            return
        progress, metrics = self.progress, self.folder.read_metrics()
        summary = {
            'model': self.task.spec.name,
            **self.task.report(self.folder, scores, raw, metrics),
            'best_epoch': progress.best_epoch,
            'epochs': progress.epoch,
            'seconds': progress.seconds,
            'images_per_second': median(line['images_per_second'] for line in metrics),
            'peak_memory_bytes': peak_memory(self.device),
            'parameters': count_parameters(self.model),
            'bad_images': sorted(self.bad.names),
            'seed': self.config.seed,
        }
        write_json(self.folder.summary, summary)
        self.task.show_summary(self.folder)


def peak_memory(device: torch.device) -> int:
    """The most memory that this process has held, in bytes: the GPU's where it trains on one."""
    if device.type == 'cuda':
        return torch.cuda.max_memory_allocated()
    if sys.platform == 'win32':
        import psutil

        return psutil.Process().memory_info().peak_wset
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == 'darwin' else peak * 1024  # of bytes there, of KiB here
