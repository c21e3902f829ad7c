"""Lesson 03's inline checks: parameters and bytes counted by hand."""

from typing import Any

from . import COMMA, Wrong, shown, task


def _compare(value: Any, right: int, likely: dict[int, str], nearby: str) -> None:
    """Wrong, with the reason for a `likely` mistake, unless `value` is the `right` count."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise Wrong(f"a number is asked for, yours is {shown(value)}{COMMA * isinstance(value, tuple)}") from None
    if number in likely:
        raise Wrong(f"{number:,.0f}: {likely[int(number)]}")
    if number != right:
        raise Wrong(f"{number:,.10g} is too {'many' if number > right else 'few'}: {nearby}")


@task("03.a")
def convolution(value: Any) -> str:
    """Parameters of a 3×3 convolution from 64 to 128 channels."""
    weight, bias = 128 * 64 * 3 * 3, 128
    likely = {
        weight: "the weight is right; did you forget the bias, one for each of the 128 channels it gives?",
        128 * 64 + bias: "every kernel has 3 × 3 numbers: you forgot the kernel's area",
        128 * 64: "every kernel has 3 × 3 numbers, and each channel it gives has a bias: both are missing",
        128 * 64 * 3 + bias: "a kernel is 3 high and 3 wide: 9 numbers, not 3",
        weight + 64: "the bias belongs to the channels that come out, not to those that go in",
        weight + bias * 64: "one bias a channel that comes out, not one a kernel",
        weight + bias + 2 * 128: "batch norm is a layer of its own: leave it out here",
        (weight + bias) * 16 * 16: "the same weights serve all places of the picture: its size does not count",
    }
    _compare(value, weight + bias, likely, "it is channels out × channels in × kernel's area, and a bias a channel out")
    return f"{weight:,} weights and {bias} biases"


@task("03.b")
def linear(value: Any) -> str:
    """Parameters of fc1, from the flattened 256×4×4 to 512."""
    weight, bias = 512 * 256 * 4 * 4, 512
    likely = {
        weight: "the weight is right; did you forget the bias, one for each of the 512 outputs?",
        512 * 256 + bias: "fc1 sees every place of every channel: 256 × 4 × 4 inputs, not 256",
        512 * 256 * 8 * 8 + bias: "there is one more pooling before fc1: its pictures are 4 × 4, not 8 × 8",
        weight + 4096: "the bias belongs to the 512 outputs, not to the 4,096 inputs",
        weight * 9 + bias: "a linear layer has no kernel: each input has one weight for each output",
        weight + bias + 2 * 512: "batch norm is a layer of its own: leave it out here",
    }
    _compare(value, weight + bias, likely, "it is outputs × inputs, and a bias for each output")
    return f"{weight:,} weights and {bias} biases"


@task("03.c")
def network(value: Any) -> str:
    """Parameters of the whole VGG4bit at 10 classes."""
    right, channels, biases = 3_251_018, 2 * (64 + 128 + 256) + 512, 2 * (64 + 128 + 256) + 512 + 10
    likely = {
        right - 2 * channels: "the eight layers are right; the seven batch norms are missing",
        right - channels: "batch norm has two parameters a channel, a factor and a shift: you counted one",
        right - 2 * 512: "one batch norm is missing: the one after fc1, with 512 channels",
        right - 4 * (64 + 128 + 256): "six batch norms are missing: each convolution has one, too",
        right + 2 * 10: "no batch norm follows fc2: its ten outputs are the logits",
        right - biases - 2 * channels: "these are the weights only: biases and batch norm are parameters too",
        right - biases: "all biases are missing: one for each channel or output of the eight layers",
        right + 2 * channels: "batch norm's running mean and variance are buffers: counted over images, not learned",
        right + 2 * channels + 7: "a state dict holds batch norm's buffers too: take model.parameters()",
        right + 90 * 513: "that is the network for 100 classes: here fc2 has 10 outputs",
    }
    _compare(value, right, likely, "add the eight layers of the picture, and two for each channel of a batch norm")
    return "the paper's number; and most of them are fc1's"


@task("03.d")
def packed(value: Any) -> str:
    """Bytes of fc1, packed: codes two a byte, biases and the scale in FP32."""
    weight, bias = 512 * 4096, 512
    right = weight // 2 + 4 * bias + 4
    likely = {
        weight // 2: "the codes are right; the biases and the scale are stored too, in FP32",
        weight // 2 + 4 * bias: "nearly: without its scale, 4 bytes, nobody could turn the codes back into weights",
        weight // 2 + 4: "nearly: the 512 biases stay in FP32, 4 bytes each",
        (weight + bias) // 2: "only the weights have 4 bits: the 512 biases stay in FP32, and there is a scale",
        (weight + bias) // 2 + 4: "only the weights have 4 bits: the 512 biases stay in FP32",
        weight // 2 + bias + 1: "an FP32 number takes 4 bytes: biases and scale are worth more than one each",
        weight + 4 * bias + 4: "a code takes half a byte: two of them share one",
        4 * weight + 4 * bias: "that is the layer in FP32: a weight's code takes half a byte, not 4",
        4 * weight + 4 * bias + 4: "a code has 4 bits, not 4 bytes: two of them share a byte",
        8 * right: "these are bits: 8 of them make a byte",
        weight // 2 + 4 * bias + 4 * 512: "one scale serves the whole layer here, not one an output",
    }
    _compare(value, right, likely, "codes at half a byte, 512 biases and one scale at 4 bytes each")
    return f"{(4 * weight + 4 * bias) / right:.2f} times smaller than in FP32"
