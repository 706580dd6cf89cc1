"""A pytest plugin that points timm's own model tests at our models (`pytest -p attnzoo_contract`).

The tests choose models with `timm.list_models` when they are collected, so this module must be imported before them.
The environment variable ATTNZOO_CONTRACT_MODELS holds the names to test, separated by commas. Those that are also in
ATTNZOO_CONTRACT_ON_META have only the tests in ATTNZOO_CONTRACT_META_TESTS.
"""

import os

import timm
import timm.models._registry as registry

_before = set(timm.list_models())

import attnzoo  # noqa: E402, F401  (registers our models)

OURS = set(timm.list_models()) - _before
WANTED, LARGE, META_TESTS = (
    set(os.environ[f'ATTNZOO_CONTRACT_{name}'].split(',')) for name in ('MODELS', 'ON_META', 'META_TESTS')
)
if unknown := WANTED - OURS:
    raise SystemExit(f'ATTNZOO_CONTRACT_MODELS: not registered by attnzoo: {sorted(unknown)}')

# Some tests choose by the name of the module that defines the model; ours have to be among those names.
_modules = sorted({registry._model_to_module[name] for name in OURS})
_list_models = timm.list_models
# timm leaves out what has such a name, because its own models of these names are large. Ours are counted.
SIZES = {'*huge*', '*giant*', '*gigantic*', '*enormous*'}


def list_ours(*args, module='', **kwargs):
    """timm.list_models, restricted to the wanted models; none count as pretrained, for nothing can be downloaded."""
    if kwargs.get('pretrained'):
        return []
    kwargs['exclude_filters'] = [name for name in kwargs.get('exclude_filters', ()) if name not in SIZES]
    names = _list_models(*args, module=[*module, *_modules] if module else module, **kwargs)
    return [name for name in names if name.split('.')[0] in WANTED]


timm.list_models = list_ours
timm.list_pretrained = lambda *args, **kwargs: []


def pytest_collection_modifyitems(config, items):
    """Drop the tests of timm's own models (they have no `model_name` of ours), and what large models are spared."""
    kept = [item for item in items if _is_wanted(item)]
    config.hook.pytest_deselected(items=[item for item in items if not _is_wanted(item)])
    items[:] = kept


def _is_wanted(item):
    model = _model_of(item)
    return model in WANTED and (model not in LARGE or item.originalname in META_TESTS)


def _model_of(item):
    params = getattr(item, 'callspec', None) and item.callspec.params
    return str((params or {}).get('model_name', '')).split('.')[0]
