"""The stand-in for mmcv's compiled module: mmcv's own functions on it, against formulas and other implementations."""

import subprocess
import sys

import pytest

pytest.importorskip('mmdet', reason="needs mmdet: pip install 'attnzoo[mmdet]'")

import torch
import torchvision
from torch import Tensor
from torch.autograd import gradcheck
from torch.nn import functional as F

import attnzoo.mmdet  # noqa: F401  (puts the stand-in in place)
from attnzoo.kernels.deformable_attention.reference import _plain as deformable_attention_by_definition
from attnzoo.train.mmdet import stand_in

if not stand_in.install():
    pytest.skip('a compiled mmcv is installed', allow_module_level=True)

from mmcv import ops
from mmcv.ops.multi_scale_deform_attn import MultiScaleDeformableAttention, MultiScaleDeformableAttnFunction


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def boxes(count: int, size: float = 60.0) -> Tensor:
    """Boxes of whole pixels, of which many overlap."""
    corner, extent = torch.rand(count, 2) * size, torch.rand(count, 2) * size / 2 + 1
    return torch.cat([corner, corner + extent], 1).round()


def overlaps(found: Tensor, offset: int) -> Tensor:
    """Intersection over union, pixel by pixel."""
    grid = torch.zeros(len(found), 110, 110)
    for mask, (left, top, right, bottom) in zip(grid, found.int().tolist(), strict=True):
        mask[top : bottom + offset, left : right + offset] = 1
    both = (grid[:, None] * grid).sum((2, 3))
    return both / (grid.sum((1, 2))[:, None] + grid.sum((1, 2)) - both)


@pytest.mark.parametrize('offset', [0, 1])
def test_nms_keeps_the_best_of_those_that_overlap(offset):
    all_boxes, scores = boxes(40), torch.rand(40)
    overlap, expected = overlaps(all_boxes, offset), []
    for index in scores.argsort(descending=True).tolist():
        if all(overlap[index, kept] <= 0.3 for kept in expected):
            expected.append(index)
    found, indices = ops.nms(all_boxes, scores, 0.3, offset)
    assert indices.tolist() == expected
    assert torch.equal(found, torch.cat([all_boxes, scores[:, None]], 1)[expected])
    assert ops.nms(all_boxes[:0], scores[:0], 0.3)[0].shape == (0, 5)
    assert ops.nms(all_boxes.half(), scores.half(), 0.3)[0].dtype == torch.half


@pytest.mark.parametrize('offset', [0, 1])
@pytest.mark.parametrize('method', ['naive', 'linear', 'gaussian'])
def test_soft_nms_lowers_the_scores_of_those_that_overlap(method, offset):
    all_boxes, scores = boxes(30), torch.rand(30)
    overlap, left, expected = overlaps(all_boxes, offset), dict(enumerate(scores.tolist())), []
    while left:
        best = max(left, key=lambda index: left[index])
        expected.append((best, left.pop(best)))
        for index in list(left):
            value = overlap[best, index].item()
            factor = {
                'naive': 0.0 if value >= 0.3 else 1.0,
                'linear': 1 - value if value >= 0.3 else 1.0,
                'gaussian': float(torch.tensor(-(value**2) / 0.5).exp()),
            }[method]
            left[index] *= factor
            if left[index] < 0.05:
                del left[index]
    found, indices = ops.soft_nms(all_boxes, scores, 0.3, 0.5, 0.05, method, offset)
    assert indices.tolist() == [index for index, _ in expected]
    torch.testing.assert_close(found[:, 4], torch.tensor([score for _, score in expected]))
    assert torch.equal(found[:, :4], all_boxes[indices])
    assert ops.soft_nms(all_boxes[:0], scores[:0])[0].shape == (0, 5)


