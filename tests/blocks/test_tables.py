"""Tables that blocks keep for inference: found again while the weights stay, made anew however they change."""

import copy
import io
import threading
from unittest.mock import patch

import pytest
import torch
from onlookers import to_fx
from timm.utils import ModelEmaV3
from torch import nn
from torch.func import functional_call
from torch.nn.utils import prune

from attnzoo.blocks import DynamicPositionBias, LongShortAttention

WINDOW = (3, 4)


@pytest.fixture
def module():
    torch.manual_seed(0)
    module = DynamicPositionBias(32, num_heads=2).eval()
    for parameter in module.parameters():
        nn.init.normal_(parameter)
    return module


@pytest.fixture
def made():
    """Counts the tables that modules make."""
    calls = []
    make = DynamicPositionBias.make_table

    def count(self, window):
        calls.append(window)
        return make(self, window)

    with patch.object(DynamicPositionBias, 'make_table', count):
        yield calls


def fresh(module, window=WINDOW):
    """The table that the module has to give, from a copy that has kept none."""
    return copy.deepcopy(module).make_table(window)


def infer(module, window=WINDOW):
    with torch.no_grad():
        return module(window)


def test_is_made_once_for_inference(module, made):
    first = infer(module)
    assert infer(module) is first and len(made) == 1
    with torch.inference_mode():
        assert module(WINDOW) is first
    assert infer(module, (2, 2)).shape == (9, 2) and len(made) == 2
    torch.testing.assert_close(infer(module), fresh(module), rtol=0, atol=0)


@torch.no_grad()
def replace_by_data(module):
    module.pos_proj.weight.data = torch.randn_like(module.pos_proj.weight)


@torch.no_grad()
def edit_in_place(module):
    module.pos2[2].weight.mul_(2)


@torch.inference_mode()
def edit_in_inference_mode(module):
    module.pos2[2].bias.add_(1)


@torch.no_grad()
def edit_through_detach(module):
    module.pos3[0].weight.detach().add_(1)


def edit_by_an_optimizer(module):
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.1)
    module(WINDOW).square().sum().backward()
    optimizer.step()


def edit_through_data_between_evaluations(module):
    """PyTorch counts no version here, so the evaluation that follows has to begin as they do."""
    module.pos1[2].weight.data.mul_(2)
    module.eval()


def load(module, **arguments):
    state = {name: 2 * value for name, value in module.state_dict().items()}
    module.load_state_dict(state, **arguments)


def load_by_assignment(module):
    load(module, assign=True)


def new_parameter(module):
    module.pos3[2].weight = nn.Parameter(torch.randn_like(module.pos3[2].weight))


def new_layer(module):
    module.pos3[2] = nn.Linear(2, 2)


def pruned(module):
    prune.l1_unstructured(module.pos2[2], 'weight', amount=0.5)


def parametrized(module):
    nn.utils.parametrizations.weight_norm(module.pos2[2])
    with torch.no_grad():
        module.pos2[2].parametrizations.weight.original0.mul_(3)


@pytest.mark.parametrize(
    'change',
    [
        replace_by_data,
        edit_in_place,
        edit_in_inference_mode,
        edit_through_detach,
        edit_by_an_optimizer,
        edit_through_data_between_evaluations,
        load,
        load_by_assignment,
        new_parameter,
        new_layer,
        pruned,
        parametrized,
    ],
)
def test_is_made_anew_when_the_weights_change(change, module):
    before = infer(module).clone()
    change(module)
    after = infer(module)
    assert not torch.equal(after, before)
    with torch.no_grad():
        assert torch.equal(after, module.make_table(WINDOW))


def test_follows_the_dtype_and_comes_back(module):
    single = infer(module).clone()
    double = infer(module.double())
    assert double.dtype == torch.float64
    torch.testing.assert_close(double.float(), single)
    assert infer(module.bfloat16()).dtype == torch.bfloat16
    assert infer(module.float()).dtype == torch.float32


