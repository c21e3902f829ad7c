"""Answers to exercise 07 as students write them: task, the text in the place of the solution, what check says."""

KEPT = """\
train = getattr(layer, "weight", None) is not None and layer.weight.requires_grad
if train:
    return x.numel() * x.element_size()
if not gradient:
    return 0
if isinstance(layer, nn.ReLU):
    return math.ceil(x.numel() / 8)
if isinstance(layer, nn.MaxPool2d):
    return layer(x).numel()
return 0
"""
KINDS = """\
if type(layer) in (nn.ReLU, nn.MaxPool2d):
    if not gradient:
        return 0
    return -(-x.numel() // 8) if type(layer) is nn.ReLU else torch.ones_like(layer(x), dtype=torch.bool).nbytes
return sum(x.nbytes for name, p in layer.named_parameters() if name == "weight" and p.requires_grad)
"""
PEAK = """\
high, where, so_far = 0, layers[0][0], 0
for name, moment, keeps in layers:
    here = so_far + moment
    if here > high:
        high, where = here, name
    so_far += keeps
return high, where
"""
SUMS = """\
sums = [t + sum(k for _, _, k in layers[:i]) for i, (_, t, _) in enumerate(layers)]
at = sums.index(max(sums))
return sums[at], layers[at][0]
"""
PIECES = """\
fits = (memory - 16 * trainable - 4 * frozen) // peak
if fits < 1:
    return 0
return -(-batch // fits)
"""
TRIED = """\
for n in range(1, batch + 1):
    if math.ceil(batch / n) * peak + 16 * trainable + 4 * frozen <= memory:
        return n
return 0
"""
COUNTED = """\
seen, total = {tensor.untyped_storage().data_ptr() for tensor in before}, 0

def note(tensor):
    nonlocal total
    storage = tensor.untyped_storage()
    if storage.data_ptr() not in seen:
        seen.add(storage.data_ptr())
        total += storage.nbytes()
    return tensor

with saved_tensors_hooks(note, lambda tensor: tensor):
    step()
return total
"""
LISTED = """\
found = []

def note(tensor):
    found.append(tensor)
    return tensor

with saved_tensors_hooks(note, lambda tensor: tensor):
    loss = step()
places = {t.untyped_storage()._cdata: len(t.untyped_storage()) for t in found}
for t in before:
    places.pop(t.untyped_storage()._cdata, None)
return sum(places.values())
"""
RELU = """\
class Relu(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        mask = x > 0
        ctx.save_for_backward(pack_bits(mask))
        return x * mask

    @staticmethod
    def backward(ctx, grad):
        bits, = ctx.saved_tensors
        mask = unpack_bits(bits, grad.shape)
        return torch.where(mask, grad, 0)

return Relu.apply(x)
"""
BY_HAND = """\
class Relu(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        flat = nn.functional.pad((x > 0).flatten(), (0, -x.numel() % 8)).view(-1, 8)
        ctx.shape, ctx.places = x.shape, 2 ** torch.arange(8)
        ctx.save_for_backward((flat * ctx.places).sum(1).to(torch.uint8))
        return torch.relu(x)

    @staticmethod
    def backward(ctx, grad):
        mask = (ctx.saved_tensors[0][:, None].long() // ctx.places % 2).flatten()[: grad.numel()]
        return grad * mask.view(ctx.shape)

return Relu.apply(x)
"""
MOST = """\
def most(begins):
    high, so_far = 0, 0
    for begin, end in zip(begins, begins[1:] + [len(inputs)]):
        high = max(high, so_far + sum(inputs[begin:end]))
        so_far += inputs[begin]
    return high

"""
LENGTHS = """\
best = list(range(len(inputs)))
for length in range(2, len(inputs) + 1):
    begins = list(range(0, len(inputs), length))
    if most(begins) < most(best):
        best = begins
return best
"""
FREE = """\
best = min((list(range(0, len(inputs), n)) for n in range(1, len(inputs) + 1)), key=most)
while True:
    tries = [sorted({*best} ^ {i}) for i in range(1, len(inputs))]
    tries += [sorted({*best} ^ {i, j}) for i in range(1, len(inputs)) for j in best[1:] if i != j]
    better = min([*tries, best], key=most)
    if most(better) >= most(best):
        return best
    best = better
"""
ALL = """\
def most(begins):
    ends = begins[1:] + [len(inputs)]
    first = sum(inputs[b] for b in begins)
    return max(first + sum(inputs[b + 1 : e]) for b, e in zip(begins, ends))

"""


