"""Blocks against the golden data of the official ones: outputs, and the gradient of each parameter."""

from collections.abc import Callable

import numpy as np
import torch
from check import check_block, load_golden, make_input, official_state_dict
from torch import Tensor, nn

Call = Callable[[nn.Module, Tensor], Tensor]


def assert_equals_the_official_block(
    name: str,
    make: Callable[[dict], nn.Module],
    rename: Callable[[str], str],
    call: Callable[[dict], Call],
    convert: Callable[[dict[str, Tensor]], dict[str, Tensor]] = lambda state_dict: state_dict,
) -> None:
    """All runs of a golden file: outputs in float32 and float64, and the norms of all gradients.

    Args:
        name: The golden file.
        make: Makes the module of a run, given the run's entry in the file.
        rename: From an official key to ours.
        call: How the module of a run is called with the official input, given the entry.
        convert: What more our parameters need, once they are renamed: another shape or order.
    """
    meta, _ = load_golden(name)
    for entry in meta['inputs']:

        def renamed(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
            return convert({rename(key): value for key, value in state_dict.items()})

        module = make(entry)
        assert check_block(name, module, key_map=renamed, call=call(entry), tags=[entry['tag']])
        module.double().load_state_dict(renamed(official_state_dict(name, entry)))
        out = call(entry)(module, torch.from_numpy(make_input(entry['seed'], entry['shape'])).double())
        weights = np.random.RandomState(777).standard_normal(tuple(out.shape)).astype(np.float32)
        (out * torch.from_numpy(weights)).sum().backward()
        norms = {rename(key): norm for key, norm in entry['grad_norms'].items()}
        found = {key: x.grad.norm().item() for key, x in module.named_parameters()}
        assert found.keys() == norms.keys()
        for key, norm in norms.items():  # some are zero but for rounding: a bias under a softmax
            assert abs(found[key] - norm) <= 1e-4 * norm + 1e-6 * max(norms.values()), (
                f'{key}: {found[key]}, not {norm}'
            )
