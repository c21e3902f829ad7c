"""Answers to exercise 04 as students write them: task, the text in the place of the solution, what check says."""

import scipy.stats  # noqa: F401, an answer imports it, and a check would not wait for that

HARD = "w.clamp(-c, c), (w.abs() < c).float()"
SOFT = "c * (w / c).tanh(), 1 - (w / c).tanh() ** 2"
COUNTS = "counts = torch.unique(quantize(w, scale(w, bits), bits), return_counts=True)[1]\n"
COPIES = "layer, norm = copy.deepcopy((layer, norm))\n"
SCALED = f"{COPIES}layer.weight.data *= factor\nlayer.bias.data *= factor\n"
PAIRS = "d = [first[s] - second[s] for s in first if s in second]\nn = len(d)\n"
FEW = "if n < 2:\n    return -math.inf, math.inf, 'cannot tell'\n"
ENDS = "mean = statistics.mean(d)\nlow, high = mean - half, mean + half\n"
WORD = "return low, high, 'helps' if low > 0 else 'hurts' if high < 0 else 'cannot tell'"
HALF = "half = T[n - 1] * statistics.stdev(d) / math.sqrt(n)\n"
STEPS = "left, steps = abs(w), 0\nwhile left > {} * abs(w):\n    left, steps = {}, steps + 1\nreturn steps"
ERROR = (
    "def error(amax):\n"
    "    step = torch.as_tensor(amax / qmax({}))\n"
    "    return (w - dequantize(quantize(w, step, {}), step)).{}\n"
)


def either(soft, hard=HARD):
    return f"return ({soft}) if soft else ({hard})"


