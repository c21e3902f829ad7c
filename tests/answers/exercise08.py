"""Answers to exercise 08 as students write them: task, the text in the place of the solution, what check says."""

FITS = """\
k = min(width, max(0, (target - fixed) // each))
return (width - k) / width
"""
TRIED = """\
k = width
while k > 0 and fixed + each * k > target:
    k -= 1
return 1 - k / width
"""
SQUARES = """\
total = torch.zeros(batches[0].shape[1])
for x in batches:
    total += x.float().square().sum(dim=(0, 2, 3))
return total.sqrt()
"""
AT_ONCE = "torch.cat([x.transpose(0, 1).flatten(1) for x in batches], dim=1).norm(dim=1)"
EACH = """\
total = 0
for x in batches:
    total = total + x.transpose(0, 1).flatten(1).norm(dim=1)
return total
"""
SORTED = """\
k = int(round(len(norms) * (1 - ratio), 6))
order = sorted(range(len(norms)), key=lambda i: -norms[i].item())
return torch.tensor(sorted(order[:k]))
"""
MASK = """\
k = len(norms) - math.ceil(len(norms) * ratio - 1e-9)
mask = torch.zeros(len(norms), dtype=torch.bool)
mask[torch.sort(norms, descending=True, stable=True).indices[:k]] = True
return mask.nonzero().flatten()
"""
STATE = """\
small = hidden_block(block[0].in_channels, len(keep), block[6].out_channels, block[3].stride)
state = block.state_dict()
for layer in "0", "1", "3", "4":
    for name in state:
        if name[0] == layer and state[name].dim():
            state[name] = state[name][keep]
state["6.weight"] = state["6.weight"][:, keep]
small.load_state_dict(state)
return small
"""
DATA = """\
small = copy.deepcopy(block)
for i in (0, 1, 3, 4):
    for tensor in [*small[i].parameters(), *small[i].buffers()]:
        if tensor.dim():
            tensor.data = tensor.data[keep]
small[6].weight.data = small[6].weight.data[:, keep]
small[3].groups = len(keep)
return small
"""
SILENT = """\
small = copy.deepcopy(block)
silent = [i for i in range(block[0].out_channels) if i not in keep]
small[6].weight.data[:, silent] = 0
return small
"""
FOLDED = """\
std = torch.sqrt(norm.running_var + norm.eps)
new = nn.Conv2d(conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride, conv.padding, groups=conv.groups)
bias = torch.zeros_like(norm.bias) if conv.bias is None else conv.bias
new.weight = nn.Parameter(conv.weight * (norm.weight / std).view(-1, 1, 1, 1))
new.bias = nn.Parameter((bias - norm.running_mean) / std * norm.weight + norm.bias)
return new
"""
BESIDE = """\
class Both(nn.Module):
    def __init__(self):
        super().__init__()
        self.block, self.side = copy.deepcopy(block), copy.deepcopy(side)
        for p in self.block.parameters():
            p.requires_grad = False
        self.side[-1].weight.data.zero_()

    def forward(self, x):
        self.block.eval()
        return self.block(x) + self.side(x)

return Both()
"""
TRAIN = """\
side[-1].weight.data *= 0

class Both(nn.Module):
    def __init__(self, block, side):
        super().__init__()
        self.block, self.side = block, side
        self.block.requires_grad_(False)
        self.block.eval()

    def forward(self, x):
        with torch.no_grad():
            y = self.block(x)
        return y + self.side(x)

    def train(self, mode=True):
        self.training = mode
        self.side.train(mode)
        return self

return Both(block, side)
"""


def but(text, *changes):
    """An answer with parts of it otherwise: old, new, old, new ..."""
    for old, new in zip(changes[::2], changes[1::2], strict=True):
        assert old in text
        text = text.replace(old, new)
    return text


CLAMPED = "k = min(width, max(0, (target - fixed) // each))"
KEPT = "(width - k) / width"
COUNT = "int(round(len(norms) * (1 - ratio), 6))"
ARGSORT = "norms.argsort(descending=True, stable=True)[:k].sort().values"
FIRST = "state[name][keep]"
BIAS = "(bias - norm.running_mean) / std * norm.weight + norm.bias"
NO_TRAIN = TRAIN[: TRAIN.index("    def train")] + "return Both(block, side)"

