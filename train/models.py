"""Models by name or from a run folder, with what they need to be built again and used: a `ModelSpec`."""

import dataclasses
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import timm
import torch
from timm.data import resolve_model_data_config
from torch import Tensor, nn

from attnzoo.backbones import WeightsNotFoundError

from .checkpoint import check_finite, load_weights, read_weights, translate_weights
from .classes import imagenet_classes, match_classes
from .download import download, is_url
from .errors import UserError, near, one_line, program

if TYPE_CHECKING:  # the settings need packages of an extra, and predicting does not
    from .config import Config, DataConfig, ModelConfig

METADATA_KEY = 'attnzoo'
IMAGE_SETTINGS = ('image_size', 'interpolation', 'crop_pct', 'mean', 'std')  # of `data`, as in a ModelSpec's


@dataclass(frozen=True)
class ModelSpec:
    """How a model is built, what its images look like and what its outputs mean. It travels inside the checkpoint."""

    name: str
    num_classes: int
    kwargs: dict[str, Any]
    data: dict[str, Any]  # input_size (channels, height, width), interpolation, mean, std, crop_pct, crop_mode
    classes: list[str]  # empty where nobody has named them
    detection: dict[str, Any] | None = None  # of a detector: its settings, and the ids of its categories

    @property
    def title(self) -> str:
        return f'{self.detection["settings"]["detector"]} on {self.name}' if self.detection else self.name

    def metadata(self, **facts: Any) -> dict[str, str]:
        """The spec and further facts, as safetensors keeps them: under one key, for it writes several in any order."""
        model = {key: value for key, value in asdict(self).items() if value is not None}
        return {METADATA_KEY: json.dumps({'model': model, **facts})}

    def class_name(self, index: int) -> str:
        return self.classes[index] if self.classes else f'class {index}'


def create(name: str, *, pretrained: bool = False, num_classes: int | None = None, **kwargs: Any) -> nn.Module:
    """`timm.create_model`, whose errors are one line.

    Raises:
        UserError: unknown name, an argument that the model does not take, no weights to be had.
    """
    if not name.startswith(('hf-hub:', 'hf_hub:', 'local-dir:')) and not timm.is_model(name):
        raise UserError(f'no model {name!r}{near(name.split(".")[0], timm.list_models())}')
    if num_classes is not None:
        kwargs['num_classes'] = num_classes
    try:
        return timm.create_model(name, pretrained=pretrained, **kwargs)
    except WeightsNotFoundError as error:
        raise UserError(f'cannot create {name}: {error.problem}') from error
    except (TypeError, ValueError, AssertionError) as error:
        raise UserError(f'model.kwargs do not fit {name}: {one_line(error)}') from error
    except Exception as error:
        # What goes wrong with weights is a dozen exception types of hub, file and network.
        raise UserError(f'cannot create {name}: {one_line(error)}') from error


def complete(config: 'Config') -> 'Config':
    """The settings, with what a run in `model.weights` says of its model and images where the settings say nothing."""
    weights = config.model.weights
    # A run goes on without the weights that it started from.
    if not weights or not (is_url(weights) or Path(weights).exists()):
        return config
    _, spec, _ = read(weights_file(weights))
    if spec is None:
        return config
    if spec.detection and config.task != 'detection':
        raise UserError(f'model.weights={weights} is of a detector: task=detection goes on from it')
    if spec.name.split('.')[0] != config.model.name.split('.')[0]:
        raise UserError(f'model.weights={weights} is of {spec.name}: say model.name={spec.name}')
    pixels = {key: [*spec.data[key]] * (3 // len(spec.data[key])) for key in ('mean', 'std')}  # of grey: for each
    own: dict[str, Any] = {key: getattr(config.data, key) or value for key, value in pixels.items()}
    if config.task == 'classification':
        own['interpolation'] = config.data.interpolation or spec.data['interpolation']
    return dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, kwargs={**spec.kwargs, **config.model.kwargs}),
        data=dataclasses.replace(config.data, **own),
    )


def build(
    model_config: 'ModelConfig',
    data_config: 'DataConfig',
    num_classes: int,
    classes: list[str],
    tell: Callable[[str], None],
    *,
    start: bool = True,
) -> tuple[nn.Module, ModelSpec]:
    """The model that the settings ask for, tried on two images of the size that it will see.

    Args:
        tell: Takes a line about the weights that it starts from.
        start: Load the weights that it starts from; False where a checkpoint follows.
    """
    name, kwargs = model_config.name, model_config.kwargs
    model = create(name, num_classes=num_classes, **kwargs)
    spec = spec_of(model, name, kwargs, classes, **image_settings(data_config))
    if start and model_config.weights:
        source = weights_file(model_config.weights)
        state, origin, _ = read(source)
        start_from(model, translate_weights(model, state), str(source), origin, spec, tell)
    elif start and model_config.pretrained:
        published = create_pretrained(name, kwargs)
        origin = spec_of(published, name, kwargs, imagenet_classes(published))
        start_from(model, published.state_dict(), f'the published weights of {name}', origin, spec, tell)
    try_on_images(model, spec)
    return model, spec


