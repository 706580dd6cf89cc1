"""What several test files share."""

from pathlib import Path

import pytest
import timm

_timm_names = set(timm.list_models())

import attnzoo  # noqa: E402, F401  (registers our models)


@pytest.fixture(scope='session')
def root():
    """The checkout."""
    return Path(__file__).parents[1]


@pytest.fixture(scope='session')
def our_models():
    """Names of all models that attnzoo registers, sorted."""
    return sorted(set(timm.list_models()) - _timm_names)