ANSWERS = [
    (
        "4.1",
        "x = w.detach().clone().requires_grad_()\ny = c * torch.tanh(x / c) if soft else x.clamp(-c, c)\n"
        "y.sum().backward()\nreturn y, x.grad",
        "✅",
    ),
    ("4.1", either("c * (w / c).tanh(), 1 / torch.cosh(w / c) ** 2", "w.clip(-c, c), w.abs() < c"), "✅"),
    (
        "4.1",
        "if soft:\n    a = torch.exp(2 * w / c)\n    t = (a - 1) / (a + 1)\n    return [c * t, (1 - t) * (1 + t)]\n"
        "inside = (w > -c) & (w < c)\nreturn torch.where(inside, w, c * w.sign()), inside.to(w.dtype)",
        "✅",
    ),
    ("4.1", SOFT, "both are the soft clip: look at `soft`"),
    ("4.1", HARD, "both are the hard clip: look at `soft`"),
    ("4.1", f"return ({HARD}) if soft else ({SOFT})", "hard and soft are swapped"),
    ("4.1", either(SOFT, "w.clamp(max=c), (w.abs() < c).float()"), "the hard clip has two ends"),
    ("4.1", either("w.tanh(), 1 - w.tanh() ** 2"), "the soft clip ends at 1, not at c: divide by c before"),
    ("4.1", either("(w / c).tanh(), 1 - (w / c).tanh() ** 2"), "ends at 1, not at c: multiply by c after the tanh"),
    ("4.1", either("c * w.tanh(), 1 - w.tanh() ** 2"), "must leave small weights nearly alone"),
    ("4.1", either("(c * w).tanh() / c, 1 - (c * w).tanh() ** 2"), "the soft clip's factors are swapped"),
    ("4.1", either("c * (w / c).tanh(), (1 - (w / c).tanh() ** 2) / c"), "which brings a factor 1 / c"),
    ("4.1", either("c * (w / c).tanh(), c * (1 - (w / c).tanh() ** 2)"), "the c in front is cancelled"),
    ("4.1", "t = c * torch.tanh(w / c)\n" + either("t, 1 - t**2"), "square the clipped weight, c in front and all?"),
    ("4.1", either("c * (w / c).tanh(), 1 - w.tanh() ** 2"), "is taken at w / c, not at w"),
    ("4.1", either("c * (w / c).tanh(), 1 - (w / c).tanh()"), "the soft clip's slope: square the tanh"),
    ("4.1", either(SOFT, "w.clamp(-c, c), (w.abs() > c).float()"), "the hard clip's slope is the other way round"),
    ("4.1", either(SOFT, "w.clamp(-c, c), torch.ones_like(w)"), "the hard clip's slope is 0 where it cuts"),
    ("4.1", either(SOFT, "w.clamp(-c, c), (w < c).float()"), "the hard clip cuts below -c, too"),
    ("4.1", either("c * (w / c).tanh(), (w.abs() < c).float()"), "both slopes are the hard clip's"),
    ("4.1", "c * torch.tanh(w / c)", "two tensors are asked for"),
    ("4.1", either("w.div_(c).tanh_().mul_(c), 1 - (w / c) ** 2"), "it changes the tensor it is given"),
    (
        "4.2",
        "codes = quantize(w, scale(w, bits), bits).flatten().tolist()\n"
        "counts = sorted((codes.count(code) for code in set(codes)), reverse=True)\n"
        "held, levels = 0, 0\nwhile held < share * len(codes):\n    held += counts[levels]\n    levels += 1\n"
        "return levels",
        "✅",
    ),
    (
        "4.2",
        "s = w.abs().max() / (2 ** (bits - 1) - 1)\nx = torch.zeros_like(w) if s == 0 else torch.round(w / s)\n"
        "counts = torch.bincount((x + 128).long().flatten()).sort(descending=True).values\n"
        "return torch.searchsorted(counts.cumsum(0) / w.numel(), torch.tensor(share)) + 1",
        "✅",
    ),
    ("4.2", COUNTS + "return len(counts)", "these are all levels in use"),
    ("4.2", "2**bits - 1", "these are all levels of the grid"),
    ("4.2", COUNTS + "return math.ceil(share * len(counts))", "a share of the levels is not a share of the weights"),
    ("4.2", COUNTS + "return (counts.cumsum(0) / w.numel() < share).sum() + 1", "sort the counts"),
    ("4.2", COUNTS + "return (counts.sort()[0].cumsum(0) / w.numel() < share).sum() + 1", "descending=True"),
    (
        "4.2",
        "codes, levels = quantize(w, scale(w, bits), bits).abs(), 0\n"
        "while (codes <= levels).float().mean() < share:\n    levels += 1\nreturn 2 * levels + 1",
        "did you count from level 0 outwards?",
    ),
    (
        "4.2",
        COUNTS + "return (counts.sort(descending=True)[0].cumsum(0) / w.numel() < share).sum()",
        "one level is missing",
    ),
    (
        "4.2",
        COUNTS + "return (counts.sort(descending=True)[0].cumsum(0) / w.numel() <= share).sum() + 1",
        "one too many where the levels hold exactly the share",
    ),
    (
        "4.2",
        "counts = torch.unique(quantize(w, scale(w)), return_counts=True)[1]\n"
        "return (counts.sort(descending=True)[0].cumsum(0) / w.numel() < share).sum() + 1",
        "it is right at 4 bits only",
    ),
    (
        "4.2",
        COUNTS + "return (counts.sort(descending=True)[0].cumsum(0) / w.numel() < 0.99).sum() + 1",
        "it is right for 99 % only",
    ),
    ("4.2", COUNTS + "return counts.sort(descending=True)[0]", "one number is asked for"),
    ("4.3", "(w / c) ** 2 / 3 / learning_rate", "✅"),
    ("4.3", "w**3 / (3 * c**2) / (learning_rate * w)", "✅"),
    ("4.3", "(w.double() - c * torch.tanh(w.double() / c)).to(w.dtype) / (learning_rate * w)", "✅"),
    ("4.3", "w**3 / (3 * c**2)", "that is w³ / (3c²), what the soft clip takes"),
    ("4.3", "w**2 / (3 * c**2)", "AdamW multiplies the decay by the learning rate"),
    ("4.3", "w**2 / (3 * c**2) * learning_rate", "the learning rate is on the wrong side"),
    ("4.3", "w**2 / 3 * c**2 / learning_rate", "for five weights, learning rate 0.001, c = 3: "),
    ("4.3", "w**3 / (3 * c**2 * learning_rate)", "divide by w, too"),
    ("4.3", "w**2 / 27 / learning_rate", "it is right for c = 3 only"),
    ("4.3", "w**2 / (3 * c * learning_rate)", "square c"),
    ("4.3", "w**2 / (c**2 * learning_rate)", "the 3 is missing"),
    ("4.4", STEPS.format("part", "c * math.tanh(left / c)"), "✅"),
    (
        "4.4",
        "x, n = torch.tensor(w), 0\nwhile abs(x) > part * abs(w):\n    x, n = c * torch.tanh(x / c), n + 1\nreturn n",
        "✅",
    ),
    (
        "4.4",
        "def count(left):\n    return 0 if left <= part * abs(w) else 1 + count(c * math.tanh(left / c))\n"
        "import sys\nsys.setrecursionlimit(9000)\nreturn count(abs(w))",
        "✅",
    ),
    ("4.4", "math.ceil((1 / (part * w) ** 2 - 1 / w**2) * 3 * c**2 / 2)", "that is the formula of the lesson"),
    ("4.4", "(1 / (part * w) ** 2 - 1 / w**2) * 3 * c**2 / 2", "that is the formula of the lesson"),
    ("4.4", "1", "for a weight of about 1, a half, c = 3: "),
    (
        "4.4",
        "left, steps = abs(w), 1\nwhile left > part * abs(w):\n"
        "    left, steps = c * math.tanh(left / c), steps + 1\nreturn steps",
        "a step is counted that does not happen",
    ),
    (
        "4.4",
        "left, steps = c * math.tanh(abs(w) / c), 0\nwhile left > part * abs(w):\n"
        "    left, steps = c * math.tanh(left / c), steps + 1\nreturn steps",
        "one step is missing",
    ),
    ("4.4", "math.ceil((1 - part) * abs(w) / (abs(w) - c * math.tanh(abs(w) / c)))", "each step takes less than"),
    ("4.4", STEPS.format("0.5", "c * math.tanh(left / c)"), "it is right for the half only"),
    ("4.4", STEPS.format("part", "3 * math.tanh(left / 3)"), "it is right for c = 3 only"),
    ("4.4", STEPS.format("part", "c * math.tanh(left / c)").replace("part * abs(w)", "part"), "not a size"),
    ("4.4", STEPS.replace("abs(w)", "w").format("part", "c * math.tanh(left / c)"), "a weight may be negative"),
    ("4.4", STEPS.format("part", "min(left, c)"), "it did not end within"),
    (
        "4.5",
        f"{SCALED}norm.running_mean *= factor\nnorm.running_var *= factor * factor\nnorm.eps *= factor**2\n"
        "return layer, norm",
        "✅",
    ),
    (
        "4.5",
        f"{COPIES}layer.weight = torch.nn.Parameter(layer.weight * factor)\n"
        "norm.running_mean.sub_(layer.bias.detach()).mul_(factor)\nlayer.bias.data.zero_()\n"
        "norm.running_var = norm.running_var * factor**2\nreturn [layer, norm]",
        "✅",
    ),
    ("4.5", f"{SCALED}return layer, norm", "and they are still those of the old output"),
    ("4.5", f"{COPIES}layer.weight.data *= factor\nreturn layer, norm", "and the layer's output has grown"),
    ("4.5", f"{SCALED}norm.running_mean *= factor\nreturn layer, norm", "and you have left that"),
    ("4.5", f"{SCALED}norm.running_var *= factor**2\nreturn layer, norm", "running_mean, which you have left"),
    ("4.5", f"{SCALED}norm.running_mean *= factor\nnorm.running_var *= factor\nreturn layer, norm", "with the square"),
    (
        "4.5",
        f"{COPIES}layer.weight.data *= factor\nnorm.running_mean *= factor\nnorm.running_var *= factor**2\n"
        "return layer, norm",
        "multiply the bias, too",
    ),
    ("4.5", f"{SCALED}norm.weight.data /= factor\nreturn layer, norm", "batch norm's weight must stay: in training"),
    (
        "4.5",
        f"{COPIES}layer.weight.data *= factor\nnorm.weight.data /= factor\nreturn layer, norm",
        "and with it the factor is gone",
    ),
    ("4.5", f"{SCALED}norm.weight.data *= factor\nreturn layer, norm", "what has been normalized already"),
    ("4.5", f"{COPIES}return layer, norm", "nothing has changed"),
    ("4.5", "layer.weight.data *= factor\nreturn layer, norm", "it changes the layers it is given"),
    ("4.5", f"{COPIES}return layer", "two layers are asked for"),
    ("4.5", f"{COPIES}layer.weight *= factor\nreturn layer, norm", "a leaf Variable that requires grad"),
    (
        "4.6",
        ERROR.format("bits", "bits", "square().mean()") + "largest = w.abs().max().item()\n"
        "ranges = [largest * 0.97**i for i in range(150)]\n"
        "return ranges[min(range(150), key=lambda i: error(ranges[i]))]",
        "✅",
    ),
    (
        "4.6",
        "w = w.flatten()\nsteps = torch.linspace(0.005, 1, 300)[:, None] * w.abs().max() / qmax(bits)\n"
        "if not w.any():\n    return 1.0\n"
        "rounded = (w / steps).round().clamp(-qmax(bits), qmax(bits)) * steps\n"
        "return steps[(w - rounded).norm(dim=1).argmin(), 0] * qmax(bits)",
        "✅",
    ),
    ("4.6", "w.abs().max()", "this is max|w|"),
    (
        "4.6",
        ERROR.format("bits", "bits", "square().sum()")
        + "return min(torch.linspace(0.01, 1, 300) * w.abs().max(), key=error) / qmax(bits)",
        "this is the scale",
    ),
    (
        "4.6",
        ERROR.format("bits", "bits", "square().sum()")
        + "return min(error(amax) for amax in torch.linspace(0.01, 1, 300) * w.abs().max())",
        "this is the error itself",
    ),
    (
        "4.6",
        ERROR.format("4", "4", "square().sum()")
        + "return min(torch.linspace(0.01, 1, 300) * w.abs().max(), key=error)",
        "did you search with 4 bits in every case?",
    ),
    (
        "4.6",
        ERROR.format("bits", "bits", "square().sum()")
        + "return min(torch.linspace(0.5, 1, 300) * w.abs().max(), key=error)",
        "did you look at ranges from a half of max|w| on?",
    ),
    ("4.6", "w.abs().flatten().quantile(0.99)", "the range that holds 99 % of the weights?"),
    ("4.6", "w.abs().flatten().quantile(0.999)", "the range that holds 99.9 % of the weights?"),
    ("4.6", "3 * w.std()", "did you take 3 standard deviations?"),
    ("4.6", "0.3 * w.abs().max()", "times the least; 1.05 times is allowed"),
    ("4.6", "w.abs().max() / w.abs().mean()", "should be a finite number"),
    (
        "4.7",
        f"{PAIRS}{FEW}from scipy.stats import t\n{HALF.replace('T[n - 1]', 't.ppf(0.975, n - 1)')}{ENDS}{WORD}",
        "✅",
    ),
    (
        "4.7",
        "seeds = sorted(set(first) & set(second))\n"
        "d = torch.tensor([first[s] - second[s] for s in seeds], dtype=torch.float64)\nn = len(d)\n"
        f"{FEW}half = T[n - 1] * d.std() / n**0.5\nlow, high = d.mean() - half, d.mean() + half\n{WORD}",
        "✅",
    ),
    (
        "4.7",
        "n, a, b = len(first), list(first.values()), list(second.values())\n"
        f"n = len(set(first) & set(second))\n{FEW}half = T[min(len(a), len(b)) - 1] * math.sqrt(\n"
        "    statistics.variance(a) / len(a) + statistics.variance(b) / len(b))\n"
        f"mean = statistics.mean(a) - statistics.mean(b)\nlow, high = mean - half, mean + half\n{WORD}",
        "did you take each arm's spread apart?",
    ),
    (
        "4.7",
        f"d = [a - b for a, b in zip(first.values(), second.values())]\nn = len(d)\n{FEW}{HALF}{ENDS}{WORD}",
        "pair them by their seed",
    ),
    ("4.7", f"first, second = second, first\n{PAIRS}{FEW}{HALF}{ENDS}{WORD}", "it is the other way round"),
    (
        "4.7",
        f"{PAIRS}{FEW.replace('n < 2', 'n < 1')}half = 0\nif n > 1:\n    {HALF}{ENDS}{WORD}",
        "one pair has no spread",
    ),
    ("4.7", f"{PAIRS}{FEW}{HALF.replace('T[n - 1]', '1.96')}{ENDS}{WORD}", "1.96 is for many seeds"),
    ("4.7", f"{PAIRS}{FEW}{HALF.replace('T[n - 1]', 'T[n]')}{ENDS}{WORD}", "is looked up by the degrees of freedom"),
    ("4.7", f"{PAIRS}{FEW}{HALF.replace(' / math.sqrt(n)', '')}{ENDS}{WORD}", "did you leave out √n?"),
    ("4.7", f"{PAIRS}{FEW}{HALF.replace('stdev', 'pstdev')}{ENDS}{WORD}", "take statistics.stdev, not pstdev"),
    (
        "4.7",
        f"{PAIRS}{FEW}low, high = min(d), max(d)\n{WORD}",
        "that is the range from the smallest difference",
    ),
    ("4.7", f"{PAIRS}{FEW}{HALF}{ENDS}return low, high, 'helps' if mean > 0 else 'hurts'", "and you say 'helps'"),
    (
        "4.7",
        f"{PAIRS}{FEW}{HALF}{ENDS}return low, high, 'better'",
        "the word is one of 'hurts', 'cannot tell', 'helps'",
    ),
    ("4.7", f"{PAIRS}{HALF}{ENDS}{WORD}", "KeyError: 0"),
    ("4.7", f"{PAIRS}{FEW}{HALF}{ENDS}return low, high", "two numbers and a word are asked for"),
]

EQUIVALENT = {
    ("4.1", "return (w.clamp(-c, c), torch.where(w.abs() <= c, 1.0, 0.0))"): "no weight lies at c, as the task says",
    ("4.6", "candidates = torch.linspace(0.01, 2, 80) * w.abs().max()"): "other candidates do as well",
    ("4.6", "candidates = torch.linspace(0.01, 1, 81) * w.abs().max()"): "other candidates do as well",
    ("4.7", "differences = [first[seed] - second[seed] for seed in first & second.keys()]"): (
        "the keys' own & takes the dict"
    ),
    ("4.7", "differences = [first[seed] - second[seed] for seed in first.keys() & second]"): (
        "the keys' own & takes the dict"
    ),
}
