"""A pretend accelerator: tensors that claim another device (torch's "meta") and hold real values on the CPU.

    with accelerator() as machine:  # tensors can be made on DEVICE, and moved there and back

An operation that mixes the devices fails. Where a GPU would be waited for, because a copy is not non_blocking, or
because Python or the shape of a result needs values, the name of our function is added to machine.waits.
"""

import contextlib
import functools
import traceback

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

DEVICE, CPU = torch.device("meta"), torch.device("cpu")


class Remote(torch.Tensor):
    """A tensor on the accelerator; `values_here` is what it holds, on the CPU."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, values):
        about = dict(strides=values.stride(), storage_offset=values.storage_offset(), dtype=values.dtype, device=DEVICE)
        with torch.inference_mode(values.is_inference()):  # a view of a normal tensor is a normal one
            made = torch.Tensor._make_wrapper_subclass(cls, values.shape, **about)
        made.values_here = values
        return made

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        raise AssertionError(f"{func} outside of accelerator()")

    def __reduce_ex__(self, protocol):  # torch.save writes the values
        return self.values_here.__reduce_ex__(protocol)


class CopyNumbers(TorchFunctionMode):
    """torch.tensor(numbers, device=DEVICE) makes a tensor on the CPU and copies it, and tolist() copies back."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        device = kwargs.pop("device", None) if func in (torch.tensor, torch.as_tensor) else None
        if func is torch.Tensor.tolist:
            args = (args[0].cpu(),)
        made = func(*args, **kwargs)
        return made.to(device) if device else made


class Machine(TorchDispatchMode):
    """Runs operations on Remote tensors, and notes the waits."""

    def __init__(self):
        super().__init__()
        self.waits = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if is_composite(func):
            with self:  # only seen in inference mode: its parts come here
                return func.decompose(*args, **kwargs)
        tensors = []
        change((*args, *kwargs.values()), tensors.append)
        sources = {tensor.device for tensor in tensors if tensor.ndim}  # single numbers may come from the CPU
        goes_there = any(isinstance(tensor, Remote) for tensor in tensors)
        if kwargs.get("device") is not None:
            goes_there, kwargs = kwargs["device"] == DEVICE, {**kwargs, "device": CPU}
        if func in (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default):
            devices = {tensor.device for tensor in tensors} | {DEVICE if goes_there else CPU}
            waits = len(devices) > 1 and not kwargs.get("non_blocking") and args[2:] != (True,)
        else:
            assert len(sources) < 2, f"{func} of tensors on both devices"
            waits = DEVICE in {tensor.device for tensor in tensors} and needs_values(func, args)
        if waits:
            ours = [f for f in traceback.extract_stack() if "/vitlab/" in f.filename or f.filename.endswith("model.py")]
            self.waits.append(ours[-1].name if ours else str(func))
        remote = {id(tensor.values_here): tensor for tensor in tensors if isinstance(tensor, Remote)}
        args, *values = change((args, *kwargs.values()), lambda tensor: getattr(tensor, "values_here", tensor))
        out = func(*args, **dict(zip(kwargs, values)))
        if not goes_there:
            return out  # below, an operation in place returns its argument
        return change(out, lambda tensor: remote[id(tensor)] if id(tensor) in remote else Remote(tensor))


def change(leaf, how):
    """What an operation takes or returns, with all tensors in it changed."""
    if isinstance(leaf, (tuple, list)):
        return type(leaf)([change(part, how) for part in leaf])
    return how(leaf) if isinstance(leaf, torch.Tensor) else leaf


@functools.cache
def is_composite(func):
    return torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd")


def needs_values(func, args):
    """Whether Python, or the shape of the result, needs the values of the arguments."""
    if func is torch.ops.aten.index.Tensor:
        return any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1])
    return torch.Tag.data_dependent_output in func.tags or torch.Tag.dynamic_output_shape in func.tags


@contextlib.contextmanager
def accelerator():
    with CopyNumbers(), Machine() as machine:
        yield machine
