"""What the processes of a run agree on: whether one was asked to stop, what the main one found, their buffers."""

import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast, broadcast_object_list
from torch import nn

from .console import Interruption
from .errors import UserError

T = TypeVar('T')


class Stopped(Exception):
    """The run was asked to stop, and all its processes know."""


class StopVote:
    """Whether any process was asked to stop. They find out at the same step, or one would wait for the others.

    With several processes asking costs a round of messages. It is done every other second, at a step that all of them
    compute from the slowest one's pace.

    Args:
        share: called at each vote by all processes, to tell the others what else they should know.
    """

    SECONDS = 2.0

    def __init__(self, accelerator: Accelerator, interruption: Interruption, share: Callable[[], None]):
        self._accelerator, self._interruption, self._share = accelerator, interruption, share
        self.begin()

    def begin(self) -> None:
        """Vote after the next step: those to come may be slower than those before."""
        self._steps, self._next = 0, 1  # steps since the last vote, and steps after which the next one is due
        self._voted = time.monotonic()

    def stops(self) -> bool:
        """Ask after a step. Every process calls this as often as the others, or inside `until_stopped`."""
        if self._accelerator.num_processes == 1:
            self._share()
            return self._interruption.wanted
        self._steps += 1
        return self._steps >= self._next and self._vote()[0]

    def until_stopped(self, items: Iterable[T]) -> Iterator[T]:
        """The items of this process, be they more or fewer than those of others.

        Raises:
            Stopped: in all processes, when one of them was asked to stop.
        """
        self.begin()
        for item in items:
            yield item
            if self.stops():
                raise Stopped
        # Those who have done their part keep voting until nobody is left to wait for.
        others = self._accelerator.num_processes > 1
        while others:
            stop, others = self._vote(working=False)
            if stop:
                raise Stopped

    def _vote(self, *, working: bool = True) -> tuple[bool, bool]:
        """Whether to stop, and whether any process is at work."""
        self._share()
        now = time.monotonic()
        pace = (now - self._voted) / max(1, self._steps) if working else 0.0  # seconds a step
        own = torch.tensor([[self._interruption.wanted, working, pace]], device=self._accelerator.device)
        wanted, at_work, slowest = self._accelerator.gather(own).amax(0).tolist()  # type: ignore[union-attr]
        self._steps, self._next, self._voted = 0, min(1000, int(self.SECONDS / max(slowest, 1e-3))), now
        return bool(wanted), bool(at_work)


def on_main_process(accelerator: Accelerator, work: Callable[[], None]) -> None:
    """Do `work` on the main process alone. An error in it ends all processes, and the main one says why."""
    error = None
    if accelerator.is_main_process:
        try:
            work()
        except UserError as raised:
            error = raised
    if broadcast_object_list([error is not None])[0]:
        raise error or SystemExit(1)


@torch.no_grad()
def share_buffers(model: nn.Module) -> None:
    """Give every process the main one's buffers.

    Each process counts the statistics of a BatchNorm on its own batches, and would score another model than the rest.
    """
    for buffer in model.buffers():
        buffer.copy_(broadcast(buffer.contiguous()))
