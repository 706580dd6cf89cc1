"""timm's own model tests, from its source distribution, on every model that we register."""

import os
import re
import subprocess
import sys
import tarfile
from pathlib import Path
from xml.etree import ElementTree

import pytest
import timm
from filelock import FileLock

# The smallest variant of each family runs always, the others in `make test-all`.
SMALLEST = ['biformer_tiny', 'crossformer_tiny', 'maxvit_tiny_fused', 'resnet18_cbam']

# What timm tests of a model that is neither too large nor exotic; fewer means that something was silently left out.
TESTS = {
    'test_model_forward',
    'test_model_backward',
    'test_model_default_cfgs',
    'test_model_forward_torchscript',
    'test_model_forward_features',
    'test_model_forward_intermediates',
    'test_model_forward_intermediates_features',
    'test_prune_intermediate_layers_contract',
    'test_model_forward_fx',
    'test_model_backward_fx',
    'test_model_forward_fx_torchscript',
}
# The one that needs no memory for weights: all that larger models are put through.
ON_META = {'test_model_default_cfgs'}
LARGEST = 250_000_000  # parameters


@pytest.fixture(scope='session')
def timm_source(root):
    """timm's source distribution of the installed version; the wheel leaves its tests out."""
    cache = root / '.cache'
    cache.mkdir(exist_ok=True)
    source = cache / f'timm-{timm.__version__}'
    with FileLock(cache / 'timm.lock'):
        if not source.is_dir():
            download = [sys.executable, '-m', 'pip', 'download', '--quiet', '--no-deps', '--no-binary', 'timm']
            subprocess.run([*download, '--dest', cache, f'timm=={timm.__version__}'], check=True)
            with tarfile.open(cache / f'timm-{timm.__version__}.tar.gz') as archive:
                archive.extractall(cache, filter='data')
    return source


def is_large(model):
    return sum(p.numel() for p in timm.create_model(model, device='meta').parameters()) > LARGEST


def run_contract(models, source, report):
    large = {model for model in models if is_large(model)}
    environment = {name: value for name, value in os.environ.items() if name != 'GITHUB_ACTIONS'}  # it makes timm skip
    environment['ATTNZOO_CONTRACT_MODELS'] = ','.join(models)
    environment['ATTNZOO_CONTRACT_ON_META'] = ','.join(large)
    environment['ATTNZOO_CONTRACT_META_TESTS'] = ','.join(ON_META)
    environment['PYTHONPATH'] = str(Path(__file__).parent)
    command = [sys.executable, '-m', 'pytest', '-p', 'attnzoo_contract', '-p', 'no:cacheprovider', '-p', 'no:xdist']
    command += ['tests/test_models.py', '--quiet', f'--junitxml={report}']
    done = subprocess.run(command, cwd=source, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    ran = {model: set() for model in models}
    for case in ElementTree.parse(report).iter('testcase'):
        assert case.find('skipped') is None, f'{case.get("name")} was skipped: {case.find("skipped").get("message")}'
        test, parameters = re.fullmatch(r'(\w+)\[(.*)\]', case.get('name')).groups()
        ran[parameters.rpartition('-')[2].partition('.')[0]].add(test)
    for model, tests in ran.items():
        expected = ON_META if model in large else TESTS
        assert tests >= expected, f'{model}: not run: {sorted(expected - tests)}'


@pytest.mark.parametrize('model', SMALLEST)
def test_smallest_of_the_family(model, timm_source, tmp_path):
    run_contract([model], timm_source, tmp_path / 'report.xml')


@pytest.mark.slow
def test_all_others(our_models, timm_source, tmp_path):
    run_contract([name for name in our_models if name not in SMALLEST], timm_source, tmp_path / 'report.xml')
