"""The grid: symmetric quantization to `2**bits - 1` levels, and the gradient that goes straight through it.

    weight -> amax -> scale -> codes -> dequantize -> straight-through

Equations are those of *True 4-bit training on CPU*. Half-precision weights are quantized in fp32, and come back in
their own type.
"""

import math
from functools import cache

import torch
from torch import Tensor


def qmax(bits: int) -> int:
    """Largest code, `2**(bits-1) - 1`: 7 at 4 bits; the smallest is `-qmax`. ValueError unless bits is 2..8."""
    if not isinstance(bits, int) or not 2 <= bits <= 8:
        raise ValueError(f"bits must be 2..8, got {bits!r}")
    return int(2 ** (bits - 1) - 1)


def amax(w: Tensor, per_channel: bool = False) -> Tensor:
    """Range of the grid, `max|w|` (eq 5): scalar, or (out, 1, ...) per channel. ValueError on nan or infinity."""
    w = w.detach()
    if per_channel and w.dim() > 1:
        a = w.abs().amax(tuple(range(1, w.dim())), keepdim=True)
    else:
        low, high = w.aminmax()
        a = torch.maximum(-low, high)
    if not a.isfinite().all():
        raise ValueError("a weight is nan or infinite: training has diverged, try a lower learning rate")
    return a.float() if a.dtype in (torch.float16, torch.bfloat16) else a


@cache
def normal_amax(bits: int) -> float:
    """Range in standard deviations that rounds a normal variable with the least mean square error: 2.475 at 4 bits."""
    x = (torch.arange(4000, dtype=torch.float64) + 0.5) / 500
    density = torch.exp(-(x**2) / 2)
    ranges = torch.arange(1, 5, 0.005, dtype=torch.float64).view(-1, 1)
    error = (x - _round_and_clamp(x, ranges / qmax(bits), bits) * ranges / qmax(bits)).square() @ density
    return ranges[error.argmin()].item()


def scale(w: Tensor, bits: int = 4, per_channel: bool = False, normal_range: bool = False) -> Tensor:
    """Step between neighbouring levels, `max|w| / qmax`: shaped like `amax`, in the units of `w` (eqs 2 and 5).

    With `normal_range` it spans at most `normal_amax` root mean squares of `w`: what lies beyond is cut (eq 1's clamp).
    """
    a = amax(w, per_channel)
    if normal_range:
        over = tuple(range(1, w.dim())) if a.dim() else None
        norm = torch.linalg.vector_norm(w.detach(), dim=over, keepdim=bool(a.dim()), dtype=torch.float64)
        a = a.minimum((normal_amax(bits) * norm * (a.numel() / w.numel()) ** 0.5).to(a.dtype))
    return a / qmax(bits)


def quantize(w: Tensor, scale: Tensor, bits: int = 4) -> Tensor:
    """Integer codes in `-qmax..qmax`, ties to even: int8, shaped like `w` (eqs 1 and 3). A scale of 0 gives zeros."""
    return _round_and_clamp(w.detach(), scale, bits).to(torch.int8)


def _round_and_clamp(w: Tensor, scale: Tensor, bits: int) -> Tensor:
    q = qmax(bits)
    return w.to(scale.dtype).div(scale.masked_fill(scale == 0, math.inf)).round_().clamp_(-q, q)


def dequantize(codes: Tensor, scale: Tensor) -> Tensor:
    """Weights on the grid, `codes * scale`: shaped like `codes`, in the scale's type (eq 4)."""
    return codes * scale


class _StraightThrough(torch.autograd.Function):
    """Forward: the grid (eq 6), its codes left in floats. Backward: the identity (eq 7).

    Eq 8's `w + (wq - w).detach()` gives the same numbers and the same gradient, in two more passes over the weights.
    """

    @staticmethod
    def forward(ctx: object, w: Tensor, scale: Tensor, bits: int) -> Tensor:
        return _round_and_clamp(w, scale, bits).mul_(scale).to(w.dtype)

    @staticmethod
    def backward(ctx: object, *grads: Tensor) -> tuple[Tensor, None, None]:
        return grads[0], None, None


def fake_quantize(w: Tensor, bits: int = 4, per_channel: bool = False, step: Tensor | None = None) -> Tensor:
    """`w` rounded to its own grid, in floats; its gradient is exactly 1 everywhere (eqs 6-8). Shape and type of `w`.

    A given `step` (FP32, scalar or per channel) takes the place of the weight's own scale.
    """
    step = scale(w, bits, per_channel) if step is None else step
    return _StraightThrough.apply(w, step, bits)  # type: ignore[no-any-return]


def statistics(w: Tensor, bits: int = 4, per_channel: bool = False, step: Tensor | None = None) -> dict[str, float]:
    """How a tensor uses its grid: `levels` in use, `entropy` of the codes in bits, share of `zeros`, `sqnr`, `amax`.

    `sqnr` is the signal-to-quantization-noise ratio in dB, `10 log10(sum w**2 / sum (w - wq)**2)`; inf without error.
    """
    codes = quantize(w, scale(w, bits, per_channel) if step is None else step, bits)
    w, wq = w.detach().double(), fake_quantize(w, bits, per_channel, step).detach().double()
    share = codes.int().add(qmax(bits)).flatten().bincount() / codes.numel()
    share = share[share > 0].double()
    signal, noise = w.square().sum().item(), (w - wq).square().sum().item()
    return {
        "levels": len(share),
        "entropy": abs((share * share.log2()).sum().item()),
        "zeros": (codes == 0).double().mean().item(),
        "sqnr": 10 * math.log10(signal / noise) if noise and signal else math.inf,
        "amax": w.abs().max().item(),
    }
