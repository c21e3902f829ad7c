"""Training memory: what an analysis says that a network's layers need, and what a real step takes.

Equations are those of *Efficient on-device transfer learning using activation memory reduction*. They count the forward
pass only. `profile` evaluates them in one of two conventions:

paper      a convolution's temporary memory is its input and its output, of which a grouped one counts `1 / groups`; any
           other layer's is its input. Saved for backward: the input of every layer whose weight trains, and one bit an
           element of every ReLU and dropout, even if no gradient passes. Parameters: 4 bytes if they train, else 1.
corrected  temporary is everything alive while a layer runs: whole outputs, residuals that wait, normalization and ReLU
           in place where nobody else needs their input. A tensor that two layers save counts once. Masks only where a
           gradient passes; max pooling saves a byte an output, other nonlinear functions their inputs. The batch itself
           is the caller's. Parameters: 4 bytes, and 12 more for the gradient and Adam's moments where they train.
"""

import copy
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# Kinds of layers, as `_kinds` names them; normbase is every batch norm.
MASKED = {"relu", "relu6", "hardtanh", "leakyrelu", "dropout"}
POOLED = {"maxpool1d", "maxpool2d", "adaptivemaxpool2d"}
ALIASES = {"identity", "flatten", "view", "reshape", "getitem", "permute", "transpose", "squeeze", "unsqueeze"}
IN_PLACE = MASKED | {"normbase"}
KEEPS_NOTHING = ALIASES | {"normbase", "add", "iadd", "sub", "neg", "sum", "mean", "cat", "pad", "interpolate"}
KEEPS_NOTHING |= {"avgpool2d", "adaptiveavgpool2d"}
_WEIGHTED = (nn.modules.conv._ConvNd, nn.Linear)


@dataclass(frozen=True)
class Cost:
    """Bytes a sample: of a layer (`cumulative`: saved by those before it, eq 3; `saved`: by itself), or of a block."""

    name: str
    block: str
    temporary: int  # of a block: its hungriest layer's, eq 5
    cumulative: int  # of a block: after its last layer, eq 6
    peak: int  # eq 2
    saved: int


@dataclass(frozen=True)
class Profile:
    """What `profile` found, in one convention: `layers` in the order they run, `blocks`, and the sums over them."""

    layers: list[Cost]
    blocks: list[Cost]
    trainable: int
    frozen: int
    corrected: bool

    @property
    def peak(self) -> int:
        """Peak activation memory in bytes a sample (eq 1)."""
        return max(block.peak for block in self.blocks)

    @property
    def cumulative(self) -> int:
        """Overall cumulative gradient memory in bytes a sample: what is saved when the forward pass ends."""
        return self.blocks[-1].cumulative

    def total(self, batch: int, frozen_bytes: float | None = None) -> float:
        """Bytes for a batch, with parameters (eq 4). A frozen one takes 1 byte in the paper, 4 when corrected."""
        trainable_bytes, default = (16, 4) if self.corrected else (4, 1)
        each = default if frozen_bytes is None else frozen_bytes
        return batch * self.peak + trainable_bytes * self.trainable + each * self.frozen


def profile(
    model: nn.Module,
    input_shape: tuple[int, ...],
    trainable: Iterable[str] | None = None,
    corrected: bool = False,
) -> Profile:
    """The memory of each layer and block for one sample of `input_shape` (C, H, W), eqs 1-6 in one of two conventions.

    `trainable` names the modules or parameters that train; by default those with `requires_grad`. A block is what two
    parts of a name say (`features.3`). ValueError if the model can't be traced or run, or if nothing trains.
    """
    if not input_shape or min(input_shape) < 1:
        raise ValueError(f"input_shape is one sample's, like (3, 224, 224), all positive; got {input_shape}")
    model = copy.deepcopy(model).eval()
    if trainable is not None:
        _train_only(model, tuple(trainable))
    sizes = [(p.numel(), p.requires_grad) for p in model.parameters()]
    if not any(trains for _, trains in sizes):
        raise ValueError("no parameter of this model trains: unfreeze some, or name them in trainable")
    layers: list[Cost] = []
    blocks: list[Cost] = []
    cumulative = 0
    steps = (_corrected if corrected else _paper)(_run(model, input_shape))
    for block, run in groupby(steps, lambda found: found[0].block):
        first = len(layers)
        for step, temporary, saved in run:
            layers.append(Cost(step.name, block, temporary, cumulative, temporary + cumulative, saved))
            cumulative += saved
        costs = [(layer.temporary, layer.peak, layer.saved) for layer in layers[first:]]
        temporaries, peaks, saves = zip(*costs, strict=True)
        blocks.append(Cost(block, block, max(temporaries), cumulative, max(peaks), sum(saves)))
    trains = sum(n for n, trainable in sizes if trainable)
    return Profile(layers, blocks, trains, sum(n for n, _ in sizes) - trains, corrected)


