"""What models there are, and the facts of one."""

from pathlib import Path

import timm
from rich.table import Table
from timm.models import PretrainedCfg

from attnzoo.backbones import checkpoint_folder, official_file, placed_file

from .console import console, show_table
from .download import is_url
from .errors import UserError, few, near, program
from .models import count_parameters, create, multiply_adds, read, rebuild, weights_file


def show_list(pattern: str = '*') -> None:
    """Print the names of attnzoo's models that match a pattern with wildcards."""
    ours = [name for name in timm.list_models() if timm.model_entrypoint(name).__module__.startswith('attnzoo.')]
    names = [name for name in timm.list_models(pattern) if name in ours]
    if not names:
        raise UserError(f'no model of attnzoo matches {pattern!r}{near(pattern.strip("*"), ours)}')
    table = Table()
    for heading in ('name', 'input', 'weights'):
        table.add_column(heading)
    for name in names:
        cfg = timm.get_pretrained_cfg(name)
        table.add_row(name, _size(cfg) if cfg else '', _weights(name, cfg).partition(';')[0])
    console.print(table)


def show_info(name: str) -> None:
    """Print what there is to know of a run, of a file of weights, or of a model of timm's registry."""
    if is_url(name) or Path(name).exists():
        _show_weights(weights_file(name))
    elif timm.is_model(name):
        _show_model(name)
    else:
        raise UserError(f'no model {name!r}{near(name.split(".")[0], timm.list_models())}')


def _show_model(name: str) -> None:
    model = create(name)
    cfg = PretrainedCfg(**model.pretrained_cfg)  # type: ignore[arg-type]
    multiplications = multiply_adds(name, cfg.input_size)
    rows = {
        'parameters': f'{count_parameters(model) / 1e6:.2f} M',
        'GMACs': f'{multiplications / 1e9:.2f}' if multiplications else 'cannot be counted',
        'input size': _size(cfg),
        'classes': str(cfg.num_classes),
        'weights': _weights(name, cfg),
        'paper': ' '.join(filter(None, (cfg.paper_name, _paper(cfg)))) or 'not given',
        'licence': cfg.license or 'not given',
    }
    show_table(name, rows)


def _show_weights(path: Path) -> None:
    state, spec, facts = read(path)
    if spec is None:
        raise UserError(f'{path}: does not say which model it is; `{program()} convert {path} DST --model NAME` does')
    parameters = f'{count_parameters(rebuild(spec, state, str(path))) / 1e6:.2f} M'
    multiplications = None
    if not spec.detection:
        full = count_parameters(create(spec.name)) / 1e6
        parameters += f' of {full:.2f} M ({spec.name} as published)' if spec.kwargs else ''
        multiplications = multiply_adds(spec.name, spec.data['input_size'], num_classes=spec.num_classes, **spec.kwargs)
    rows = {
        'model': spec.title,
        'model.kwargs': ', '.join(f'{key}={value}' for key, value in spec.kwargs.items()) or 'none',
        'parameters': parameters,
        'GMACs': f'{multiplications / 1e9:.2f}' if multiplications else 'cannot be counted',
        'input size': 'x'.join(map(str, spec.data['input_size'])),
        'classes': f'{spec.num_classes}' + (f': {few(spec.classes)}' if spec.classes else ', without names'),
        **{key: f'{value:g}' for key, value in facts.items()},
        'file': f'{path}, {path.stat().st_size / 2**20:.1f} MiB',
    }
    show_table(str(path.parent if path.parent.joinpath('config.yaml').is_file() else path), rows)


def _size(cfg: PretrainedCfg) -> str:
    return 'x'.join(map(str, cfg.input_size))


def _weights(name: str, cfg: PretrainedCfg | None) -> str:
    """Where pretrained=True finds them, or why it does not."""
    tagged = f'{name}.{cfg.tag}' if cfg and cfg.tag and '.' not in name else name
    if placed := placed_file(tagged):
        return str(placed)
    if cfg and (cfg.file or cfg.hf_hub_id or cfg.url):
        return str(cfg.file or (f'hf-hub:{cfg.hf_hub_id}' if cfg.hf_hub_id else cfg.url))
    file = official_file(tagged)
    if file is None:
        return 'none published'
    return f'listed as {file.name}; {file.status}: place the file in {checkpoint_folder()}, see {file.page}'


def _paper(cfg: PretrainedCfg) -> str:
    ids = [cfg.paper_ids] if isinstance(cfg.paper_ids, str) else cfg.paper_ids or ()
    return ' '.join(f'https://arxiv.org/abs/{identifier.removeprefix("arXiv:")}' for identifier in ids)
