"""A stand-in for mmcv's compiled module `mmcv._ext`, on torchvision's operators and our deformable attention.

The wheel of mmcv-lite holds all of mmcv's Python and no compiled code, for which mmcv would need a compiler and a torch
of its own choice. Its functions in `mmcv.ops` call `mmcv._ext` by name; here are those that detectors call, for any
device. An operator that is not here says so when it is called.

Signatures are those of mmcv 2.1, whose functions write into tensors that they are given.
"""

import importlib.util
import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, NoReturn

import torch
import torchvision
from torch import Tensor

from attnzoo.kernels import deformable_attention

NAME = 'mmcv._ext'


def install() -> bool:
    """Put the stand-in where mmcv looks for its compiled module, unless there is a compiled one.

    To be called before anything imports `mmcv.ops`.

    Returns:
        Whether the stand-in is in use.
    """
    if NAME in sys.modules:
        return isinstance(sys.modules[NAME], _Module)
    if importlib.util.find_spec(NAME) is not None:
        return False
    import mmcv

    mmcv._ext = sys.modules[NAME] = _Module()
    # Away from CUDA, mmcv's module of deformable attention calls a function that samples by PyTorch. Ours takes its
    # place, and does on CUDA, too: the compiled module would be given the locations in half precision with the values.
    from mmcv.ops import multi_scale_deform_attn

    multi_scale_deform_attn.multi_scale_deformable_attn_pytorch = _deformable_attention
    multi_scale_deform_attn.IS_CUDA_AVAILABLE = False
    return True


class _Module(ModuleType):
    """All functions of this file; any other name is a function that says what is missing."""

    def __init__(self) -> None:
        super().__init__(NAME, __doc__)
        self.__spec__ = ModuleSpec(NAME, loader=None)
        for function in _FUNCTIONS:
            setattr(self, function.__name__, function)

    def __getattr__(self, name: str) -> Any:
        if name.startswith('__'):
            raise AttributeError(name)

        def missing(*_: Any, **__: Any) -> NoReturn:
            raise NotImplementedError(
                f'{NAME}.{name}: attnzoo runs mmdet without compiled code and has no such operator; '
                'a compiled mmcv has it'
            )

        return missing


# Suppression of boxes that overlap


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int) -> Tensor:
    if boxes.element_size() < 4:
        boxes, scores = boxes.float(), scores.float()
    return torchvision.ops.nms(_with_offset(boxes, offset), scores, iou_threshold)


def softnms(
    boxes: Tensor,
    scores: Tensor,
    dets: Tensor,
    iou_threshold: float,
    sigma: float,
    min_score: float,
    method: int,
    offset: int,
) -> Tensor:
    """Writes boxes and their lowered scores into dets [N, 5], best first; returns their indices."""
    scores, grown = scores.clone(), _with_offset(boxes, offset)
    left = torch.arange(len(boxes))
    kept: list[Tensor] = []
    while len(left):
        best = left[scores[left].argmax()]
        dets[len(kept)] = torch.cat([boxes[best], scores[best : best + 1]])
        kept.append(best)
        left = left[left != best]
        overlap = torchvision.ops.box_iou(grown[best : best + 1], grown[left])[0]
        if method == 2:
            scores[left] *= (-(overlap**2) / sigma).exp()
        else:
            scores[left] *= torch.where(overlap >= iou_threshold, 1 - overlap if method == 1 else 0.0, 1.0)
        left = left[scores[left] >= min_score]
    return torch.stack(kept) if kept else left


def nms_match(dets: Tensor, iou_threshold: float) -> list[list[int]]:
    """Each kept box [x1, y1, x2, y2, score] with those that it suppresses, best first."""
    overlap = torchvision.ops.box_iou(dets[:, :4], dets[:, :4])
    left, groups = dets[:, 4].argsort(descending=True, stable=True), []
    while len(left):
        first, others = left[0], left[1:]
        close = overlap[first, others] >= iou_threshold
        groups.append([int(first), *others[close].tolist()])
        left = others[~close]
    return groups


def _with_offset(boxes: Tensor, offset: int) -> Tensor:
    """Boxes whose corners are pixels that belong to them are wider and higher by one."""
    return boxes + boxes.new_tensor([0, 0, offset, offset]) if offset else boxes


# Pooling of regions


def roi_align_forward(*tensors: Tensor, pool_mode: int, **how: Any) -> None:
    input, rois, output, _, _ = tensors
    if pool_mode != 1:
        raise NotImplementedError("RoIAlign: attnzoo runs mmdet without compiled code and has pool_mode='avg' only")
    size = (how['aligned_height'], how['aligned_width'])
    pooled = torchvision.ops.roi_align(input, rois, size, how['spatial_scale'], how['sampling_ratio'], how['aligned'])
    output.copy_(pooled)


def roi_align_backward(*tensors: Tensor, pool_mode: int, **how: Any) -> None:
    grad_output, rois, _, _, grad_input = tensors
    scale, height, width = how['spatial_scale'], how['aligned_height'], how['aligned_width']
    grad = torch.ops.torchvision._roi_align_backward(
        grad_output, rois, scale, height, width, *grad_input.shape, how['sampling_ratio'], how['aligned']
    )
    grad_input.copy_(grad)


def roi_pool_forward(*tensors: Tensor, pooled_height: int, pooled_width: int, spatial_scale: float) -> None:
    input, rois, output, argmax = tensors
    pooled, places = torch.ops.torchvision.roi_pool(input, rois, spatial_scale, pooled_height, pooled_width)
    output.copy_(pooled)
    argmax.copy_(places)


