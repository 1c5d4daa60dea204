"""A device that is not there, played on the CPU: it has no float64 and shares no memory with the CPU.

Tensors "there" are of a class of their own. An operator that mixes them with tensors "here", reads them as NumPy arrays
or makes float64 of them raises what PyTorch raises on an Apple GPU.
"""

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

DEVICE = torch.device("mps")


class There(torch.Tensor):
    """A tensor on the other device."""

    def __deepcopy__(self, memo):
        if id(self) not in memo:
            memo[id(self)] = there(self, isinstance(self, nn.Parameter))
        return memo[id(self)]


def there(tensor, parameter=False):
    """Copy a tensor to the other device."""
    with torch._C.DisableTorchFunctionSubclass():
        copy = tensor.detach().clone().as_subclass(There)
        if parameter:
            copy = nn.Parameter(copy, requires_grad=tensor.requires_grad)
    return copy


def move_(module):
    """Put a module on the other device, in place."""
    for owner in module.modules():
        for table in (owner._parameters, owner._buffers):
            for name, tensor in table.items():
                if tensor is not None:
                    table[name] = there(tensor, isinstance(tensor, nn.Parameter))
    return module


class OtherDevice(TorchFunctionMode):
    """While it is active, ``to("mps")`` works.

    Attributes:
        images: The largest batch that was moved there.
        room: So many images fit; a larger batch is out of memory.
    """

    def __init__(self, room=10**6):
        super().__init__()
        self.images, self.room = 0, room

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        tensors = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        ours = [tensor for tensor in tensors if isinstance(tensor, There)]
        name = getattr(func, "__name__", "")
        with torch._C.DisableTorchFunctionSubclass():
            if name == "__get__" and func == torch.Tensor.device.__get__:
                return DEVICE if ours else func(*args)
            if name in ("numpy", "__array__") and ours:
                raise TypeError("can't convert mps:0 device type tensor to numpy. Use Tensor.cpu() first.")
            if name == "cpu":
                return args[0].detach().as_subclass(torch.Tensor) if ours else func(*args)
            if name == "to":
                return self._to(*args, **kwargs)
            strangers = [t for t in tensors if not isinstance(t, There) and t.dim()]
            if ours and strangers and name not in ("copy_", "backward", "__setitem__"):
                raise RuntimeError(f"Expected all tensors to be on the same device, in {name}")
            elsewhere = bool(ours) or kwargs.get("device") == DEVICE
            if kwargs.get("device") == DEVICE:
                kwargs["device"] = "cpu"
            out = func(*args, **kwargs)
            return pytree.tree_map_only(torch.Tensor, _arrived, out) if elsewhere else out

    def _to(self, tensor, *args, **kwargs):
        target = kwargs.pop("device", None)
        rest = [each for each in args if not isinstance(each, (torch.device, str, torch.Tensor))]
        for each in args:
            if isinstance(each, torch.Tensor):
                target, kwargs["dtype"] = (DEVICE if isinstance(each, There) else "cpu"), each.dtype
            elif isinstance(each, (torch.device, str)):
                target = each
        goes = isinstance(tensor, There) if target is None else torch.device(target) == DEVICE
        out = tensor.to(*rest, **kwargs) if rest or kwargs else tensor
        if not goes:
            return out.as_subclass(torch.Tensor) if isinstance(out, There) else out
        if not isinstance(tensor, There) and out.dim() == 4:
            self.images = max(self.images, len(out))
            if len(out) > self.room:
                raise torch.OutOfMemoryError("MPS backend out of memory")
        return _arrived(out)


def _arrived(tensor):
    if tensor.dtype == torch.float64:
        raise TypeError(
            "Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64."
        )
    return tensor if isinstance(tensor, There) else tensor.as_subclass(There)