def but(text, old, new):
    """An answer with a part of it otherwise."""
    assert old in text
    return text.replace(old, new)


ELSEWHERE = but(COUNTED, "untyped_storage().data_ptr() for", "data_ptr() for")


def left(*kept):
    """The colleague's counter, mended but for these bugs."""
    text = (
        COUNTED
        if "before" not in kept
        else but(COUNTED, "{tensor.untyped_storage().data_ptr() for tensor in before}", "set()")
    )
    text = text if "twice" not in kept else but(text, "        seen.add(storage.data_ptr())\n", "")
    text = text if "part" not in kept else but(text, "storage.nbytes()", "tensor.nbytes")
    return text if "floats" not in kept else but(text, "if storage", "if tensor.is_floating_point() and storage")


def keyed(place, of_before=None):
    """The colleague's counter, with a dict in place of the list; `of_before` is t's place in it."""
    return (
        (
            "sizes = {}\n\ndef note(tensor):\n    if tensor.is_floating_point():\n"
            f"        sizes[{place}] = tensor.nbytes\n    return tensor\n\n"
            "with saved_tensors_hooks(note, lambda tensor: tensor):\n    step()\n"
        )
        + (f"for t in before:\n    sizes.pop({of_before}, None)\n" if of_before else "")
        + "return sum(sizes.values())\n"
    )


