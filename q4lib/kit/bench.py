"""What 4 bits cost on this machine: ratios of training steps, measured turn and turn about in one process."""

import math
import random
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from ..data import batches, normalize
from ..layers import FP32, QuantizedWeight, quantized_layers
from ..machine import processor
from ..models import MODELS
from ..optim import QuantAwareAdamW
from ..quant import dequantize, qmax, quantize, scale
from ..train import RunError, train_step

TIE = 1e-5  # in steps of the grid: a weight this close to the middle of two levels may go to either
SIZES = (512, 1024, 2048)
MISSING = "not measured: it needs the test extra, `pip install -e '.[test]'`"


class Interval(NamedTuple):
    """A median and the ends of its interval."""

    median: float
    low: float
    high: float


def median_interval(values: Sequence[float], confidence: float = 0.95) -> Interval:
    """The median, and two order statistics that enclose the true one, whatever the distribution. ValueError if too few.

    Of n values, the j-th smallest and the j-th largest miss the true median with probability 2 P(Binomial(n, 1/2) < j).
    """
    ordered, n = sorted(values), len(values)
    j, missed = 0, 2 / 2**n
    while missed <= 1 - confidence:
        j += 1
        missed += 2 * math.comb(n, j) / 2**n
    if j == 0:
        raise ValueError(f"{n} rounds give no {confidence:.0%} interval of a median: take 30 or more")
    return Interval(statistics.median(ordered), ordered[j - 1], ordered[n - j])


def fp32_twin(layer: QuantizedWeight) -> nn.Module:
    """The layer itself without its quantizer."""
    layer.bits = FP32
    return layer


def brevitas_layer(layer: QuantizedWeight) -> nn.Module:
    """Brevitas' layer with a narrow-range signed weight, scaled by max abs per tensor at every forward pass.

    Its gradient flows through the scale too, to the largest weight: Brevitas has no such quantizer with a plain one.
    """
    from brevitas.nn import QuantConv2d, QuantLinear
    from brevitas.quant import Int8WeightPerTensorFloat

    kind = QuantConv2d if isinstance(layer, nn.Conv2d) else QuantLinear
    return kind(**_shape(layer), weight_quant=Int8WeightPerTensorFloat, weight_bit_width=layer.bits)


def torch_layer(layer: QuantizedWeight) -> nn.Module:
    """torch's layer for quantization-aware training, with a symmetric FakeQuantize of the weight, per tensor.

    A moving average of weight 1 is the present min and max; MinMaxObserver would keep the widest since the first step.
    torch's fused variant divides a negative extreme by qmax + 1: that is another grid, so it is no arm here.
    """
    from torch.ao.nn import qat
    from torch.ao.quantization import FakeQuantize, MovingAverageMinMaxObserver, QConfig

    q = qmax(layer.bits)
    weight = FakeQuantize.with_args(
        observer=MovingAverageMinMaxObserver, averaging_constant=1.0, quant_min=-q, quant_max=q,
        dtype=torch.qint8, qscheme=torch.per_tensor_symmetric,
    )  # fmt: skip
    kind: Any = qat.Conv2d if isinstance(layer, nn.Conv2d) else qat.Linear
    return kind(**_shape(layer), qconfig=QConfig(activation=nn.Identity, weight=weight))


def _shape(layer: QuantizedWeight) -> dict[str, Any]:
    conv = ("in_channels", "out_channels", "kernel_size", "stride", "padding")
    names = conv if isinstance(layer, nn.Conv2d) else ("in_features", "out_features")
    return {name: getattr(layer, name) for name in names} | {"bias": layer.bias is not None}


class Rival(NamedTuple):
    """What replaces a quantized layer, and what the ratio's interval has to stay or come under."""

    whose: str
    replace: Callable[[QuantizedWeight], nn.Module]
    most: float
    by: str


RIVALS = {
    "FP32": Rival("its FP32 twin's", fp32_twin, 1.05, "high"),
    "Brevitas": Rival("Brevitas'", brevitas_layer, 1.0, "low"),
    "FakeQuantize": Rival("torch FakeQuantize's", torch_layer, 1.0, "low"),
}


