"""What a network computes, read from one forward pass: which layer makes the outputs, and whether it is a chain.

The order in which layers were registered says nothing about the order in which they work. So the forward pass is
recorded as torch's elementary operations (`make_fx`), whatever the module is made of, and followed from the outputs
back to the inputs. A chain is a network in which each operation takes what the one before it made.
"""

import math
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import fx, nn
from torch.func import functional_call
from torch.fx.node import map_arg

from ray_fed.leakage.targets import PatchConv2d, plain_attention

aten = torch.ops.aten
REARRANGING = (
    aten.view.default, aten._unsafe_view.default, aten.reshape.default, aten.permute.default, aten.transpose.int,
    aten.squeeze.dim, aten.squeeze.dims, aten.squeeze.default, aten.unsqueeze.default, aten.clone.default,
    aten.detach.default, aten.alias.default, aten.t.default, aten.contiguous.default, aten.flatten.using_ints,
)  # fmt: skip
"""Operations that move values and change none."""
ELEMENTWISE = (
    aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor, aten.div.Tensor, aten.rsub.Scalar,
    aten.native_batch_norm.default,
    aten._native_batch_norm_legit_no_training.default, aten.cudnn_batch_norm.default,
)  # fmt: skip
"""Operations that may scale and shift each value by itself."""
ACTIVATIONS: dict[Any, str] = {
    aten.relu.default: "relu", aten.sigmoid.default: "sigmoid", aten.tanh.default: "tanh",
    aten.leaky_relu.default: "leaky_relu", aten.elu.default: "elu", aten.gelu.default: "gelu",
    aten.silu.default: "silu", aten.softplus.default: "softplus",
}  # fmt: skip
POOLING: dict[Any, str] = {
    aten.max_pool2d_with_indices.default: "max pooling keeps one value of several",
    aten.avg_pool2d.default: "average pooling keeps one mean of several values",
    aten._adaptive_avg_pool2d.default: "average pooling keeps one mean of several values",
    aten.mean.dim: "a mean over positions keeps one of several values",
}
PIECES = (aten.convolution.default, aten.addmm.default, aten.mm.default)
"""Operations with a weight that is learned."""


@dataclass(frozen=True)
class Operation:
    """One step of a chain."""

    kind: str
    """linear | convolution | rearrange | affine | the name of an activation"""
    input_shape: tuple[int, ...]
    """Without the batch."""
    output_shape: tuple[int, ...]
    weight: str = ""
    """Name of the parameter; of linear and convolution."""
    bias: str = ""
    """Name of the parameter; empty without one."""
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    slope: float = 0.0
    """Of a leaky ReLU below zero."""
    node: fx.Node | None = field(default=None, compare=False, repr=False)
    source: fx.Node | None = field(default=None, compare=False, repr=False)
    """The node before it."""


@dataclass(frozen=True)
class OutputLayer:
    """The layer whose result is the network's output."""

    weight: str
    bias: str
    is_logits: bool
    """Whether nothing but a change of shape comes after it."""
    node: fx.Node = field(compare=False, repr=False)


@dataclass(frozen=True)
class Trace:
    """One recorded forward pass of one sample."""

    graph: fx.Graph
    names: tuple[str, ...]
    """Parameters, then constants: the first placeholders of the graph; the last is the input."""
    chain: tuple[Operation, ...]
    """From the inputs to the outputs; empty where the network is none."""
    no_chain: str
    """Why it is none."""
    output: OutputLayer | None
    embedding: str = ""
    """Name of the table that the inputs, whole numbers, are looked up in."""
    positions: str = ""
    """Name of the parameter that is added to each position of the first layer's result."""
    first: tuple[Operation, ...] = ()
    """Operations from the inputs to the first with weights, as far as they follow one another."""
    patches: Operation | None = None
    """The first layer, where it is a convolution whose windows touch and do not overlap."""

    def value(self, node: fx.Node, given: Mapping[fx.Node, Any], tensors: Mapping[str, torch.Tensor]) -> Any:
        """Return what a node computes, from the `given` values of other nodes and the named tensors."""
        if node in given:
            return given[node]
        if node.op == "placeholder":
            return tensors[self.names[list(self.graph.nodes).index(node)]]
        assert callable(node.target)
        inner = lambda part: self.value(part, given, tensors)  # noqa: E731
        return node.target(*map_arg(node.args, inner), **map_arg(node.kwargs, inner))


_TRACES: WeakKeyDictionary = WeakKeyDictionary()


def trace(network: nn.Module, sample: torch.Tensor) -> Trace:
    """Return the recorded pass of `network` over `sample` [1, *input_shape]; a network that cannot be recorded is no
    chain, with the reason."""
    known = _TRACES.setdefault(network, {})
    key = (tuple(sample.shape), sample.dtype, network.training)
    if key not in known:
        known[key] = _trace(network, sample)
    return known[key]


