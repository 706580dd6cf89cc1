"""Training of a detector: what the engine's task is here."""

import dataclasses
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from timm.data import resolve_model_data_config
from torch import Tensor, nn

from .. import engine, models
from ..checkpoint import translate_weights
from ..config import Config
from ..console import say, say_nothing
from ..data.loading import BadImages, TrainLoader, eval_loader
from ..errors import UserError
from ..run_folder import RunFolder
from . import detectors, digits, report
from .coco import Coco
from .evaluation import Scores, evaluate
from .transforms import Annotated, train_transform

FORMATS = ('auto', 'digits', 'coco')  # of data.format


def train(config: Config) -> int:
    """Train a detector as `config` says and leave everything in its run folder.

    Returns:
        Exit status: 0, or 130 after Ctrl-C, with a checkpoint to go on from.
    """
    return engine.run(models.complete(config), Detection)


class Detection:
    """Images with boxes and masks of objects, a detector's own losses, COCO's average precision: an `engine.Task`."""

    def __init__(self, config: Config, accelerator: Accelerator):
        self.config, self.accelerator = config, accelerator
        self.with_masks = config.detection.detector == 'mask_rcnn'
        shortest, longest = config.detection.min_size, config.detection.max_size
        if longest < shortest:
            raise UserError(f'detection.max_size={longest} is below detection.min_size={shortest}')
        detectors.check_arguments(config.model.kwargs)
        self.images = open_split(config, config.data.train_split, self.with_masks)
        self.held_out = open_split(config, config.data.val_split, self.with_masks, self.images.classes)
        if config.detection.aspect_batches:
            self.images.group = config.data.batch_size * accelerator.num_processes
        asked, count = config.model.num_classes, len(self.images.classes)
        if asked not in (None, count):
            raise UserError(f'model.num_classes={asked}, and the data has {count} categories')
        self.facts = {
            'format': data_format(config),
            'classes': self.images.classes,
            'training images': len(self.images),
            'held-out images': len(self.held_out),
        }

    def build(self, *, start: bool) -> None:
        config, rank, processes = self.config, self.accelerator.process_index, self.accelerator.num_processes
        tell = say if self.accelerator.is_main_process else say_nothing
        for remark in (*self.images.remarks, *self.held_out.remarks):
            tell(remark)
        self.spec = spec_of(config, self.images)
        self.model: nn.Module = build(config, self.spec, tell, start=start)
        steps = train_transform(config.data.augment, config.detection)
        reader = Annotated(steps, self.with_masks)
        accumulate = config.train.grad_accum
        self.loader = TrainLoader(config.data, self.images, reader, config.seed, accumulate, rank, processes)
        self.scoring = eval_loader(config.data, self.held_out, Annotated(None, self.with_masks), rank, processes)

    def loss(self, model: nn.Module, images: list[Tensor], targets: list[dict[str, Any]]) -> Tensor:
        return sum(model(images, targets).values())  # type: ignore[return-value]

    def score(self, model: nn.Module, watch: Callable[[Iterable], Iterable], bad: BadImages) -> Scores:
        return evaluate(model, watch(self.scoring), self.held_out, self.accelerator, bad, self.with_masks)

    def metrics(self, scores: Scores) -> dict[str, float]:
        return scores.numbers()

    def rank(self, scores: Scores) -> list[float]:
        return [*([scores.mask.ap] if scores.mask else []), scores.box.ap, scores.box.ap50]

    def describe(self, metrics: dict[str, Any]) -> str:
        return report.in_words(metrics)

    def report(
        self, folder: RunFolder, scores: Scores, raw: Scores | None, metrics: list[dict[str, Any]]
    ) -> dict[str, Any]:
        report.draw(folder, scores, self.spec, self.held_out)
        return {
            'detector': self.config.detection.detector,
            **scores.numbers(),
            'box_ap75': scores.box.ap75,
            'images': scores.images,
            'objects': scores.objects,
            **{f'last_{name}': metrics[-1][name] for name in scores.numbers()},
            **({f'last_raw_{name}': value for name, value in raw.numbers().items()} if raw else {}),
        }

    def show_summary(self, folder: RunFolder) -> None:
        report.show_summary(folder)


def data_format(config: Config) -> str:
    """`data.format`, with what auto stands for."""
    chosen = config.data.format
    if chosen not in FORMATS:
        raise UserError(f'data.format={chosen}: expected {", ".join(FORMATS)} for task=detection')
    return chosen if chosen != 'auto' else 'coco' if config.data.root else 'digits'


def open_split(config: Config, split: str, with_masks: bool, categories: list[str] | None = None) -> Coco:
    """The images of one split with their objects; see `Coco`."""
    if data_format(config) == 'digits':
        root = digits.cached(config.seed)
    elif config.data.root:
        root = Path(config.data.root)
    else:
        raise UserError('data.root is empty; data.format=coco needs data.root=PATH, with annotations/ in it')
    return Coco(root, split, masks=with_masks, bad_boxes=config.detection.bad_boxes, categories=categories)


def spec_of(config: Config, images: Coco) -> models.ModelSpec:
    """What a checkpoint says of a detector for the categories of these images."""
    name, kwargs, detection = config.model.name, config.model.kwargs, config.detection
    of_model = resolve_model_data_config(models.create(name, **kwargs))
    settings = {**models.image_settings(config.data), 'image_size': [detection.min_size, detection.max_size]}
    data = models.with_image_settings(of_model, settings, 3)
    parts = {'settings': dataclasses.asdict(detection), 'category_ids': images.category_ids}
    return models.ModelSpec(name, len(images.classes), dict(kwargs), data, images.classes, parts)


def build(config: Config, spec: models.ModelSpec, tell: Callable[[str], None], *, start: bool) -> detectors.Detector:
    """The detector of a spec. Where it starts, its backbone has the published weights or those of a classifier, or all
    of it those of another detector."""
    detector = _build(config, spec, tell, start=start)
    detectors.check_on_images(detector, spec)
    return detector


def _build(config: Config, spec: models.ModelSpec, tell: Callable[[str], None], *, start: bool) -> detectors.Detector:
    name, weights = config.model.name, config.model.weights
    if start and weights:
        source = models.weights_file(weights)
        state, origin, _ = models.read(source)
        if origin and origin.detection:
            detector = detectors.build(spec)
            models.start_from(detector, state, str(source), origin, spec, tell)
            return detector
        classifier = models.create(name, **spec.kwargs)
        state = translate_weights(classifier, state)
        models.start_from(classifier, state, str(source), None, spec, say_nothing)  # whatever its classes are
        tell(f'starting from {source}: the backbone')
        return detectors.build(spec, classifier.state_dict())
    if start and config.model.pretrained:
        tell(f'starting from the published weights of {name}: the backbone')
        return detectors.build(spec, models.create_pretrained(name, spec.kwargs).state_dict())
    return detectors.build(spec)
