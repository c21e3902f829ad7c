"""Answers to exercise 05 as students write them: task, the text in the place of the solution, what check says."""

import torch._dynamo  # noqa: F401, the first optimizer of a session loads it, and a check would not wait for that

FACTOR = "norm = torch.stack([g.norm() for g in gradients]).norm()\n{}\nreturn [g * factor for g in gradients]"
DECAY = "w = w * (1 - learning_rate * decay)\n"
MEANS = "m = 0.9 * m + 0.1 * g\nv = 0.999 * v + 0.001 * g * g\n"
HATS = "a, b = m / (1 - 0.9**t), v / (1 - 0.999**t)\n"
MOVE = "w = w - learning_rate * a / (b**0.5 + 1e-8)\n"
END = "return w, m, v"
PLACE = "with torch.no_grad():\n    for p in parameters:\n        if {}:\n            p.copy_({})\n"
COUNT = "return sum(p.dim() >= 2 for p in parameters)"
CODES = "def codes(w):\n    return quantize(w, scale(w, bits), bits)\n"

WHOLE = """\
gradients = [p.grad for p in parameters]
norm = torch.cat([g.flatten() for g in gradients]).norm()
clipped = clip_gradients(gradients, max_norm)
state["t"] = state.get("t", 0) + 1
for p, g in zip(parameters, clipped):
    m, v = state.get(p, (torch.zeros_like(p), torch.zeros_like(p)))
    w, m, v = adamw_step(p.detach(), g, m, v, state["t"], learning_rate, decay)
    state[p] = m, v
    p.data = w
soft_clip(parameters, c)
return norm
"""
MENDED = """\
group, state = optimizer.param_groups[0], optimizer.state
state["t"] = state.get("t", 0) + 1
norm = torch.cat([p.grad.flatten() for p in group["params"]]).norm()
factor = min(1, group["grad_clip"] / norm)
for p in group["params"]:
    g, w = factor * p.grad, p.detach()
    if not state[p]:
        state[p]["m"], state[p]["v"] = 0 * w, 0 * w
    m = state[p]["m"].lerp_(g, 0.1)
    v = state[p]["v"].lerp_(g * g, 0.001)
    w.mul_(1 - group["lr"] * group["weight_decay"])
    w.sub_(group["lr"] * m / (1 - 0.9 ** state["t"]) / ((v / (1 - 0.999 ** state["t"])).sqrt() + 1e-8))
    if w.dim() > 1:
        w.div_(group["soft_clip"]).tanh_().mul_(group["soft_clip"])
return norm
"""
SIZES = """\
def size(tensors):
    return sum(t.{} for t in tensors)
memories = [v for memory in optimizer.state.values() for v in memory.values() if v is not None]
gradients = [p.grad for p in model.parameters() if p.grad is not None]
return {{"masters": size(model.parameters()), "gradients": size(gradients), "state": size(memories)}}
"""
BYTES = SIZES.format("nbytes")


def but(text, old, new):
    """An answer with a part of it otherwise."""
    assert old in text
    return text.replace(old, new)


LATE = but(but(WHOLE, "clip_gradients(gradients, max_norm)", "gradients"), "return norm", "clip\nreturn norm").replace(
    "clip\n", "nn.utils.clip_grad_norm_(parameters, max_norm)\n"
)
COUPLED = but(
    but(MENDED, "factor * p.grad, p.detach()", "factor * p.grad + group['weight_decay'] * p.detach(), p.detach()"),
    '    w.mul_(1 - group["lr"] * group["weight_decay"])\n',
    "",
)

