"""Exercise 05: the whole step beside the library's, a broken optimizer, and the bytes that training keeps."""

from collections import defaultdict
from functools import partial
from itertools import combinations
from typing import Any

import torch
from torch import Tensor, nn

from ...layers import Linear4bit
from . import Wrong, shown, task
from .compare import Case, compare, fresh
from .exercise05 import SHAPES, adamw, random
from .plain import Function, converted, number


def _norm(gradients: list[Tensor]) -> Tensor:
    return torch.cat([g.flatten() for g in gradients]).norm()


def _step(
    parameters: list[Tensor], state: dict, rate: float, decay: float, grad: float, soft: float, bugs: str = ""
) -> Any:
    """The whole step, or what a student makes of it: `bugs` names what is wrong."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    norm = _norm(gradients)

    def clip() -> None:
        for g in gradients:
            own = g.norm() if "each tensor" in bugs else norm
            g.mul_((grad / (own + 1e-6)).clamp(max=1))

    def pull() -> None:
        for p in parameters:
            if p.dim() >= (1 if "biases" in bugs else 2):
                p.copy_(soft * torch.tanh(p / soft))

    with torch.no_grad():
        if "clip after" not in bugs and "no gradient clip" not in bugs:
            clip()
        if "soft clip first" in bugs:
            pull()
        state["t"] = 1 if "always the first" in bugs else state.get("t", 0) + 1
        for i, p in enumerate(parameters):
            zeros = torch.zeros_like(p), torch.zeros_like(p)
            m, v = zeros if "forgetful" in bugs else state.get(i, zeros)
            w, *state[i] = adamw(p, p.grad, m, v, state["t"], rate, decay, bugs)  # type: ignore[arg-type]
            p.copy_(w)
        if "clip after" in bugs:
            clip()
        if "soft clip first" not in bugs and "no soft clip" not in bugs:
            pull()
    return _norm(gradients) if "late norm" in bugs else norm


def _run(step: Any) -> Any:
    """Four steps of a student's with the gradients that a case has: the norms returned, and where parameters end."""
    if not callable(step):
        return step

    def function(gradients: Tensor, settings: tuple[float, ...], *start: Tensor) -> Tensor | None:
        parameters = [nn.Parameter(w.clone()) for w in start]
        state: dict = {}
        norms = []
        for row in gradients:
            parts = row.clone().split([p.numel() for p in parameters])
            for p, part in zip(parameters, parts, strict=True):
                p.grad = part.view_as(p)
            before = [p.detach().clone() for p in parameters]
            norm = step(parameters, state, *settings)
            if norm is None and all(map(torch.equal, parameters, before)):
                return None
            if norm is None:
                raise Wrong("the parameters have moved: now return the gradient's norm before the clip")
            norms.append(number(norm).view(1))
        return torch.cat([*norms, *(p.detach().flatten().float() for p in parameters)])

    return function


def _cases() -> list[Case]:
    """Gradients, settings and parameters: long gradients and short ones, a large rate and a small one."""
    count = sum(torch.Size(shape).numel() for shape in SHAPES)

    def gradients(*sizes: float) -> Tensor:
        return torch.stack([size * random(count) for size in sizes])

    start = [random(*shape) for shape in SHAPES]
    return [
        Case("four steps at the paper's settings", (gradients(1, 0.3, 2, 1), (0.001, 5e-4, 0.5, 3.0), *start)),
        Case(
            "short and long gradients, a large decay", (gradients(0.01, 0.002, 5, 0.01), (0.01, 2.0, 0.5, 1.0), *start)
        ),
        Case("tiny gradients", (gradients(1e-8, 2e-8, 1e-8, 3e-8), (0.01, 0.1, 0.5, 3.0), *start)),
        Case("other clips", (gradients(1, 9, 0.1, 1), (0.005, 0.1, 12.0, 5.0), *start)),
    ]