class Arm:
    """One network and its optimizer: the 4-bit one, or the same with every quantized layer replaced."""

    def __init__(self, model: str, replace: Callable[[QuantizedWeight], nn.Module] = lambda layer: layer) -> None:
        torch.manual_seed(0)
        self.model = MODELS[model]()
        start = self.model.state_dict()
        for name, layer in quantized_layers(self.model).items():
            self.model.set_submodule(name, replace(layer))
        self.model.load_state_dict(start, strict=False)
        self.model.to(memory_format=torch.channels_last)
        self.layers = [module for module in self.model.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
        self.optimizer = QuantAwareAdamW(self.model.parameters())

    def step(self, x: Tensor, y: Tensor) -> float:
        """Seconds of one training step."""
        return _seconds(lambda: train_step(self.model, self.optimizer, x, y))

    def weights(self) -> list[Tensor]:
        """Each layer's weight as its convolution or product gets it."""
        return [_used(layer).detach() for layer in self.layers]

    @torch.no_grad()
    def loss(self, x: Tensor, y: Tensor) -> float:
        """The loss of the network as it trains, with one and the same dropout for every arm."""
        torch.manual_seed(1)
        return F.cross_entropy(self.model(x), y).item()


def _used(layer: Any) -> Tensor:
    if hasattr(layer, "quantized_weight"):
        return layer.quantized_weight()
    return layer.quant_weight().value if hasattr(layer, "quant_weight") else layer.weight_fake_quant(layer.weight)


def check_arm(name: str, arm: Arm, ours: Arm, x: Tensor, y: Tensor) -> None:
    """RunError unless, given our weights, the arm puts them on our grid but for ties, and reaches our loss."""
    arm.model.load_state_dict(ours.model.state_dict(), strict=False)
    for layer, used in zip(ours.layers, arm.weights(), strict=True):
        w = layer.weight.detach()
        step = scale(w)
        expected = w if name == "FP32" else dequantize(quantize(w, step), step)
        tie = ((w / step).abs().frac() - 0.5).abs() < TIE
        other = ((used - expected).abs() > TIE * step) & ~tie
        if other.any():
            raise RunError(f"{name} puts {other.sum()} of {w.numel()} weights elsewhere: it is not the same network")
    if name != "FP32" and not math.isclose(arm.loss(x, y), ours.loss(x, y), rel_tol=1e-4):
        raise RunError(f"{name} has loss {arm.loss(x, y)}, ours is {ours.loss(x, y)}: it is not the same network")


def matmul_seconds(n: int, dtype: torch.dtype = torch.float32, repeats: int = 3) -> float:
    """Seconds of the fastest of a few products of two n x n matrices."""
    a, b = torch.randn(2, n, n).to(dtype)
    return min(_seconds(lambda: a @ b) for _ in range(repeats))


def _seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def _row(what: str, value: Interval, detail: str, demand: str = "") -> str:
    median, low, high = (f"{v:,.0f}" if v >= 100 else f"{v:.3f}" for v in value)
    return f"| {what} | {median} | {low} ... {high} | {demand} | {detail} |"


def step_rows(pairs: int, batch: int, model: str) -> Iterator[str]:
    """A 4-bit training step's time over each rival's, and its FLOP/s over those of this machine's matrix product."""
    x, y = _random_batch(batch)
    ours, rivals = Arm(model), {}
    for name, rival in RIVALS.items():
        try:
            rivals[name] = Arm(model, rival.replace)
        except ImportError:
            yield f"| 4-bit training step / {rival.whose} | | | | {MISSING} |"
    for name, arm in rivals.items():
        check_arm(name, arm, ours, x, y)
    n = max(SIZES, key=lambda n: n**3 / matmul_seconds(n))
    with FlopCounterMode(display=False) as counter:
        ours.step(x, y)
    arms = {"4-bit": ours, **rivals}
    for arm in arms.values():
        arm.step(x, y)
    seconds: dict[str, list[float]] = {name: [] for name in [*arms, "matmul"]}
    order, generator = list(seconds), random.Random(0)
    for _ in tqdm(range(pairs), desc="rounds", unit="round", leave=False, disable=None):
        generator.shuffle(order)
        for name in order:
            seconds[name].append(matmul_seconds(n) if name == "matmul" else arms[name].step(x, y))
    for name, arm in rivals.items():
        check_arm(name, arm, ours, x, y)

    median = {name: statistics.median(measured) for name, measured in seconds.items()}
    for name in rivals:
        whose, _, most, by = RIVALS[name]
        ratio = median_interval([a / b for a, b in zip(seconds["4-bit"], seconds[name], strict=True)])
        demand = f"{by} end <= {most}: {'yes' if getattr(ratio, by) <= most else 'NO'}"
        detail = f"{1000 * median['4-bit']:,.0f} ms over {1000 * median[name]:,.0f} ms"
        yield _row(f"4-bit training step / {whose}", ratio, detail, demand)
    flops, product = counter.get_total_flops(), 2 * n**3
    share = [flops / own / (product / best) for own, best in zip(seconds["4-bit"], seconds["matmul"], strict=True)]
    rate = product / median["matmul"] / 1e9
    detail = f"{flops / 1e9:,.1f} GFLOP a step; fp32 product of {n} x {n} matrices: {rate:,.0f} GFLOP/s"
    yield _row("4-bit training step's FLOP/s / GEMM's", median_interval(share), detail)


def _random_batch(batch: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(batch, 3, 32, 32, generator=generator).contiguous(memory_format=torch.channels_last)
    return x, torch.randint(10, (batch,), generator=generator)


def memory_pairs(batch: int, model: str, runs: int = 5) -> list[tuple[float, float]]:
    """Bytes that three training steps add to a fresh process' peak memory, at 4 bits and in FP32; by ratio.

    Only Linux tells: elsewhere OSError or StopIteration.
    """
    peaks: dict[str, list[float]] = {"4-bit": [], "FP32": []}
    for _ in tqdm(range(runs), desc="memory", unit="pair", leave=False, disable=None):
        for name, found in peaks.items():
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as fresh:
                found.append(fresh.submit(_peak_growth, model, name, batch, torch.get_num_threads()).result())
    return sorted(zip(peaks["4-bit"], peaks["FP32"], strict=True), key=lambda pair: pair[0] / pair[1])


def memory_row(batch: int, model: str, runs: int = 5) -> str:
    """What three 4-bit training steps add to a process' resident memory, over what three of the FP32 twin add."""
    pairs = memory_pairs(batch, model, runs)
    ours, twin = pairs[runs // 2]
    value = Interval(*(pair[0] / pair[1] for pair in (pairs[runs // 2], pairs[0], pairs[-1])))
    detail = (
        f"{ours / 2**20:,.0f} MiB over {twin / 2**20:,.0f} MiB, by which network, optimizer and three steps raise the "
        f"peak of a fresh process; the middle, least ... most of {runs} pairs"
    )
    return _row("4-bit peak memory / its FP32 twin's", value, detail)


def _peak_growth(model: str, name: str, batch: int, threads: int) -> float:
    torch.set_num_threads(threads)
    x, y = _random_batch(batch)
    # getrusage would tell the parent's peak too; Linux lets a process' own begin anew at what is in use now.
    Path("/proc/self/clear_refs").write_text("5")
    before = _peak()
    arm = Arm(model, *[RIVALS[name].replace] if name in RIVALS else [])
    for _ in range(3):
        arm.step(x, y)
    return _peak() - before


def _peak() -> int:
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM:"))


def data_row(images: int, batch: int, runs: int = 6) -> str:
    """Images a second from shuffled uint8 to cropped, flipped, normalized batches as the network wants them."""
    x, y = torch.randint(256, (images, 3, 32, 32), dtype=torch.uint8), torch.zeros(images, dtype=torch.long)

    def epoch() -> None:
        for drawn, _ in batches(x, y, batch, seed=0, epoch=1, crop=4, flip=True):
            normalize(drawn, "cifar10").contiguous(memory_format=torch.channels_last)

    seconds = [_seconds(epoch) for _ in tqdm(range(runs), desc="data", unit="epoch", leave=False, disable=None)]
    detail = f"{statistics.median(seconds):.2f} s for {images:,}: crop, flip, normalize; {runs} epochs"
    return _row("data path, images a second", median_interval([images / each for each in seconds]), detail)


def main(pairs: int = 30, batch: int = 128, model: str = "vgg4bit", images: int = 50_000) -> None:
    """Print a Markdown table: medians of `pairs` rounds with 95 % intervals. ValueError if too few; RunError."""
    median_interval(range(pairs))
    print(
        f"{MODELS[model].__name__}, batch {batch}, fp32, channels_last; {processor()}, threads: "
        f"{torch.get_num_threads()}, torch {torch.__version__}. Each round times one step of every arm, in shuffled "
        f"order; medians of the ratios of {pairs} rounds, with the median's 95 % interval.\n\n"
        "| measured | median | interval | demand | from |\n|---|---|---|---|---|",
        flush=True,
    )
    with torch.random.fork_rng(devices=[]):
        for row in step_rows(pairs, batch, model):
            print(row, flush=True)
        try:
            print(memory_row(batch, model), flush=True)
        except (OSError, StopIteration):
            print("| 4-bit peak memory / its FP32 twin's | | | | not measured: only Linux tells a process' own peak |")
        print(data_row(images, batch))