def roi_pool_backward(*tensors: Tensor, pooled_height: int, pooled_width: int, spatial_scale: float) -> None:
    grad_output, rois, argmax, grad_input = tensors
    grad = torch.ops.torchvision._roi_pool_backward(
        grad_output, rois, argmax, spatial_scale, pooled_height, pooled_width, *grad_input.shape
    )
    grad_input.copy_(grad)


# Focal loss


def sigmoid_focal_loss_forward(
    input: Tensor, target: Tensor, weight: Tensor, output: Tensor, gamma: float, alpha: float
) -> None:
    output.copy_(_focal_loss(input, target, weight, gamma, alpha))


def sigmoid_focal_loss_backward(
    input: Tensor, target: Tensor, weight: Tensor, grad_input: Tensor, gamma: float, alpha: float
) -> None:
    (grad,) = _gradients(lambda x: _focal_loss(x, target, weight, gamma, alpha), [input], torch.ones_like(input))
    grad_input.copy_(grad)


def _focal_loss(input: Tensor, target: Tensor, weight: Tensor, gamma: float, alpha: float) -> Tensor:
    """Of logits [N, C] and classes [N], where C is the background; weights of the classes [C], or none."""
    hit = (target[:, None] == torch.arange(input.shape[1], device=input.device)).to(input.dtype)
    loss = torchvision.ops.sigmoid_focal_loss(input, hit, alpha, gamma)
    return loss * torch.cat([weight, weight.new_ones(1)])[target, None] if weight.numel() else loss


# Deformable convolutions: without (v1) and with a mask (v2)


def deform_conv_forward(*tensors: Tensor, **how: int) -> None:
    input, weight, offset, output, _, _ = tensors
    output.copy_(_convolve(how, input, offset, weight))


def deform_conv_backward_input(*tensors: Tensor, **how: int) -> None:
    input, offset, grad_output, grad_input, grad_offset, weight, _ = tensors
    found = _gradients(lambda x, o: _convolve(how, x, o, weight), [input, offset], grad_output)
    _write(found, grad_input, grad_offset)


def deform_conv_backward_parameters(*tensors: Tensor, scale: float, **how: int) -> None:
    input, offset, grad_output, grad_weight, _, _ = tensors
    (found,) = _gradients(lambda w: _convolve(how, input, offset, w), [torch.zeros_like(grad_weight)], grad_output)
    grad_weight.copy_(scale * found)


def modulated_deform_conv_forward(*tensors: Tensor, **how: int) -> None:
    input, weight, bias, _, offset, mask, output, _ = tensors
    output.copy_(_convolve_modulated(how, input, offset, weight, mask, bias))


def modulated_deform_conv_backward(*tensors: Tensor, **how: int) -> None:
    input, weight, bias, _, offset, mask, _, *grads, grad_output = tensors
    grad_input, grad_weight, grad_bias, grad_offset, grad_mask = grads
    arguments = [input, offset, weight, mask] + [bias] * how['with_bias']
    found = _gradients(lambda *x: _convolve_modulated(how, *x), arguments, grad_output)
    _write(found, *[grad_input, grad_offset, grad_weight, grad_mask] + [grad_bias] * how['with_bias'])


def _convolve(how: dict[str, int], input: Tensor, offset: Tensor, weight: Tensor) -> Tensor:
    stride, padding, dilation = ((how[f'{name}H'], how[f'{name}W']) for name in ('d', 'pad', 'dilation'))
    return torchvision.ops.deform_conv2d(input, offset, weight, None, stride, padding, dilation)


def _convolve_modulated(
    how: dict[str, int], input: Tensor, offset: Tensor, weight: Tensor, mask: Tensor, bias: Tensor | None = None
) -> Tensor:
    stride, padding, dilation = ((how[f'{name}_h'], how[f'{name}_w']) for name in ('stride', 'pad', 'dilation'))
    bias = bias if how['with_bias'] else None
    return torchvision.ops.deform_conv2d(input, offset, weight, bias, stride, padding, dilation, mask)


# Multi-scale deformable attention


def ms_deform_attn_forward(*tensors: Tensor, im2col_step: int) -> Tensor:
    value, shapes, _, locations, weights = tensors
    return _deformable_attention(value, shapes, locations, weights)


def ms_deform_attn_backward(*tensors: Tensor, im2col_step: int) -> None:
    value, shapes, _, locations, weights, grad_output, *grads = tensors
    inputs = [value, locations, weights]
    found = _gradients(lambda v, x, w: _deformable_attention(v, shapes, x, w), inputs, grad_output)
    _write(found, *grads)


def _deformable_attention(value: Tensor, shapes: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
    return deformable_attention(value, [(height, width) for height, width in shapes.tolist()], locations, weights)


def _gradients(function: Callable[..., Tensor], arguments: list[Tensor], grad_output: Tensor) -> tuple[Tensor, ...]:
    with torch.enable_grad():
        arguments = [x.detach().requires_grad_() for x in arguments]
        return torch.autograd.grad(function(*arguments), arguments, grad_output)


def _write(found: tuple[Tensor, ...], *targets: Tensor) -> None:
    for target, grad in zip(targets, found, strict=True):
        target.copy_(grad)


_FUNCTIONS = (
    nms,
    softnms,
    nms_match,
    roi_align_forward,
    roi_align_backward,
    roi_pool_forward,
    roi_pool_backward,
    sigmoid_focal_loss_forward,
    sigmoid_focal_loss_backward,
    deform_conv_forward,
    deform_conv_backward_input,
    deform_conv_backward_parameters,
    modulated_deform_conv_forward,
    modulated_deform_conv_backward,
    ms_deform_attn_forward,
    ms_deform_attn_backward,
)
