"""The settings of a run: frozen dataclasses that are the schema, YAML files that fill them, `key=value` overrides.

Loading is strict. A key that the schema does not have, a value of another type or outside its bounds is an error that
names the key. The file that a run writes beside its checkpoints holds every key, so it reproduces the run alone.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from .errors import UserError, first_line, near

_PAIR, _RGB = {'length': 2}, {'length': 3}


def _one_of(default: str, *others: str) -> Any:
    return field(default=default, metadata={'choices': (default, *others)})


def _at_least(low: float, default: Any) -> Any:
    return field(default=default, metadata={'low': low})


def _within(low: float, high: float, default: Any) -> Any:
    return field(default=default, metadata={'low': low, 'high': high})


@dataclass(frozen=True)
class ModelConfig:
    name: str = 'biformer_tiny'  # any name that timm.create_model takes
    pretrained: bool = False
    num_classes: int | None = _at_least(1, None)  # None: as many as the data has
    kwargs: dict[str, Any] = field(default_factory=dict)  # further arguments of timm.create_model


@dataclass(frozen=True)
class AugmentConfig:
    backend: str = _one_of('timm', 'albumentations', 'none')  # none: the transform of the evaluation
    scale: list[float] = field(
        default_factory=lambda: [0.08, 1.0], metadata=_PAIR
    )  # area of the random crop, of the image
    ratio: list[float] = field(
        default_factory=lambda: [3 / 4, 4 / 3], metadata=_PAIR
    )  # width / height of the random crop
    hflip: float = _within(0, 1, 0.5)
    vflip: float = _within(0, 1, 0.0)
    rotate: float = _within(0, 180, 0.0)  # degrees either way; albumentations only
    color_jitter: float = _at_least(0, 0.4)
    auto_augment: str | None = None  # a policy of timm, such as rand-m9-mstd0.5-inc1; timm only
    erase: float = _within(0, 1, 0.0)  # probability that a rectangle is erased
    mixup: float = _at_least(0, 0.0)  # alpha of the Beta distribution; 0: off
    cutmix: float = _at_least(0, 0.0)
    repeats: int = _at_least(1, 1)  # views of one image in an epoch (repeated augmentation); its length stays


@dataclass(frozen=True)
class DataConfig:
    root: str = ''
    # auto: scikit-learn's digits without a root, a folder with one. Else folder, digits, or a name of timm's
    # create_dataset with its prefix: hfds/NAME, wds/NAME, torch/NAME.
    format: str = 'auto'
    train_split: str = 'train'
    val_split: str = 'validation'
    input_key: str | None = None  # hfds, wds: where a sample keeps its image and its label
    target_key: str | None = None
    batch_size: int = _at_least(1, 128)  # of one process
    workers: int = _at_least(0, 4)
    max_bad_images: int = _at_least(0, 100)  # images that cannot be read, before the run gives up
    # None: as the model's pretrained_cfg says.
    image_size: int | None = _at_least(1, None)
    interpolation: str | None = None
    crop_pct: float | None = _within(0.01, 1, None)
    mean: list[float] | None = field(default=None, metadata=_RGB)
    std: list[float] | None = field(default=None, metadata=_RGB)
    augment: AugmentConfig = field(default_factory=AugmentConfig)


@dataclass(frozen=True)
class TrainConfig:
    epochs: int = _at_least(1, 300)
    grad_accum: int = _at_least(1, 1)
    clip: float | None = _at_least(0, None)  # norm of the gradients
    smoothing: float = _within(0, 1, 0.1)  # of the labels
    compile: bool = False
    ema: float = _within(0, 1, 0.0)  # decay of the average of the weights, which is then what is scored; 0: off
    ema_warmup: bool = True  # the average starts short, so that a run of few updates has one


@dataclass(frozen=True)
class OptimConfig:
    name: str = 'adamw'  # an optimiser of timm
    lr: float = _at_least(0, 1e-3)
    lr_batch_size: int = _at_least(0, 0)  # lr is for this batch, and scaled to the run's; 0: lr as it is
    weight_decay: float = _at_least(0, 0.05)
    momentum: float = _within(0, 1, 0.9)
    betas: list[float] | None = field(default=None, metadata=_PAIR)
    layer_decay: float | None = _within(0, 1, None)


@dataclass(frozen=True)
class ScheduleConfig:
    name: str = _one_of('cosine', 'poly', 'step', 'constant')
    warmup_epochs: int = _at_least(0, 5)
    warmup_lr: float = _at_least(0, 1e-6)
    min_lr: float = _at_least(0, 1e-5)
    decay_epochs: float = _at_least(1, 30)  # step
    decay_rate: float = _at_least(0, 0.1)  # step; the power of poly


@dataclass(frozen=True)
class LogConfig:
    seconds: float = _at_least(0.1, 30)  # between two lines inside an epoch, where stdout is no terminal
    tensorboard: bool = True


@dataclass(frozen=True)
class Config:
    task: str = _one_of('classification')
    output: str = ''  # the run folder; empty: runs/<name of the config>
    seed: int = _at_least(0, 0)
    resume: str = 'auto'  # auto: go on where the run folder stopped; never: start over; or the run folder to go on from
    device: str = _one_of('auto', 'cpu', 'cuda', 'mps')
    precision: str = _one_of('fp32', 'bf16', 'fp16')
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    log: LogConfig = field(default_factory=LogConfig)


# What may change between the two halves of a run: nothing that its numbers depend on.
FREE_TO_CHANGE = ('output', 'resume', 'device', 'data.root', 'data.workers', 'data.max_bad_images', 'log.')


def load(name: str, overrides: Sequence[str] = ()) -> Config:
    """The configuration in the file `name`, or in the packaged recipe of that name, with `key=value` overrides.

    Raises:
        UserError: no such recipe, unknown key, value of another type or out of bounds.
    """
    path = _find(name)
    config = resolve(_read(path), overrides)
    return config if config.output else dataclasses.replace(config, output=f'runs/{path.stem}')


def resolve(settings: Mapping[str, Any], overrides: Sequence[str] = ()) -> Config:
    """The configuration with these settings, and the overrides over them; see `load`."""
    for override in overrides:
        if '=' not in override or override.startswith('-'):
            raise UserError(f'{override!r} is no setting: settings follow the config as key=value, such as seed=1')
    merged = OmegaConf.structured(Config)
    for layer in (OmegaConf.create(dict(settings)), OmegaConf.from_dotlist(list(overrides))):
        given = OmegaConf.to_container(layer, resolve=False)
        _check_keys(given)
        try:
            merged = OmegaConf.merge(merged, layer)
        except OmegaConfBaseException as error:
            key = str(error.full_key).split('[')[0]
            raise _ill_typed(key, flatten(given).get(key), dict(_fields(Config))[key].type) from None  # type: ignore[arg-type]
    config = OmegaConf.to_object(merged)
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
    return OmegaConf.to_yaml(OmegaConf.structured(config))


def recipes() -> dict[str, Path]:
    """The packaged recipes: 'classification/digits_biformer' -> its file."""
    root = Path(str(files('attnzoo.configs')))
    return {path.relative_to(root).with_suffix('').as_posix(): path for path in sorted(root.glob('*/*.yaml'))}


def _find(name: str) -> Path:
    if Path(name).is_file():
        return Path(name)
    known = recipes()
    wanted = name.removeprefix('configs/').removesuffix('.yaml')
    for recipe, path in known.items():
        if wanted in (recipe, path.stem):
            return path
    names = [*known, *(path.stem for path in known.values())]
    raise UserError(f'no config {name!r}, neither a file nor one of {", ".join(known)}{near(wanted, names)}')


def _read(path: Path) -> dict[str, Any]:
    try:
        settings = OmegaConf.to_container(OmegaConf.create(path.read_text(encoding='utf-8')), resolve=False)
    except Exception as error:  # of the YAML parser, whose exceptions share no base with anything
        raise UserError(f'{path}: no YAML: {first_line(error)}') from None
    if not isinstance(settings, dict):
        raise UserError(f'{path}: expected settings as `key: value`, got a {type(settings).__name__}')
    return {str(key): value for key, value in settings.items()}


def _fields(schema: type, prefix: str = '') -> Iterator[tuple[str, dataclasses.Field]]:
    for item in dataclasses.fields(schema):
        if dataclasses.is_dataclass(item.type):
            yield from _fields(item.type, f'{prefix}{item.name}.')  # type: ignore[arg-type]
        else:
            yield prefix + item.name, item


def _check_keys(settings: Any, schema: type = Config, prefix: str = '') -> None:
    known = {item.name: item.type for item in dataclasses.fields(schema)}
    for key, value in settings.items():
        if key not in known:
            name = f'{prefix}{key}'
            hint = near(name, [prefix + sibling for sibling in known]) or near(name, dict(_fields(Config)))
            raise UserError(f'unknown key {name!r}{hint}')
        expected: Any = known[key]
        if dataclasses.is_dataclass(expected):
            if not isinstance(value, dict):
                names = ', '.join(item.name for item in dataclasses.fields(expected))
                raise UserError(f'{prefix}{key}: got {value!r}, expected a section with keys of {names}')
            _check_keys(value, expected, f'{prefix}{key}.')  # type: ignore[arg-type]
        # Told here, because OmegaConf's own errors about a container in the wrong place name no key.
        elif value is not None:
            kind = f'{type(value).__name__}[' if isinstance(value, (dict, list)) else ''
            if kind not in str(expected) or (not kind and '[' in str(expected)):
                raise _ill_typed(prefix + key, value, expected)


def _ill_typed(key: str, value: Any, expected: Any) -> UserError:
    name = str(expected) if '[' in str(expected) else getattr(expected, '__name__', expected)  # list[float], but int
    return UserError(f'{key}: got {value!r}, expected {name}')


def _check_values(config: Config) -> None:
    for key, item in _fields(Config):
        value: Any = config
        for part in key.split('.'):
            value = getattr(value, part)
        choices, low, high, length = (item.metadata.get(name) for name in ('choices', 'low', 'high', 'length'))
        if value is None:
            continue
        if length and len(value) != length:
            raise UserError(f'{key}: got {value!r}, expected {length} numbers')
        if choices and value not in choices:
            raise UserError(f'{key}: got {value!r}, expected one of {", ".join(choices)}')
        if (low is not None and value < low) or (high is not None and value > high):
            bounds = f'from {low} to {high}' if high is not None else f'at least {low}'
            raise UserError(f'{key}: got {value!r}, expected {bounds}')
