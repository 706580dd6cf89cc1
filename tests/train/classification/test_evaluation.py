"""Scores on held-out images: what is counted, what is kept, and what is no number."""

import pytest
import torch
from torch import nn

from attnzoo.train.classification.evaluation import MISTAKES, evaluate
from attnzoo.train.data.loading import BadImages
from attnzoo.train.errors import UserError


class Brightest(nn.Module):
    """Logits of three classes: an image's first three pixels."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.flatten(1)[:, :3]


def score(accelerator, batches):
    return evaluate(Brightest(), batches, 3, accelerator, BadImages(0, [], print))


def batches(count: int, size: int = 8):
    generator = torch.Generator().manual_seed(0)
    for _ in range(count):
        images = torch.randn(size, 1, 4, 4, generator=generator)
        yield images, torch.randint(3, (size,), generator=generator), []


def test_the_most_confident_mistakes_are_kept_and_not_their_batches(accelerator):
    scores = score(accelerator, batches(20))
    images = torch.cat([images for images, _, _ in batches(20)])
    labels = torch.cat([labels for _, labels, _ in batches(20)])
    confidence, predicted = images.flatten(1)[:, :3].softmax(1).max(1)
    wrong = (predicted != labels).nonzero().flatten()
    expected = wrong[confidence[wrong].argsort(descending=True)][:MISTAKES]
    assert len(wrong) > MISTAKES
    assert scores.top1 == pytest.approx(100 - 100 * len(wrong) / 160, abs=1e-4)
    for mistake, index in zip(scores.mistakes, expected, strict=True):
        assert torch.equal(mistake.image, images[index]) and mistake.label == labels[index]
        assert mistake.confidence == pytest.approx(float(confidence[index]))
        assert mistake.image.untyped_storage().nbytes() == 16 * 4  # its own, not that of eight


def test_outputs_that_are_no_numbers_are_no_scores(accelerator):
    broken = [(images.clone(), labels, problems) for images, labels, problems in batches(3)]
    broken[1][0][2, 0, 0, 1] = broken[2][0][5] = float('nan')
    with pytest.raises(UserError, match='the model gives NaN for 2 of 24 held-out images: '):
        score(accelerator, broken)


def test_an_output_may_rule_a_class_out(accelerator):
    images = torch.zeros(2, 1, 4, 4)
    images[:, 0, 0, 2] = -torch.inf
    scores = score(accelerator, [(images, torch.tensor([0, 1]), [])])
    assert scores.loss == pytest.approx(torch.tensor(2.0).log().item())
