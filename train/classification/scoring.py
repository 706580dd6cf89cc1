"""Scoring of a model with weights on held-out images: what `attnzoo eval` does."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import nn

from .. import models
from ..build import make_accelerator
from ..classes import match_classes
from ..config import Config, load, resolve
from ..console import say, show_table, track
from ..data.loading import BadImages, Batch, Labelled, eval_loader, open_dataset
from ..data.samples import Stream
from ..data.transforms import eval_transform
from ..errors import UserError, few, program
from .evaluation import Scores, evaluate

_SETTINGS = ('data', 'log', 'device', 'precision', 'seed')  # what scoring depends on; the others are of training
_ANY_LABEL = 2**31


def score(target: str, overrides: Sequence[str]) -> None:
    """Score a run, a file of weights or a model by name on the held-out split, and print the result.

    Args:
        overrides: `key=value` over the settings of the run, or over the defaults where there is none.
    """
    for override in overrides:
        key, separator, _ = override.partition('=')
        if separator and key.split('.')[0] not in _SETTINGS:
            raise UserError(f'{key}: of the settings, eval takes data.*, log.*, device, precision and seed')
    settings = _settings_of_run(Path(target))
    config = load(str(settings), overrides) if settings else resolve({}, overrides)
    model, spec, source = models.load(target)
    if not (settings or config.data.root or config.data.format != 'auto'):
        raise UserError(
            f'{target}: on which images? `{program()} eval {target} data.root=PATH` takes those of PATH/val, '
            "data.format=digits scikit-learn's digits, data.format=hfds/NAME a data set that timm opens"
        )
    accelerator = make_accelerator(config)
    scores = score_model(config, model, spec, accelerator)
    if accelerator.is_main_process:
        rows = {
            'top-1': f'{scores.top1:.2f} %',
            'top-5': f'{scores.top5:.2f} %',
            'loss': f'{scores.loss:.4f}',
            'images': f'{scores.images:,}',
            'speed': f'{scores.images_per_second:,.0f} images/s',
        }
        show_table(source, rows)


def _settings_of_run(target: Path) -> Path | None:
    """The settings of the run that a folder, or a file in it, is of."""
    settings = (target if target.is_dir() else target.parent) / 'config.yaml'
    return settings if target.exists() and settings.is_file() else None


def score_model(config: Config, model: nn.Module, spec: models.ModelSpec, accelerator: Accelerator) -> Scores:
    """Score a model on the held-out split of `config.data`, whose classes are matched to the model's by name."""
    main = accelerator.is_main_process
    spec = _at_size_asked_for(config, model, spec)
    samples = open_dataset(config.data, config.data.val_split)
    outputs, remarks = _outputs(samples.classes, spec)
    if main:
        for remark in (*samples.remarks, *remarks):
            say(remark)
    rank, processes = accelerator.process_index, accelerator.num_processes
    # A label that the model does not have says that these are other data, and not that one image is bad.
    reader = Labelled(eval_transform(spec.data), _ANY_LABEL)
    batches = eval_loader(config.data, samples, reader, rank, processes)
    total = None if isinstance(samples, Stream) else len(batches)
    tracked = track(batches, 'scoring', total, config.log.seconds, show=main)
    bad = BadImages(config.data.max_bad_images, [], say)
    labelled = _by_output(tracked, outputs, spec)
    return evaluate(model.to(accelerator.device), labelled, spec.num_classes, accelerator, bad)


def _at_size_asked_for(config: Config, model: nn.Module, spec: models.ModelSpec) -> models.ModelSpec:
    """The spec with the image settings of `config.data`, and the model for images of that size."""
    channels = spec.data['input_size'][0]
    data = models.with_image_settings(spec.data, models.image_settings(config.data), channels)
    changed = replace(spec, data=data)
    try:
        models.try_on_images(model, changed)
    except UserError:
        if not hasattr(model, 'set_input_size'):
            raise
        with suppress(Exception):  # of a size that it cannot be set to either, which the next line says
            model.set_input_size(img_size=data['input_size'][1:])  # type: ignore[operator]
        models.try_on_images(model, changed)
    return changed


def _outputs(names: list[str], spec: models.ModelSpec) -> tuple[list[int], list[str]]:
    """The model's output for each label of the data, and what a user should know of it.

    As many labels as outputs where the data names no classes.
    """
    if not names:
        return list(range(spec.num_classes)), []
    outputs, unknown = match_classes(names, spec.classes, spec.num_classes)
    if unknown:
        its = f'whose {spec.num_classes} are {few(spec.classes)}' if spec.classes else 'which does not name its own'
        raise UserError(
            f'{len(unknown)} of the {len(names)} classes of the data are none of {spec.name}, {its}: {few(unknown)}'
        )
    if len(names) < spec.num_classes:
        return outputs, [f'{len(names)} of the {spec.num_classes} classes of {spec.name}, which chooses among all']
    if not set(names) <= set(spec.classes):
        example = f'{names[0]} is {spec.class_name(outputs[0])}'
        return outputs, [f'the classes of the data are taken for those of {spec.name}: {example}']
    return outputs, []


def _by_output(batches: Iterable[Batch], outputs: list[int], spec: models.ModelSpec) -> Iterator[Batch]:
    lookup = torch.tensor(outputs)
    for images, labels, problems in batches:
        strange = labels[(labels < 0) | (labels >= len(outputs))]
        if len(strange):
            raise UserError(f'the data has a label {strange[0]}, and {spec.name} has {spec.num_classes} classes')
        yield images, lookup[labels], problems