ANSWERS = [
    ("8.1", FITS, "✅"),
    ("8.1", TRIED, "✅"),
    ("8.1", but(FITS, KEPT, "k / width"), "that is the share that stays"),
    ("8.1", but(FITS, KEPT, "k"), "that is how many channels stay"),
    ("8.1", but(FITS, KEPT, "width - k"), "that is how many channels go"),
    ("8.1", but(FITS, KEPT, "100 * (width - k) / width"), "that is in percent"),
    ("8.1", but(FITS, "// each", "/ each"), "only whole channels can stay"),
    ("8.1", but(FITS, "(target - fixed) // each", "-((fixed - target) // each)"), "do not quite fit"),
    ("8.1", but(FITS, "(target - fixed) // each", "round((target - fixed) / each)"), "not to the nearest"),
    ("8.1", but(TRIED, "* k >", "* k >="), "the peak may be as large as the target"),
    ("8.1", but(FITS, "(target - fixed)", "target"), "`fixed` is missing"),
    ("8.1", but(FITS, "(target - fixed) // each", "target // (fixed + each)"), "not once a channel"),
    ("8.1", but(FITS, "target - fixed", "target + fixed"), "is `target - fixed`"),
    ("8.1", but(FITS, CLAMPED, "k = max(0, (target - fixed) // each)"), "less than nothing cannot go"),
    ("8.1", but(FITS, CLAMPED, "k = min(width, (target - fixed) // each)"), "more than all cannot go"),
    ("8.1", but(FITS, CLAMPED, "k = (target - fixed) // each"), "a ratio lies between 0 and 1"),
    ("8.1", but(FITS, "max(0", "max(1"), "where not even one channel fits"),
    ("8.1", but(FITS, KEPT, "width, k"), "one number"),
    ("8.2", SQUARES, "✅"),
    ("8.2", AT_ONCE, "✅"),
    ("8.2", EACH, "norms cannot be added"),
    ("8.2", but(EACH, "return total", "return total / len(batches)"), "the mean of the batches' norms"),
    ("8.2", but(SQUARES, "total.sqrt()", "total"), "the root is missing"),
    (
        "8.2",
        but(SQUARES, "total.sqrt()", "(total / sum(x[:, 0].numel() for x in batches)).sqrt()"),
        "a norm is the root of the sum",
    ),
    (
        "8.2",
        but(SQUARES, ".sum(dim", ".mean(dim", "total.sqrt()", "(total / len(batches)).sqrt()"),
        "in a mean over the batches",
    ),
    ("8.2", but(SQUARES, ".sum(dim", ".mean(dim"), "means of squares of each batch"),
    ("8.2", but(SQUARES, "square()", "abs()", "total.sqrt()", "total"), "that is the l1 norm"),
    ("8.2", but(SQUARES, ".square()", "", "total.sqrt()", "total.abs()"), "square first, then add up"),
    ("8.2", but(SQUARES, "total +=", "total ="), "the last batch alone"),
    ("8.2", but(SQUARES, "in batches:", "in batches[:1]:"), "the first batch alone"),
    ("8.2", "sum(x.flatten(2).norm(dim=2).sum(0) for x in batches)", "the norms of each image"),
    ("8.2", but(AT_ONCE, "norm(dim=1)", "abs().amax(1)"), "that is the largest number"),
    ("8.2", "sum(x.square().sum() for x in batches).sqrt()", "one norm for all channels"),
    ("8.2", "torch.cat([x.flatten(1).norm(dim=1) for x in batches])", "channels are dimension 1"),
    ("8.2", "torch.cat(batches).norm(dim=0)", "the shape should be"),
    ("8.2", but(SQUARES, "return total.sqrt()", "total.sqrt()"), "is a `return` missing"),
    ("8.2", "[5.0]", "a tensor is asked for"),
    ("8.2", but(SQUARES, "float().square()", "square_()"), "it changes what it is given"),
    ("8.2", but(SQUARES, "    total +=", "    x **= 2\n    total +=", ".square()", ""), "it changes what it is given"),
    ("8.3", SORTED, "✅"),
    ("8.3", MASK, "✅"),
    ("8.3", but(SORTED, "torch.tensor(sorted(order[:k]))", ARGSORT), "✅"),
    ("8.3", but(SORTED, "-norms[i]", "norms[i]"), "the channels with the smallest norms"),
    ("8.3", but(SORTED, "order[:k]", "order[k:]"), "these are the channels that go"),
    ("8.3", but(SORTED, "sorted(order[:k])", "order[:k]"), "sort their numbers"),
    ("8.3", but(SORTED, "sorted(order[:k])", "range(k)"), "do their norms not matter"),
    ("8.3", but(SORTED, "(1 - ratio)", "ratio"), "that is how many go"),
    ("8.3", but(SORTED, COUNT, "math.floor(len(norms) * (1 - ratio))"), "10 * (1 - 0.9) is"),
    ("8.3", but(MASK, " - 1e-9", ""), "100 * 0.07 is"),
    ("8.3", but(SORTED, COUNT, "round(len(norms) * (1 - ratio))"), "not to the nearest"),
    ("8.3", but(SORTED, COUNT, "len(norms) - int(len(norms) * ratio + 1e-9)"), "one too many stays"),
    ("8.3", but(SORTED, COUNT, "math.ceil(len(norms) * (1 - ratio))"), "one too many stays"),
    ("8.3", but(SORTED, "-norms[i].item()", "(-norms[i].item(), -i)"), "yours keeps the later"),
    (
        "8.3",
        but(SORTED, "torch.tensor(sorted(order[:k]))", "torch.nonzero(norms >= norms[order[k - 1]]).flatten()"),
        "a threshold cannot tell them apart",
    ),
    ("8.3", but(SORTED, "torch.tensor(sorted(order[:k]))", "norms.topk(k).indices.sort().values"), "`topk` takes any"),
    ("8.3", but(MASK, "mask.nonzero().flatten()", "mask"), "these are True and False"),
    ("8.3", but(MASK, "mask.nonzero().flatten()", "norms[mask]"), "these are the norms of those that stay"),
    ("8.3", but(MASK, ".flatten()", ""), "the shape should be"),
    ("8.3", but(SORTED, "return torch.tensor(sorted(order[:k]))", "return k"), "a tensor of channels' numbers"),
    ("8.4", STATE, "✅"),
    ("8.4", DATA, "✅"),
    ("8.4", "block", "nothing is taken out"),
    ("8.4", SILENT, "zeros take as much memory"),
    ("8.4", but(DATA, "return small", "return small.state_dict()"), "a module is asked for"),
    (
        "8.4",
        "others = torch.tensor([i for i in range(block[0].out_channels) if i not in keep])\n"
        + but(STATE, "len(keep)", "len(others)", "[keep]", "[others]", "[:, keep]", "[:, others]"),
        "these are the channels that should go",
    ),
    (
        "8.4",
        but(STATE, FIRST, "state[name][: len(keep)]", "[:, keep]", "[:, : len(keep)]"),
        "the first channels of each",
    ),
    ("8.4", but(STATE, FIRST, "state[name][keep if layer != '0' else slice(len(keep))]"), "the first convolution's"),
    ("8.4", but(STATE, FIRST, "state[name][keep if layer != '1' else slice(len(keep))]"), "the first batch norm's"),
    ("8.4", but(STATE, FIRST, "state[name][keep if layer != '3' else slice(len(keep))]"), "the second convolution's"),
    ("8.4", but(STATE, FIRST, "state[name][keep if layer != '4' else slice(len(keep))]"), "the second batch norm's"),
    ("8.4", but(STATE, FIRST, "state[name][keep if layer in '03' else slice(len(keep))]"), "both batch norms'"),
    ("8.4", but(STATE, "[:, keep]", "[:, : len(keep)]"), "the third convolution reads other channels"),
    (
        "8.4",
        but(
            STATE,
            "state = block.state_dict()",
            "state = dict(block.named_parameters())",
            "(state)",
            "(state, strict=False)",
        ),
        "the running means and variances are lost",
    ),
    (
        "8.4",
        but(
            STATE, "small.load", "state = {name: t for name, t in state.items() if name[0] != '7'}\nsmall.load"
        ).replace("(state)", "(state, strict=False)"),
        "the last batch norm is a new one",
    ),
    ("8.4", but(STATE, ", block[3].stride", ""), "the shape should be"),
    ("8.4", but(STATE, '"3", "4"', '"4"'), "size mismatch"),
    ("8.4", but(DATA, "copy.deepcopy(block)", "block"), "it changes what it is given"),
    ("8.4", but(DATA, "small[3].groups = len(keep)\n", ""), "RuntimeError"),
    ("8.5", FOLDED, "✅"),
    ("8.5", "nn.utils.fusion.fuse_conv_bn_eval(conv, norm)", "✅"),
    ("8.5", but(FOLDED, " + norm.eps", ""), "ε is missing"),
    (
        "8.5",
        but(FOLDED, "torch.sqrt(norm.running_var + norm.eps)", "norm.running_var.sqrt() + norm.eps"),
        "under the root",
    ),
    (
        "8.5",
        but(FOLDED, "torch.sqrt(norm.running_var + norm.eps)", "norm.running_var + norm.eps"),
        "divide by the root",
    ),
    ("8.5", but(FOLDED, "norm.weight / std", "1 / std", " * norm.weight", ""), "γ is missing"),
    ("8.5", but(FOLDED, " + norm.bias)", ")"), "β is missing"),
    ("8.5", but(FOLDED, "(bias - norm.running_mean)", "bias"), "the running mean is missing"),
    ("8.5", but(FOLDED, "(bias - norm", "(bias + norm"), "yours adds it"),
    (
        "8.5",
        but(FOLDED, BIAS, "bias / std * norm.weight + norm.bias - norm.running_mean"),
        "batch norm takes it away before",
    ),
    ("8.5", but(FOLDED, "(bias - norm.running_mean)", "(-norm.running_mean)"), "that is lost"),
    (
        "8.5",
        but(FOLDED, BIAS, "bias - norm.running_mean / std * norm.weight + norm.bias"),
        "runs through the batch norm, too",
    ),
    ("8.5", but(FOLDED, BIAS, "bias"), "the bias is the old one"),
    (
        "8.5",
        but(FOLDED, "conv.weight * (norm.weight / std).view(-1, 1, 1, 1)", "conv.weight"),
        "the weight is the old one",
    ),
    ("8.5", "nn.Sequential(conv, norm)", "yours is of type Sequential"),
    (
        "8.5",
        but(FOLDED, "conv.kernel_size, conv.stride, conv.padding, ", "conv.kernel_size, "),
        "its padding is (0, 0)",
    ),
    ("8.5", but(FOLDED, "conv.stride, conv.padding", "1, conv.padding"), "its stride is (1, 1)"),
    ("8.5", but(FOLDED, "torch.zeros_like(norm.bias) if conv.bias is None else conv.bias", "conv.bias"), "TypeError"),
    ("8.5", but(FOLDED, ".view(-1, 1, 1, 1)", ""), "RuntimeError"),
    (
        "8.5",
        but(FOLDED, "new = nn.Conv2d", "nn.Conv2d", "new.", "conv.", "return new", "return conv"),
        "it changes what",
    ),
    ("8.5", "norm.weight / (norm.running_var + norm.eps).sqrt()", "a module is asked for"),
    ("8.6", BESIDE, "✅"),
    ("8.6", TRAIN, "✅"),
    ("8.6", but(BESIDE, "        self.side[-1].weight.data.zero_()\n", ""), "set the γ of `side[-1]` to 0"),
    ("8.6", but(BESIDE, "        self.block.eval()\n", ""), "`self.train()`"),
    ("8.6", NO_TRAIN, "`train()` reaches all that is in a module"),
    (
        "8.6",
        but(BESIDE, "        self.block.eval()\n", "", "        self.side[-1].weight.data.zero_()\n", ""),
        "eval mode for the one, a γ of 0",
    ),
    ("8.6", but(BESIDE, "self.block(x) + ", ""), "the block is missing"),
    (
        "8.6",
        but(BESIDE, "self.block(x) + ", "", "        self.side[-1].weight.data.zero_()\n", ""),
        "the side network alone",
    ),
    ("8.6", but(BESIDE, "p.requires_grad = False", "p.requires_grad = True"), "10 tensors train"),
    (
        "8.6",
        but(BESIDE, "p in self.block", "p in self"),
        "0 tensors train, those of the side network are 6: is it kept",
    ),
    ("8.6", but(TRAIN, "train(self, mode=True)", "train(self)", "self.training = mode", "mode = True"), "with True or"),
    ("8.6", but(TRAIN, "        return self\n", ""), "end it with `return self`"),
    ("8.6", but(BESIDE, "self.side[-1].weight.data", "self.side[3].weight.data"), "something else silences"),
    ("8.6", but(BESIDE, "zero_()", "zero_()\n        self.side[1].weight.data.zero_()"), "1 of 6 side tensors"),
    ("8.6", but(BESIDE, "+ self.side(x)", "- self.side(x)"), "is subtracted"),
    ("8.6", but(TRAIN, "self.side.train(mode)", "self.side.eval()"), "still in eval mode"),
    ("8.6", but(TRAIN, "self.side.train(mode)", "self.side.train()"), "does your `train` hand `mode` on"),
    (
        "8.6",
        but(BESIDE, "self.block.eval()", "self.block.eval()\n        self.side[-1].weight.data.zero_()"),
        "second is not",
    ),
    ("8.6", but(BESIDE, "self.side(x)", "self.side(x).detach()"), "no gradient reaches"),
    ("8.6", but(BESIDE, "return Both()", "return Both"), "that is the class: return one of it"),
    ("8.6", but(BESIDE, "return Both()", "Both()"), "is a `return` missing"),
    ("8.6", "lambda x: block(x) + side(x)", "a module is asked for"),
    ("8.6", but(BESIDE, "self.block(x) + self.side(x)", "self.side(self.block(x))"), "the block is missing"),
]

EQUIVALENT: dict[tuple[str, str], str] = {}
