"""Training of a classifier: what the engine's task is here."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from accelerate import Accelerator
from timm.data import Mixup
from timm.loss import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from torch import Tensor, nn

from .. import engine, models
from ..config import Config
from ..console import say, say_nothing
from ..data.loading import BadImages, Labelled, TrainLoader, data_format, eval_loader, open_dataset
from ..data.transforms import eval_transform, train_transform
from ..errors import UserError
from ..run_folder import RunFolder
from . import report
from .evaluation import Scores, evaluate


def train(config: Config) -> int:
    """Train a classifier as `config` says and leave everything in its run folder.

    Returns:
        Exit status: 0, or 130 after Ctrl-C, with a checkpoint to go on from.
    """
    return engine.run(models.complete(config), Classification)


class Classification:
    """Images with one class each, cross-entropy, top-1 and top-5: an `engine.Task`."""

    def __init__(self, config: Config, accelerator: Accelerator):
        self.config, self.accelerator = config, accelerator
        self.images = open_dataset(config.data, config.data.train_split)
        names = self.images.classes
        self.held_out = open_dataset(config.data, config.data.val_split, classes=names)
        self.num_classes = _count_classes(config, names)
        # Outputs beyond the folders have no names of their own.
        self.classes = [*names, *(f'class {index}' for index in range(len(names), self.num_classes))] if names else []
        self.facts = {
            'format': data_format(config.data),
            'classes': names,
            'training images': len(self.images),
            'held-out images': len(self.held_out),
        }
        self.mixup, self.criterion = _create_loss(config, self.num_classes)

    def build(self, *, start: bool) -> None:
        config, rank, processes = self.config, self.accelerator.process_index, self.accelerator.num_processes
        tell = say if self.accelerator.is_main_process else say_nothing
        for remark in (*self.images.remarks, *self.held_out.remarks):
            tell(remark)
        self.model, self.spec = models.build(
            config.model, config.data, self.num_classes, self.classes, tell, start=start
        )
        reader = Labelled(train_transform(config.data.augment, self.spec.data), self.num_classes)
        accumulate = config.train.grad_accum
        self.loader = TrainLoader(config.data, self.images, reader, config.seed, accumulate, rank, processes)
        reader = Labelled(eval_transform(self.spec.data), self.num_classes)
        self.scoring = eval_loader(config.data, self.held_out, reader, rank, processes)

    def loss(self, model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        if self.mixup:
            images, labels = self.mixup(images, labels)
        return self.criterion(model(images), labels)

    def score(self, model: nn.Module, watch: Callable[[Iterable], Iterable], bad: BadImages) -> Scores:
        return evaluate(model, watch(self.scoring), self.num_classes, self.accelerator, bad)

    def metrics(self, scores: Scores) -> dict[str, float]:
        return {'loss': scores.loss, 'top1': scores.top1, 'top5': scores.top5}

    def rank(self, scores: Scores) -> list[float]:
        return [scores.top1, -scores.loss]

    def describe(self, metrics: dict[str, Any]) -> str:
        return f'loss {metrics["loss"]:.4f}  top-1 {metrics["top1"]:.2f} %  top-5 {metrics["top5"]:.2f} %'

    def report(
        self, folder: RunFolder, scores: Scores, raw: Scores | None, metrics: list[dict[str, Any]]
    ) -> dict[str, Any]:
        report.draw(folder, scores, self.spec)
        return {
            **scores.numbers(),
            'last_top1': metrics[-1]['top1'],
            **({'last_raw_top1': raw.top1} if raw else {}),
            'default_parameters': _default_parameters(self.spec),
        }

    def show_summary(self, folder: RunFolder) -> None:
        report.show_summary(folder)


def _count_classes(config: Config, names: list[str]) -> int:
    asked = config.model.num_classes
    count = asked or len(names)
    if not count:
        raise UserError(f'data.format={config.data.format} does not say how many classes it has: set model.num_classes')
    if count < len(names):
        raise UserError(f'model.num_classes={asked}, and the data names {len(names)} classes')
    if count < 2:
        named = f' ({names[0]})' if names else ''
        raise UserError(f'one class{named}: a classifier needs at least two')
    return count


def _create_loss(config: Config, num_classes: int) -> tuple[Mixup | None, nn.Module]:
    augment, smoothing = config.data.augment, config.train.smoothing
    if not (augment.mixup or augment.cutmix):
        return None, LabelSmoothingCrossEntropy(smoothing)
    if config.data.batch_size % 2:
        raise UserError(f'data.batch_size={config.data.batch_size}: Mixup and CutMix pair images, so it must be even')
    mixup = Mixup(augment.mixup, augment.cutmix, label_smoothing=smoothing, num_classes=num_classes)
    return mixup, SoftTargetCrossEntropy()


def _default_parameters(spec: models.ModelSpec) -> int | None:
    """Parameters of the model as its name alone builds it; None where it cannot be counted without building it."""
    try:
        with torch.device('meta'):
            return models.count_parameters(models.create(spec.name, num_classes=spec.num_classes))
    except (UserError, NotImplementedError, RuntimeError):
        return None
