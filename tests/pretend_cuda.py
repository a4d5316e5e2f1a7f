"""A GPU that is not there: tensors "on cuda" stay in main memory and are marked, and what a GPU refuses is refused.

Under `pretend_cuda()` every operation is looked at: tensors of two devices must not meet (but for numbers, index
tensors and copies), a tensor on the GPU is no NumPy array, reading a number back is a synchronisation, and while a
graph is captured nothing is done but written down. It checks devices and graphs, not a GPU's arithmetic.
"""

import contextlib
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch._C import _functorch as functorch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.optim import optimizer
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
SYNCHRONISING = ("_local_scalar_dense", "nonzero", "masked_select", "_unique2", "is_nonzero", "equal")
MAY_MEET = ("copy_", "_to_copy")
INDEXING = ("index.Tensor", "index_put_.default", "_index_put_impl_.default", "_unsafe_index.Tensor")


class PretendCuda:
    """The marks, and the graph that is being captured."""

    def __init__(self) -> None:
        self.marks: dict[int, StorageWeakRef] = {}
        """By storage; a weak reference keeps its address from being used again."""
        self.captured: list[tuple] | None = None
        self.saved: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self.num_synchronisations = 0
        self.sync_mode = "default"
        self.is_moving = self.makes_there = False
        self.function_mode, self.dispatch_mode = _Functions(self), _Operations(self)

    def is_marked(self, tensor: Any) -> bool:
        if not isinstance(tensor, torch.Tensor):
            return False
        while functorch.is_functorch_wrapped_tensor(tensor):  # inside vmap and grad
            tensor = functorch.get_unwrapped(tensor)
        return tensor.untyped_storage()._cdata in self.marks

    def mark(self, tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        self.marks[storage._cdata] = StorageWeakRef(storage)
        return tensor

    def moved(self, tensor: torch.Tensor, device: torch.device, **how: Any) -> torch.Tensor:
        here = CUDA if self.is_marked(tensor) else CPU
        copies = how.pop("copy", False) or here.type != device.type
        if here.type == "cuda" and device.type == "cpu":
            self.synchronise("a copy to the CPU")
        self.is_moving = True
        try:
            made = tensor.to(CPU, copy=copies, **how)
        finally:
            self.is_moving = False
        return self.mark(made) if device.type == "cuda" else made

    def synchronise(self, what: str) -> None:
        if self.captured is not None:
            raise RuntimeError(f"operation not permitted when stream is capturing: {what}")
        self.num_synchronisations += 1
        if self.sync_mode == "warn":
            warnings.warn("called a synchronizing CUDA operation", UserWarning, stacklevel=2)

    @contextlib.contextmanager
    def inside(self, args: Any, kwargs: Any) -> Iterator[None]:
        """What torch makes for itself inside a function of tensors on the GPU is there, too."""
        before = self.makes_there
        self.makes_there |= any(map(self.is_marked, tree_flatten((args, kwargs))[0]))
        try:
            yield
        finally:
            self.makes_there = before

    def check(self, function: Any, args: Any, kwargs: Any) -> bool:
        """Return whether an operation is the GPU's; RuntimeError where tensors of two devices meet."""
        tensors = [leaf for leaf in tree_flatten((args, kwargs))[0] if isinstance(leaf, torch.Tensor)]
        marked = [self.is_marked(tensor) for tensor in tensors]
        name, packet = str(function).removeprefix("aten."), function._overloadpacket.__name__
        if any(marked) and packet not in MAY_MEET:
            strangers = [tensor for tensor, is_there in zip(tensors, marked, strict=True) if not is_there]
            if name in INDEXING and marked[0]:
                strangers = [tensor for tensor in strangers if tensor.dtype not in (torch.int64, torch.bool)]
            if any(tensor.dim() for tensor in strangers):
                raise RuntimeError(f"Expected all tensors to be on the same device: {name} on cuda:0 and cpu")
        if any(marked) and packet in SYNCHRONISING:
            self.synchronise(packet)
        if any(marked) and name in INDEXING and any(t.dtype == torch.bool for t in tensors[1:]):
            self.synchronise("a boolean mask")
        if not tensors:
            return self.makes_there
        return any(marked) if packet not in MAY_MEET else bool(marked) and marked[0]

    def keep(self, function: Any, args: Any) -> None:
        """Note what an operation will overwrite, the first time in a capture."""
        for argument, value in zip(function._schema.arguments, args, strict=False):
            if argument.alias_info and argument.alias_info.is_write:
                for tensor in tree_flatten(value)[0]:
                    if isinstance(tensor, torch.Tensor):
                        self.saved.setdefault(tensor.untyped_storage()._cdata, (tensor, tensor.clone()))


class _Operations(TorchDispatchMode):
    """Below autograd: backward passes and optimisers are looked at, too."""

    def __init__(self, pretence: PretendCuda):
        super().__init__()
        self.pretence = pretence

    def __torch_dispatch__(self, function: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        on_gpu = self.pretence.check(function, args, kwargs)
        captured = self.pretence.captured if on_gpu or self.pretence.captured is not None else None
        if captured is not None:
            self.pretence.keep(function, args)
        made = function(*args, **kwargs)
        if on_gpu and not self.pretence.is_moving:
            tree_map(lambda leaf: self.pretence.mark(leaf) if isinstance(leaf, torch.Tensor) else leaf, made)
        if captured is not None:
            captured.append((function, args, kwargs, made))
        return made


class _Functions(TorchFunctionMode):
    """Above it: devices that are asked for, and those that are told."""

    def __init__(self, pretence: PretendCuda):
        super().__init__()
        self.pretence = pretence

    def __torch_function__(self, function: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, pretence = dict(kwargs or {}), self.pretence
        name = getattr(function, "__name__", "")
        if name == "__get__":
            asked = getattr(function.__self__, "__name__", "")
            if asked in ("device", "is_cuda") and pretence.is_marked(args[0]):
                return CUDA if asked == "device" else True
            return function(*args, **kwargs)
        if name in ("numpy", "__array__", "tolist") and pretence.is_marked(args[0]):
            if name == "tolist":
                pretence.synchronise(name)
                return function(*args, **kwargs)
            raise TypeError("can't convert cuda:0 device type tensor to numpy")
        if name in ("cuda", "cpu"):
            return pretence.moved(args[0], CUDA if name == "cuda" else CPU)
        if name == "_parse_to":
            return function(*args, **kwargs)
        if name == "to":
            return self._to(function, args, kwargs)
        with pretence.inside(args, kwargs):
            return self._called(function, args, kwargs)

    def _called(self, function: Any, args: Any, kwargs: Any) -> Any:
        pretence, wanted = self.pretence, kwargs.pop("device", None)
        if wanted is None or torch.device(wanted).type != "cuda":
            return function(*args, **kwargs)
        return pretence.mark(function(*args, **kwargs))

    def _to(self, function: Any, args: Any, kwargs: Any) -> Any:
        tensor, *rest = args
        wanted = kwargs.pop("device", None)
        how = dict(kwargs)
        for leaf in rest:
            if isinstance(leaf, torch.dtype):
                how["dtype"] = leaf
            elif isinstance(leaf, torch.Tensor):
                wanted, how["dtype"] = CUDA if self.pretence.is_marked(leaf) else CPU, leaf.dtype
            elif isinstance(leaf, str | torch.device):
                wanted = leaf
        how.pop("non_blocking", None)
        if wanted is None:
            return function(tensor, *rest, **kwargs)
        return self.pretence.moved(tensor, torch.device(wanted), **how)


class _Stream:
    def wait_stream(self, _other: Any) -> None:
        """One thread: everything is in order."""


class _Generator(torch.Generator):
    """Draws on the CPU; says that it is where it was asked for."""

    def __new__(cls, device: Any = "cpu") -> "_Generator":
        made = super().__new__(cls)
        made.asked = torch.device(device)
        return made

    @property
    def device(self) -> torch.device:
        return CUDA if self.asked.type == "cuda" else CPU


class _Graph:
    """A captured list of operations, done again by `replay`, the outcomes where the first were to be."""

    operations: list[tuple]

    def replay(self) -> None:
        for function, args, kwargs, made in self.operations:
            again = function(*args, **kwargs)
            pairs = zip(tree_flatten(made)[0], tree_flatten(again)[0], strict=True)
            for before, now in pairs:
                if isinstance(before, torch.Tensor) and before.untyped_storage()._cdata != now.untyped_storage()._cdata:
                    before.detach().copy_(now)


@contextlib.contextmanager
def pretend_cuda() -> Iterator[PretendCuda]:
    """Within the block "cuda" is a device of this machine."""
    pretence = PretendCuda()

    @contextlib.contextmanager
    def capture(graph: _Graph, **_: Any) -> Iterator[None]:
        pretence.captured, pretence.saved = [], {}
        try:
            yield
            graph.operations = pretence.captured
        finally:
            pretence.captured = None
            with torch.no_grad():
                for tensor, before in pretence.saved.values():
                    tensor.copy_(before)

    state = torch.zeros(16, dtype=torch.uint8)
    replaced = {
        "Stream": _Stream, "CUDAGraph": _Graph, "graph": capture, "current_stream": lambda *_: _Stream(),
        "stream": lambda _: contextlib.nullcontext(), "graph_pool_handle": lambda: (0, 0),
        "is_available": lambda: True, "device_count": lambda: 1, "synchronize": lambda *_: None,
        "set_sync_debug_mode": lambda mode: setattr(pretence, "sync_mode", mode),
        "get_rng_state": lambda *_: state, "set_rng_state": lambda *_: None, "manual_seed_all": lambda *_: None,
    }  # fmt: skip
    from ray_fed.learning import cuda_graphs

    with contextlib.ExitStack() as stack:
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        patch.setattr(torch, "Generator", _Generator)
        for name, value in replaced.items():  # which a build for the CPU refuses to run
            patch.setattr(torch.cuda, name, value)
        grouped = optimizer._group_tensors_by_device_and_dtype

        def group(lists: Any, with_indices: bool = False) -> Any:  # it asks tensors below what Python sees
            groups = grouped(lists, with_indices)
            return {(CUDA if pretence.is_marked(g[0][0][0]) else at, kind): g for (at, kind), g in groups.items()}

        patch.setattr(optimizer, "_group_tensors_by_device_and_dtype", group)
        cuda_graphs.side_stream.cache_clear()
        stack.callback(cuda_graphs.side_stream.cache_clear)
        stack.enter_context(pretence.dispatch_mode)
        stack.enter_context(pretence.function_mode)
        yield pretence
