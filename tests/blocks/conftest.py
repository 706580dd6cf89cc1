"""What the tests of several blocks share."""

import pytest
import torch
from timm.layers import Mlp, get_notrace_functions, get_notrace_modules
from torch import nn
from torchvision.models.feature_extraction import NodePathTracer


class TransformerBlock(nn.Module):
    """The block that Swin and CrossFormer put around their attention: norms, residuals, MLP; takes [B, H * W, C]."""

    def __init__(self, dim, attn, size):
        super().__init__()
        self.size = size
        self.norm1, self.attn = nn.LayerNorm(dim), attn
        self.norm2, self.mlp = nn.LayerNorm(dim), Mlp(dim, 4 * dim)

    def forward(self, x):
        x = x + self.attn(self.norm1(x).unflatten(1, self.size)).flatten(1, 2)
        return x + self.mlp(self.norm2(x))


@pytest.fixture
def transformer_block():
    return TransformerBlock


def to_fx(module):
    tracer = NodePathTracer(leaf_modules=get_notrace_modules(), autowrap_functions=get_notrace_functions())
    return torch.fx.GraphModule(module, tracer.trace(module))


@pytest.fixture(params=['fx', 'script', 'compile', 'export'])
def assert_same_in_a_graph(request):
    """Turns a module into a graph and compares it with the module on all inputs; only an export is for one shape."""

    def check(module, *inputs):
        torch.compiler.reset()
        module.eval()
        whole = {
            'fx': to_fx,
            'script': torch.jit.script,
            'compile': lambda module: torch.compile(module, fullgraph=True, backend='aot_eager'),
        }.get(request.param)
        graph = whole(module) if whole else None
        for x in inputs:
            if whole is None:
                graph = torch.export.export(module, (x,)).module()
            torch.testing.assert_close(graph(x), module(x))

    return check


@pytest.fixture
def assert_restored():
    """A module that is made on the meta device runs there, and its derived tables come back after `to_empty`."""

    def check(make, *shape):
        expected = {name: buffer.clone() for name, buffer in make().named_buffers()}
        module = make(device='meta')
        assert all(tensor.is_meta for tensor in [*module.parameters(), *module.buffers()])
        assert module(torch.empty(shape, device='meta')).is_meta

        module.to_empty(device='cpu')
        for buffer in module.buffers():
            buffer.fill_(-1)
        for part in module.modules():
            if hasattr(part, 'init_non_persistent_buffers'):
                part.init_non_persistent_buffers()
        saved = module.state_dict()
        restored = {name: buffer for name, buffer in module.named_buffers() if name not in saved}
        assert restored and all(torch.equal(buffer, expected[name]) for name, buffer in restored.items())

    return check
