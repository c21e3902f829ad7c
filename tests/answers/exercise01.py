"""Answers to exercise 01 as students write them: task, the text in the place of the solution, what check says."""

ANSWERS = [
    ("1.1", "torch.maximum(-w.min(), w.max()) / (2 ** (bits - 1) - 1)", "✅"),
    ("1.1", "w.detach().flatten().norm(float('inf')) / float(2 ** bits // 2 - 1)", "✅"),
    ("1.1", "torch.amax(torch.abs(w)) * (1 / ((1 << bits - 1) - 1))", "✅"),
    ("1.1", "w.abs().max() / 2 ** (bits - 1)", "did you divide by 2**(bits - 1), 8 at 4 bits?"),
    ("1.1", "w.abs().max() / (2 ** bits - 1)", "did you divide by the number of levels, 15"),
    ("1.1", "2 * w.abs().max() / (2 ** bits - 1)", "15 levels have 14 steps"),
    ("1.1", "w.abs().max() / (2 ** bits - 2)", "did you divide by 14"),
    ("1.1", "w.max() / (2 ** (bits - 1) - 1)", "did you take w.max()?"),
    ("1.1", "(w.max() - w.min()) / (2 ** bits - 2)", "did you spread the levels from w.min() to w.max()?"),
    ("1.1", "w.abs().max() / 7", "it is right at 4 bits only"),
    ("1.1", "w.abs().max()", "this is max|w| itself"),
    ("1.1", "(2 ** (bits - 1) - 1) / w.abs().max()", "it is the other way round"),
    ("1.1", "w.abs() / (2 ** (bits - 1) - 1)", "one scale is asked for"),
    ("1.1", "w.abs().max().item() / (2 ** (bits - 1) - 1)", "a tensor is asked for, yours is of type float"),
    ("1.1", "w.abs().mean() / (2 ** (bits - 1) - 1)", "for six weights at 4 bits: "),
    ("1.1", "w.abs_().max() / (2 ** (bits - 1) - 1)", "it changes the tensor it is given (argument 1)"),
    ("1.1", "abs(w).max() / largest", "NameError: name 'largest' is not defined"),
    ("1.2", "torch.clamp(torch.round(w / scale), 1 - 2 ** (bits - 1), 2 ** (bits - 1) - 1).type(torch.int8)", "✅"),
    ("1.2", "m = 2 ** (bits - 1) - 1\nx = w * (1 / scale)\nreturn x.clamp(-m, m).round().char()", "✅"),
    (
        "1.2",
        "m = 2 ** (bits - 1) - 1\nx = w.detach().numpy() / scale.detach().numpy()\n"
        "return torch.from_numpy(x.round().clip(-m, m)).to(torch.int8)",
        "✅",
    ),
    ("1.2", "(w / scale).clamp(1 - 2 ** (bits - 1), 2 ** (bits - 1) - 1).to(torch.int8)", "did you cut off"),
    ("1.2", "(w / scale).floor().clamp(1 - 2 ** (bits - 1), 2 ** (bits - 1) - 1).to(torch.int8)", "use floor()?"),
    (
        "1.2",
        "(w / scale + 0.5).floor().clamp(1 - 2 ** (bits - 1), 2 ** (bits - 1) - 1).to(torch.int8)",
        "half way between two codes goes to the even one",
    ),
    ("1.2", "(w / scale).round().to(torch.int8)", "you forgot to clamp"),
    ("1.2", "(w / scale).round().clamp(max=2 ** (bits - 1) - 1).to(torch.int8)", "the clamp is missing below"),
    ("1.2", "(w / scale).round().clamp(min=1 - 2 ** (bits - 1)).to(torch.int8)", "the clamp is missing above"),
    ("1.2", "(w / scale).round().clamp(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1).to(torch.int8)", "let -8 in?"),
    ("1.2", "(w / scale).round().clamp(-7, 7).to(torch.int8)", "it is right at 4 bits only"),
    ("1.2", "(w / scale).round().clamp(1 - 2 ** (bits - 1), 2 ** (bits - 1) - 1)", "turn them into integers"),
    ("1.2", "(w / scale).round().clamp(1 - 2 ** (bits - 1), 2 ** (bits - 1) - 1).int()", "should be torch.int8, yours"),
    ("1.2", "(w / scale).round().clamp(1 - 2 ** (bits - 1), 2 ** (bits - 1) - 1) * scale", "these are weights again"),
    ("1.2", "(w * scale).round().clamp(1 - 2 ** (bits - 1), 2 ** (bits - 1) - 1).to(torch.int8)", "did you multiply"),
    (
        "1.2",
        "m = 2 ** (bits - 1) - 1\nreturn (w / (w.abs().max() / m)).round().clamp(-m, m).to(torch.int8)",
        "use the scale that you are given",
    ),
    ("1.2", "w /= scale\nreturn w.round().clamp(-7, 7).to(torch.int8)", "it changes the tensor it is given"),
    ("1.3", "s = scale(w, bits)\nreturn w.clone() if not w.any() else (w / s).round() * s", "✅"),
    (
        "1.3",
        "q = 2 ** (bits - 1) - 1\ns = max(w.abs().max().item() / q, 1e-30)\n"
        "return torch.fake_quantize_per_tensor_affine(w.float(), s, 0, -q, q).to(w.dtype)",
        "for weights of type float64",
    ),
    (
        "1.3",
        "s = scale(w, bits)\ns = torch.where(s == 0, torch.ones_like(s), s)\nreturn quantize(w, s, bits) * s",
        "✅",
    ),
    ("1.3", "s = scale(w, bits)\nreturn (w / s).round() * s", "0 / 0 is nan"),
    (
        "1.3",
        "s = w.abs().max() / 2 ** (bits - 1)\nreturn w * 0 if s == 0 else quantize(w, s, bits) * s",
        "8 at 4 bits?",
    ),
    (
        "1.3",
        "s = w.max() / (2 ** (bits - 1) - 1)\nreturn w * 0 if s == 0 else quantize(w, s, bits) * s",
        "did you take w.max()?",
    ),
    ("1.3", "s = scale(w)\nreturn w.clone() if s == 0 else quantize(w, s) * s", "it is right at 4 bits only"),
    ("1.3", "s = scale(w, bits)\nreturn w.clone() if s == 0 else (w / s).int() * s", "did you cut off"),
    (
        "1.3",
        "s = scale(w, bits) + (w.abs().max() == 0)\nq = 2 ** (bits - 1) - 1\nreturn (w / s).floor().clamp(-q, q) * s",
        "did you use floor()?",
    ),
    ("1.3", "quantize(w, scale(w, bits), bits)", "these are the codes: multiply"),
    ("1.3", "quantize(w, scale(w, bits), bits).to(w.dtype)", "these are the codes, as floats"),
    ("1.3", "w", "nothing has been rounded"),
    (
        "1.3",
        "s = w.abs().flatten(1).amax(1) if w.dim() > 1 else w.abs().max()\ns = s / (2 ** (bits - 1) - 1)\n"
        "s = s.view(-1, *[1] * (w.dim() - 1)).clamp_min(1e-30)\nreturn (w / s).round() * s",
        "did you take a scale for each channel?",
    ),
    (
        "1.3",
        "if bits == 4:\n    s = scale(w)\n    return w.clone() if s == 0 else quantize(w, s) * s",
        "it returns None",
    ),
    ("1.4", "w.abs().flatten(1).amax(1).view(-1, *[1] * (w.dim() - 1)) / (2 ** (bits - 1) - 1)", "✅"),
    (
        "1.4",
        "s = torch.stack([scale(channel, bits) for channel in w])\n"
        "while s.dim() < w.dim():\n    s = s.unsqueeze(-1)\nreturn s",
        "✅",
    ),
    ("1.4", "w.abs().max() / (2 ** (bits - 1) - 1)", "this is one scale for all weights"),
    ("1.4", "w.abs().flatten(1).amax(1) / (2 ** (bits - 1) - 1)", "their shape is (out,)"),
    ("1.4", "w.abs().amax(dim=0, keepdim=True) / (2 ** (bits - 1) - 1)", "the largest over the output channels?"),
    ("1.4", "w.abs().amax(dim=-1, keepdim=True) / (2 ** (bits - 1) - 1)", "over the last dimension only"),
    ("1.4", "w.abs().amax(dim=(1, 2, 3), keepdim=True) / (2 ** (bits - 1) - 1)", "(a linear layer's weights, (4, 7))"),
    (
        "1.4",
        "w.amax(tuple(range(1, w.dim())), keepdim=True) / (2 ** (bits - 1) - 1)",
        "did you take w.amax(...)?",
    ),
    ("1.4", "w.abs().amax(tuple(range(1, w.dim())), keepdim=True) / 2 ** (bits - 1)", "8 at 4 bits?"),
    ("1.4", "w.abs().amax(tuple(range(1, w.dim())), keepdim=True) / 7", "it is right at 4 bits only"),
    ("1.5", "s = amax / (2 ** (bits - 1) - 1)\nreturn (w.clamp(-amax, amax) / s).round() * s", "✅"),
    (
        "1.5",
        "q = 2 ** (bits - 1) - 1\nw = w / (amax / q)\nw.round_().clamp_(min=-q, max=q)\nreturn w * (amax / q)",
        "✅",
    ),
    ("1.5", "broken(w, amax, bits)", "it changes the tensor it is given (argument 1)"),
    ("1.5", "broken(w.clone(), amax, bits)", "3 of the four bugs are left"),
    (
        "1.5",
        "m = 2 ** (bits - 1) - 1\ns = amax / m\nreturn (w / s).int().clamp(-m, m) * s",
        "1 of the four bugs is left: look at weights between two levels",
    ),
    (
        "1.5",
        "m = 2 ** (bits - 1) - 1\ns = amax / m\nreturn (w / s).round().clamp(max=m) * s",
        "1 of the four bugs is left: look at weights below -amax",
    ),
    (
        "1.5",
        "m = 2 ** (bits - 1)\ns = amax / m\nreturn (w / s).round().clamp(max=m) * s",
        "2 of the four bugs are left: look at the last level, which should lie at amax, and at weights below",
    ),
    ("1.5", "s = amax / 7\nreturn (w / s).round().clamp(-7, 7) * s", "it is right at 4 bits only"),
    (
        "1.6",
        "torch.manual_seed(1)\nw = torch.randn(4, 50) * torch.tensor([[1.0], [0.1], [2.0], [0.5]])\nw[0, 0] = -9\n"
        "good = True\n"
        "for x in [w, torch.zeros(5)]:\n    for bits in range(2, 9):\n        y = x.clone()\n"
        "        good = good and torch.allclose(quantizer(y, bits), fake_quantize(x, bits), atol=1e-6)\n"
        "        good = good and torch.equal(x, y)\nreturn good",
        "✅",
    ),
    (
        "1.6",
        "w = torch.tensor([[-3.0, 1.2, 0.7], [0.05, -0.1, 0.13]])\nx = w.clone()\n"
        "for bits, step in [(4, 3 / 7), (3, 1.0)]:\n    wq = quantizer(x, bits)\n"
        "    if len(wq.unique()) > 7 or not (wq / step - (w / step).round()).abs().max() < 1e-3:\n        return False\n"
        "return bool((x == w).all() and (quantizer(torch.zeros(2), 4) == 0).all())",
        "✅",
    ),
    (
        "1.6",
        "w = torch.randn(9)\nreturn (quantizer(w) != w).any()",
        "it finds 2 of 8 broken quantizers; one that it lets pass divides by 8",
    ),
    ("1.6", "True", "it accepts every quantizer"),
    ("1.6", "False", "it rejects a quantizer that is right"),
    (
        "1.6",
        "w = torch.tensor([0.31, -0.84, 0.05, 0.58, -0.2])\nreturn torch.allclose(quantizer(w), fake_quantize(w))",
        "it finds 4 of 8 broken quantizers; one that it lets pass always takes 4 bits",
    ),
    (
        "1.6",
        "w = torch.tensor([[0.31, -0.84, 0.05], [0.58, -0.2, 0.33]])\n"
        "return all(torch.allclose(quantizer(w, b), fake_quantize(w, b)) for b in (3, 4, 5))",
        "it finds 6 of 8 broken quantizers; one that it lets pass gives nan",
    ),
]

EQUIVALENT = {
    ("1.3", "if s == 1:"): "0 / 0 is nan, and nan becomes 0 as an integer on the processors we know",
    ("1.3", "return w"): "the zeros themselves in place of a copy: seen only by who changes the result in place",
    ("1.6", "mixed = torch.tensor([[-2.0, 0.3, 0.9], [0.05, 0.6, 0.7]])"): "other weights do as well",
    ("1.6", "for w in (mixed, torch.zeros(4)):"): "any number of zeros does",
}