ANSWERS = [
    ("5.1", FACTOR.format("factor = min(1, max_norm / norm)"), "✅"),
    ("5.1", FACTOR.format("factor = max_norm / norm if norm > max_norm else 1"), "✅"),
    (
        "5.1",
        "parameters = [nn.Parameter(g) for g in gradients]\n"
        "for p, g in zip(parameters, gradients):\n    p.grad = g.clone()\n"
        "nn.utils.clip_grad_norm_(parameters, max_norm)\nreturn [p.grad for p in parameters]",
        "✅",
    ),
    ("5.1", "[g * min(1, max_norm / g.norm()) for g in gradients]", "each tensor is clipped by its own norm"),
    ("5.1", FACTOR.format("factor = max_norm / norm"), "gradients that are short enough have grown"),
    ("5.1", "[g.clamp(-max_norm, max_norm) for g in gradients]", "each number is cut on its own"),
    (
        "5.1",
        "norm = sum(g.norm() for g in gradients)\nreturn [g * min(1, max_norm / norm) for g in gradients]",
        "do not add",
    ),
    ("5.1", FACTOR.format("factor = min(1, max_norm / norm**2)"), "that is the squared norm"),
    (
        "5.1",
        "norm = max(g.norm() for g in gradients)\nreturn [g * min(1, max_norm / norm) for g in gradients]",
        "that is the largest of the norms",
    ),
    ("5.1", "[g.clone() for g in gradients]", "the gradients are as they were"),
    ("5.1", FACTOR.format("factor = min(1, max_norm / norm.item())"), "ZeroDivisionError"),
    ("5.1", "torch.cat([g.flatten() for g in gradients]).norm()", "a list of 3 tensors is asked for"),
    (
        "5.1",
        "norm = torch.cat([g.flatten() for g in gradients]).norm()\n"
        "for g in gradients:\n    g *= min(1, max_norm / norm)\n"
        "return gradients",
        "it changes the gradients it is given",
    ),
    ("5.2", DECAY + MEANS + HATS + MOVE + END, "✅"),
    (
        "5.2",
        "m = m + 0.1 * (g - m)\nv = torch.lerp(v, g**2, 0.001)\n"
        "rate = learning_rate * (1 - 0.999**t) ** 0.5 / (1 - 0.9**t)\n"
        "eps = 1e-8 * (1 - 0.999**t) ** 0.5\n"
        "return w - learning_rate * decay * w - rate * m / (v.sqrt() + eps), m, v",
        "✅",
    ),
    (
        "5.2",
        "p = nn.Parameter(w.clone())\np.grad = g.clone()\n"
        "o = torch.optim.AdamW([p], lr=learning_rate, weight_decay=decay, foreach=False)\n"
        "o.state[p] = {'step': torch.tensor(t - 1.0), 'exp_avg': m.clone(), 'exp_avg_sq': v.clone()}\n"
        "o.step()\nreturn p.detach(), o.state[p]['exp_avg'], o.state[p]['exp_avg_sq']",
        "✅",
    ),
    ("5.2", "g = g + decay * w\n" + MEANS + HATS + MOVE + END, "the weight decay went into the gradient"),
    ("5.2", DECAY + MEANS + "a, b = m, v\n" + MOVE + END, "the bias correction is missing"),
    ("5.2", DECAY + MEANS + "a, b = m / 0.1, v / 0.001\n" + MOVE + END, "that of the first step in every step"),
    ("5.2", MEANS + HATS + MOVE + END, "the weight decay is missing"),
    ("5.2", MEANS + HATS + MOVE + DECAY + END, "as it is before the update"),
    ("5.2", "w = w * (1 - decay)\n" + MEANS + HATS + MOVE + END, "the weight decay is multiplied by the learning rate"),
    ("5.2", DECAY + MEANS + HATS + MOVE + "return w, a, b", "return m and v themselves"),
    ("5.2", DECAY + MEANS + HATS + "w = w - learning_rate * a / (b + 1e-8)\n" + END, "divide by its root"),
    ("5.2", DECAY + but(MEANS, "g * g", "g") + HATS + MOVE + END, "square g"),
    ("5.2", DECAY + MEANS + HATS + "w = w - learning_rate * a / (b + 1e-8) ** 0.5\n" + END, "not to what stands under"),
    ("5.2", DECAY + MEANS + HATS + "w = w - learning_rate * a / b**0.5\n" + END, "gives 0 / 0"),
    ("5.2", DECAY + MEANS + HATS + but(MOVE, "w - ", "w + ") + END, "uphill"),
    (
        "5.2",
        DECAY
        + "m = 0.999 * m + 0.001 * g\nv = 0.9 * v + 0.1 * g**2\na, b = m / (1 - 0.999**t), v / (1 - 0.9**t)\n"
        + MOVE
        + END,
        "0.9 belongs to m",
    ),
    ("5.2", DECAY + MEANS + HATS + MOVE + "return w", "three tensors are asked for"),
    ("5.2", "w *= 1 - learning_rate * decay\n" + MEANS + HATS + MOVE + END, "it changes the tensor it is given"),
    ("5.3", PLACE.format("p.dim() > 1", "c * torch.tanh(p / c)") + COUNT, "✅"),
    (
        "5.3",
        "n = 0\nfor p in parameters:\n    if len(p.shape) != 1:\n"
        "        p.data = torch.tanh(p.data / c) * c\n        n += 1\n"
        "return n",
        "✅",
    ),
    (
        "5.3",
        "from q4lib.optim import soft_clip_\n"
        "w = [p for p in parameters if p.ndim >= 2]\nsoft_clip_(w, c)\nreturn len(w)",
        "✅",
    ),
    (
        "5.3",
        "for p in parameters:\n    if p.dim() >= 2:\n        p = c * torch.tanh(p / c)\n" + COUNT,
        "are what they were",
    ),
    ("5.3", PLACE.format("True", "c * torch.tanh(p / c)") + "return len(parameters)", "biases and batch norm's"),
    (
        "5.3",
        PLACE.format("p.dim() > 2", "c * torch.tanh(p / c)") + but(COUNT, ">= 2", "> 2"),
        "linear layers' weights have two dimensions, and are clipped, too",
    ),
    (
        "5.3",
        PLACE.format("p.dim() == 2", "c * torch.tanh(p / c)") + but(COUNT, ">=", "=="),
        "a convolution's weight has",
    ),
    (
        "5.3",
        PLACE.format("p.dim() == 4", "c * torch.tanh(p / c)") + but(COUNT, ">= 2", "== 4"),
        "whatever has two or more",
    ),
    ("5.3", PLACE.format("p.dim() >= 2", "c * torch.tanh(p / c)") + "return len(parameters)", "not how many there are"),
    (
        "5.3",
        PLACE.format("p.dim() >= 2", "c * torch.tanh(p / c)")
        + "return sum(p.numel() for p in parameters if p.dim() > 1)",
        "not how many numbers are in them",
    ),
    ("5.3", PLACE.format("p.dim() >= 2", "p.clamp(-c, c)") + COUNT, "that is the hard clip"),
    ("5.3", PLACE.format("p.dim() >= 2", "3 * torch.tanh(p / 3)") + COUNT, "use the c that you are given"),
    ("5.3", PLACE.format("p.dim() >= 2", "c * torch.tanh(p / c)"), "now return how many you clipped"),
    ("5.3", "for p in parameters:\n    p.copy_(c * torch.tanh(p / c))\n" + COUNT, "with torch.no_grad():"),
    ("5.4", WHOLE, "✅"),
    (
        "5.4",
        "from q4lib import QuantAwareAdamW\n"
        "norm = torch.stack([p.grad.norm() for p in parameters]).norm()\n"
        "if not state:\n"
        "    state['o'] = QuantAwareAdamW(parameters, learning_rate, decay, grad_clip=max_norm, soft_clip=c)\n"
        "state['o'].step()\nreturn norm.item()",
        "✅",
    ),
    (
        "5.4",
        "if not state:\n    state['o'] = torch.optim.AdamW(parameters, learning_rate, weight_decay=decay)\n"
        "norm = nn.utils.clip_grad_norm_(parameters, max_norm)\n"
        "state['o'].step()\nsoft_clip(parameters, c)\nreturn norm",
        "✅",
    ),
    ("5.4", "soft_clip(parameters, c)\n" + but(WHOLE, "soft_clip(parameters, c)\n", ""), "the soft clip comes last"),
    ("5.4", but(WHOLE, "soft_clip(parameters, c)\n", ""), "the soft clip is missing"),
    (
        "5.4",
        but(WHOLE, "soft_clip(parameters, c)\n", "for p in parameters:\n    p.data = c * torch.tanh(p.data / c)\n"),
        "the soft clip is for weights",
    ),
    ("5.4", but(WHOLE, "clip_gradients(gradients, max_norm)", "gradients"), "the gradient clip is missing"),
    (
        "5.4",
        but(WHOLE, "clip_gradients(gradients, max_norm)", "[clip_gradients([g], max_norm)[0] for g in gradients]"),
        "each tensor's gradient is clipped by its own norm",
    ),
    ("5.4", LATE, "the gradient clip is missing"),
    ("5.4", but(WHOLE, "    state[p] = m, v\n", ""), "keep m and v in `state`"),
    ("5.4", but(WHOLE, 'state["t"] = state.get("t", 0) + 1', 'state["t"] = 1'), "count the steps in `state`"),
    (
        "5.4",
        but(WHOLE, 'state["t"], learning_rate', "10**9, learning_rate"),
        "the bias correction is missing",
    ),
    (
        "5.4",
        but(
            WHOLE,
            'adamw_step(p.detach(), g, m, v, state["t"], learning_rate, decay)',
            'adamw_step(p.detach(), g + decay * p.detach(), m, v, state["t"], learning_rate, 0)',
        ),
        "the weight decay went into the gradient",
    ),
    ("5.4", but(WHOLE, "learning_rate, decay)", "learning_rate, 0)"), "the weight decay is missing"),
    (
        "5.4",
        but(WHOLE, "return norm", "return torch.cat([g.flatten() for g in clipped]).norm()"),
        "return the norm as it was before the clip",
    ),
    ("5.4", but(WHOLE, "return norm", "return None"), "now return the gradient's norm"),
    (
        "5.5",
        CODES + "a, b = (torch.cat([codes(w).flatten() for w in layers]) for layers in (before, after))\n"
        "return 100 * (a != b).double().mean()",
        "✅",
    ),
    (
        "5.5",
        CODES + "equal = sum((codes(a) == codes(b)).sum() for a, b in zip(before, after))\n"
        "return 100 - 100 * equal / sum(w.numel() for w in after)",
        "✅",
    ),
    (
        "5.5",
        "def changed(a, b):\n    s = scale(a, bits)\n    return (quantize(a, s, bits) != quantize(b, s, bits)).sum()\n"
        "n = sum(map(changed, before, after))\n"
        "return 100 * n / sum(w.numel() for w in before)",
        "the new weights have a grid of their own",
    ),
    (
        "5.5",
        CODES
        + "n = sum((codes(a) * scale(a, bits) != codes(b) * scale(b, bits)).sum() for a, b in zip(before, after))\n"
        "return 100 * n / sum(w.numel() for w in before)",
        "you compare weights on the grid",
    ),
    (
        "5.5",
        "n = sum((a != b).sum() for a, b in zip(before, after))\nreturn 100 * n / sum(w.numel() for w in before)",
        "you compare the weights themselves",
    ),
    (
        "5.5",
        CODES + "n = sum((codes(a).int() - codes(b)).abs().sum() for a, b in zip(before, after))\n"
        "return 100 * n / sum(w.numel() for w in before)",
        "has changed once",
    ),
    (
        "5.5",
        CODES + "n = sum((codes(a) == codes(b)).sum() for a, b in zip(before, after))\n"
        "return 100 * n / sum(w.numel() for w in before)",
        "codes that stayed",
    ),
    (
        "5.5",
        CODES + "n = sum((codes(a) != codes(b)).sum() for a, b in zip(before, after))\n"
        "return n / sum(w.numel() for w in before)",
        "a share between 0 and 1",
    ),
    (
        "5.5",
        CODES + "return sum((codes(a) != codes(b)).sum() for a, b in zip(before, after))",
        "that is the number of codes",
    ),
    (
        "5.5",
        CODES + "shares = [100 * (codes(a) != codes(b)).float().mean() for a, b in zip(before, after)]\n"
        "return sum(shares) / len(shares)",
        "the mean of the layers' shares",
    ),
    (
        "5.5",
        "n = sum((quantize(a, scale(a)) != quantize(b, scale(b))).sum() for a, b in zip(before, after))\n"
        "return 100 * n / sum(w.numel() for w in before)",
        "it is right at 4 bits only",
    ),
    ("5.6", MENDED, "✅"),
    (
        "5.6",
        "group = optimizer.param_groups[0]\n"
        "return whole_step(group['params'], optimizer.state, group['lr'], group['weight_decay'], group['grad_clip'], "
        "group['soft_clip'])",
        "✅",
    ),
    ("5.6", "Colleague.step(optimizer)", "4 of the four bugs are left: look at when the gradients are clipped, and at"),
    ("5.6", COUPLED, "1 of the four bugs is left: look at where the weight decay goes"),
    ("5.6", but(MENDED, "if w.dim() > 1", "if True"), "1 of the four bugs is left: look at what the soft clip"),
    (
        "5.6",
        but(MENDED, "g, w = factor", "g, w = 1"),
        "1 of the four bugs is left: look at when the gradients are clipped",
    ),
    (
        "5.6",
        but(
            but(
                COUPLED,
                'm / (1 - 0.9 ** state["t"]) / ((v / (1 - 0.999 ** state["t"])).sqrt() + 1e-8)',
                "m / (v.sqrt() + 1e-8)",
            ),
            "g, w = factor",
            "g, w = 1",
        ),
        "3 of the four bugs are left: look at when the gradients are clipped, and at where the weight decay goes, "
        "and at what is missing",
    ),
    ("5.6", but(MENDED, "w.mul_", "w.mul"), "for short and long gradients, a large decay: "),
    ("5.7", BYTES, "✅"),
    (
        "5.7",
        "def size(t):\n    return 0 if t is None else t.untyped_storage().nbytes()\n"
        "p = list(model.parameters())\n"
        "return {'masters': sum(map(size, p)), 'gradients': sum(size(q.grad) for q in p),\n"
        "        'state': sum(size(t) for q in p for t in optimizer.state[q].values())}",
        "✅",
    ),
    ("5.7", SIZES.format("numel()"), "these are numbers: multiply"),
    ("5.7", SIZES.format("numel() * 4"), "it is right for float32 only"),
    ("5.7", but(BYTES, "size(model.parameters())", "size(p for p in model.parameters() if p.dim() > 1)"), "biases and"),
    ("5.7", but(BYTES, "size(model.parameters())", "size(model.state_dict().values())"), "buffers are not parameters"),
    (
        "5.7",
        but(BYTES, "size(model.parameters())", "sum(p.numel() for p in model.parameters()) / 2"),
        "training keeps the master weights",
    ),
    ("5.7", but(BYTES, "size(gradients)", "size(model.parameters())"), "a frozen one has None"),
    (
        "5.7",
        but(BYTES, "size(gradients)", "4 * sum(p.numel() for p in model.parameters())"),
        "not every one has four bytes",
    ),
    ("5.7", but(BYTES, "size(memories)", "2 * size(model.parameters())"), "twice the parameters is AdamW's m and v"),
    (
        "5.7",
        but(BYTES, "size(memories)", "8 * sum(p.numel() for p in model.parameters())"),
        "eight bytes a parameter",
    ),
    ("5.7", but(BYTES, "size(memories)", "2 * size(gradients)"), "m and v belong to the parameters that were trained"),
    ("5.7", but(BYTES, "size(memories)", "size(t for t in memories if t.dim())"), "a counter `step`"),
    ("5.7", but(BYTES, " if p.grad is not None", ""), "AttributeError"),
    ("5.7", "16 * sum(p.numel() for p in model.parameters())", "a dict is asked for"),
]

EQUIVALENT = {
    ("5.5", "for w, moved in zip(before, after, strict=False):"): "the two lists are as long as each other",
}
