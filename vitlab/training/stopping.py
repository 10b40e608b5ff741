"""Ctrl-C and SIGTERM: a run saves itself before it ends."""

import contextlib
import multiprocessing
import signal
from collections.abc import Callable, Iterator


class Stopped(KeyboardInterrupt):
    """Training was ended by a signal, and saved itself first. Its argument is the signal's number."""

    @property
    def signal(self) -> int:
        return self.args[0]


@contextlib.contextmanager
def stop_at_signal() -> Iterator[Callable[[], int]]:
    """Yields a function that returns the signal received, or 0.

    The first Ctrl-C or SIGTERM is only noted, so that the training step can finish; a second one interrupts at once.
    """
    received = 0

    def note(number, frame, previous):
        nonlocal received
        received = number
        signal.signal(number, previous)

    with _handling((signal.SIGINT, signal.SIGTERM), note):
        yield lambda: received


@contextlib.contextmanager
def passing_on_sigterm() -> Iterator[None]:
    """Within this context SIGTERM goes on to the child processes, which save themselves, and then raises Stopped.
    Ctrl-C needs no such help: the terminal sends it to them too."""

    def pass_on(number, frame, previous):
        for process in multiprocessing.active_children():
            process.terminate()
        raise Stopped(number)

    with _handling((signal.SIGTERM,), pass_on):
        yield


@contextlib.contextmanager
def _handling(numbers: tuple[int, ...], handler: Callable) -> Iterator[None]:
    """Call handler(number, frame, previous handler) at these signals; at the end the previous handlers come back.
    Only the main thread receives signals: in another one nothing happens."""
    previous = {number: signal.getsignal(number) for number in numbers}
    try:
        for number in numbers:
            signal.signal(number, lambda number, frame: handler(number, frame, previous[number]))
    except ValueError:  # not the main thread
        yield
        return
    try:
        yield
    finally:
        for number in numbers:
            signal.signal(number, previous[number])
