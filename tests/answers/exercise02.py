"""Answers to exercise 02 as students write them: task, the text in the place of the solution, what check says."""

from solving import ROOT, reference

PATH = ROOT / "solutions" / "02_straight_through.ipynb"
DESCEND, MEASURE, SETTLE = (reference(PATH, task) for task in ("2.4", "2.6", "2.7"))

GRID = """\
class Grid(torch.autograd.Function):
    @staticmethod
    def forward(ctx, w, scale, bits):
        largest = 2 ** (bits - 1) - 1
        FORWARD

    @staticmethod
    def backward(ctx, grad):
        BACKWARD

return Grid.apply(w, scale, bits)"""
FORWARD = "return (w / scale).round().clamp(-largest, largest) * scale"


def _grid(forward=FORWARD, backward="return grad, None, None"):
    return GRID.replace("FORWARD", forward).replace("BACKWARD", backward)


ANSWERS = [
    ("2.1", "(torch.round(x) - x).detach() + x", "✅"),
    ("2.1", "x - (x - x.round()).detach()", "✅"),
    ("2.1", "y = x.clone()\ny.data = torch.round(x.data)\nreturn y", "✅"),
    (
        "2.1",
        "class Round(torch.autograd.Function):\n    @staticmethod\n    def forward(ctx, x):\n        return x.round()\n"
        "    @staticmethod\n    def backward(ctx, grad):\n        return grad\nreturn Round.apply(x)",
        "✅",
    ),
    ("2.1", "torch.round(x)", "+ x and - x cancel"),
    ("2.1", "x + (torch.round(x) - x)", "+ x and - x cancel"),
    ("2.1", "x + torch.round(x).detach() - x", "+ x and - x cancel"),
    ("2.1", "x.detach() + (torch.round(x) - x)", "the gradient is -1"),
    ("2.1", "(x + torch.round(x) - x).detach()", "no gradient comes back"),
    ("2.1", "torch.round(x.detach())", "no gradient comes back"),
    ("2.1", "x + (x - torch.round(x)).detach()", "the wrong way round"),
    ("2.1", "(torch.round(x) - x).detach()", "that is the difference alone"),
    ("2.1", "x + torch.round(x).detach()", "x and torch.round(x) are added up"),
    ("2.1", "x + (x.trunc() - x).detach()", "did you cut off"),
    ("2.1", "x + (x.floor() - x).detach()", "did you use floor()?"),
    ("2.1", "x + ((x + 0.5).floor() - x).detach()", "goes to the even one"),
    ("2.1", "x.clone()", "these are the numbers you were given"),
    ("2.1", "2 * x - x.detach() + (torch.round(x) - x).detach()", "the gradient is not: for seven numbers"),
    ("2.1", "x.round_()", "it changes the tensor it is given"),
    ("2.2", _grid("q = torch.round(w / scale)\n        return torch.clamp(q, -largest, largest).mul(scale)"), "✅"),
    ("2.2", _grid(backward="return 1 * grad, None, None"), "✅"),
    (
        "2.2",
        "q = 2 ** (bits - 1) - 1\nclass Round(torch.autograd.Function):\n    @staticmethod\n    def forward(ctx, w):\n"
        "        return (w / scale).round().clamp(-q, q) * scale\n    @staticmethod\n    def backward(ctx, grad):\n"
        "        return grad\nreturn Round.apply(w)",
        "✅",
    ),
    (
        "2.2",
        "q = 2 ** (bits - 1) - 1\nreturn w + ((w / scale).round().clamp(-q, q) * scale - w).detach()",
        "they do not come from a torch.autograd.Function",
    ),
    ("2.2", _grid(backward="return grad"), "one thing for each argument of `forward` but ctx"),
    ("2.2", _grid(backward="return grad, grad, None"), "the scale gets a gradient"),
    ("2.2", _grid(backward="return grad, grad.sum(), None"), "the scale gets a gradient"),
    ("2.2", _grid(backward="return torch.ones_like(grad), None, None"), "whatever came from above"),
    ("2.2", _grid(backward="return torch.zeros_like(grad), None, None"), "hand on what came from above"),
    (
        "2.2",
        _grid(
            f"ctx.inside = (w / scale).abs() <= largest + 0.5\n        {FORWARD}",
            "return grad * ctx.inside, None, None",
        ),
        "the clamp has cut get no gradient",
    ),
    (
        "2.2",
        _grid(f"ctx.scale = scale\n        {FORWARD}", "return grad / ctx.scale, None, None"),
        "the gradient is divided by the scale",
    ),
    (
        "2.2",
        _grid(f"ctx.scale = scale\n        {FORWARD}", "return grad * ctx.scale, None, None"),
        "the gradient is multiplied by the scale",
    ),
    ("2.2", _grid(FORWARD.replace("largest", "7")), "it is right at 4 bits only"),
    ("2.2", _grid("largest += 1\n        " + FORWARD), "did you let 8 in?"),
    ("2.2", _grid("return (w / scale).round() * scale"), "you forgot to clamp"),
    ("2.2", _grid("return (w / scale).round().clamp(-largest, largest)"), "these are the codes"),
    ("2.2", _grid("return (w / scale).trunc().clamp(-largest, largest) * scale"), "did you cut off"),
    ("2.2", _grid("return (w / scale).floor().clamp(-largest, largest) * scale"), "did you use floor()?"),
    ("2.2", _grid("return w.clone()"), "nothing is rounded in the forward pass"),
    ("2.2", "return fake_quantize(w, bits)", "use the scale that you are given"),
    (
        "2.3",
        "s = torch.clamp(w.detach().abs().max() / (2 ** (bits - 1) - 1), min=1e-30)\nreturn round_through(w / s) * s",
        "✅",
    ),
    (
        "2.3",
        "q = 2 ** (bits - 1) - 1\nwith torch.no_grad():\n    s = w.abs().max() / q\n"
        "    wq = torch.round(w / s).nan_to_num() * s\nreturn w + (wq - w).detach()",
        "✅",
    ),
    ("2.3", "broken(w, bits)", "two bugs at least are left"),
    (
        "2.3",
        "s = w.detach().abs().max() / (2 ** (bits - 1) - 1)\nx = w / s\nreturn (x + (torch.round(x) - x).detach()) * s",
        "0 / 0 is nan",
    ),
    (
        "2.3",
        "s = w.detach().abs().max() / 7\ns = s if s > 0 else s + 1\nx = w / s\n"
        "return (x + (torch.round(x) - x).detach()) * s",
        "it takes 4 bits, whatever",
    ),
    (
        "2.3",
        "s = w.abs().max() / (2 ** (bits - 1) - 1)\ns = s if s > 0 else s + 1\nx = w / s\n"
        "return (x + (torch.round(x) - x).detach()) * s",
        "the gradient of the largest weight is wrong",
    ),
    (
        "2.3",
        "s = w.abs().max() / 2 ** (bits - 1)\ns = s if s > 0 else s + 1\nx = w / s\n"
        "return (x + (torch.round(x) - x).detach()) * s",
        "now it divides by 2**(bits - 1)",
    ),
    (
        "2.3",
        "s = w.detach().abs().max() / (2 ** (bits - 1) - 1)\ns = s if s > 0 else s + 1\nreturn torch.round(w / s) * s",
        "the gradient is 0",
    ),
    (
        "2.3",
        "s = w.abs().max() / (2 ** (bits - 1) - 1)\ns = s if s > 0 else s + 1\nx = w / s\n"
        "return ((x + (torch.round(x) - x)) * s).detach()",
        "no gradient comes back",
    ),
    (
        "2.3",
        "s = w.detach().abs().max() / (2 ** (bits - 1) - 1)\ns = s if s > 0 else s + 1\nx = w / s\n"
        "return x + (torch.round(x) - x).detach()",
        "these are the codes",
    ),
    (
        "2.3",
        "s = w.detach().abs().max() / (2 ** (bits - 1) - 1) + 1e-8\nx = w / s\n"
        "return (x + (torch.round(x) - x).detach()) * s",
        "with 1e-8 added to the scale",
    ),
    ("2.4", DESCEND.replace("- rate * 2 * (level - target)", "+ 2 * rate * (target - level)"), "✅"),
    (
        "2.4",
        "w = torch.tensor(w)\npath = [w]\nfor _ in range(steps):\n    w = w.detach().requires_grad_()\n"
        "    q = w + (step * torch.round(w / step) - w).detach()\n    ((q - target) ** 2).backward()\n"
        "    w = w - rate * w.grad\n    path.append(w.item())\nreturn path",
        "✅",
    ),
    (
        "2.4",
        "if steps == 0:\n    return [w]\nlevel = round(w / step) * step\n"
        "return [w] + descend(w - 2 * rate * (level - target), step, target, rate, steps - 1)",
        "✅",
    ),
    ("2.4", DESCEND.replace("(level - target)", "(w - target)"), "the loss sees the level"),
    ("2.4", DESCEND.replace("rate * 2", "rate"), "the gradient's factor 2 is missing"),
    ("2.4", DESCEND.replace("w - rate", "w + rate"), "the weight runs away"),
    ("2.4", DESCEND.replace("(level - target)", "(level - target) * 0"), "w has not moved"),
    ("2.4", DESCEND.replace("w = w -", "w = level -"), "your step starts from the level"),
    ("2.4", DESCEND.replace("return path", "return [step * round(w / step) for w in path]"), "these are the levels"),
    ("2.4", DESCEND.replace("path = [w]", "path = []"), "the first value is missing"),
    ("2.4", DESCEND.replace("return path", "return path[:-1]"), "the last value is missing"),
    ("2.4", DESCEND.replace("round(w / step)", "(w // step)"), "did you use floor()?"),
    ("2.4", DESCEND.replace("round(w / step)", "int(w / step)"), "did you cut off"),
    ("2.4", DESCEND.replace("step * round(w / step)", "round(w)"), "the levels are multiples of `step`"),
    ("2.4", DESCEND.replace("return path", "return w"), "a list of numbers is asked for"),
    ("2.5", "torch.mean((q(w + way) - q(w)) / way)", "✅"),
    ("2.5", "((q(w + way).sum() - q(w).sum()) / w.numel() / way).item()", "✅"),
    ("2.5", "slopes = [(q(x + way) - q(x)) / way for x in w.flatten()]\nreturn sum(slopes) / len(slopes)", "✅"),
    ("2.5", "(q(w + way) - q(w)).mean()", "this is the mean rise"),
    ("2.5", "(q(w + way) - q(w)) / way", "these are the slopes of all weights"),
    ("2.5", "((q(w + way) - q(w)) / way).sum()", "this is the sum of the slopes"),
    ("2.5", "(q(w) - q(w + way)).mean() / way", "the sign"),
    ("2.5", "(q(w + way) - q(w - way)).mean() / (2 * way)", "you nudged to both sides"),
    ("2.5", "(q(w + way) - w).mean() / way", "compare q(w + way) with q(w), not with w"),
    ("2.5", "(q(q(w) + way) - q(w)).mean() / way", "you nudged the level"),
    ("2.5", "1", "is asked for, yours is 1"),
    (
        "2.6",
        MEASURE.replace("return gradient * move", "return -(gradient.abs() * way * step)"),
        "✅",
    ),
    (
        "2.6",
        "w = w.detach().clone().requires_grad_()\nwq = w + (step * torch.round(w / step) - w).detach()\n"
        "loss(wq).backward()\nmove = way * step * torch.sign(w.grad)\nold = loss(wq).item()\ntrue = []\n"
        "for i in range(w.numel()):\n    one = torch.zeros(w.numel())\n    one[i] = 1\n"
        "    moved = w.detach() - move * one.view(w.shape)\n"
        "    true.append(loss(step * torch.round(moved / step)).item() - old)\n"
        "return -move * w.grad, torch.tensor(true).view(w.shape)",
        "✅",
    ),
    ("2.6", MEASURE.replace("move, true", "move"), "two tensors are asked for"),
    ("2.6", MEASURE.replace("return gradient * move", "return -gradient * move"), "promised: the move goes against"),
    (
        "2.6",
        MEASURE.replace("way * step * gradient.sign()", "way * gradient.sign()"),
        "promised: the way is counted in levels",
    ),
    ("2.6", MEASURE.replace("gradient.sign()", "gradient"), "promised: you moved each weight by its gradient"),
    ("2.6", MEASURE.replace("return gradient * move", "return move"), "promised: that is the move"),
    ("2.6", MEASURE.replace("return gradient * move", "return gradient"), "promised: that is the gradient"),
    (
        "2.6",
        MEASURE.replace("before = loss(fake_quantize(w, step=step))", "before = loss(w)"),
        "promised: your gradient is that of the unrounded weights",
    ),
    (
        "2.6",
        MEASURE.replace("before = loss(fake_quantize(w, step=step))", "before = loss(step * torch.round(w / step))"),
        "promised: the gradient is 0",
    ),
    (
        "2.6",
        MEASURE.replace("with torch", "before = loss(w).detach()\nwith torch").replace(
            "loss(fake_quantize(moved, step=step))", "loss(moved)"
        ),
        "true: the moved weights are not rounded",
    ),
    (
        "2.6",
        MEASURE.replace("with torch", "before = loss(fake_quantize(w)).detach()\nwith torch").replace(
            "fake_quantize(moved, step=step)", "fake_quantize(moved)"
        ),
        "true: the grid moves along",
    ),
    (
        "2.6",
        MEASURE.replace("        moved = w.clone()\n", "").replace(
            "with torch", "moved = w.detach().clone()\nwith torch"
        ),
        "true: the weights before stay moved",
    ),
    ("2.6", MEASURE.replace("[i] += move", "[i] -= move"), "true: the weights move along their gradients"),
    ("2.6", MEASURE.replace("return gradient * move, true", "return gradient * move, -true"), "true: the sign"),
    (
        "2.6",
        MEASURE.replace("moved.view(-1)[i] += move.view(-1)[i]", "moved += move"),
        "true: you moved all weights at once",
    ),
    ("2.6", MEASURE.replace(" - before", ""), "true: that is the loss after the move"),
    ("2.7", SETTLE.replace("seen[level] = abs(slope)", "seen[level] = slope**2"), "✅"),
    (
        "2.7",
        "a, b = 0, step\nlow, high = gradient(a), gradient(b)\nlowest = a - low * (b - a) / (high - low)\n"
        "return lowest",
        "✅",
    ),
    (
        "2.7",
        "best, level = None, step * round(w / step)\nfor _ in range(steps):\n    slope = gradient(level)\n"
        "    if best is None or abs(slope) < abs(best[0]):\n        best = slope, level\n"
        "    level = level - step if slope > 0 else level + step\nreturn torch.tensor(best[1])",
        "✅",
    ),
    ("2.7", SETTLE.replace("return min(seen, key=seen.get)", "return w"), "it ends where the weight happens to be"),
    (
        "2.7",
        "for done in range(steps):\n    level = step * round(w / step)\n"
        "    w = w - rate * (1 - done / steps) * gradient(level)\nreturn w",
        "a falling rate freezes",
    ),
    ("2.7", SETTLE.replace("abs(slope)", "slope"), "the smallest slope is the most negative one"),
    ("2.7", SETTLE.replace("min(seen", "max(seen"), "there is a better level; in one the weight ends on"),
    ("2.7", "w", "does w move?"),
    ("2.7", SETTLE.replace("gradient(level)", "gradient(w)"), "is no level's"),
    ("2.7", SETTLE.replace("range(steps)", "range(steps + 1)"), "more than 60 calls"),
]

EQUIVALENT = {
    ("2.6", "w = w.requires_grad_()"): "the caller's weights are marked as learning: no value and no gradient differs",
}
