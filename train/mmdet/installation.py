"""What mmdet needs to run beside a current torch: the right versions, the stand-in, and one repair."""

import importlib
import importlib.util
import os

from ..errors import UserError, one_line
from . import stand_in


def prepare() -> None:
    """Make `mmdet` ready for use. To be called before anything imports it.

    Raises:
        UserError: It is not installed, or in versions that do not go together.
    """
    missing = [name for name in ('mmdet', 'mmengine', 'mmcv') if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f'not installed: {", ".join(missing)}; `pip install "attnzoo[mmdet]"` brings them')
    try:
        import mmdet
    except AssertionError as error:  # its own check of the versions of mmcv and mmengine
        raise UserError(f'mmdet does not go with what is installed: {one_line(error)}') from error
    if not mmdet.__version__.startswith('3.'):
        raise UserError(f'mmdet {mmdet.__version__}: expected 3.3; `pip install "attnzoo[mmdet]"` brings it')
    if not stand_in.install():
        try:
            importlib.import_module(stand_in.NAME)
        except ImportError as error:
            raise UserError(
                f'the compiled mmcv that is installed does not load: {one_line(error)}; build it for this torch, or '
                '`pip uninstall mmcv` and `pip install "attnzoo[mmdet]"`, which needs no compiled one'
            ) from error
    if importlib.util.find_spec('pkg_resources') is None:
        _find_packages_without_pkg_resources()


def _find_packages_without_pkg_resources() -> None:
    """For `_base_ = 'mmdet::...'`: mmengine asks a module that setuptools has no longer."""
    from mmengine.config import config

    def installed_path(package: str) -> str:
        spec = importlib.util.find_spec(package)
        assert spec and spec.origin  # `is_installed` has been asked
        return os.path.dirname(spec.origin)

    config.is_installed = lambda package: importlib.util.find_spec(package) is not None
    config.get_installed_path = installed_path
