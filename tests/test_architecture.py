"""The house: which folder may import which, what is packaged, what every model must have."""

import ast
import subprocess
import sys

import pytest
import timm
from timm.models import get_pretrained_cfg

LAYERS = ('kernels', 'blocks', 'backbones', 'train')  # each may import those before it, never those behind


def imported_names(path):
    """Dotted names that a file imports from outside its own folder, in any function or branch."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.update(f'{node.module}.{alias.name}' for alias in node.names)
    return names


@pytest.mark.parametrize('layer', LAYERS)
def test_layers_import_only_those_below(layer, root):
    later = LAYERS[LAYERS.index(layer) + 1 :]
    files = list((root / layer).rglob('*.py'))
    assert files
    for path in files:
        for name in imported_names(path):
            parts = name.split('.')
            assert not (parts[0] == 'attnzoo' and set(parts[1:2]) & set(later)), f'{path} imports {name}'
            assert parts[0] not in LAYERS, f'{path} imports {name}: folders are reached through attnzoo'


def test_kernels_know_nothing_of_timm_and_load_no_triton_code(root):
    for path in (root / 'kernels').rglob('*.py'):
        assert not any(name.split('.')[0] == 'timm' for name in imported_names(path)), path
    # The package's own __init__ registers the models, so an empty package stands in for it here.
    program = f"""
import sys, types
package = sys.modules['attnzoo'] = types.ModuleType('attnzoo')
package.__path__ = [{str(root)!r}]
import attnzoo.kernels
print([name for name in sys.modules if name.split('.')[0] == 'timm' or name.endswith('.kernel')])
"""
    done = subprocess.run([sys.executable, '-c', program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == '[]'


def test_private_timm_imports_are_in_one_file(root):
    for layer in LAYERS:
        for path in (root / layer).rglob('*.py'):
            private = [n for n in imported_names(path) if n.startswith('timm.') and '._' in n]
            assert not private or path == root / 'backbones' / '_timm.py', f'{path} imports {private}'


def test_packages_in_pyproject_are_those_of_the_tree(root):
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    settings = tomllib.loads((root / 'pyproject.toml').read_text())['tool']['setuptools']
    found = set()
    for package, folder in settings['package-dir'].items():
        for init in (root / folder).rglob('__init__.py'):
            inner = init.parent.relative_to(root / folder).parts
            found.add('.'.join((package, *inner)))
    assert set(settings['packages']) == found
    for folder in {path.parent for path in (root / 'configs').rglob('*.yaml')}:
        assert (folder / '__init__.py').is_file(), f'{folder}: an editable install finds no recipes without __init__.py'


def test_importing_warns_of_nothing_and_replaces_no_timm_model():
    program = 'import timm; n = len(timm.list_models()); import attnzoo; print(len(timm.list_models()) - n)'
    done = subprocess.run([sys.executable, '-W', 'error', '-c', program], capture_output=True, text=True, check=True)
    assert done.stderr == ''
    assert int(done.stdout) > 0


def test_importing_needs_no_triton():
    program = """
import sys
sys.modules['triton'] = None  # importing it now fails
import timm, torch, attnzoo
model = timm.create_model('biformer_tiny', depths=(1, 1, 1, 1), num_classes=3).eval()
assert model(torch.zeros(1, 3, 32, 32)).shape == (1, 3)
"""
    subprocess.run([sys.executable, '-c', program], check=True)


def test_every_model_has_a_config_a_card_and_a_recipe(our_models, root):
    assert our_models
    cards = '\n'.join(path.read_text() for path in (root / 'model_cards').glob('*.md'))
    for name in our_models:
        # A model without a config silently leaves several of timm's tests.
        cfg = get_pretrained_cfg(name)
        assert cfg is not None and cfg.license and cfg.paper_ids and cfg.origin_url, name
        assert f'`{name}`' in cards, f'no model card mentions {name}'
        assert timm.is_model(name)
