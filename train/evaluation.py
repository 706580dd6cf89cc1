"""Scoring a classifier on held-out images: top-1, top-5, loss, confusion matrix, the most confident mistakes."""

import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassAccuracy, MulticlassConfusionMatrix

from .data import BadImages, Batch
from .errors import UserError

MISTAKES = 25  # of them, as many as a grid shows
LARGEST_CONFUSION_MATRIX = 2000  # classes


@dataclass(frozen=True)
class Mistake:
    image: Tensor  # (channels, height, width), normalised as the model saw it
    label: int
    predicted: int
    confidence: float  # 0..1


@dataclass(frozen=True)
class Scores:
    top1: float  # percent
    top5: float  # percent; of fewer than five classes, all
    loss: float
    images: int
    images_per_second: float
    confusion: Tensor | None  # (true class, predicted class), counts
    mistakes: list[Mistake]  # of this process, the most confident first

    def numbers(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ('top1', 'top5', 'loss', 'images', 'images_per_second')}


@torch.no_grad()
def evaluate(
    model: nn.Module, batches: Iterable[Batch], num_classes: int, accelerator: Accelerator, bad: BadImages
) -> Scores:
    """Score `model` on the batches of all processes together. Unreadable images are left out, and counted by `bad`."""
    device = accelerator.device
    top1 = MulticlassAccuracy(num_classes, average='micro', validate_args=False).to(device)
    top5 = MulticlassAccuracy(num_classes, average='micro', top_k=min(5, num_classes), validate_args=False).to(device)
    loss = MeanMetric().to(device)
    confusion = None
    if num_classes <= LARGEST_CONFUSION_MATRIX:
        confusion = MulticlassConfusionMatrix(num_classes, validate_args=False).to(device)
    mistakes: list[Mistake] = []
    count = torch.zeros((), device=device)
    model.eval()
    start = time.perf_counter()
    for images, labels, problems in batches:
        bad.add(problems)
        if not len(labels):
            continue
        images, labels = images.to(device, non_blocking=True), labels.to(device, non_blocking=True)
        with accelerator.autocast():
            logits = model(images)
        logits = logits.float()
        top1.update(logits, labels)
        top5.update(logits, labels)
        loss.update(cross_entropy(logits, labels), len(labels))
        if confusion is not None:
            confusion.update(logits, labels)
        mistakes = _most_confident(mistakes, images, logits, labels)
        count += len(labels)
    images_seen = int(accelerator.reduce(count))
    if not images_seen:
        raise UserError('the held-out split has no image that can be read')
    return Scores(
        top1=round(100 * float(top1.compute()), 4),
        top5=round(100 * float(top5.compute()), 4),
        loss=float(loss.compute()),
        images=images_seen,
        images_per_second=images_seen / (time.perf_counter() - start),
        confusion=confusion.compute().cpu() if confusion is not None else None,
        mistakes=mistakes,
    )


def _most_confident(mistakes: list[Mistake], images: Tensor, logits: Tensor, labels: Tensor) -> list[Mistake]:
    confidence, predicted = logits.softmax(-1).max(-1)
    found = [
        Mistake(images[index].cpu(), int(labels[index]), int(predicted[index]), float(confidence[index]))
        for index in (predicted != labels).nonzero().flatten().tolist()
    ]
    return sorted(mistakes + found, key=lambda mistake: -mistake.confidence)[:MISTAKES]