@task("5.4")
def whole_step(student: Any) -> str:
    """Gradient clip, AdamW and soft clip, step after step as QuantAwareAdamW does them."""
    mistakes = {
        "the soft clip comes last, after AdamW": "soft clip first",
        "the soft clip is missing": "no soft clip",
        "the soft clip is for weights, with two or more dimensions: biases stay": "biases",
        "the gradient clip is missing": "no gradient clip",
        "each tensor's gradient is clipped by its own norm: take one norm over all": "each tensor",
        "clip the gradients before AdamW uses them": "clip after",
        "keep m and v in `state`: each step begins with zeros": "forgetful",
        "count the steps in `state`: the bias correction is that of the first step in every step": "always the first",
        "the bias correction is missing": "uncorrected",
        "the weight decay went into the gradient: in AdamW it multiplies the weight": "coupled",
        "the weight decay is missing": "no decay",
        "the parameters are right: return the norm as it was before the clip": "late norm",
    }

    wrong = {why: _run(partial(_step, bugs=bugs)) for why, bugs in mistakes.items()}
    answer = compare(_run(student), _run(_step), _cases(), wrong)
    return f"{answer}, four steps each, as QuantAwareAdamW takes them"


BUGS = {
    "clip after": "when the gradients are clipped",
    "coupled": "where the weight decay goes",
    "uncorrected": "what is missing between m, v and the update",
    "biases": "what the soft clip is applied to",
}


def _optimizer(groups: list[dict], state: dict) -> torch.optim.Optimizer:
    """An optimizer in this state. Its constructor would load torch's compiler, and a student waits for the answer."""
    optimizer = torch.optim.Optimizer.__new__(torch.optim.Optimizer)
    optimizer.__setstate__({"param_groups": groups, "state": defaultdict(dict, state), "defaults": {}})
    return optimizer


def _as_method(function: Function) -> Function:
    """A student's `mended(optimizer)` as a function like the other steps."""

    def step(parameters: list[Tensor], state: dict, rate: float, decay: float, grad: float, soft: float) -> Any:
        if not state:
            settings = {"lr": rate, "weight_decay": decay, "grad_clip": grad, "soft_clip": soft}
            state["own"] = _optimizer([{"params": parameters, **settings}], {})
        return function(state["own"])

    return step


@task("5.6")
def mended(student: Any) -> str:
    """The broken optimizer's step without its four bugs."""
    if not callable(student):
        raise Wrong(f"a function is asked for, yours is {shown(student)}: give its name, without brackets after it")

    mistakes = {
        f"{count} of the four bugs {'is' if count == 1 else 'are'} left: look at "
        + ", and at ".join(BUGS[bug] for bug in bugs): _run(partial(_step, bugs=", ".join(bugs)))
        for count in range(1, len(BUGS) + 1)
        for bugs in combinations(BUGS, count)
    }
    return compare(_run(_as_method(student)), _run(_step), _cases(), mistakes)


def _bytes(tensors: Any) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)


def _kept(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, int]:
    state = (t for entries in optimizer.state.values() for t in entries.values() if isinstance(t, Tensor))
    gradients = (p.grad for p in model.parameters() if p.grad is not None)
    return {"masters": _bytes(model.parameters()), "gradients": _bytes(gradients), "state": _bytes(state)}


def _trained(*kept: str, double: bool = False, frozen: bool = False, steps: int = 1) -> tuple[Any, Any]:
    """A small network after some steps, and an optimizer that keeps so much; its widths are drawn anew."""
    first, last = (2 + torch.randint(6, (2,), generator=fresh())).tolist()
    model = nn.Sequential(Linear4bit(first, 5), nn.BatchNorm1d(5), nn.ReLU(), Linear4bit(5, last))
    dtype = torch.float64 if double else torch.float32
    model.to(dtype)[0].requires_grad_(not frozen)
    for _ in range(steps):
        model(torch.randn(4, first, dtype=dtype)).square().sum().backward()
    parameters = list(model.parameters())
    state = {p: {name: _memory(name, p) for name in kept} for p in parameters if p.grad is not None}
    return model, _optimizer([{"params": parameters}], state)