def create_pretrained(name: str, kwargs: Mapping[str, Any]) -> nn.Module:
    try:
        return create(name, pretrained=True, **kwargs)
    except UserError as error:
        instead = 'model.weights=FILE starts from a file of yours'
        if kwargs:
            instead = f'model.kwargs={{}} builds the model that they are of, {instead}'
        raise UserError(f'{error}; {instead}') from error


def start_from(
    model: nn.Module,
    state: Mapping[str, Tensor],
    source: str,
    origin: ModelSpec | None,
    spec: ModelSpec,
    tell: Callable[[str], None],
) -> None:
    """Load weights into a model, whose classifier stays as it is where it is for other classes.

    Args:
        origin: the spec of the model that the weights are of, where it is known.
    """
    own = model.state_dict()
    parts = model.get_classifier()  # type: ignore[operator]
    inside = {id(weight) for part in (parts if isinstance(parts, tuple) else (parts,)) for weight in part.parameters()}
    classifier = [key for key, weight in model.named_parameters() if id(weight) in inside]
    fits = all(key in state and state[key].shape == own[key].shape for key in classifier)
    if fits and origin and origin.classes and spec.classes:
        indices, unknown = match_classes(spec.classes, origin.classes, origin.num_classes)
        fits = not unknown and indices == list(range(spec.num_classes))
    kept = {} if fits else {key: own[key] for key in classifier}
    load_weights(model, {**state, **kept}, source)
    check_finite(model, source)
    tell(f'starting from {source}' + (f', all but {", ".join(kept)}: its classes are others' if kept else ''))


def try_on_images(model: nn.Module, spec: ModelSpec) -> None:
    """Run a model on two images of the size that it will see.

    Raises:
        UserError: it does not take them, or its outputs are no classes.
    """
    size = tuple(spec.data['input_size'])
    try:
        with torch.no_grad():
            output = model.eval()(torch.zeros(2, *size))
    except Exception as error:  # whatever a model says of images that it cannot take
        raise UserError(
            f'{spec.name} does not take images of {size}: {one_line(error)}; '
            f'try another data.image_size, or model.kwargs.img_size={size[1]} where the model has that argument'
        ) from error
    shape = getattr(output, 'shape', None)
    if shape != (2, spec.num_classes):
        got = tuple(shape) if shape else type(output).__name__
        raise UserError(f'model.kwargs: {spec.name} returns {got} of 2 images, expected (2, {spec.num_classes})')


def spec_of(model: nn.Module, name: str, kwargs: Mapping[str, Any], classes: list[str], **settings: Any) -> ModelSpec:
    """The spec of a model.

    Args:
        settings: of `IMAGE_SETTINGS`, over what its pretrained_cfg says about its images; None where that holds.
    """
    if not hasattr(model, 'num_classes'):  # features_only
        raise UserError(f'model.kwargs: {name} is no classifier with {", ".join(kwargs)}')
    data = with_image_settings(resolve_model_data_config(model), settings, getattr(model, 'in_chans', 3))
    return ModelSpec(name, int(model.num_classes), dict(kwargs), data, classes)  # type: ignore[arg-type]


def image_settings(config: 'DataConfig') -> dict[str, Any]:
    return {key: getattr(config, key) for key in IMAGE_SETTINGS}


def with_image_settings(data: Mapping[str, Any], settings: Mapping[str, Any], channels: int) -> dict[str, Any]:
    """The `data` of a spec, with those of `IMAGE_SETTINGS` that are not None over it."""
    if channels not in (1, 3):
        raise UserError(f'model.kwargs.in_chans={channels}: images have 3 channels, or 1 of grey')
    changed = {key: value for key, value in settings.items() if value is not None}
    size = changed.pop('image_size', data['input_size'][1:])
    merged = {**data, **changed, 'input_size': (channels, *size)}
    if channels == 1:  # the statistics of three channels, as grey has them
        merged |= {key: (sum(merged[key]) / len(merged[key]),) for key in ('mean', 'std')}
    return merged


def load(target: str) -> tuple[nn.Module, ModelSpec, str]:
    """A model with weights, its spec and where they come from.

    Args:
        target: a run folder (its best checkpoint), a .safetensors file of `attnzoo train` or `attnzoo convert` or its
            URL, or the name of a model with pretrained weights.
    """
    if is_url(target) or Path(target).exists():
        path = weights_file(target)
        state, spec, _ = read(path)
        if spec is None:
            command = f'{program()} convert {path} DST --model NAME'
            raise UserError(f'{path}: does not say which model it is; `{command}` does')
        return rebuild(spec, state, str(path)), spec, str(path)
    if not timm.is_model(target):
        raise UserError(
            f'{target!r} is neither a run folder nor a model{near(target.split(".")[0], timm.list_models())}'
        )
    model = create(target, pretrained=True)
    if not model.num_classes:
        raise UserError(f'{target} has no classifier: train one with model.name={target} model.pretrained=true')
    return model, spec_of(model, target, {}, imagenet_classes(model)), f'{target}, pretrained'


