"""The settings of a run: frozen dataclasses that are the schema, YAML files that fill them, `key=value` overrides.

Loading is strict. A key that the schema does not have, a value of another type or outside its bounds is an error that
names the key. The file that a run writes beside its checkpoints holds every key, so it reproduces the run alone. What
the schema says of a setting is also what `attnzoo config` prints.
"""
# ruff: noqa: RUF009  (the functions in the defaults return fields)

import dataclasses
import math
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any, get_args

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from .console import say
from .errors import UserError, near, one_line, program

_DEEPEST = 20  # levels of lists and mappings in one value: no setting is deeper, and YAML can nest a value in itself
_LARGEST = 2**63 - 1  # PyTorch and NumPy hold no larger integers
_LARGEST_FLOAT = 1e36  # float32 overflows a little above
_CLASSIFICATION_ONLY = (
    *('data.image_size', 'data.crop_pct', 'data.interpolation', 'data.input_key', 'data.target_key'),
    *('data.augment.scale', 'data.augment.ratio', 'data.augment.auto_augment', 'data.augment.erase'),
    *('data.augment.mixup', 'data.augment.cutmix', 'data.augment.repeats', 'train.smoothing', 'train.compile'),
)
_OWN_SETTINGS = ('name', 'pretrained', 'num_classes')  # arguments of a model that are no model.kwargs


