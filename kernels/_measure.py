"""Time and memory of a call, as all benchmarks here take them."""

import functools
import math
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

CACHE_BYTES = 256 << 20  # more than any GPU's cache holds


class Ratio(NamedTuple):
    """Median of the ratios of interleaved pairs, and the interval that holds it with 95 % confidence."""

    median: float
    low: float
    high: float


class Pairs(NamedTuple):
    seconds: float  # median of the first call
    other_seconds: float
    ratio: Ratio  # first over other


def interleave(call: Callable[[], Any], other: Callable[[], Any], device: torch.device, pairs: int) -> Pairs:
    """Times two calls in turn, so that both meet the same state of the machine. Each runs twice before."""
    for warm_up in (call, other, call, other):
        timed(warm_up, device)
    taken = [(timed(call, device), timed(other, device)) for _ in range(pairs)]
    ratios = sorted(first / second for first, second in taken)
    # Order statistics of the median: the sign test's interval, which assumes no distribution.
    rank = max(0, math.floor(pairs / 2 - 0.98 * math.sqrt(pairs)))
    return Pairs(
        statistics.median(first for first, _ in taken),
        statistics.median(second for _, second in taken),
        Ratio(statistics.median(ratios), ratios[rank], ratios[pairs - 1 - rank]),
    )


def timed(call: Callable[[], Any], device: torch.device) -> float:
    """Seconds of one call; on a GPU without the wait for its launch, and with a cold cache."""
    if device.type != 'cuda':
        start = time.perf_counter()
        call()
        return time.perf_counter() - start
    _elsewhere(device).sum()
    start_event, end_event = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start_event.record()
    call()
    end_event.record()
    end_event.synchronize()
    return start_event.elapsed_time(end_event) / 1000


@functools.cache
def _elsewhere(device: torch.device) -> torch.Tensor:
    """Memory that is read between two calls, so that none finds its inputs in the cache.

    Not written: what a cache has yet to write back would be charged to the call.
    """
    return torch.zeros(CACHE_BYTES // 4, device=device)


def replay(call: Callable[[], Any], device: torch.device) -> Callable[[], None]:
    """The same work as one CUDA graph: what a call takes once its host is not in the way."""
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):  # as PyTorch asks: what is compiled or allocated once is so before the capture
        for _ in range(3):
            call()
    torch.cuda.current_stream(device).wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


def peak_bytes(call: Callable[[], Any], device: torch.device) -> int:
    """The most memory that tensors made by a call hold at a time, what it returns included."""
    call()
    if device.type == 'cuda':
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        call()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        result = call()
    changes = [event for event in profile.profiler.kineto_results.events() if event.name() == '[memory]']
    del result
    live = peak = 0
    for event in sorted(changes, key=lambda event: event.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    return peak


def copy_bandwidth(device: torch.device) -> float:
    """Bytes a second that copying a large tensor reads and writes: the best of ten."""
    source = torch.ones(CACHE_BYTES, dtype=torch.int8, device=device)
    target = torch.empty_like(source)
    return 2 * CACHE_BYTES / min(timed(lambda: target.copy_(source), device) for _ in range(10))