def test_memory_that_was_given_back_is_not_taken_for_the_old_weights(module):
    """The allocator hands out the same place again, with a tensor of the same version, dtype and device."""
    shape, places = module.pos3[2].weight.shape, set()
    for i in range(20):
        with torch.no_grad():
            module.pos3[2].weight = nn.Parameter(torch.full(shape, float(i)))
            places.add(module.pos3[2].weight.data_ptr())
            assert torch.equal(module(WINDOW), module.make_table(WINDOW))
    assert len(places) > 1


def test_autocast_has_tables_of_its_own(module):
    single = infer(module)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        half = infer(module)
        assert half.dtype == torch.bfloat16 and infer(module) is half
    assert infer(module).dtype == torch.float32
    assert torch.equal(infer(module), single)


def test_an_average_of_the_weights_is_evaluated_as_it_is(module):
    average = ModelEmaV3(module, decay=0.5)
    for _ in range(3):
        infer(average.module)
        edit_by_an_optimizer(module)
        average.update(module)
        assert torch.equal(infer(average.module), fresh(average.module).detach())
        assert torch.equal(infer(module), fresh(module).detach())
    assert not torch.equal(infer(average.module), infer(module))


def test_a_copy_keeps_its_own(module, made):
    table = infer(module)
    other = copy.deepcopy(module)
    assert torch.equal(infer(other), table) and infer(other) is not table and len(made) == 2
    edit_in_place(other)
    assert infer(module) is table and not torch.equal(infer(other), table)


def test_files_hold_none(module):
    infer(module)
    assert module.state_dict().keys() == DynamicPositionBias(32, num_heads=2).state_dict().keys()
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    other = torch.load(file, weights_only=False)
    assert other._kept is None
    assert torch.equal(infer(other), infer(module))


def test_gradients_get_a_table_of_their_own(module, made):
    infer(module)
    for _ in range(2):  # two backwards in eval, which would meet a graph that is gone
        module.zero_grad()
        module(WINDOW).square().sum().backward()
        assert all(parameter.grad is not None for parameter in module.parameters())
    assert len(made) == 3


def test_other_weights_for_one_call(module):
    expected = infer(module).clone()
    half = {name: 0.5 * value for name, value in module.named_parameters()}
    with torch.no_grad():
        found = functional_call(module, half, (WINDOW,))
    assert not torch.equal(found, expected)
    assert torch.equal(infer(module), expected)


def test_the_meta_device_and_back(module):
    empty = DynamicPositionBias(32, num_heads=2, device='meta').eval()
    assert infer(empty).is_meta
    empty.to_empty(device='cpu').load_state_dict(module.state_dict())
    assert torch.equal(infer(empty), infer(module))


@pytest.mark.filterwarnings('ignore::torch.jit.TracerWarning', 'ignore::FutureWarning')
def test_graphs_compute_it():
    """A graph that is made while a table is kept follows the weights all the same."""
    torch.manual_seed(0)
    block = LongShortAttention(32, num_heads=2, group=3).eval()
    x = torch.randn(1, 6, 6, 32)
    with torch.no_grad():
        block(x)
        graphs = {
            'script': torch.jit.script(block),
            'trace': torch.jit.trace(block, x),
            'export': torch.export.export(block, (x,)).module(),
            'fx': to_fx(block),
            'compile': torch.compile(block, fullgraph=True, backend='aot_eager'),
        }
        graphs['compile'](x)
        changed = {name: 2 * value for name, value in block.state_dict().items()}
        expected = functional_call(copy.deepcopy(block), changed, (x,))
        block.load_state_dict(changed)
        torch.testing.assert_close(block(x), expected)
        for name, graph in graphs.items():  # they share the block's parameters
            torch.testing.assert_close(graph(x), expected, msg=lambda text, name=name: f'{name}: {text}')


def test_threads_share_one_module(module):
    expected = {window: infer(module, window).clone() for window in ((2, 2), (3, 3), (4, 2))}
    wrong = []

    def work(window):
        for _ in range(50):
            if not torch.equal(infer(module, window), expected[window]):
                wrong.append(window)

    threads = [threading.Thread(target=work, args=(window,)) for window in expected]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