def _setting(default: Any, about: str, **limits: Any) -> Any:
    """A field of the schema.

    Args:
        about: What the setting does, for the reference of the settings.
        limits: `choices` (words), `low`, `above`, `high`, `below` (bounds of a number, or of each in a list), `length`
            (of a list), `rising` (a list whose numbers do not fall), `square` (one number stands for a list of equals).
    """
    metadata = {'about': about, **limits}
    if isinstance(default, (list, dict)):
        return field(default_factory=lambda: deepcopy(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def _section(schema: type, about: str) -> Any:
    return field(default_factory=schema, metadata={'about': about})


@dataclass(frozen=True)
class ModelConfig:
    name: str = _setting('biformer_tiny', 'any name that timm.create_model takes')
    pretrained: bool = _setting(False, 'start from the published weights, where there are no `model.weights`')
    weights: str | None = _setting(
        None,
        'start from these weights: a run folder, a .safetensors or .pth file (official or from `attnzoo convert`), or '
        'a URL. A run also gives the `model.kwargs` that it was built with. The classifier is left out where the '
        'classes differ; all else must fit',
    )
    num_classes: int | None = _setting(None, 'null: as many as the data has', low=1)
    kwargs: dict[str, Any] = _setting(
        {}, 'further arguments of timm.create_model. `model.kwargs={}` clears those of a recipe'
    )


@dataclass(frozen=True)
class AugmentConfig:
    backend: str = _setting(
        'timm',
        "timm: its transforms, in detection torchvision's; none: the transform of the evaluation",
        choices=('timm', 'albumentations', 'none'),
    )
    scale: list[float] = _setting(
        [0.08, 1.0], 'area of the random crop, as a share of the image', length=2, above=0, high=1, rising=True
    )
    ratio: list[float] = _setting([3 / 4, 4 / 3], 'width / height of the random crop', length=2, above=0, rising=True)
    hflip: float = _setting(0.5, 'probability of a mirror image', low=0, high=1)
    vflip: float = _setting(0.0, 'probability of an image upside down', low=0, high=1)
    rotate: float = _setting(0.0, 'degrees either way; albumentations only', low=0, high=180)
    color_jitter: float = _setting(0.4, 'strength of changes in brightness, contrast and saturation', low=0)
    auto_augment: str | None = _setting(None, 'a policy of timm, such as rand-m9-mstd0.5-inc1; timm only')
    erase: float = _setting(0.0, 'probability that a rectangle is erased', low=0, high=1)
    mixup: float = _setting(0.0, 'alpha of the Beta distribution of Mixup; 0: off', low=0)
    cutmix: float = _setting(0.0, 'alpha of the Beta distribution of CutMix; 0: off', low=0)
    repeats: int = _setting(
        1, 'views of one image in an epoch (repeated augmentation); the length of an epoch stays', low=1
    )


@dataclass(frozen=True)
class DataConfig:
    root: str = _setting(
        '',
        'folder of the data: for images, with train/ and val/ in it and a folder for each class; for detection, with '
        'annotations/instances_SPLIT.json and the images of each split in SPLIT/',
    )
    format: str = _setting(
        'auto',
        "auto: scikit-learn's digits without a root, a folder with one. Else folder, digits, torch/NAME (torchvision), "
        'hfds/NAME (Hugging Face), hfids/NAME (the same as a stream) or wds/ (tar shards of webdataset)',
    )
    train_split: str = _setting('train', 'name of the split to train on; wds: shards, such as train-{0000..0146}.tar')
    val_split: str = _setting('validation', 'name of the split to score on')
    input_key: str | None = _setting(
        None, 'where a sample keeps its image: a column (hfds), or endings of files, jpg;png'
    )
    target_key: str | None = _setting(
        None, 'where a sample keeps its label: a column (hfds), or a field of the .json (wds)'
    )
    batch_size: int = _setting(128, 'images in a batch of one process', low=1, high=2**20)
    workers: int = _setting(4, 'processes that read images; no more than there are cores', low=0, high=1024)
    max_bad_images: int = _setting(100, 'images that cannot be read, before the run gives up', low=0)
    image_size: list[int] | None = _setting(
        None,
        "H or [H, W]. Null: as the model's pretrained_cfg says",
        low=1,
        high=2**14,
        length=2,
        square=True,
    )
    interpolation: str | None = _setting(
        None,
        "null: as the model's pretrained_cfg says",
        choices=('bicubic', 'bilinear', 'nearest', 'lanczos', 'box', 'hamming'),
    )
    crop_pct: float | None = _setting(
        None,
        "share of the resized image that is scored (center crop). Null: as the model's pretrained_cfg says",
        low=0.01,
        high=1,
    )
    mean: list[float] | None = _setting(
        None, "mean of the pixels, 0..1, by channel. Null: as the model's pretrained_cfg says", length=3
    )
    std: list[float] | None = _setting(
        None,
        "standard deviation of the pixels, 0..1, by channel. Null: as the model's pretrained_cfg says",
        length=3,
        above=0,
    )
    augment: AugmentConfig = _section(AugmentConfig, 'How training images are varied.')


@dataclass(frozen=True)
class TrainConfig:
    epochs: int = _setting(300, 'passes over the data', low=1, high=10**6)
    grad_accum: int = _setting(1, 'batches in one step of the optimizer', low=1, high=2**20)
    clip: float | None = _setting(None, 'largest norm of the gradients; null or 0: any', low=0)
    smoothing: float = _setting(0.1, 'label smoothing', low=0, high=1)
    compile: bool = _setting(False, 'torch.compile the model')
    grad_checkpointing: bool = _setting(
        False, 'keep less of the backbone for the backward, and compute the rest again: memory for time'
    )
    ema: float = _setting(
        0.0, 'decay of the average of the weights, which is then what is scored; 0: off', low=0, high=1
    )
    ema_warmup: bool = _setting(True, 'the average starts short, so that a run of few updates has one')


@dataclass(frozen=True)
class OptimConfig:
    name: str = _setting('adamw', 'an optimizer of timm')
    lr: float = _setting(1e-3, 'learning rate', low=0)
    lr_batch_size: int = _setting(
        0, "the batch that lr is for; lr is scaled to the run's total batch. 0: lr as it is", low=0
    )
    recipe_batch_size: int = _setting(
        0, 'images in one step of all processes that the recipe is made for; a run far from it says so. 0: any', low=0
    )
    weight_decay: float = _setting(0.05, 'of matrices; biases and norms have none', low=0)
    momentum: float = _setting(0.9, 'of optimizers that have it', low=0, high=1)
    betas: list[float] | None = _setting(None, "null: the optimizer's own", length=2, low=0, below=1)
    layer_decay: float | None = _setting(
        None, 'factor on the learning rate from each layer to the one before it; null: off', above=0, high=1
    )


@dataclass(frozen=True)
class ScheduleConfig:
    name: str = _setting(
        'cosine', 'how the learning rate falls', choices=('cosine', 'poly', 'step', 'multistep', 'constant')
    )
    warmup_epochs: float = _setting(5, 'epochs in which the learning rate rises', low=0)
    warmup_lr: float = _setting(1e-6, 'learning rate that the warmup starts from', low=0)
    min_lr: float = _setting(1e-5, 'learning rate at the end', low=0)
    decay_epochs: float = _setting(30, 'step: epochs between two steps', low=1)
    milestones: list[float] = _setting([8, 11], 'multistep: epochs of its steps', above=0, rising=True)
    decay_rate: float = _setting(0.1, 'step, multistep: factor of each step; poly: the power', low=0)


@dataclass(frozen=True)
class DetectionConfig:
    detector: str = _setting(
        'faster_rcnn',
        'what is built on the backbone',
        choices=('retinanet', 'fcos', 'faster_rcnn', 'mask_rcnn', 'rt_detr'),
    )
    min_size: int = _setting(800, 'images are resized so that the shorter side has so many pixels', low=32, high=2**13)
    max_size: int = _setting(1333, '... and the longer one no more than these', low=32, high=2**13)
    scales: list[int] | None = _setting(
        None, 'shorter sides that training images are resized to, one at random (multi-scale). Null: `min_size`', low=32
    )
    jitter: list[float] | None = _setting(
        None,
        'large-scale jitter: training images are resized to between so many times a square of `max_size`, and cut or '
        'padded to it; [0.1, 2] is usual. Null: off',
        length=2,
        above=0,
        rising=True,
    )
    aspect_batches: bool = _setting(True, 'training batches of wide or of tall images: less padding')
    bad_boxes: str = _setting(
        'drop',
        'boxes without area or outside their image: leave them out and say so, or stop',
        choices=('drop', 'error'),
    )
    levels: list[int] | None = _setting(
        None,
        'which maps of the backbone the pyramid stands on, by their stride: [8, 16, 32] for one-stage detectors, '
        '[4, 8, 16, 32] for the R-CNNs where it is null',
        low=1,
        rising=True,
    )
    extra_levels: int | None = _setting(
        None,
        'coarser levels on top of those: two for one-stage detectors and one for the R-CNNs where it is null',
        low=0,
        high=2,
    )
    level_norms: bool = _setting(False, 'LayerNorm on each map of the backbone')
    channels: int = _setting(256, 'of the pyramid', low=8, high=2**13)
    anchor_sizes: list[float] | None = _setting(
        None,
        'size of the anchors of each level, in pixels; fcos: what stands for its stride. Null: 32, 64, ... from the '
        'first level on, and in fcos the strides',
        above=0,
    )
    anchor_scales: list[float] | None = _setting(
        None, 'further factors on these sizes. Null: thirds of an octave for retinanet, else [1]', above=0
    )
    anchor_ratios: list[float] = _setting([0.5, 1.0, 2.0], 'height / width of the anchors', above=0)
    head_convs: int = _setting(4, 'convolutions of the heads of one-stage detectors and of the masks', low=1, high=16)
    head_channels: int = _setting(1024, 'hidden layers of the box head of the R-CNNs', low=1, high=2**13)
    proposals: int = _setting(1000, 'regions that the R-CNNs look at; in training as well', low=1)
    proposal_samples: int = _setting(256, 'anchors of an image in the loss of the region proposals', low=1)
    proposal_iou: float = _setting(0.7, 'overlap from which on an anchor is one of an object', above=0, high=1)
    box_samples: int = _setting(512, 'regions of an image in the loss of the box head', low=1)
    roi_size: int = _setting(7, 'side of what the box head sees of a region', low=1, high=64)
    roi_samples: int = _setting(2, 'points along an axis that each of its values is read from', low=1, high=8)
    queries: int = _setting(300, 'rt_detr: objects that an image can have', low=1)
    decoder_layers: int = _setting(6, 'rt_detr: layers of the decoder', low=1, high=64)
    score_threshold: float = _setting(0.05, 'boxes below it are no detections', low=0, below=1)
    nms_threshold: float = _setting(0.5, 'overlap from which on the lower of two boxes goes', above=0, high=1)
    max_detections: int = _setting(100, 'of an image', low=1)


@dataclass(frozen=True)
class LogConfig:
    seconds: float = _setting(30, 'between two lines inside an epoch, where stdout is no terminal', low=0.1)
    tensorboard: bool = _setting(True, 'write TensorBoard events')


@dataclass(frozen=True)
class Config:
    task: str = _setting('classification', 'what is trained', choices=('classification', 'detection'))
    output: str = _setting('', 'the run folder; empty: the name of the config, in runs/')
    seed: int = _setting(0, 'of everything that is drawn at random', low=0)
    resume: str = _setting(
        'auto', 'auto: go on where the run folder stopped; never: start over; or the run folder to go on from'
    )
    device: str = _setting('auto', 'auto: a GPU where there is one', choices=('auto', 'cpu', 'cuda', 'mps'))
    precision: str = _setting('fp32', 'of the computation; weights stay fp32', choices=('fp32', 'bf16', 'fp16'))
    model: ModelConfig = _section(ModelConfig, 'The network and the weights that it starts from.')
    data: DataConfig = _section(DataConfig, 'The images, and how they are read.')
    train: TrainConfig = _section(TrainConfig, 'The loop.')
    optim: OptimConfig = _section(OptimConfig, 'The optimizer.')
    schedule: ScheduleConfig = _section(ScheduleConfig, 'The learning rate over the run.')
    log: LogConfig = _section(LogConfig, 'What a run reports while it works.')
    detection: DetectionConfig = _section(DetectionConfig, 'What is of task=detection alone.')


# What may change between the two halves of a run: nothing that its numbers depend on.
FREE_TO_CHANGE = (
    *('output', 'resume', 'device', 'log.'),
    *('data.root', 'data.workers', 'data.max_bad_images', 'optim.recipe_batch_size'),
)


def load(name: str, overrides: Sequence[str] = (), tell: Callable[[str], None] = say) -> Config:
    """The configuration in the file `name`, or in the packaged recipe of that name, with `key=value` overrides.

    Args:
        tell: Takes a line where a setting changes another that nobody named.

    Raises:
        UserError: no such recipe, unknown key, value of another type or out of bounds.
    """
    path = _find(name)
    config = resolve(read_settings(path), overrides, tell)
    return config if config.output else dataclasses.replace(config, output=f'runs/{path.stem}')


def resolve(settings: Mapping[str, Any], overrides: Sequence[str] = (), tell: Callable[[str], None] = say) -> Config:
    """The configuration with these settings, and the overrides over them; see `load`."""
    _check_keys(settings)
    changes = [change for override in overrides for change in _sections_apart(*_parse(override))]
    merged = deepcopy(dict(settings))
    _drop_arguments_of_another_model(merged, changes, tell)
    for key, value in changes:
        _set(merged, key, value)
    _check_keys(merged)
    _check_task(merged)
    merged = _squares(merged)
    try:
        config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Config), merged))
    except OmegaConfBaseException as error:
        key = str(error.full_key).split('[')[0]
        raise _ill_typed(key, flatten(merged).get(key), dict(fields())[key]) from None
    assert isinstance(config, Config)
    _check_values(config)
    return config