def _memory(name: str, p: Tensor) -> Tensor | None:
    return None if name == "nothing" else torch.tensor(1.0) if name == "step" else torch.zeros_like(p)


@task("5.7")
def bytes_kept(student: Any) -> str:
    """The bytes of master weights, gradients and the optimizer's state, as they lie in memory."""

    def part(name: str) -> Function:
        def pick(result: Any) -> Tensor:
            if not isinstance(result, dict) or set(result) != {"masters", "gradients", "state"}:
                raise Wrong('a dict is asked for, {"masters": ..., "gradients": ..., "state": ...}')
            return number(result[name])

        return pick

    def count(model: nn.Module) -> int:
        return sum(p.numel() for p in model.parameters())

    def gradients(model: nn.Module) -> list[Tensor]:
        return [p.grad for p in model.parameters() if p.grad is not None]

    def states(optimizer: Any, but: str = "") -> list[Tensor]:
        entries = (entry for state in optimizer.state.values() for entry in state.items())
        return [t for name, t in entries if name != but and isinstance(t, Tensor)]

    def numbers(tensors: list[Tensor]) -> int:
        return sum(t.numel() for t in tensors)

    these = "these are numbers: multiply by the bytes of each, its element_size()"
    fixed = "it is right for float32 only: element_size() knows the bytes of a number"
    mistakes: dict[str, dict[str, Function]] = {
        "masters": {
            these: lambda model, optimizer: count(model),
            fixed: lambda model, optimizer: 4 * count(model),
            "biases and batch norm's parameters are parameters, too": (
                lambda model, optimizer: _bytes(p for p in model.parameters() if p.dim() >= 2)
            ),
            "as codes they would need half a byte each; training keeps the master weights": (
                lambda model, optimizer: count(model) / 2
            ),
            "buffers are not parameters: batch norm's running statistics have no gradient": (
                lambda model, optimizer: _bytes(model.state_dict().values())
            ),
        },
        "gradients": {
            these: lambda model, optimizer: numbers(gradients(model)),
            fixed: lambda model, optimizer: 4 * numbers(gradients(model)),
            "not every parameter has a gradient: a frozen one has None": (
                lambda model, optimizer: _bytes(model.parameters())
            ),
            "not every parameter has a gradient, and not every one has four bytes": (
                lambda model, optimizer: 4 * count(model)
            ),
        },
        "state": {
            these: lambda model, optimizer: numbers(states(optimizer)),
            fixed: lambda model, optimizer: 4 * numbers(states(optimizer)),
            "twice the parameters is AdamW's m and v: others keep less, or more. Look into optimizer.state": (
                lambda model, optimizer: 2 * _bytes(model.parameters())
            ),
            "eight bytes a parameter are AdamW's m and v in float32: look into optimizer.state": (
                lambda model, optimizer: 8 * count(model)
            ),
            "m and v belong to the parameters that were trained; other optimizers keep less, or more": (
                lambda model, optimizer: 2 * _bytes(gradients(model))
            ),
            "nearly: AdamW keeps a counter `step` for each parameter, a tensor too": (
                lambda model, optimizer: _bytes(states(optimizer, but="step"))
            ),
        },
    }
    adamw = "step", "exp_avg", "exp_avg_sq"
    networks = [
        ("a network with AdamW", _trained(*adamw)),
        ("a network in float64, with AdamW", _trained(*adamw, double=True)),
        ("a network whose first layer is frozen, with AdamW", _trained(*adamw, frozen=True)),
        ("a network before its first step", _trained(*adamw, steps=0)),
        ("a network with SGD, which keeps nothing", _trained("nothing")),
        ("a network with SGD and momentum", _trained("momentum_buffer")),
        ("a network with AdamW and amsgrad", _trained(*adamw, "max_exp_avg_sq")),
    ]
    for name, explained in mistakes.items():
        pick = part(name)
        wrong = {why: converted(mistake, number) for why, mistake in explained.items()}
        cases = [Case(f"the {name} of {words}", arguments) for words, arguments in networks]
        answer = compare(converted(student, pick), converted(_kept, pick), cases, wrong)
    return answer