def _trace(network: nn.Module, sample: torch.Tensor) -> Trace:
    from torch.fx.experimental.proxy_tensor import make_fx

    plain = _with_plain_convolutions(network)
    plain = plain.to(sample.dtype) if sample.is_floating_point() else plain
    tensors = {name: value.detach() for name, value in (*plain.named_parameters(), *plain.named_buffers())}
    run = lambda values, x: functional_call(plain, values, (x,))  # noqa: E731
    try:
        with plain_attention():
            graph = make_fx(run)(tensors, sample).graph
        return _read(graph, tuple(tensors), _parameters(plain))
    except Exception as error:  # torch raises whatever a user's module raises
        said = " ".join(str(error).split())[:160] or type(error).__name__
        return Trace(fx.Graph(), (), (), f"its forward pass cannot be recorded: {said}", None)


def _with_plain_convolutions(network: nn.Module) -> nn.Module:
    plain = deepcopy(network)
    for layer in plain.modules():
        if isinstance(layer, PatchConv2d):
            layer.__class__ = nn.Conv2d  # type: ignore[assignment]  # the same parameters, torch's own operation
    return plain


def _parameters(network: nn.Module) -> set[str]:
    return {name for name, _ in network.named_parameters()}


class _NoChain(Exception):
    """Says where a network stops being a chain."""


def _read(graph: fx.Graph, names: tuple[str, ...], parameters: set[str]) -> Trace:
    nodes = list(graph.nodes)
    result = nodes[-1].args[0]
    result = result[0] if isinstance(result, list | tuple) and len(result) == 1 else result
    if not isinstance(result, fx.Node):
        return Trace(graph, names, (), "it returns more than one tensor", None)
    reader = _GraphReader(nodes, names, parameters)
    output = reader.output_layer(result)
    table, positions, patches = reader.entry()
    try:
        chain, said = reader.chain(result), ""
    except _NoChain as reason:
        chain, said = (), str(reason)
    return Trace(graph, names, chain, said, output, table, positions, reader.first(), patches)