def test_nms_match_groups_a_kept_box_with_those_it_suppresses():
    found = torch.cat([boxes(25), torch.rand(25, 1)], 1)
    groups = [group.tolist() for group in ops.nms_match(found, 0.3)]
    overlap = overlaps(found[:, :4], 0)
    assert sorted(index for group in groups for index in group) == list(range(25))
    for number, (first, *others) in enumerate(groups):
        assert all(overlap[first, index] >= 0.3 for index in others)
        assert all(overlap[first, index] < 0.3 for group in groups[number + 1 :] for index in group)


def test_batched_nms_suppresses_within_a_class():
    all_boxes, scores, classes = boxes(40), torch.rand(40), torch.randint(3, (40,))
    _, indices = ops.batched_nms(all_boxes, scores, classes, {'type': 'nms', 'iou_threshold': 0.3})
    assert torch.equal(indices, torchvision.ops.batched_nms(all_boxes, scores, classes, 0.3))


def regions() -> Tensor:
    """Image, then corners."""
    return torch.tensor([[0, 0, 0, 30, 25], [1, 5, 6, 20, 28], [1, 3, 3, 9, 9]], dtype=torch.float64)


@pytest.mark.parametrize('aligned', [False, True])
@pytest.mark.parametrize('samples', [0, 2])
def test_roi_align(samples, aligned):
    maps = torch.randn(2, 2, 8, 9, dtype=torch.float64, requires_grad=True)
    pool = ops.RoIAlign((3, 2), 0.25, samples, aligned=aligned)
    expected = torchvision.ops.roi_align(maps, regions(), (3, 2), 0.25, samples, aligned)
    assert torch.equal(pool(maps, regions()), expected)
    assert gradcheck(lambda x: pool(x, regions()), maps)


def test_roi_align_has_no_maximum():
    with pytest.raises(NotImplementedError, match="pool_mode='avg' only"):
        ops.RoIAlign(2, 1.0, pool_mode='max')(torch.zeros(1, 1, 4, 4), torch.zeros(1, 5))


def test_roi_pool():
    maps = torch.randn(2, 2, 8, 9, dtype=torch.float64, requires_grad=True)
    pool = ops.RoIPool((3, 2), 0.25)
    assert torch.equal(pool(maps, regions()), torchvision.ops.roi_pool(maps, regions(), (3, 2), 0.25))
    assert gradcheck(lambda x: pool(x, regions()), maps)


def focal_loss(logits: Tensor, target: Tensor, weight: Tensor | None, gamma: float, alpha: float) -> Tensor:
    """The formula of the paper, number by number."""
    loss = torch.zeros_like(logits)
    for row in range(logits.shape[0]):
        for column in range(logits.shape[1]):
            p = logits[row, column].sigmoid()
            hit = target[row] == column
            loss[row, column] = (
                -alpha * (1 - p) ** gamma * p.log() if hit else -(1 - alpha) * p**gamma * (1 - p).log()
            ) * (1 if weight is None or target[row] == len(weight) else weight[target[row]])
    return loss


@pytest.mark.parametrize('weighted', [False, True])
def test_sigmoid_focal_loss_is_the_formula(weighted):
    logits = torch.randn(7, 4, dtype=torch.float64, requires_grad=True)
    target = torch.tensor([0, 1, 2, 3, 4, 4, 1])  # 4 is the background
    weight = torch.rand(4, dtype=torch.float64) if weighted else None
    expected = focal_loss(logits, target, weight, 1.5, 0.3)
    for reduction, true in (('none', expected), ('sum', expected.sum()), ('mean', expected.sum() / 7)):
        found = ops.sigmoid_focal_loss(logits, target, 1.5, 0.3, weight, reduction)
        torch.testing.assert_close(found, true)
        grads = (torch.autograd.grad(x.sum(), logits, retain_graph=True)[0] for x in (found, true))
        torch.testing.assert_close(*grads)


def layers(kind: type, dtype: torch.dtype = torch.float64, **settings: int) -> torch.nn.Module:
    return kind(4, 6, 3, stride=2, padding=2, dilation=2, groups=2, deform_groups=2, **settings).to(dtype)