def flatten(settings: Mapping[str, Any], prefix: str = '') -> dict[str, Any]:
    """Nested settings as one level with dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        flat.update(flatten(value, f'{prefix}{key}.') if isinstance(value, Mapping) else {f'{prefix}{key}': value})
    return flat


def to_yaml(config: Config) -> str:
    """The settings as a file, without the section of a task that is not theirs."""
    names = [item.name for item in dataclasses.fields(Config) if item.name != 'detection' or config.task == item.name]
    return OmegaConf.to_yaml(OmegaConf.masked_copy(OmegaConf.structured(config), names))


def recipes() -> dict[str, Path]:
    """The packaged recipes: 'classification/digits_biformer' -> its file."""
    root = Path(str(files('attnzoo.configs')))
    return {path.relative_to(root).with_suffix('').as_posix(): path for path in sorted(root.glob('*/*.yaml'))}


def fields(schema: type = Config, prefix: str = '') -> Iterator[tuple[str, dataclasses.Field]]:
    """Every setting of the schema by its dotted key."""
    for item in dataclasses.fields(schema):
        if dataclasses.is_dataclass(item.type):
            yield from fields(item.type, f'{prefix}{item.name}.')  # type: ignore[arg-type]
        else:
            yield prefix + item.name, item


def sections(schema: type = Config, prefix: str = '') -> Iterator[tuple[str, dataclasses.Field]]:
    """Every section of the schema by its dotted key."""
    for item in dataclasses.fields(schema):
        if dataclasses.is_dataclass(item.type):
            yield prefix + item.name, item
            yield from sections(item.type, f'{prefix}{item.name}.')  # type: ignore[arg-type]


def default(item: dataclasses.Field) -> Any:
    return item.default if item.default_factory is dataclasses.MISSING else item.default_factory()


def expected(item: dataclasses.Field) -> str:
    """In words, what a setting takes."""
    limits = item.metadata
    kind = item.type.__name__ if isinstance(item.type, type) else str(item.type).removesuffix(' | None')
    if choices := limits.get('choices'):
        kind = f'one of {", ".join(choices)}'
    elif kind.startswith('dict'):
        kind = 'a mapping'
    elif kind.startswith('list'):
        number = kind.removeprefix('list[').removesuffix(']')
        kind = f'[{", ".join([number] * limits["length"] if "length" in limits else [number, "..."])}]'
        if limits.get('square'):
            kind = f'{number} or {kind}'
    return ', '.join(filter(None, (kind, _bounds(limits)))) + (', or null' if '| None' in str(item.type) else '')


def _bounds(limits: Mapping[str, Any]) -> str:
    if 'low' in limits and 'high' in limits:
        return f'from {limits["low"]} to {limits["high"]}'
    words = {'low': 'at least', 'above': 'above', 'high': 'at most', 'below': 'below'}
    bounds = ' and '.join(f'{word} {limits[name]}' for name, word in words.items() if name in limits)
    return f'{bounds}, the smaller first' if limits.get('rising') else bounds


def _find(name: str) -> Path:
    if Path(name).is_file():
        return Path(name)
    known = recipes()
    wanted = name.removeprefix('configs/').removesuffix('.yaml')
    for recipe, path in known.items():
        if wanted in (recipe, path.stem):
            return path
    hint = near(wanted, known if '/' in wanted else [path.stem for path in known.values()])
    raise UserError(f'no config {name!r}, neither a file nor one of `{program()} list --recipes`{hint}')


def read_settings(path: Path) -> dict[str, Any]:
    """The settings in a file, unchecked."""
    try:
        settings = OmegaConf.to_container(OmegaConf.create(path.read_text(encoding='utf-8')), resolve=False)
    except Exception as error:  # of the YAML parser, whose exceptions share no base with anything
        raise UserError(f'{path}: no YAML: {one_line(error)}') from None
    if not isinstance(settings, dict):
        raise UserError(f'{path}: expected settings as `key: value`, got a {type(settings).__name__}')
    return {str(key): value for key, value in settings.items()}


def _parse(override: str) -> tuple[str, Any]:
    key, separator, text = override.partition('=')
    if not separator or not key or key.startswith('-'):
        raise UserError(f'{_shown(override)} is no setting: settings follow the config as key=value, such as seed=1')
    shown = key if key.isprintable() else repr(key)
    try:
        # Under a key of our own: what OmegaConf reads into the signs of a key has no use here.
        value = OmegaConf.to_container(OmegaConf.from_dotlist([f'value={text}']), resolve=False)['value']  # type: ignore[call-overload, index]
    except Exception as error:
        reason = getattr(error, 'problem', None) or one_line(error, 120)
        raise UserError(f'{shown}: got {_shown(text)}, which is no YAML: {reason}') from None
    setting = dict(fields()).get(key)
    if setting and str in (setting.type, *get_args(setting.type)) and isinstance(value, (bool, int, float)):
        value = text  # a folder may be called 007, or yes
    return key, value


def _sections_apart(key: str, value: Any) -> Iterator[tuple[str, Any]]:
    """The settings in `optim={name: sgd, lr: 1}`, one by one."""
    if isinstance(value, dict) and key in dict(sections()):
        for name, inner in value.items():
            yield from _sections_apart(f'{key}.{name}', inner)
    else:
        yield key, value


def _drop_arguments_of_another_model(
    settings: dict[str, Any], changes: list[tuple[str, Any]], tell: Callable[[str], None]
) -> None:
    model = settings.get('model') or {}
    name = dict(changes).get('model.name')
    if name is not None and name != model.get('name', ModelConfig.name) and (dropped := model.pop('kwargs', None)):
        tell(f'model.name={name}: left out model.kwargs of {model.get("name")}: {", ".join(map(str, dropped))}')


def _set(settings: dict[str, Any], key: str, value: Any) -> None:
    *path, name = key.split('.')
    for part in path:
        if not isinstance(settings.get(part), dict):
            settings[part] = {}
        settings = settings[part]
    settings[name] = value


def _check_keys(settings: Any, schema: type = Config, prefix: str = '') -> None:
    """Check the keys, and that each value is of a kind that OmegaConf takes and can name in its own errors."""
    known = {item.name: item for item in dataclasses.fields(schema)}
    for key, value in settings.items():
        name = f'{prefix}{key}'
        if key not in known:
            hint = near(name, [prefix + sibling for sibling in known]) or near(name, dict(fields()))
            raise UserError(f'unknown key {_shown(name)}{hint}')
        kind: Any = known[key].type
        if dataclasses.is_dataclass(kind):
            if not isinstance(value, dict):
                names = ', '.join(item.name for item in dataclasses.fields(kind))
                raise UserError(f'{name}: got {_shown(value)}, expected a section with keys of {names}')
            _check_keys(value, kind, f'{name}.')  # type: ignore[arg-type]
        elif value is not None:
            _check_plain(name, value)
            if not _is_of_kind(value, known[key]):
                raise _ill_typed(name, value, known[key])


def _check_task(settings: Mapping[str, Any]) -> None:
    """Check that no setting is of another task."""
    task, given, known = settings.get('task', Config.task), flatten(settings), dict(fields())
    for key, value in given.items():
        whose = 'detection' if key.startswith('detection.') else 'classification'
        if whose == 'classification' and key not in _CLASSIFICATION_ONLY:
            continue
        if task in ('classification', 'detection') and task != whose and value != default(known[key]):
            raise UserError(f'{key}: a setting of task={whose}, and this is task={task}')


def _is_of_kind(value: Any, item: dataclasses.Field) -> bool:
    kind = str(item.type)
    if isinstance(value, dict):
        return 'dict[' in kind and all(isinstance(key, str) for key in value)
    if isinstance(value, list):
        return 'list[' in kind and all(isinstance(number, (int, float)) for number in value)
    return '[' not in kind or (bool(item.metadata.get('square')) and isinstance(value, int))


def _check_plain(key: str, value: Any, depth: int = 0) -> None:
    """Check for what YAML can hold and a setting cannot."""
    if depth > _DEEPEST:
        raise UserError(f'{key}: more than {_DEEPEST} levels of lists and mappings')
    if isinstance(value, (dict, list)):
        for inner in [*value, *value.values()] if isinstance(value, dict) else value:
            _check_plain(key, inner, depth + 1)
    elif isinstance(value, str):
        if '${' in value or value == '???':
            raise UserError(f'{key}: got {_shown(value)}: settings know no interpolation')
        # Control characters and halves of surrogate pairs fit into no file name and no YAML file.
        if any(unicodedata.category(letter) in ('Cc', 'Cs') for letter in value):
            raise UserError(f'{key}: got {_shown(value)}, which holds a control character')
    elif isinstance(value, int) and abs(value) > _LARGEST:
        raise UserError(f'{key}: got {_shown(value)}, expected at most {_LARGEST}')
    elif isinstance(value, float) and not abs(value) <= _LARGEST_FLOAT:  # nan is not either
        raise UserError(f'{key}: got {value}, expected a finite number up to {_LARGEST_FLOAT:g}')
    elif value is not None and not isinstance(value, (int, float)):
        raise UserError(f'{key}: got a {type(value).__name__}, expected a number, text, list or mapping')


def _ill_typed(key: str, value: Any, item: dataclasses.Field) -> UserError:
    return UserError(f'{key}: got {_shown(value)}, expected {expected(item)}')


def _shown(value: Any) -> str:
    """A value as Python writes it, cut where it is long."""
    try:
        text = repr(value)
    except ValueError:  # an integer of thousands of digits
        text = f'an integer of {value.bit_length()} bits'
    return text if len(text) <= 100 else f'{text[:100]} ...'


def _squares(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings, with a list where one number may stand for several equal ones."""
    settings = deepcopy(settings)
    for key, item in fields():
        value = flatten(settings).get(key)
        if item.metadata.get('square') and isinstance(value, int):
            _set(settings, key, [value] * item.metadata['length'])
    return settings


def _check_values(config: Config) -> None:
    for key, item in fields():
        value: Any = config
        for part in key.split('.'):
            value = getattr(value, part)
        if value is None:
            continue
        limits = item.metadata
        numbers = [one for one in (value if isinstance(value, list) else [value]) if isinstance(one, (int, float))]
        wrong = not all(map(math.isfinite, numbers))
        wrong |= value == []
        wrong |= 'length' in limits and len(value) != limits['length']
        wrong |= 'choices' in limits and value not in limits['choices']
        wrong |= 'low' in limits and any(number < limits['low'] for number in numbers)
        wrong |= 'above' in limits and any(number <= limits['above'] for number in numbers)
        wrong |= 'high' in limits and any(number > limits['high'] for number in numbers)
        wrong |= 'below' in limits and any(number >= limits['below'] for number in numbers)
        wrong |= 'rising' in limits and numbers != sorted(numbers)
        if wrong:
            raise _ill_typed(key, value, item)
    for name in config.model.kwargs:
        if name in ('model_name', *_OWN_SETTINGS):
            instead = f'model.{name}' if name in _OWN_SETTINGS else 'model.name'
            raise UserError(f'model.kwargs.{name}: {instead} sets it')
