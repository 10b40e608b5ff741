"""Ctrl-C and SIGTERM: a run saves itself before it ends."""

import contextlib
import signal


class Stopped(KeyboardInterrupt):
    """Training was asked to end by a signal, and saved itself; .signal is the signal's number."""

    @property
    def signal(self):
        return self.args[0]


@contextlib.contextmanager
def stop_at_signal():
    """A function that tells the signal by which the run was asked to end: Ctrl-C or SIGTERM; 0 as long
    as there was none. The first lets the running step finish; a second one interrupts at once."""
    asked, before = [0], {}

    def ask(number, frame):
        asked[0] = number
        signal.signal(number, before[number])

    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            before[number] = signal.signal(number, ask)
    except ValueError:  # not the main thread, which alone hears signals
        yield lambda: 0
        return
    try:
        yield lambda: asked[0]
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
