"""Published weights, tried: downloaded, compared with the hash that their source publishes, loaded strictly, scored.

This is how a link that is listed becomes one that works: where it runs, there is a network, and perhaps ImageNet.
"""

import datetime
import hashlib
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import timm
from accelerate import Accelerator
from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url
from rich.table import Table

from attnzoo.backbones import find_weights, placed_file, published_top1

from .build import make_accelerator
from .checkpoint import load_weights, read_weights, translate_weights
from .classes import imagenet_classes
from .classification.scoring import score_model
from .config import Config, resolve
from .console import console, say
from .errors import UserError, near, one_line
from .models import create, spec_of
from .run_folder import environment, write_json

TOLERANCE = 0.2  # points of top-1 between the authors' evaluation and ours: libraries resize images differently


def verify(patterns: Sequence[str], overrides: Sequence[str], report: str) -> int:
    """Try the published weights of models, and print and write what came of it.

    Args:
        patterns: names with or without a tag, wildcards allowed; a name without a tag stands for all its tags.
        overrides: settings of the data to score on, as `attnzoo eval` takes them; none: the weights are not scored.
        report: JSON file to write.

    Returns:
        Exit status: 0 where everything that was tried works.
    """
    names = _names(patterns)
    config = resolve({}, overrides)
    accelerator = make_accelerator(config)
    scored = bool(config.data.root or config.data.format != 'auto')
    rows = []
    for name in names:
        say(f'{name} ...')
        row = _try(name, config if scored else None, accelerator)
        rows.append(row)
        say(f'{name}: {row["verdict"]}')
    _show(rows)
    place = environment(accelerator.device.type, accelerator.num_processes)
    date = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec='seconds')
    write_json(Path(report), {'date': date, 'environment': place, 'data': config.data.root, 'checkpoints': rows})
    say(f'written to {report}')
    return int(any(row['verdict'] not in ('works', 'loads') for row in rows))


def _names(patterns: Sequence[str]) -> list[str]:
    """Names with tags of attnzoo's models that match."""
    ours = [name for name in timm.list_models() if timm.model_entrypoint(name).__module__.startswith('attnzoo.')]
    tagged = [name for name in timm.list_models(include_tags=True) if name.split('.')[0] in ours and '.' in name]
    found = []
    for pattern in patterns:
        matching = [name for name in tagged if fnmatch(name, pattern) or fnmatch(name.split('.')[0], pattern)]
        if not matching:
            close = near(pattern.split('.')[0].strip('*'), {name.split('.')[0] for name in tagged})
            raise UserError(f'no published weights of attnzoo match {pattern!r}{close}')
        found += [name for name in matching if name not in found]
    return found


def _try(name: str, config: Config | None, accelerator: Accelerator) -> dict[str, Any]:
    row: dict[str, Any] = {'name': name, 'published_top1': published_top1(name)}
    try:
        path, published_hash, row['source'] = _fetch(name)
        row['sha256'] = _sha256(path)
        row['published_sha256'] = published_hash
        if published_hash and published_hash != row['sha256']:
            return {**row, 'verdict': 'failed', 'error': f'{path} differs from what its source publishes: delete it'}
        model = create(name)
        state, _ = read_weights(path)
        load_weights(model, translate_weights(model, state), str(path))
        row['verdict'] = 'loads'
        if config and row['published_top1']:
            spec = spec_of(model, name, {}, imagenet_classes(model))
            scores = score_model(config, model, spec, accelerator)
            row |= {'top1': scores.top1, 'top5': scores.top5, 'images': scores.images}
            close = abs(scores.top1 - row['published_top1']) <= TOLERANCE
            row['verdict'] = 'works' if close else 'differs'
    except Exception as error:  # of two clients, the network, the disk and the file: the next one is tried
        row |= {'verdict': 'failed', 'error': str(error) if isinstance(error, UserError) else one_line(error)}
    return row


def _fetch(name: str) -> tuple[Path, str | None, str]:
    """The file of a checkpoint, the SHA-256 that its source publishes, if it does, and where it comes from."""
    if path := placed_file(name):
        return path, None, str(path)
    cfg = timm.get_pretrained_cfg(name)
    if cfg is None or not cfg.hf_hub_id:
        return (path := find_weights(name)), None, str(path)
    file = cfg.hf_hub_filename or 'model.safetensors'
    tag = get_hf_file_metadata(hf_hub_url(cfg.hf_hub_id, file)).etag or ''
    # The hub's tag of a large file is its SHA-256; of a small one, a git hash.
    return Path(hf_hub_download(cfg.hf_hub_id, file)), tag if len(tag) == 64 else None, f'hf-hub:{cfg.hf_hub_id}/{file}'


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, 'rb') as file:
        while part := file.read(1 << 20):
            digest.update(part)
    return digest.hexdigest()


def _show(rows: list[dict[str, Any]]) -> None:
    table = Table()
    for heading in ('name', 'verdict', 'hash', 'top-1', 'published', 'why'):
        table.add_column(heading)
    for row in rows:
        known = 'sha256' in row
        table.add_row(
            row['name'],
            row['verdict'],
            'as published' if known and row['published_sha256'] == row['sha256'] else 'none published' if known else '',
            f'{row["top1"]:.2f} %' if 'top1' in row else '',
            f'{row["published_top1"]:.2f} %' if row['published_top1'] else '',
            row.get('error', ''),
        )
    console.print(table)
