"""Several processes that train one model together, as torchrun starts them.

    torchrun --nproc_per_node 2 train.py --dataset digits

Each process computes a share of every batch. What they exchange goes through torch.distributed: NCCL between GPUs, gloo
between CPUs. Everything here also works in a single process, where there is nothing to exchange.
"""

import contextlib
import datetime
import os
import socket
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import torch
import torch.distributed as dist

from vitlab.cli import UserError

TIME_LIMIT = datetime.timedelta(minutes=30)  # of one exchange: a process that waits longer gives up


def count() -> int:
    """How many processes train together; 1 without torchrun."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """The number of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def is_first() -> bool:
    """Whether this is the process that writes and prints."""
    return rank() == 0


def local_rank() -> int | None:
    """The number of this process on its machine, which chooses its GPU; None if torchrun did not start it."""
    return int(os.environ["LOCAL_RANK"]) if "LOCAL_RANK" in os.environ else None


@contextlib.contextmanager
def joined() -> Iterator[None]:
    """Within this context the processes that torchrun started work together; without torchrun nothing happens.

    The first one alone prints. A UserError in one of them ends all: the first raises it, the others exit with status 2.
    So does the end of a process, which the others notice when they wait for it."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield
        return
    try:
        store, number, size = next(dist.rendezvous("env://", timeout=TIME_LIMIT))
        if os.environ.get("GROUP_WORLD_SIZE") == "1":  # one machine: after a restart the addresses of before are stale
            store = dist.PrefixStore(f"restart {os.environ['TORCHELASTIC_RESTART_COUNT']}", store)
        dist.init_process_group(store=store, rank=number, world_size=size, timeout=TIME_LIMIT)
    except (ValueError, RuntimeError) as error:
        address = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        raise UserError(f"the processes cannot meet at {address} ({first_line(error)}); choose another port") from None
    last_words = dist.PrefixStore("last words", store)
    try:
        with contextlib.nullcontext() if is_first() else silence():
            yield
    except UserError as error:
        with contextlib.suppress(RuntimeError):
            last_words.set("error", f"{'' if is_first() else f'process {number}: '}{error}")
        if not is_first():
            raise SystemExit(2) from None
        raise
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and "gloo" not in str(error).lower():
            raise
        message = f"another process has ended ({first_line(error)}); --resume auto goes on"
        with contextlib.suppress(RuntimeError):  # the store may have gone with the process
            message = last_words.get("error").decode() if last_words.check(["error"]) else message
        if not is_first():
            raise SystemExit(2) from None
        raise UserError(message) from None
    finally:
        with contextlib.suppress(RuntimeError):
            dist.destroy_process_group()


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """A context in which nothing is printed."""
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        yield


def first_line(error: Exception) -> str:
    """An exception in one line."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")


def gather(value: object) -> list:
    """The values that the processes have, in the order of the processes."""
    values = [value] * count()
    if count() > 1:
        dist.all_gather_object(values, value)
    return values


@contextlib.contextmanager
def agreed() -> Iterator[None]:
    """Work after which the processes wait for each other. A UserError in one of them becomes one in all."""
    own = None
    try:
        yield
    except UserError as error:
        own = str(error)
    for number, message in enumerate(gather(own)):
        if message:
            raise UserError(f"process {number}: {message}" if number else message)


def once_a_machine(function: Callable, *args) -> None:
    """Call a function in the first process of each machine, while the others wait. Its UserError is raised in all."""
    with agreed():
        if not local_rank():
            function(*args)


def from_first(function: Callable, *args) -> object:
    """What the function returns in the first process, which alone calls it. Its UserError is raised in all."""
    result = None
    with agreed():
        if is_first():
            result = function(*args)
    box = [result]
    if count() > 1:
        dist.broadcast_object_list(box, src=0)
    return box[0]


def check_same(value: dict[str, object], remedy: str) -> None:
    """Raise UserError, in all processes, if their values differ: the first key that does, and on which machine."""
    everywhere = gather((socket.gethostname(), value))
    for number, (machine, other) in enumerate(everywhere):
        for key, expected in everywhere[0][1].items():
            if other[key] != expected:
                differs = f"has another {key} ({other[key]}, not {expected})"
                raise UserError(f"process {number} on {machine} {differs}; {remedy}")


def total(values: torch.Tensor) -> torch.Tensor:
    """The sum of the processes' tensors, on the CPU."""
    values = values.cpu()
    if count() > 1:
        dist.all_reduce(values)
    return values


def largest(number: int) -> int:
    """The largest of the processes' numbers."""
    box = torch.tensor(number)
    if count() > 1:
        dist.all_reduce(box, dist.ReduceOp.MAX)
    return int(box)


def own_rows(n: int) -> range:
    """Which of n images this process computes: a contiguous share; for a small n it may be empty."""
    return range(n * rank() // count(), n * (rank() + 1) // count())


def copy_from_first(tensors: Iterable[torch.Tensor]) -> None:
    """Give tensors, as a model's weights, the values that they have in the first process."""
    if count() > 1:
        for tensor in tensors:
            dist.broadcast(tensor, src=0)


class Share(NamedTuple):
    """What one process computes of a batch. own: how many of these images count, after those `before`. whole: how many
    the complete batch has."""

    images: torch.Tensor
    labels: torch.Tensor
    own: int
    whole: int


def shares(batches: Iterable, before: int = 0) -> Iterator[Share]:
    """Of each batch the share of this process. If the batches have a method `shares`, they divide themselves.

    before: so many images that precede the share come with it. A share without images gets one, which must not count,
    so that all processes run the model equally often."""
    if hasattr(batches, "shares"):
        yield from batches.shares(before)
        return
    if count() == 1:
        yield from (Share(images, labels, len(labels), len(labels)) for images, labels in batches)
        return
    lengths = []

    def choose(n: int) -> torch.Tensor:
        lengths.append(n)
        own = own_rows(n) or range(1)
        return torch.arange(own.start - before, own.stop) % n

    for i, (images, labels) in enumerate(rows_of(batches, choose)):
        yield Share(images, labels, len(own_rows(lengths[i])), lengths[i])


def rows_of(batches: Iterable, choose: Callable[[int], torch.Tensor]) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Of each batch the rows choose(its length), without the cost of the others if the batches know how."""
    if hasattr(batches, "rows_of"):
        yield from batches.rows_of(choose)
        return
    for images, labels in batches:
        rows = choose(len(labels))
        yield images[rows.to(images.device)], labels[rows.to(labels.device)]
