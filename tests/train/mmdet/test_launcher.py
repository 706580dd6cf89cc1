"""`python -m attnzoo.mmdet` and what it says where mmdet is missing or of a wrong version."""

import re
import subprocess
import sys

import pytest

from attnzoo.train.errors import UserError
from attnzoo.train.mmdet.launcher import app, packaged


def run(program: str, **options) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, '-W', 'ignore', '-c', program], capture_output=True, text=True, **options)


COMMAND = """
import runpy, sys
sys.argv = ['mmdet', *{arguments!r}]
runpy.run_module('attnzoo.mmdet', run_name='__main__')
"""


HIDDEN = "import sys; sys.modules.update(dict.fromkeys(['mmdet', 'mmengine', 'mmcv']))\n"


def test_absent_mmdet_is_one_line_that_names_the_extra():
    done = run(HIDDEN + COMMAND.format(arguments=['train', 'mask_rcnn_1x_biformer_small']))
    assert done.returncode == 1
    assert done.stderr == 'attnzoo: not installed: mmdet, mmengine, mmcv; `pip install "attnzoo[mmdet]"` brings them\n'


def test_configs_are_listed_without_mmdet(root):
    done = run(HIDDEN + COMMAND.format(arguments=['list']), check=True)
    files = (root / 'configs' / 'detection' / 'mmdet').glob('[!_]*.py')
    assert done.stdout.split() == sorted(path.stem for path in files)


def test_documented_commands_exist(root):
    text = (root / 'docs' / 'mmdet.md').read_text()
    verbs = {command.name or command.callback.__name__ for command in app.registered_commands}
    found = re.findall(r'python -m attnzoo.mmdet (?:dist 8 )?(\w+)(?: (\w+))?', text)
    assert {verb for verb, _ in found} == verbs - {'dist'}
    assert {config for _, config in found} - {''} <= {*packaged(), 'mmdet'}


def needs_mmdet() -> None:
    pytest.importorskip('mmdet', reason="needs mmdet: pip install 'attnzoo[mmdet]'")


def test_an_mmcv_of_a_wrong_version_is_named(tmp_path):
    needs_mmdet()
    (tmp_path / 'mmcv').mkdir()
    (tmp_path / 'mmcv' / '__init__.py').write_text("__version__ = '2.2.0'\n")
    done = run(f'import sys; sys.path.insert(0, {str(tmp_path)!r}); ' + COMMAND.format(arguments=['train', 'x.py']))
    assert done.returncode == 1 and done.stderr.startswith(
        'attnzoo: mmdet does not go with what is installed: MMCV==2.2.0'
    )
    assert done.stderr.count('\n') == 1


def test_a_compiled_mmcv_of_another_torch_is_named(tmp_path):
    needs_mmdet()
    (tmp_path / '_ext.py').write_text("raise ImportError('undefined symbol: _ZN2at4_ops5zeros')\n")
    broken = f'import mmcv; mmcv.__path__.append({str(tmp_path)!r})'
    done = run(broken + COMMAND.format(arguments=['train', 'x.py']))
    assert done.returncode == 1 and done.stderr.count('\n') == 1
    assert 'the compiled mmcv that is installed does not load: undefined symbol' in done.stderr


@pytest.mark.parametrize(
    'arguments, message',
    [
        (
            ['train', 'retinanet_1x_davit_tin'],
            "no config retinanet_1x_davit_tin; did you mean 'retinanet_1x_davit_tiny'",
        ),
        (['train', 'mmdet::dino/no.py'], 'no config mmdet::dino/no.py'),
        (['test', 'mask_rcnn_1x_biformer_small', 'no.pth'], 'no.pth: no such file'),
        (['infer', 'mask_rcnn_1x_biformer_small', 'no.pth', 'x.png'], 'no.pth: no such file'),
        (['dist', '2', 'infer'], 'dist 2 infer: expected train or test'),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    needs_mmdet()
    with pytest.raises(UserError, match=message):
        app(arguments, standalone_mode=False)
