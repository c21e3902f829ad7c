"""Answers to exercise 03 as students write them: task, the text in the place of the solution, what check says."""

from solving import ROOT, reference

PATH = ROOT / "solutions" / "03_layers_and_model.ipynb"
LINEAR, INITIALIZE, SIZE, USAGE, MENDED, DESIGN = (
    reference(PATH, task) for task in ("3.2", "3.3", "3.4", "3.5", "3.6", "3.7")
)


LOAD = "new.load_state_dict(old.state_dict())"
PACKED = "packed = codes if layer.bits > 4 else (codes + 1) // 2"
LEARNED = "p.numel() for p in model.parameters()"
NORMAL = "nn.init.normal_(layer.weight, std=(gain / inputs) ** 0.5)"
GAIN = "gain = 2 if isinstance(layer, nn.Conv2d) else 1"
CONV = (
    "F.conv2d(x, fake_quantize(self.weight, self.bits), "
    "self.bias, self.stride, self.padding, self.dilation, self.groups)"
)

ANSWERS = [
    ("3.1", "self._conv_forward(x, fake_quantize(self.weight, self.bits), self.bias)", "✅"),
    (
        "3.1",
        "w = self.weight + (fake_quantize(self.weight, self.bits) - self.weight).detach()\n"
        "return self._conv_forward(x, w, self.bias)",
        "✅",
    ),
    ("3.1", "super().forward(x)", "the weight is not rounded"),
    ("3.1", CONV.replace(", self.bits", ""), "use self.bits"),
    ("3.1", CONV.replace("self.padding, self.dilation", "0, self.dilation"), "did you forget the padding?"),
    ("3.1", CONV.replace("self.stride", "1"), "did you forget the stride?"),
    ("3.1", "F.conv2d(x, fake_quantize(self.weight, self.bits), self.bias, groups=self.groups)", "stride and padding?"),
    ("3.1", CONV.replace("self.dilation", "1"), "did you forget the dilation?"),
    ("3.1", CONV.replace(", self.groups", ""), "a layer of two groups"),
    ("3.1", CONV.replace("self.bias", "None"), "did you forget the bias?"),
    (
        "3.1",
        "b = None if self.bias is None else fake_quantize(self.bias, self.bits)\nreturn "
        + CONV.replace("self.bias", "b"),
        "the bias is rounded, too",
    ),
    ("3.1", CONV.replace("(x,", "(fake_quantize(x, self.bits),"), "what comes in is rounded, too"),
    ("3.1", CONV.replace("self.bits)", "self.bits, per_channel=True)"), "a scale for each channel?"),
    (
        "3.1",
        "self.weight.data = fake_quantize(self.weight.data, self.bits)\nreturn super().forward(x)",
        "it is the master weight",
    ),
    (
        "3.1",
        "self.weight = nn.Parameter(fake_quantize(self.weight, self.bits))\nreturn super().forward(x)",
        "it is the master weight",
    ),
    ("3.1", CONV.replace("self.weight,", "self.weight.detach(),"), "no gradient comes back"),
    (
        "3.1",
        "s = self.weight.detach().abs().max() / (2 ** (self.bits - 1) - 1)\nw = s * torch.round(self.weight / s)\n"
        "return self._conv_forward(x, w, self.bias)",
        "gets no gradient through its rounding",
    ),
    (
        "3.2",
        "if self.bits == 32:\n    return super().forward(x)\n"
        "return F.linear(x, fake_quantize(self.weight, self.bits), self.bias)",
        "✅",
    ),
    (
        "3.2",
        "w = fake_quantize(self.weight, self.bits) if self.bits < 9 else self.weight\ny = x @ w.T\n"
        "return y if self.bias is None else y + self.bias",
        "✅",
    ),
    ("3.2", "super().forward(x)", "the weight is not rounded"),
    ("3.2", "F.linear(x, fake_quantize(self.weight, self.bits), self.bias)", "bits must be 2..8, got 32"),
    ("3.2", LINEAR.replace("weight, self.bits", "weight"), "use self.bits"),
    ("3.2", "F.linear(x, fake_quantize(self.weight, min(self.bits, 8)), self.bias)", "not rounded at all: yours is"),
    ("3.2", "F.linear(x, fake_quantize(self.weight), self.bias)", "with other bits than 4 your grid is another"),
    (
        "3.2",
        "F.linear(x, fake_quantize(self.weight) if self.bits == 32 else self.weight, self.bias)",
        "other way round",
    ),
    ("3.2", LINEAR.replace(", self.bias", ""), "did you forget the bias?"),
    (
        "3.2",
        "w = self.weight if self.bits == 32 else fake_quantize(self.weight, self.bits)\nreturn x @ w.T + self.bias",
        "a layer of 8 bits without bias",
    ),
    ("3.2", LINEAR.replace("self.bits)", "self.bits, per_channel=True)"), "a scale for each channel?"),
    ("3.2", LINEAR.replace("fake_quantize(self.weight", "fake_quantize(self.weight.data"), "no gradient comes back"),
    (
        "3.3",
        "kernel = layer.weight[0][0].numel()\nfan = layer.weight.shape[1] * kernel\n"
        "layer.weight.data = torch.randn_like(layer.weight) * ((1 + (kernel > 1)) / fan) ** 0.5\n"
        "if layer.bias is not None:\n    layer.bias.data.fill_(0)\nreturn layer",
        "✅",
    ),
    (
        "3.3",
        "kind = 'relu' if isinstance(layer, nn.Conv2d) else 'linear'\n"
        "nn.init.kaiming_normal_(layer.weight, nonlinearity=kind)\n"
        "if layer.bias is not None:\n    nn.init.constant_(layer.bias, 0.0)\nreturn layer",
        "✅",
    ),
    ("3.3", INITIALIZE.replace(" ** 0.5", ""), "this is the variance"),
    ("3.3", INITIALIZE.replace(GAIN, "gain = 1"), "a convolution's variance has a 2"),
    ("3.3", INITIALIZE.replace(GAIN, "gain = 2"), "the 2 belongs to convolutions"),
    ("3.3", INITIALIZE.replace("layer.weight[0].numel()", "layer.weight.shape[1]"), "you left out the kernel"),
    ("3.3", INITIALIZE.replace("layer.weight[0].numel()", "layer.weight.shape[0]"), "you divided by the outputs"),
    ("3.3", INITIALIZE.replace("layer.weight[0].numel()", "layer.weight[:, 0].numel()"), "you divided by the outputs"),
    ("3.3", INITIALIZE.replace(", std=(gain / inputs) ** 0.5", ""), "the deviation is 1"),
    (
        "3.3",
        INITIALIZE.replace(
            NORMAL,
            "a = (3 * gain / inputs) ** 0.5\nnn.init.uniform_(layer.weight, -a, a)",
        ),
        "these are no normal numbers",
    ),
    ("3.3", INITIALIZE.replace("nn.init.zeros_", "nn.init.ones_"), "the biases should be 0"),
    ("3.3", INITIALIZE.replace("nn.init.zeros_(layer.bias)", "pass"), "the biases should be 0"),
    ("3.3", INITIALIZE.replace("return layer", "return None"), "it returns None: return the layer"),
    ("3.3", INITIALIZE.replace("return layer", "return layer.weight"), "the same layer should come back"),
    ("3.3", "return layer", "the weights are as torch made them"),
    ("3.3", "torch.manual_seed(0)\n" + INITIALIZE, "do not set the seed"),
    (
        "3.3",
        "nn.init.normal_(layer.weight, std=layer.weight[0].numel() ** -0.5)\nnn.init.zeros_(layer.bias)\nreturn layer",
        "a convolution's variance has a 2",
    ),
    (
        "3.4",
        "total, weights = 0, {}\nfor name, layer in quantized_layers(model).items():\n"
        "    weights[name + '.weight'] = layer.bits\n"
        "for name, t in model.state_dict().items():\n    bits = weights.get(name, 32)\n"
        "    if bits == 32:\n        total += t.nbytes\n    else:\n"
        "        total += 4 + (-(-t.numel() // 2) if bits < 5 else t.numel())\n"
        "return sum(map(torch.numel, model.parameters())), total",
        "✅",
    ),
    (
        "3.4",
        "import math\n"
        + SIZE.replace("(codes + 1) // 2", "math.ceil(codes / 2)").replace(
            "return parameters, size_in_bytes", "return [parameters, float(size_in_bytes)]"
        ),
        "✅",
    ),
    ("3.4", SIZE.replace(LEARNED, "t.numel() for t in model.state_dict().values()"), "parameters: a state dict holds"),
    (
        "3.4",
        SIZE.replace(LEARNED, "m.weight.numel() for m in quantized_layers(model).values()"),
        "parameters: these are the weights",
    ),
    ("3.4", SIZE.replace("p.numel() for", "1 for"), "parameters: these are the tensors"),
    ("3.4", SIZE.replace("p.numel() for", "p.nbytes for"), "parameters: these are bytes"),
    ("3.4", SIZE.replace("size_in_bytes += packed + 4 - 4 * codes", "pass"), "bytes: that is all in FP32"),
    ("3.4", SIZE.replace("packed + 4 -", "packed -"), "bytes: the scales are missing"),
    (
        "3.4",
        SIZE.replace("t in model.state_dict().values()", "t in model.parameters()"),
        "bytes: batch norm's running mean",
    ),
    ("3.4", SIZE.replace("(codes + 1) // 2", "codes // 2"), "bytes: an odd number of codes"),
    ("3.4", SIZE.replace("codes if layer.bits > 4 else ", ""), "bytes: codes of 5 to 8 bits take a byte each"),
    ("3.4", SIZE.replace(PACKED, "packed = codes"), "bytes: two codes share a byte"),
    (
        "3.4",
        SIZE.replace(PACKED, "packed = (codes * layer.bits + 7) // 8"),
        "bytes: this format does not pack 2 bits tighter",
    ),
    ("3.4", SIZE.replace("    if layer.bits <= 8:", "    if True:"), "bytes: a layer of 32 bits has no codes"),
    (
        "3.4",
        SIZE.replace("return parameters, size_in_bytes", "return parameters, 8 * size_in_bytes"),
        "bytes: these are bits",
    ),
    ("3.4", SIZE.replace("return parameters, size_in_bytes", "return size_in_bytes"), "two numbers are asked for"),
    (
        "3.4",
        SIZE.replace("return parameters, size_in_bytes", "return size_in_bytes, parameters"),
        "parameters are asked for, yours are",
    ),
    (
        "3.5",
        "report = {}\nfor name, layer in quantized_layers(model).items():\n"
        "    codes = quantize(layer.weight, layer.scale(), layer.bits).flatten().tolist()\n"
        "    p = torch.tensor([codes.count(c) / len(codes) for c in set(codes)])\n"
        "    report[name] = (len(p), (p * (1 / p).log2()).sum())\nreturn report",
        "✅",
    ),
    (
        "3.5",
        "from q4lib.quant import statistics\nout = {}\nfor name, layer in quantized_layers(model).items():\n"
        "    s = statistics(layer.weight, layer.bits, layer.per_channel)\n    out[name] = [s['levels'], s['entropy']]\n"
        "return out",
        "✅",
    ),
    ("3.5", USAGE.replace("log2", "log"), "that is the natural logarithm"),
    ("3.5", USAGE.replace("-(share", "(share"), "*minus* p * log2(p)"),
    ("3.5", USAGE.replace("len(share), -", "2**layer.bits - 1, -"), "levels counts the codes that occur"),
    ("3.5", USAGE.replace("len(share), -", "len(layer.weight.unique()), -"), "not different master weights"),
    (
        "3.5",
        USAGE.replace("layer.scale()", "layer.weight.abs().max() / (2 ** (layer.bits - 1) - 1)"),
        "one for each channel",
    ),
    (
        "3.5",
        "from q4lib.quant import scale\n"
        + USAGE.replace("layer.scale(), layer.bits", "scale(layer.weight, 4, layer.per_channel), 4"),
        "layer.bits, not 4",
    ),
    (
        "3.5",
        USAGE.replace(
            "len(share), -(share * share.log2()).sum().item()", "-(share * share.log2()).sum().item(), len(share)"
        ),
        "the pair is the wrong way round",
    ),
    ("3.5", USAGE.replace("return report", "return list(report.values())"), "a dictionary is asked for"),
    ("3.5", USAGE.replace("report[name]", "report[name.split('.')[-1]]"), "the names should be those"),
    ("3.5", USAGE.replace(" / codes.numel()", ""), "levels and"),
    (
        "3.6",
        "import torch.nn as n\nmodel = copy.deepcopy(model)\nfor path, old in list(model.named_modules()):\n"
        "    if isinstance(old, n.Conv2d):\n"
        "        new = Conv4bit(old.in_channels, old.out_channels, old.kernel_size, bits=bits)\n"
        "        new.stride, new.padding = old.stride, old.padding\n"
        "    elif isinstance(old, n.Linear):\n        new = Linear4bit(old.in_features, old.out_features, bits=bits)\n"
        "    else:\n        continue\n"
        "    new.weight.data.copy_(old.weight.data)\n    new.bias.data.copy_(old.bias.data)\n"
        "    parent, _, name = path.rpartition('.')\n    setattr(model.get_submodule(parent), name, new)\nreturn model",
        "✅",
    ),
    ("3.6", MENDED.replace(LOAD, "new.weight, new.bias = old.weight, old.bias"), "✅"),
    ("3.6", "broken(model, bits)", "5 bugs left that can be seen"),
    ("3.6", "broken(copy.deepcopy(model), bits)", "4 bugs left"),
    ("3.6", MENDED.replace("model = copy.deepcopy(model)\n", ""), "the network that it is given is another afterwards"),
    ("3.6", MENDED.replace(", old.stride, old.padding", ""), "1 bug left that can be seen: a convolution has lost"),
    ("3.6", MENDED.replace("mended(old, bits)", "old"), "some layers are still FP32, inside of a block"),
    ("3.6", MENDED.replace("mended(old, bits)", "mended(old)"), "another number of bits"),
    (
        "3.6",
        MENDED.replace(
            LOAD,
            "new.weight.data = fake_quantize(old.weight.data, bits)\n        new.bias.data = old.bias.data",
        ),
        "1 bug left that can be seen: a layer's master weight is rounded",
    ),
    ("3.6", MENDED.replace(LOAD, "new.weight.data = old.weight.data"), "a layer has not got its old bias"),
    ("3.6", MENDED.replace(LOAD, "new.bias.data = old.bias.data"), "a layer has not got its old weight"),
    ("3.6", "return model.state_dict()", "a network is asked for"),
    (
        "3.7",
        "nn.Sequential(nn.AvgPool2d(4), nn.Flatten(), Linear4bit(192, 64), nn.BatchNorm1d(64), nn.ReLU(), "
        "Linear4bit(64, 10, bits=8))",
        "✅",
    ),
    (
        "3.7",
        "class Net(nn.Module):\n    def __init__(self):\n        super().__init__()\n"
        "        self.a = Conv4bit(3, 24, 4, stride=4, bits=8)\n        self.norm = nn.BatchNorm2d(24)\n"
        "        self.b = Conv4bit(24, 24, 3, padding=1, bits=2)\n        self.fc = Linear4bit(24, 10)\n"
        "    def forward(self, x):\n        x = F.relu(self.norm(self.a(x)))\n        x = x + F.relu(self.b(x))\n"
        "        return self.fc(F.max_pool2d(x, 4).mean((2, 3)))\nreturn Net()",
        "✅",
    ),
    ("3.7", "SimpleResNet4bit()", "bytes, 28,844 too many"),
    ("3.7", DESIGN.replace("Conv4bit(", "nn.Conv2d("), "is not on the grid"),
    ("3.7", DESIGN.replace("10)", "10, bits=32)"), "has 32 bits: 8 are the most"),
    ("3.7", DESIGN.replace("stride=2", "stride=1"), "multiply-adds an image"),
    ("3.7", DESIGN.replace("Linear4bit(32, 10)", "Linear4bit(32, 100)"), "should give logits of shape (1, 10)"),
    ("3.7", DESIGN.replace(", nn.Flatten()", ""), "RuntimeError"),
    ("3.7", DESIGN.replace(", nn.ReLU()", ""), "nothing bends"),
    ("3.7", DESIGN.replace("Linear4bit(32, 10))", "Linear4bit(32, 10), nn.Softmax(1))"), "it ends with a softmax"),
    ("3.7", DESIGN.replace("Linear4bit(32, 10))", "Linear4bit(32, 10), nn.LogSoftmax(1))"), "it ends with a softmax"),
    (
        "3.7",
        DESIGN.replace(
            "nn.Flatten(), Linear4bit(32, 10)", "nn.Flatten(), Linear4bit(32, 10), nn.Hardtanh(-0.01, 0.01)"
        ),
        "bring the loss to",
    ),
    ("3.7", "nn.Sequential", "a network is asked for"),
]

LAYERS = "layers += [Conv4bit(channels, width, 3, stride={}, padding={}), nn.BatchNorm2d(width), nn.ReLU()]"
EQUIVALENT = {
    ("3.3", "inputs = layer.weight[1].numel()"): "each output has as many inputs as the first",
    ("3.4", "if layer.bits <= 9:"): "no layer has 9 bits: 2 to 8, or 32",
    ("3.5", "report[name] = (len(share), -(share * share.log2()).sum())"): "a tensor with one number does as well",
    ("3.7", "widths = (3, 17, 32, 32)"): "another design within the rules",
    ("3.7", "widths = (3, 16, 33, 32)"): "another design within the rules",
    ("3.7", LAYERS.format(3, 1)): "another design within the rules",
    ("3.7", LAYERS.format(2, 2)): "another design within the rules",
}