def _train_only(model: nn.Module, chosen: tuple[str, ...]) -> None:
    used = set()
    for name, parameter in model.named_parameters():
        found = [part for part in chosen if f"{name}.".startswith(f"{part}.")]
        parameter.requires_grad_(bool(found))
        used.update(found)
    if unknown := [part for part in chosen if part not in used]:
        raise ValueError(f"trainable names {unknown[0]!r}, and no module with parameters is called that in this model")


@dataclass
class _Step:
    """One layer or function as it ran on one sample: what it read, and what it made."""

    name: str
    block: str
    kinds: set[str]
    inputs: list[fx.Node]
    bytes: int
    index: int  # one byte an element
    mask: int  # one bit an element
    groups: int  # 0 unless a convolution or a linear layer
    weight_trains: bool
    any_trains: bool


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return super().is_leaf_module(m, module_qualified_name) or not any(m.children())


class _Recorder(fx.Interpreter):
    """Runs a graph and writes down a `_Step` for each of its nodes that makes a tensor, in order."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.steps: dict[fx.Node, _Step] = {}
        self.block = "input"

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        tensors = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        if n.op == "output" or not tensors:
            return result
        made_by = self.fetch_attr(str(n.target)) if n.op in ("call_module", "get_attr") else n.target
        if stack := n.meta.get("nn_module_stack"):
            self.block = ".".join(list(stack.values())[-1][0].split(".")[:2])
        own = dict(made_by.named_parameters()) if isinstance(made_by, nn.Module) else {n.name: made_by}
        training = [name for name, p in own.items() if getattr(p, "requires_grad", False)]
        self.steps[n] = _Step(
            name=str(n.target) if n.op == "call_module" else n.name,
            block=self.block,
            kinds=_kinds(made_by),
            inputs=[x for x in n.all_input_nodes if x in self.steps],
            bytes=sum(t.nbytes for t in tensors),
            index=sum(t.numel() for t in tensors),
            mask=sum(-(-t.numel() // 8) for t in tensors),
            groups=getattr(made_by, "groups", 1) if isinstance(made_by, _WEIGHTED) else 0,
            weight_trains=any(not name.endswith("bias") for name in training),
            any_trains=bool(training),
        )
        return result


def _kinds(target: Any) -> set[str]:
    """What a module, function or method is called, without case and underscores: a module by each of its classes."""
    names = [kind.__name__ for kind in type(target).__mro__] if isinstance(target, nn.Module) else [target]
    return {getattr(name, "__name__", str(name)).lower().replace("_", "") for name in names}


@torch.no_grad()
def _run(model: nn.Module, input_shape: tuple[int, ...]) -> dict[fx.Node, _Step]:
    try:
        recorder = _Recorder(fx.GraphModule(model, _Tracer().trace(model)))
        recorder.run(next(model.parameters()).new_zeros(1, *input_shape))
    except Exception as error:
        reason = f"cannot be traced on one sample of shape {input_shape}: {str(error).partition(chr(10))[0]}"
        advice = "a forward must take one tensor, fit this shape, and not branch on a tensor's values"
        raise ValueError(f"{type(model).__name__} {reason} ({advice})") from error
    return recorder.steps


def _paper(steps: dict[fx.Node, _Step]) -> Iterator[tuple[_Step, int, int]]:
    """Each layer with its temporary and its saved bytes."""
    for step in steps.values():
        if step.inputs:
            x = steps[step.inputs[0]].bytes
            temporary = x + step.bytes // step.groups if step.groups else x
            yield step, temporary, x * step.weight_trains + step.mask * bool(step.kinds & MASKED)


def _corrected(steps: dict[fx.Node, _Step]) -> Iterator[tuple[_Step, int, int]]:
    """The same from a walk over the storages: which are alive, which are saved, and who has yet to read them."""
    storage: dict[fx.Node, fx.Node] = {}  # the node that made the memory in which a node's tensor lies
    readers: Counter[fx.Node] = Counter()
    carries: set[fx.Node] = set()  # nodes through which a gradient passes
    kept: set[fx.Node] = set()  # storages saved for backward
    batch = {node for node, step in steps.items() if not step.inputs}
    for node, step in steps.items():
        inputs = {storage[x] for x in step.inputs}
        gradient = not carries.isdisjoint(step.inputs)
        if gradient or step.any_trains:
            carries.add(node)
        saved, mask = _saves(step, gradient)
        keeps = {storage[x] for x in saved} - batch
        only_reader = len(inputs) == 1 and not inputs & (kept | keeps | batch) and readers[next(iter(inputs))] == 1
        shares = step.kinds & ALIASES or (step.kinds & IN_PLACE and only_reader)
        storage[node] = storage[step.inputs[0]] if shares and step.inputs else node
        readers[storage[node]] += sum(user in steps for user in node.users)
        if inputs:
            alive = {s for s, n in readers.items() if n} | inputs | {storage[node]}
            new = sum(steps[s].bytes for s in keeps - kept) + mask
            yield step, sum(steps[s].bytes for s in alive - kept - batch), new
        kept |= keeps
        readers.subtract(storage[x] for x in step.inputs)


def _saves(step: _Step, gradient: bool) -> tuple[list[fx.Node], int]:
    """The inputs that a layer keeps for backward, and the bytes of the mask or index that it keeps instead."""
    if step.weight_trains:
        return step.inputs[:1], 0
    if not gradient or step.groups or step.kinds & KEEPS_NOTHING:
        return [], 0
    if step.kinds & (MASKED | POOLED):
        return [], step.mask if step.kinds & MASKED else step.index
    return step.inputs, 0


@dataclass(frozen=True)
class Measured:
    """Bytes of tensor storage that a step made: `peak`, the most alive at once, and `saved`, the most for backward."""

    peak: int
    saved: int


def measure(step: Callable[[], Any]) -> Measured:
    """What `step()` really takes, in bytes of the storages that it makes: parameters and batch existed before it.

    Scratch memory inside a kernel is not seen. Gradients and optimizer states count if the step makes them.
    """
    storages = _Storages()
    with storages, saved_tensors_hooks(storages.save, lambda saved: saved):
        step()
    return Measured(storages.peak, storages.peak_saved)


class _Storages(TorchDispatchMode):
    """Counts storages from the operator that makes them until the last reference to them goes."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call, unused-ignore]
        self.sizes: dict[int, int] = {}  # of those alive; 0 for what existed before the step
        self.for_backward: set[int] = set()
        self.live = self.peak = self.live_saved = self.peak_saved = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.see((args, kwargs), made=False)
        result = func(*args, **(kwargs or {}))
        self.see(result, made=True)
        return result

    def see(self, tree: Any, made: bool) -> None:
        for tensor in tree_leaves(tree):
            if isinstance(tensor, Tensor) and (key := (storage := tensor.untyped_storage())._cdata) not in self.sizes:
                self.sizes[key] = storage.nbytes() if made else 0
                self.live += self.sizes[key]
                self.peak = max(self.peak, self.live)
                weakref.finalize(storage, self.free, key)

    def free(self, key: int) -> None:
        size = self.sizes.pop(key)
        self.live -= size
        if key in self.for_backward:
            self.for_backward.remove(key)
            self.live_saved -= size

    def save(self, tensor: Tensor) -> Tensor:
        self.see(tensor, made=False)
        key = tensor.untyped_storage()._cdata
        if key not in self.for_backward:
            self.for_backward.add(key)
            self.live_saved += self.sizes[key]
            self.peak_saved = max(self.peak_saved, self.live_saved)
        return tensor