ANSWERS = [
    ("7.1", "sum(t.numel() * t.element_size() for t in (x, layer(x)))", "✅"),
    ("7.1", "y = layer(x)\nreturn x.untyped_storage().nbytes() + y.untyped_storage().nbytes()", "✅"),
    ("7.1", "x.numel() + layer(x).numel()", "multiply by the bytes of each"),
    ("7.1", "4 * (x.numel() + layer(x).numel())", "it is right for float32 only"),
    ("7.1", "x.nbytes", "what it writes must be there, too"),
    ("7.1", "layer(x).nbytes", "what it reads must be there, too"),
    ("7.1", "2 * x.nbytes", "a layer need not write as much as it reads"),
    ("7.1", "max(x.nbytes, layer(x).nbytes)", "that is the larger of the two"),
    ("7.1", "x.nbytes + layer(x).nbytes + sum(p.nbytes for p in layer.parameters())", "the weights are there anyway"),
    ("7.1", "x[0].nbytes + layer(x)[0].nbytes", "one image of the batch"),
    ("7.1", "x.nbytes + layer(x).nbytes // getattr(layer, 'groups', 1)", "that is the memory paper's way"),
    ("7.1", "x.nbytes, layer(x).nbytes", "one number is asked for"),
    ("7.2", KEPT, "✅"),
    ("7.2", KINDS, "✅"),
    ("7.2", but(KEPT, " and layer.weight.requires_grad", ""), "a frozen layer keeps nothing"),
    (
        "7.2",
        "if isinstance(layer, nn.ReLU):\n"
        "    return (x.numel() + 7) // 8 if gradient else 0\n"
        "if isinstance(layer, nn.MaxPool2d):\n    return layer(x).numel() if gradient else 0\n"
        "return x.nbytes if any(p.requires_grad for p in layer.parameters()) else 0",
        "the bias's gradient needs nothing",
    ),
    ("7.2", "if not gradient:\n    return 0\n" + KEPT, "whether or not anything before it trains"),
    ("7.2", but(KEPT, "if not gradient", "if False"), "ReLU and max pooling keep nothing"),
    ("7.2", but(KINDS, "if not gradient", "if not gradient and type(layer) != nn.ReLU"), "a ReLU keeps nothing"),
    ("7.2", but(KINDS, "if not gradient", "if not gradient and type(layer) == nn.ReLU"), "max pooling keeps nothing"),
    ("7.2", but(KEPT, "math.ceil(x.numel() / 8)", "x.nbytes"), "is what PyTorch's ReLU keeps"),
    ("7.2", but(KEPT, "math.ceil(x.numel() / 8)", "x.numel()"), "divide by 8"),
    ("7.2", but(KEPT, "math.ceil(x.numel() / 8)", "x.numel() // 8"), "9 bits need 2 bytes: round up"),
    ("7.2", but(KEPT, "math.ceil(x.numel() / 8)", "x.numel() / 8"), "whole bytes are asked for"),
    ("7.2", but(KEPT, "layer(x).numel()", "x.numel()"), "not for each that it reads"),
    ("7.2", but(KEPT, "layer(x).numel()", "layer(x).nbytes"), "that it writes, not the number"),
    ("7.2", but(KEPT, "layer(x).numel()", "8 * layer(x).numel()"), "is what PyTorch's max pooling keeps"),
    ("7.2", but(KEPT, "layer(x).numel()", "layer(x).numel() // 8"), "max pooling needs a byte"),
    ("7.2", but(KEPT, " * x.element_size()", ""), "multiply by the bytes of each"),
    ("7.2", but(KEPT, "x.element_size()", "4"), "it is right for float32 only"),
    ("7.2", but(KEPT, "x.numel() * x.element_size()", "layer(x).nbytes"), "its input, not its output"),
    (
        "7.2",
        but(KINDS, "return sum", "if getattr(layer, 'weight', None) is None:\n    return x.nbytes\nreturn sum"),
        "a mean or a change of shape",
    ),
    ("7.2", but(KEPT, 'getattr(layer, "weight", None) is not None and ', ""), "AttributeError"),
    ("7.3", PEAK, "✅"),
    ("7.3", SUMS, "✅"),
    ("7.3", but(SUMS, "layers[:i]", "layers[:i + 1]"), "compare first, then add"),
    ("7.3", but(PEAK, "    so_far += keeps\n", ""), "what the layers before it have kept is missing"),
    (
        "7.3",
        "name = max(layers, key=lambda layer: layer[1])[0]\n"
        "return max(layer[1] for layer in layers) + sum(layer[2] for layer in layers), name",
        "only what layers before it have kept",
    ),
    ("7.3", but(PEAK, "so_far + moment", "so_far"), "bytes for a moment come on top"),
    ("7.3", but(PEAK, "so_far += keeps", "so_far = keeps"), "not only the last of them"),
    ("7.3", but(PEAK, "here > high", "here >= high"), "is the first layer where it is so high"),
    ("7.3", but(PEAK, "return high, where", "return high"), "two things are asked for"),
    ("7.3", but(PEAK, "return high, where", "return where, high"), "the peak comes first, then the layer's name"),
    ("7.3", but(SUMS, "layers[at][0]", "at"), "the peak is right, and 'b' is the first layer"),
    ("7.3", but(PEAK, "so_far += keeps", "so_far -= keeps"), "for three layers, the second the hungriest: "),
    ("7.4", PIECES, "✅"),
    ("7.4", TRIED, "✅"),
    ("7.4", but(PIECES, "(memory - 16 * trainable - 4 * frozen)", "memory"), "the parameters are missing"),
    ("7.4", but(PIECES, "16 * trainable - 4 * frozen", "4 * trainable - frozen"), "the memory paper's count, 4 and 1"),
    ("7.4", but(PIECES, "16 * trainable - 4 * frozen", "16 * (trainable + frozen)"), "a frozen parameter takes 4"),
    ("7.4", but(PIECES, " - 4 * frozen", ""), "the frozen parameters are missing"),
    ("7.4", but(PIECES, "16 * trainable - 4 * frozen", "trainable - frozen"), "parameters have bytes"),
    (
        "7.4",
        "fits = memory // (peak + 16 * trainable + 4 * frozen)\n" + but(PIECES, "fits =", "_ ="),
        "not once an image",
    ),
    ("7.4", but(PIECES, "-(-batch // fits)", "fits"), "that is how many images fit at once"),
    ("7.4", but(PIECES, "-(-batch // fits)", "batch // fits"), "one more piece: round up"),
    ("7.4", but(PIECES, "-(-batch // fits)", "batch // fits + 1"), "round up, do not add one"),
    (
        "7.4",
        but(but(PIECES, "// peak", "/ peak"), "-(-batch // fits)", "math.ceil(batch / fits)"),
        "round down what fits",
    ),
    (
        "7.4",
        but(
            PIECES,
            "(memory - 16 * trainable - 4 * frozen) // peak",
            "-((16 * trainable + 4 * frozen - memory) // peak)",
        ),
        "images that do not quite fit",
    ),
    ("7.4", but(PIECES, "if fits < 1:\n    return 0\n", "fits = max(1, fits)\n"), "0 is asked for"),
    ("7.4", but(PIECES, "if fits < 1:\n    return 0\n", ""), "where no image fits, you divide by 0"),
    ("7.4", but(PIECES, "fits < 1", "fits == 0"), "where the parameters alone do not fit"),
    (
        "7.4",
        "return math.ceil(batch * peak / (memory - 16 * trainable - 4 * frozen))",
        "round down what fits; and where not even one fits, 0 is asked for",
    ),
    ("7.4", "return batch // (trainable - trainable)", "ZeroDivisionError"),
    ("7.4", but(PIECES, "    return 0", "    return None"), "it returns None"),
    ("7.5", COUNTED, "✅"),
    ("7.5", LISTED, "✅"),
    ("7.5", "colleague(step, before)", "4 of the four bugs are left: look at a tensor that two layers save, and at"),
    ("7.5", left("twice"), "1 of the four bugs is left: look at a tensor that two layers save"),
    ("7.5", left("part"), "1 of the four bugs is left: look at a tensor that is a part"),
    ("7.5", left("floats"), "1 of the four bugs is left: look at whole numbers"),
    ("7.5", left("before"), "1 of the four bugs is left: look at what was there before"),
    (
        "7.5",
        left("twice", "part", "before"),
        "3 of the four bugs are left: look at a tensor that two layers save, and at a tensor that is a part of another, "
        "and at what was there before",
    ),
    ("7.5", COUNTED.replace("storage.data", "tensor.data"), "ask what is saved for its storage's place"),
    ("7.5", ELSEWHERE, "ask the tensors of `before` for their storages' places"),
    (
        "7.5",
        ELSEWHERE.replace("storage.data", "tensor.data"),
        "ask what is saved for its storage's place; and ask the tensors of `before`",
    ),
    ("7.5", keyed("id(tensor)"), "3 of the four bugs are left: look at a tensor that is a part"),
    ("7.5", keyed("id(tensor)"), "and at what was there before; and id() tells Python's objects apart"),
    ("7.5", keyed("id(tensor)", "id(t)"), "id() tells Python's objects apart, and several may lie in one storage"),
    ("7.5", keyed("id(tensor)", "id(t)"), "and `before` is a list of Python's objects"),
    (
        "7.5",
        keyed("tensor.data_ptr()", "t.data_ptr()").replace("if tensor.is_floating_point():", "if True:"),
        "1 of the four bugs is left: look at a tensor that is a part of another; and a part of a tensor may lie",
    ),
    ("7.5", but(LISTED, "len(t.untyped_storage())", "4 * t.numel()"), "not every number has four bytes"),
    ("7.5", but(COUNTED, "    return tensor\n", ""), "TypeError"),
    ("7.6", RELU, "✅"),
    ("7.6", BY_HAND, "✅"),
    ("7.6", "torch.relu(x)", "the numbers themselves"),
    ("7.6", but(RELU, "pack_bits(mask)", "pack_bits(x)"), "pack_bits packs truth values, got torch.float32"),
    ("7.6", but(RELU, "bits, =", "bits ="), "`ctx.saved_tensors` is a tuple"),
    ("7.6", but(RELU, "unpack_bits(bits, grad.shape)", "bitts"), "NameError"),
    ("7.6", but(RELU, "return x * mask", "return x.clone()"), "negative ones should become 0"),
    ("7.6", but(RELU, "return x * mask", "return mask.to(x)"), "these are the truth values"),
    ("7.6", but(RELU, "return x * mask", "return mask"), "what comes out are the numbers"),
    ("7.6", but(RELU, "return x * mask", "return x.abs()"), "do not change their sign"),
    ("7.6", but(RELU, "return x * mask", "return x.clamp(0, 1)"), "nothing ends at 1 or 6"),
    ("7.6", but(RELU, "return x * mask", "return x.clamp(max=0)"), "that keeps the negative numbers"),
    ("7.6", but(RELU, "return x * mask", "return x.clamp_(min=0)"), "it changes the tensor it is given"),
    ("7.6", but(RELU, "torch.where(mask, grad, 0)", "grad"), "the gradient passes everywhere"),
    ("7.6", but(RELU, "torch.where(mask, grad, 0)", "None"), "no gradient passes"),
    ("7.6", but(RELU, "x > 0", "x >= 0"), "take x > 0 and not x >= 0"),
    ("7.6", but(RELU, "torch.where(mask, grad, 0)", "mask.to(grad)"), "the gradient is 1, whatever came from above"),
    ("7.6", but(RELU, "torch.where(mask, grad, 0)", "torch.where(mask, 0, grad)"), "the other way round"),
    (
        "7.6",
        but(but(RELU, "pack_bits(mask)", "x"), "unpack_bits(bits, grad.shape)", "bits > 0"),
        "the numbers themselves",
    ),
    (
        "7.6",
        but(but(RELU, "pack_bits(mask)", "mask"), "unpack_bits(bits, grad.shape)", "bits"),
        "a truth value takes a byte",
    ),
    (
        "7.6",
        but(
            but(RELU, "pack_bits(mask)", "x"), "mask = unpack_bits(bits, grad.shape)", "mask = bits.clamp(min=0)"
        ).replace("torch.where(mask, grad, 0)", "grad * mask"),
        "the gradient is multiplied by x",
    ),
    (
        "7.6",
        but(RELU, "ctx.save_for_backward(pack_bits(mask))", "ctx.bits = pack_bits(mask)").replace(
            "bits, = ctx.saved_tensors", "bits = ctx.bits"
        ),
        "is not in ctx.save_for_backward",
    ),
    (
        "7.6",
        but(RELU, "pack_bits(mask))", "pack_bits(mask), mask)").replace("bits, =", "bits, _ ="),
        "one bit each is enough",
    ),
    ("7.6", "x.detach().clamp(min=0)", "for autograd they are constants"),
    ("7.7", MOST + LENGTHS, "✅"),
    ("7.7", MOST + FREE, "✅"),
    (
        "7.7",
        MOST + "from itertools import combinations\nplaces, plans = range(1, len(inputs)), []\n"
        "for count in range(len(inputs)):\n    plans += [[0, *cuts] for cuts in combinations(places, count)]\n"
        "return min(plans, key=most)",
        "✅",
    ),
    ("7.7", "[0]", "all inputs are there at once"),
    ("7.7", "list(range(len(inputs)))", "all inputs are there at once"),
    ("7.7", "list(range(0, len(inputs), round(len(inputs) ** 0.5)))", "the root of the number of layers"),
    ("7.7", "list(range(0, len(inputs), math.ceil(len(inputs) ** 0.5)))", "rounded up"),
    ("7.7", "[0, len(inputs) // 2][: len(inputs)]", "that is two segments"),
    ("7.7", ALL + LENGTHS, "the first inputs of later segments are gone"),
    ("7.7", "list(range(0, len(inputs), 5))", "the most bytes at once: at most "),
    ("7.7", "4", "a list of places is asked for"),
    ("7.7", MOST + but(LENGTHS, "return best", "return best[1:] or [1]"), "the first segment begins at 0"),
    ("7.7", MOST + but(LENGTHS, "return best", "return best + [len(inputs)]"), "places go up"),
    ("7.7", "inputs", "the first segment begins at 0"),
]

EQUIVALENT = {
    ("7.7", "plans = [list(range(0, len(inputs), length)) for length in range(1, len(inputs) + 2)]"): (
        "a length of more than all layers is one segment once more"
    ),
}
