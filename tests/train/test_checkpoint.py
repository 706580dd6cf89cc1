"""Checkpoints of others are read without running what is in them; ours survive a full disk."""

import argparse
import io
import os
import pickle
import resource
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import safetensors.torch
import timm
import torch

from attnzoo.train.checkpoint import read_weights, write_atomically

_archive = io.BytesIO()
with zipfile.ZipFile(_archive, 'w') as _writer:
    _writer.writestr('readme.txt', 'no weights')
ZIP = _archive.getvalue()


class Malicious:
    """A pickle of this creates a file when it is loaded."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.system, (f'touch {self.path}',)


@pytest.fixture(scope='module')
def official() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return timm.create_model('biformer_tiny').state_dict()


def test_an_official_file_becomes_safetensors_that_timm_loads(official, tmp_path, attnzoo):
    source, target = tmp_path / 'official.pth', tmp_path / 'converted.safetensors'
    weights = {f'module.{key}': value for key, value in official.items()}
    torch.save({'model': weights, 'args': argparse.Namespace(lr=5e-4, opt='adamw'), 'epoch': 299}, source)
    result = attnzoo('convert', source, target, '--model', 'biformer_tiny')
    assert result.code == 0, result
    assert f'biformer_tiny, {len(official)} tensors' in result.out
    overlay = {'file': str(target)}
    model = timm.create_model('biformer_tiny', pretrained=True, pretrained_cfg_overlay=overlay)
    for key, value in model.state_dict().items():
        assert torch.equal(value, official[key]), key
    attributes = safetensors.safe_open(target, 'pt').metadata()
    assert '"biformer_tiny"' in attributes['attnzoo']


@pytest.mark.parametrize('key', ['model', 'state_dict', None])
def test_weights_are_found_where_training_scripts_put_them(key, tmp_path):
    weights = {'a.weight': torch.arange(3.0)}
    torch.save({key: weights, 'epoch': 1} if key else weights, tmp_path / 'w.pt')
    state, _ = read_weights(tmp_path / 'w.pt')
    assert list(state) == ['a.weight'] and torch.equal(state['a.weight'], weights['a.weight'])


def test_another_architecture_is_refused_with_what_does_not_fit(tmp_path, refused):
    source = tmp_path / 'resnet.safetensors'
    safetensors.torch.save_file(timm.create_model('test_resnet').state_dict(), source)
    line = refused('convert', source, tmp_path / 'x.safetensors', '--model', 'biformer_tiny')
    assert 'does not fit BiFormer' in line
    assert ' missing (stem.' in line and ' unexpected (' in line and ', ...)' in line
    assert not (tmp_path / 'x.safetensors').exists()


def test_another_size_of_the_same_family_is_refused_with_its_shapes(official, tmp_path, refused):
    source = tmp_path / 'official.pth'
    state = dict(official)
    state['head.fc.weight'] = torch.zeros(7, 512)
    torch.save(state, source)
    line = refused('convert', source, tmp_path / 'x.safetensors', '--model', 'biformer_tiny')
    assert '1 of another shape (head.fc.weight (7, 512) instead of (1000, 512))' in line


@pytest.mark.parametrize('format', ['zip', 'legacy', 'pickle'])
def test_a_pickle_with_code_is_refused_and_nothing_runs(format, tmp_path, refused):
    proof, source = tmp_path / 'proof', tmp_path / 'weights.pth'
    content = {'model': {'a': torch.zeros(1)}, 'surprise': Malicious(proof)}
    if format == 'pickle':
        source.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, source, _use_new_zipfile_serialization=format == 'zip')
    line = refused('convert', source, tmp_path / 'x.safetensors', '--model', 'biformer_tiny')
    assert 'refused: it holds more than weights, which could run code when loaded (' in line
    assert format == 'pickle' or 'system' in line
    assert not proof.exists()
    # The file is as dangerous as it claims to be.
    pickle.loads(pickle.dumps(Malicious(proof)))
    assert proof.exists()


def test_a_class_of_ones_own_is_refused_too(tmp_path, refused):
    source = tmp_path / 'weights.pth'
    torch.save({'model': {'a': torch.zeros(1)}, 'where': Path('x')}, source)
    line = refused('convert', source, tmp_path / 'x.safetensors', '--model', 'biformer_tiny')
    assert 'could run code when loaded (GLOBAL pathlib' in line


@pytest.mark.parametrize(
    ('name', 'content', 'message'),
    [
        ('a.pth', b'', 'an empty file, expected a file of torch.save or a .safetensors file'),
        ('a.pth', b'Plain text', 'not a PyTorch checkpoint, expected a file of torch.save or a .safetensors file'),
        ('a.pth', b'\x89PNG\r\n\x1a\n', 'not a PyTorch checkpoint, expected a file of torch.save'),
        ('a.pth', ZIP, 'not a PyTorch checkpoint, or a damaged one: '),
        ('a.pth', b'\x80\x02}q\x00', 'not a PyTorch checkpoint, or a damaged one: '),
        ('a.safetensors', b'', 'not a safetensors file, or a damaged one: '),
        ('a.safetensors', b'not a checkpoint', 'not a safetensors file, or a damaged one'),
        ('a.safetensors', ZIP, 'not a safetensors file, or a damaged one'),
        ('a.pth', None, 'no such file'),
        ('', None, 'a folder, expected a file'),
    ],
)
def test_what_is_no_checkpoint_is_told(name, content, message, tmp_path, refused):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    line = refused('convert', tmp_path / name, tmp_path / 'x.safetensors', '--model', 'biformer_tiny')
    assert line.startswith(f'{tmp_path / name}: {message}')


def test_a_state_dict_is_looked_for_where_there_is_none(tmp_path, refused):
    torch.save({'epoch': 3}, tmp_path / 'a.pth')
    line = refused('convert', tmp_path / 'a.pth', tmp_path / 'x.safetensors', '--model', 'biformer_tiny')
    assert 'holds no state dict' in line


def test_another_variant_is_refused_with_the_name_that_fits(tmp_path, refused):
    """With the first keys that differ; and nothing is guessed for weights of no model of ours."""
    torch.save(timm.create_model('biformer_small').state_dict(), tmp_path / 'a.pth')
    line = refused('convert', tmp_path / 'a.pth', tmp_path / 'x.safetensors', '--model', 'biformer_tiny')
    assert 'unexpected (stages.0.blocks.2.' in line and line.endswith('; it fits --model biformer_small')
    torch.save(timm.create_model('test_resnet').state_dict(), tmp_path / 'a.pth')
    assert 'it fits' not in refused(
        'convert', tmp_path / 'a.pth', tmp_path / 'x.safetensors', '--model', 'biformer_tiny'
    )


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (
            lambda weight: weight.to(torch.int8),
            '1 of another type (stem.conv1.weight torch.int8 instead of torch.float32)',
        ),
        (lambda weight: weight.to(torch.complex64), '1 of another type (stem.conv1.weight torch.complex64 instead of'),
        (lambda weight: weight / 0, '1 of 264 tensors hold NaN or infinity, the first is stem.conv1.weight'),
    ],
)
def test_numbers_that_are_no_weights_are_refused(change, message, official, tmp_path, refused):
    for name, save in (('a.safetensors', safetensors.torch.save_file), ('a.pth', torch.save)):
        save({**official, 'stem.conv1.weight': change(official['stem.conv1.weight'])}, tmp_path / name)
        line = refused('convert', tmp_path / name, tmp_path / 'x.safetensors', '--model', 'biformer_tiny')
        assert message in line and not (tmp_path / 'x.safetensors').exists()


def test_half_precision_is_converted(official, tmp_path, attnzoo):
    safetensors.torch.save_file({key: weight.half() for key, weight in official.items()}, tmp_path / 'a.safetensors')
    target = tmp_path / 'x.safetensors'
    assert attnzoo('convert', tmp_path / 'a.safetensors', target, '--model', 'biformer_tiny').code == 0
    assert safetensors.torch.load_file(target)['stem.conv1.weight'].dtype == torch.float32


def test_no_file_is_overwritten_unless_that_is_asked_for(official, trained, tmp_path, attnzoo, refused):
    torch.save(official, tmp_path / 'a.pth')
    best = tmp_path / 'best.safetensors'
    best.write_bytes((trained.run / 'best.safetensors').read_bytes())
    before = best.read_bytes()
    line = refused('convert', tmp_path / 'a.pth', best, '--model', 'biformer_tiny')
    assert line == f'{best} is there: another DST leaves it alone, --force writes over it'
    assert best.read_bytes() == before
    assert attnzoo('convert', tmp_path / 'a.pth', best, '--model', 'biformer_tiny', '--force').code == 0
    assert torch.equal(safetensors.torch.load_file(best)['head.fc.weight'], official['head.fc.weight'])


def test_the_destination_is_checked_first(official, tmp_path, refused):
    torch.save(official, tmp_path / 'a.pth')
    assert 'must end in .safetensors' in refused('convert', tmp_path / 'a.pth', 'x.pth', '--model', 'biformer_tiny')
    line = refused('convert', tmp_path / 'a.pth', tmp_path / 'no' / 'x.safetensors', '--model', 'biformer_tiny')
    assert 'no folder' in line


def test_a_file_of_nobody_says_how_to_name_its_model(tmp_path, refused, images):
    safetensors.torch.save_file({'a': torch.zeros(1)}, tmp_path / 'a.safetensors')
    line = refused('predict', tmp_path / 'a.safetensors', next(images.rglob('*.png')))
    assert 'does not say which model it is' in line and 'attnzoo convert' in line


def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path):
    """In a process whose files may not grow past 64 KiB: the operating system itself refuses the write."""
    path = tmp_path / 'last.state'
    write_atomically(path, b'old')
    script = (
        'import sys; from pathlib import Path; from attnzoo.train.checkpoint import write_atomically\n'
        'from attnzoo.train.errors import UserError\n'
        'try: write_atomically(Path(sys.argv[1]), bytes(2**20))\n'
        'except UserError as error: print(error)'
    )
    limit = 64 * 1024
    process = subprocess.run(
        [sys.executable, '-c', script, str(path)],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
        capture_output=True,
        text=True,
        check=True,
    )
    assert process.stdout.startswith(f'cannot write {path} (1.0 MiB): File too large; what was saved before is intact')
    assert path.read_bytes() == b'old'
    assert os.listdir(tmp_path) == ['last.state']


def test_a_write_replaces_the_file_and_what_a_killed_process_left(tmp_path):
    path = tmp_path / 'last.state'
    (tmp_path / 'last.state.part').write_bytes(b'half')
    write_atomically(path, b'old')
    write_atomically(path, b'new')
    assert path.read_bytes() == b'new'
    assert os.listdir(tmp_path) == ['last.state']
