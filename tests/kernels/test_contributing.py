"""The small op on CONTRIBUTING's page is an op: as exact as its definition, and PyTorch finds nothing wrong with it."""

import importlib
import re
from functools import partial
from pathlib import Path

import pytest
import torch

from attnzoo.kernels._testing import assert_as_exact_as, results

PAGE = Path(__file__).parents[2] / 'CONTRIBUTING.md'


@pytest.mark.kernel
def test_the_op_on_the_page_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kernel_device: torch.device) -> None:
    package = tmp_path / 'scale_channels'
    package.mkdir()
    for name, code in re.findall(r'```python\n# (\w+\.py)\n(.*?)```', PAGE.read_text(), re.DOTALL):
        (package / name).write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    op = importlib.import_module('scale_channels.op')

    generator = torch.Generator().manual_seed(0)
    x, weight, d_out = (
        torch.randn(shape, generator=generator, dtype=torch.float64) for shape in ((2, 5, 7, 16), (16,), (2, 5, 7, 16))
    )
    inputs = {'x': x, 'weight': weight, 'factor': 0.5}
    kernel, reference, exact = (
        results(partial(op.scale_channels, backend=backend), inputs, dtype, device, d_out)
        for backend, dtype, device in (
            ('triton', torch.float32, kernel_device),
            ('torch', torch.float32, kernel_device),
            ('torch', torch.float64, 'cpu'),
        )
    )
    assert_as_exact_as(kernel, reference, exact, torch.float32)
    arguments = x.float().to(kernel_device), weight.float().to(kernel_device), 0.5, False
    torch.library.opcheck(torch.ops.attnzoo.scale_channels, arguments, test_utils=('test_schema', 'test_faketensor'))
    assert torch.compile(op.scale_channels, fullgraph=True)(*arguments[:3]).shape == x.shape