def test_a_deformable_convolution_without_offsets_is_a_convolution():
    x, zeros = torch.randn(2, 4, 8, 9, dtype=torch.float64), torch.zeros(2, 2 * 2 * 9, 4, 5, dtype=torch.float64)
    conv = layers(ops.DeformConv2d)
    expected = F.conv2d(x, conv.weight, None, 2, 2, 2, 2)
    torch.testing.assert_close(conv(x, zeros), expected)
    conv = layers(ops.ModulatedDeformConv2d)
    torch.nn.init.normal_(conv.bias)
    expected = F.conv2d(x, conv.weight, conv.bias, 2, 2, 2, 2)
    torch.testing.assert_close(conv(x, zeros, torch.ones_like(zeros[:, ::2])), expected)


def test_gradients_of_deformable_convolutions():
    x = torch.randn(1, 4, 4, 5, dtype=torch.float64, requires_grad=True)
    offset = torch.randn(1, 36, 2, 3, dtype=torch.float64, requires_grad=True)
    mask = torch.rand(1, 18, 2, 3, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(6, 2, 3, 3, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(6, dtype=torch.float64, requires_grad=True)
    how = (2, 2, 2, 2, 2)
    assert gradcheck(lambda *inputs: ops.deform_conv2d(*inputs, *how), (x, offset, weight))
    assert gradcheck(lambda *inputs: ops.modulated_deform_conv2d(*inputs, *how), (x, offset, mask, weight, bias))
    assert gradcheck(lambda *inputs: ops.modulated_deform_conv2d(*inputs, None, *how), (x, offset, mask, weight))


def test_deformable_attention_by_both_ways_of_mmcv(monkeypatch):
    shapes, starts = torch.tensor([[4, 5], [2, 3]]), torch.tensor([0, 20])
    value = torch.randn(2, 26, 2, 3, dtype=torch.float64, requires_grad=True)
    locations = torch.rand(2, 7, 2, 2, 3, 2, dtype=torch.float64, requires_grad=True)
    weights = torch.rand(2, 7, 2, 2, 3, dtype=torch.float64, requires_grad=True)
    expected = deformable_attention_by_definition(value, [(4, 5), (2, 3)], locations, weights)
    found = MultiScaleDeformableAttnFunction.apply(value, shapes, starts, locations, weights, 64)
    torch.testing.assert_close(found, expected)
    assert gradcheck(
        lambda v, x, w: MultiScaleDeformableAttnFunction.apply(v, shapes, starts, x, w, 64), (value, locations, weights)
    )
    module = MultiScaleDeformableAttention(embed_dims=8, num_heads=2, num_levels=2, num_points=3)
    query, reference = torch.randn(7, 2, 8), torch.rand(2, 7, 2, 2)
    called = []

    def watched(*arguments: object) -> Tensor:
        called.append(arguments)
        return deformable_attention_by_definition(*arguments)

    monkeypatch.setattr(stand_in, 'deformable_attention', watched)
    module(query, None, torch.randn(26, 2, 8), None, reference_points=reference, spatial_shapes=shapes)
    assert called


def test_an_operator_that_is_not_there_says_so_when_it_is_called():
    from mmcv.ops import CARAFEPack

    carafe = CARAFEPack(4, 2)
    with pytest.raises(NotImplementedError, match='carafe_forward: attnzoo runs mmdet without'):
        carafe(torch.randn(1, 4, 6, 6))


def test_the_stand_in_steps_aside_for_compiled_code(tmp_path):
    (tmp_path / '_ext.py').write_text("""
def __getattr__(name):
    if name.startswith('__'):
        raise AttributeError(name)
    return lambda *args, **kwargs: 'compiled'
""")
    program = f"""
import sys
import mmcv
mmcv.__path__.append({str(tmp_path)!r})
import attnzoo.mmdet
from attnzoo.train.mmdet import stand_in
import mmcv.ops
print(stand_in.install(), sys.modules['mmcv.ops.nms'].ext_module.nms())
"""
    done = subprocess.run([sys.executable, '-W', 'ignore', '-c', program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ['False', 'compiled']
