"""The machine: devices, precision, compiler."""

import contextlib
import copy
import functools
import platform
import re
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import torch
from torch import nn

import model
from vitlab import processes
from vitlab.cli import UserError


def find_device(name: str) -> torch.device:
    """model.pick_device, but raises UserError if there is no such device. Of the processes that torchrun starts each
    gets a GPU of its own, which also becomes the one that torch takes where it is not told."""
    number = processes.local_rank()
    if number is not None and (name == "cuda" or (name == "auto" and torch.cuda.is_available())):
        name = f"cuda:{number}"
    try:
        device = model.pick_device(name)
    except ValueError as error:
        raise UserError(f"{error}; start as many processes as there are GPUs" if number else error) from None
    if processes.count() > 1 and device.type == "mps":
        raise UserError(f"--device {name}: torch has no exchange between processes on MPS; choose cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    return device


@functools.cache
def cpu_has_bf16() -> bool:
    """Whether this CPU multiplies bfloat16 matrices in hardware."""
    if sys.platform == "linux":
        flags = Path("/proc/cpuinfo").read_text()
        return re.search(r"\b(amx_bf16|avx512_bf16|bf16)\b", flags) is not None
    if sys.platform == "darwin":
        answer = subprocess.run(["sysctl", "-n", "hw.optional.arm.FEAT_BF16"], capture_output=True, text=True)
        return answer.stdout.strip() == "1"
    return False


def has_bf16(device: torch.device) -> bool:
    """Whether a device multiplies bfloat16 matrices in hardware. Others emulate it, far slower than float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and cpu_has_bf16()


def pick_amp(device: torch.device, amp: str) -> torch.dtype | None:
    """The autocast dtype for `amp` ("auto", "bf16", "fp16" or "off") on a device; None for float32.

    Raises UserError for fp16 on a CPU, which cannot train with it.
    """
    if amp == "auto":
        amp = "bf16" if has_bf16(device) else "fp16" if device.type == "cuda" else "off"
    if amp == "fp16" and device.type == "cpu":
        raise UserError("--amp fp16 does not train on a CPU; choose bf16, off or auto")
    return {"bf16": torch.bfloat16, "fp16": torch.float16, "off": None}[amp]


def autocast(device: torch.device, dtype: torch.dtype | None) -> torch.autocast:
    """The context in which a forward pass runs: autocast to dtype, or float32 if it is None."""
    return torch.autocast(device.type, dtype, enabled=dtype is not None)


def describe_precision(device: torch.device, amp: torch.dtype | None) -> str:
    """What training multiplies: "bfloat16", "float16", "float32", or "tf32" (see fast_training)."""
    if amp is None and device.type == "cuda" and torch.cuda.is_tf32_supported():
        return "tf32"
    return str(amp or torch.float32).removeprefix("torch.")


@contextlib.contextmanager
def float32_as(precision: str) -> Iterator[None]:
    """Within it, or in a function that it decorates, CUDA multiplies float32 as "ieee" (with all bits) or as "tf32"
    (rounded to 10 bits of mantissa, on tensor cores). torch's own choice is ieee for matrices, tf32 for convolutions.

    The choice is taken back at the end: other code, torch.export for one, fails if it finds the two to differ."""
    parts = (torch.backends.cuda.matmul, torch.backends.cudnn.conv)
    before = [part.fp32_precision for part in parts]
    try:
        for part in parts:
            part.fp32_precision = precision
        yield
    finally:
        for part, value in zip(parts, before):
            part.fp32_precision = value


@contextlib.contextmanager
def fast_training(device: torch.device, amp: torch.dtype | None) -> Iterator[None]:
    """The context of training on CUDA: cuDNN times its algorithms once for each size of convolution (there are few),
    and with amp None float32 is multiplied as TF32. On other devices nothing changes."""
    if device.type != "cuda":
        yield
        return
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = True
    try:
        with float32_as("tf32") if amp is None else contextlib.nullcontext():
            yield
    finally:
        torch.backends.cudnn.benchmark = before


def to_device(network: nn.Module, device: torch.device, *, sharded: bool = False) -> nn.Module:
    """Move a model. On CUDA the filters of convolutions get the channels-last layout, in which tensor cores take them,
    but for those that cut patches, and not if they will be sharded: FSDP takes the usual one, as checkpoints do."""
    network.to(device)
    for module in network.modules() if device.type == "cuda" and not sharded else ():
        if isinstance(module, nn.Conv2d) and module.stride != module.kernel_size:
            module.to(memory_format=torch.channels_last)
    return network


def try_compile(network: nn.Module, batches: Iterable, amp: torch.dtype | None) -> Callable:
    """The model compiled. If compiling fails, or a trial forward and backward on the first of the batches, the model as
    it was, and one line why. The trial is made on a copy and leaves the random generators as they were."""
    device = next(network.parameters()).device
    try:
        generators = torch.random.fork_rng(devices=[device] if device.type == "cuda" else [])
        with generators, fast_training(device, amp):
            images, _ = next(iter(batches))
            with autocast(device, amp):
                out = torch.compile(copy.deepcopy(network).train())(images.to(device))
            out.float().sum().backward()
        return torch.compile(network)
    except Exception as error:  # whatever the compiler and its tools raise
        reason = str(error).strip().splitlines() or [type(error).__name__]
        print(f"--compile does not work here, going on without it: {reason[0]}")
        torch._dynamo.reset()
        return network


def send(values: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Values from the CPU on a device. CUDA need not be waited for: the copy goes through pinned memory."""
    values = values.pin_memory() if device.type == "cuda" else values
    return values.to(device, non_blocking=device.type != "mps")


@functools.lru_cache(maxsize=64)
def constant(values: tuple[float, ...], device: torch.device) -> torch.Tensor:
    """Numbers on a device, float32, made once."""
    with torch.inference_mode(False):
        return torch.tensor(values, dtype=torch.float32, device=device)


def use_threads(number: int | None) -> None:
    """Let PyTorch use so many threads on the CPU; None: its own number."""
    if number:
        torch.set_num_threads(number)


def describe_hardware(device: torch.device) -> str:
    """The machine in words: the GPU's name, or the CPU's and its threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{describe_cpu()}, MPS" if device.type == "mps" else describe_cpu()


def describe_cpu() -> str:
    """The CPU's name, and how many threads PyTorch uses."""
    name = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        match = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
        name = match.group(1).strip() if match else name
    threads = torch.get_num_threads()
    return f"{name}, {threads} thread{'s' * (threads > 1)}"
