"""Scoring a classifier on held-out images: top-1, top-5, loss, confusion matrix, the most confident mistakes."""

import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torchmetrics.classification import MulticlassAccuracy, MulticlassConfusionMatrix

from ..data.loading import BadImages, Batch
from ..errors import UserError

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
    mistakes: list[Mistake]  # of all processes, the most confident first

    def numbers(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ('top1', 'top5', 'loss', 'images', 'images_per_second')}


@torch.no_grad()
def evaluate(
    model: nn.Module, batches: Iterable[Batch], num_classes: int, accelerator: Accelerator, bad: BadImages
) -> Scores:
    """Score `model` on the batches of all processes together. Unreadable images are left out, and counted by `bad`.

    Raises:
        UserError: no image can be read, or the model's outputs are no numbers.
    """
    device = accelerator.device
    top1 = MulticlassAccuracy(num_classes, average='micro', validate_args=False).to(device)
    top5 = MulticlassAccuracy(num_classes, average='micro', top_k=min(5, num_classes), validate_args=False).to(device)
    confusion = None
    if num_classes <= LARGEST_CONFUSION_MATRIX:
        confusion = MulticlassConfusionMatrix(num_classes, validate_args=False).to(device)
    mistakes: list[Mistake] = []
    # Summed here, because torchmetrics' mean leaves out what is no number.
    loss, count, broken = torch.zeros(3, device=device)
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
        loss += cross_entropy(logits, labels) * len(labels)
        broken += logits.isnan().any(1).sum()
        if confusion is not None:
            confusion.update(logits, labels)
        mistakes = _most_confident(mistakes, images, logits, labels)
        count += len(labels)
    bad.share()
    loss, count, broken = accelerator.reduce(torch.stack([loss, count, broken]))  # type: ignore[misc]
    images_seen = int(count)
    if not images_seen:
        raise UserError('the held-out split has no image that can be read')
    if broken:
        raise UserError(
            f'the model gives NaN for {int(broken)} of {images_seen} held-out images: train with a lower optim.lr or '
            'train.clip=1, or score with precision=fp32'
        )
    return Scores(
        top1=round(100 * float(top1.compute()), 4),
        top5=round(100 * float(top5.compute()), 4),
        loss=float(loss / count),
        images=images_seen,
        images_per_second=images_seen / (time.perf_counter() - start),
        confusion=confusion.compute().cpu() if confusion is not None else None,
        mistakes=_of_all_processes(mistakes),
    )


def _most_confident(mistakes: list[Mistake], images: Tensor, logits: Tensor, labels: Tensor) -> list[Mistake]:
    confidence, predicted = logits.softmax(-1).max(-1)
    wrong = (predicted != labels).nonzero().flatten()
    chosen = wrong[confidence[wrong].argsort(descending=True, stable=True)[:MISTAKES]]
    # Copies: a view would keep its whole batch in memory.
    found = [
        Mistake(images[index].cpu().clone(), int(labels[index]), int(predicted[index]), float(confidence[index]))
        for index in chosen.tolist()
    ]
    return sorted(mistakes + found, key=lambda mistake: -mistake.confidence)[:MISTAKES]


def _of_all_processes(mistakes: list[Mistake]) -> list[Mistake]:
    # The images of those alone that are shown travel between machines.
    confident = sorted(gather_object([mistake.confidence for mistake in mistakes]), reverse=True)[:MISTAKES]
    shown = gather_object([mistake for mistake in mistakes if mistake.confidence >= confident[-1]])
    return sorted(shown, key=lambda mistake: -mistake.confidence)[:MISTAKES]