class _GraphReader:
    def __init__(self, nodes: Sequence[fx.Node], names: tuple[str, ...], parameters: set[str]):
        self.nodes, self.names, self.parameters = nodes, names, parameters
        self.inputs = nodes[len(names)]
        self.depends = {self.inputs}
        """Nodes that depend on the inputs."""
        for node in nodes:
            if any(before in self.depends for before in node.all_input_nodes):
                self.depends.add(node)

    def name(self, node: Any) -> str:
        """Return the name of the parameter that a node holds, or holds transposed; empty for another."""
        while isinstance(node, fx.Node) and node.target in REARRANGING and node not in self.depends:
            node = node.args[0]
        place = self.nodes.index(node) if isinstance(node, fx.Node) and node.op == "placeholder" else len(self.names)
        return self.names[place] if place < len(self.names) and self.names[place] in self.parameters else ""

    def pieces(self, node: fx.Node) -> tuple[str, str]:
        """Return the names of weight and bias of an operation that has them."""
        if node.target == aten.convolution.default:
            return self.name(node.args[1]), self.name(node.args[2])
        if node.target == aten.addmm.default:
            return self.name(node.args[2]), self.name(node.args[0])
        return self.name(node.args[1]), ""

    def before(self, node: fx.Node) -> fx.Node:
        """Return the one node before it that depends on the inputs."""
        found = [one for one in dict.fromkeys(node.all_input_nodes) if one in self.depends]
        if len(found) != 1:
            raise _NoChain(f"its paths meet again in '{_said(node)}'")
        return found[0]

    def output_layer(self, node: fx.Node) -> OutputLayer | None:
        """Follow the outputs back to the layer that makes them."""
        is_logits, bias = True, ""
        while node is not self.inputs:
            if node.target in PIECES and self.pieces(node)[0]:
                weight, own = self.pieces(node)
                return OutputLayer(weight, own or bias, is_logits, node)
            try:
                previous = self.before(node)
            except _NoChain:
                return None
            is_bias = node.target == aten.add.Tensor and any(self.name(one) for one in node.args)
            bias = next(filter(None, map(self.name, node.args)), "") if is_bias and not bias else bias
            is_logits = is_logits and (node.target in (*REARRANGING, aten._log_softmax.default) or is_bias)
            node = previous
        return None

    def entry(self) -> tuple[str, str, Operation | None]:
        """Return what stands at the inputs: table, positions, windows (see `Trace`)."""
        table, node, patches = "", self.inputs, None
        while True:
            users = [one for one in node.users if one in self.depends]
            if not users:
                return table, "", patches
            node = next((one for one in users if one.target != aten.detach.default), users[0])
            if node.target == aten.embedding.default:
                table = self.name(node.args[0])
            elif node.target == aten.convolution.default and patches is None:
                patches = self._windows(node)
            elif node.target == aten.add.Tensor and (table or patches):
                other = next((one for one in node.args if one not in self.depends), None)
                return table, self._added(other), patches
            elif node.target not in REARRANGING:
                return table, "", patches

    def first(self) -> tuple[Operation, ...]:
        found, node = [], self.inputs
        while not (found and found[-1].weight):
            users = [one for one in node.users if one in self.depends and one.target != aten.detach.default]
            if len(users) != 1:
                break
            node = users[0]
            try:
                found.append(self._operation(node))
            except _NoChain:
                break
        return tuple(found)

    def _added(self, node: Any) -> str:
        """Return the name of a parameter that is added as it is, or looked up by position."""
        while isinstance(node, fx.Node) and node.op != "placeholder":
            node = node.args[0] if node.args else None
        return self.name(node)

    def _windows(self, node: fx.Node) -> Operation | None:
        try:
            one = self._convolution(node)
        except _NoChain:
            return None
        kernel = tuple(node.args[1].meta["val"].shape[2:]) if isinstance(node.args[1], fx.Node) else ()
        return one if kernel == one.stride and one.padding == (0, 0) and one.dilation == (1, 1) else None

    def chain(self, node: fx.Node) -> tuple[Operation, ...]:
        """Return the operations from the inputs to a node."""
        found: list[Operation] = []
        while node is not self.inputs:
            if node.target is _GETITEM:
                node = self.before(node)
            found.append(self._operation(node))
            node = self.before(node)
        return tuple(reversed(found))

    def _operation(self, node: fx.Node) -> Operation:
        source = self.before(node)
        inside, outside = _shape(source), _shape(node)
        if node.target in REARRANGING:
            return Operation("rearrange", inside, outside, node=node, source=source)
        if node.target in ACTIVATIONS:
            slope = float(node.args[1]) if node.target == aten.leaky_relu.default and len(node.args) > 1 else 0.01  # type: ignore[arg-type]
            return Operation(ACTIVATIONS[node.target], inside, outside, slope=slope, node=node, source=source)
        if node.target == aten.convolution.default:
            return self._convolution(node)
        if node.target in PIECES:
            weight, bias = self.pieces(node)
            if weight and len(inside) == 1:
                return Operation("linear", inside, outside, weight, bias, node=node, source=source)
            raise _NoChain(f"'{_said(node)}' is no layer on one vector per sample")
        if node.target in POOLING:
            raise _NoChain(POOLING[node.target])
        if node.target in ELEMENTWISE and not _of_the_batch(node):
            return Operation("affine", inside, outside, node=node, source=source)
        raise _NoChain(f"'{_said(node)}' is not inverted")

    def _convolution(self, node: fx.Node) -> Operation:
        _, _, _, stride, padding, dilation, transposed, _, groups = node.args
        weight, bias = self.pieces(node)
        if transposed or groups != 1 or len(stride) != 2 or not weight:  # type: ignore[arg-type]
            raise _NoChain("a transposed, grouped or one-dimensional convolution is not inverted")
        stride, padding, dilation = ((int(one[0]), int(one[1])) for one in (stride, padding, dilation))  # type: ignore[index]
        source = self.before(node)
        shapes = _shape(source), _shape(node)
        return Operation("convolution", *shapes, weight, bias, stride, padding, dilation, node=node, source=source)


_GETITEM = __import__("operator").getitem


def _of_the_batch(node: fx.Node) -> bool:
    """Whether a normalisation takes its statistics from the batch itself."""
    return node.target == aten.native_batch_norm.default and bool(node.args[5])


def _shape(node: fx.Node) -> tuple[int, ...]:
    value = node.meta["val"]
    value = value[0] if isinstance(value, tuple | list) else value
    return tuple(value.shape[1:])


def _said(node: fx.Node) -> str:
    return str(getattr(node.target, "__name__", node.target)).split(".")[0].strip("_")


def is_batch_normalised(network: nn.Module) -> bool:
    """Whether any layer normalises over the batch."""
    return any(isinstance(layer, nn.modules.batchnorm._BatchNorm) for layer in network.modules())


def rearrangement(recorded: Trace, one: Operation) -> torch.Tensor:
    """Return for each output place the input place it comes from [size]."""
    numbers = torch.arange(float(math.prod(one.input_shape)), dtype=torch.float64).reshape(1, *one.input_shape)
    return applied(recorded, one, numbers, {}).flatten().long()


def applied(recorded: Trace, one: Operation, values: torch.Tensor, tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Return one operation's result on values [1, *input_shape], with the named parameters and constants."""
    assert one.node is not None
    assert one.source is not None
    found = recorded.value(one.node, {one.source: values}, tensors)
    return found[0] if isinstance(found, tuple | list) else found