def rebuild(spec: ModelSpec, state: Mapping[str, Tensor], source: str) -> nn.Module:
    """The model of a spec with these weights, from `source`."""
    if spec.detection:
        from .detection.detectors import build as build_detector

        model: nn.Module = build_detector(spec)
    else:
        model = create(spec.name, num_classes=spec.num_classes, **spec.kwargs)
    load_weights(model, state, source)
    return model


def task_of(target: str) -> str:
    """What a run folder, a file of weights or a model by name is for: classification or detection."""
    if is_url(target) or Path(target).exists():
        _, spec, _ = read(weights_file(target))
        return 'detection' if spec and spec.detection else 'classification'
    return 'classification'


def weights_file(target: str) -> Path:
    """The file of weights in a run folder (its best), at a URL, or the file itself."""
    if is_url(target):
        return download(target)
    path = Path(target)
    if not path.exists():
        raise UserError(f'{target}: no run folder, no file and no URL')
    if path.is_file():
        return path
    found = [path / name for name in ('best.safetensors', 'last.safetensors') if (path / name).is_file()]
    if not found:
        raise UserError(f'{target}: no run folder: it holds neither best.safetensors nor last.safetensors')
    return found[0]


def read(path: Path) -> tuple[dict[str, Tensor], ModelSpec | None, dict[str, Any]]:
    """The weights in a file, the spec of their model where it is in there, and further facts of their training."""
    state, metadata = read_weights(path)
    if METADATA_KEY not in metadata:
        return state, None, {}
    try:
        facts = json.loads(metadata[METADATA_KEY])
        spec = ModelSpec(**facts.pop('model'))
        _check(spec)
    except Exception as error:  # of damaged text, any
        raise UserError(f'{path}: what it says of its model is damaged: {one_line(error)}') from error
    return state, spec, facts


def _check(spec: ModelSpec) -> None:
    """Check what a file says, before it is relied on."""
    channels, height, width = spec.data['input_size']
    keys = {'input_size', 'interpolation', 'mean', 'std', 'crop_pct', 'crop_mode'}
    statistics = [*spec.data['mean'], *spec.data['std'], spec.data['crop_pct']]
    right = {
        'name': isinstance(spec.name, str),
        'num_classes': isinstance(spec.num_classes, int) and spec.num_classes > 0,
        'kwargs': isinstance(spec.kwargs, dict),
        'data': set(spec.data) == keys,
        'input_size': all(isinstance(size, int) and 0 < size < 2**14 for size in (channels, height, width)),
        'mean': len(spec.data['mean']) == len(spec.data['std']) == channels and all(map(math.isfinite, statistics)),
        'std': min(*spec.data['std'], spec.data['crop_pct']) > 0,
        'classes': len(spec.classes) in (0, spec.num_classes) and all(isinstance(name, str) for name in spec.classes),
        'detection': spec.detection is None
        or (isinstance(spec.detection['settings'], dict) and len(spec.detection['category_ids']) == spec.num_classes),
    }
    if wrong := [key for key, holds in right.items() if not holds]:
        raise ValueError(', '.join(wrong))


def pick_device(name: str) -> torch.device:
    """The device of that name, or the best there is for 'auto'.

    Raises:
        UserError: there is none of that name.
    """
    available = {'cuda': torch.cuda.is_available(), 'mps': torch.backends.mps.is_available(), 'cpu': True}
    if name not in ('auto', *available):
        raise UserError(f'device={name}: expected one of auto, {", ".join(available)}')
    if not available.get(name, True):
        raise UserError(f'device={name}: there is none here; device=auto takes what there is')
    return torch.device(next(kind for kind, there in available.items() if there and name in ('auto', kind)))


def count_parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def multiply_adds(name: str, input_size: tuple[int, int, int], **kwargs: Any) -> int | None:
    """Multiply-adds of one image of `input_size` (channels, height, width); None where they cannot be counted.

    Matrix products, convolutions and attention count, as in the papers' GMACs. Nothing is computed.
    """
    from torch.utils.flop_counter import FlopCounterMode

    try:
        with torch.device('meta'), torch.no_grad(), FlopCounterMode(display=False) as counter:
            create(name, **kwargs).eval()(torch.empty(1, *input_size))
    except (UserError, NotImplementedError, RuntimeError):  # a model that does not run on the meta device
        return None
    return counter.get_total_flops() // 2
