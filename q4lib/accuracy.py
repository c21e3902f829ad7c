"""A network's loss and accuracy on images, each seen once or in several views."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .data import normalize


def views(x: Tensor, count: int) -> list[tuple[float, Tensor]]:
    """Weights, of sum 1, and views of normalized images (N, C, H, W): one, two with the mirror image, or six.

    Six are both as they are, a quarter each, and shifted by one pixel to either end of a diagonal, an eighth each; what
    comes in at the border is the image reflected. airbench's multi-crop evaluation (arXiv 2404.00498).
    """
    if count not in (1, 2, 6):
        raise ValueError(f"views must be 1, 2 or 6, got {count}")
    found = [(1.0, x)]
    if count == 6:
        wide = F.pad(x, (1, 1, 1, 1), mode="reflect")
        found = [(0.5, x), (0.25, wide[:, :, :-2, :-2]), (0.25, wide[:, :, 2:, 2:])]
    return found if count == 1 else [(share / 2, way) for share, view in found for way in (view, view.flip(3))]


@torch.inference_mode()
def evaluate(
    model: nn.Module, x: Tensor, y: Tensor, data: str, precision: str = "fp32", count: int = 1
) -> tuple[float, float]:
    """Mean loss and accuracy in percent on uint8 images (N, 3, 32, 32), by the mean of the logits for `count` `views`.

    Leaves the model in eval mode.
    """
    model.eval()
    loss, right = 0.0, 0
    for images, labels in zip(x.split(500), y.split(500), strict=True):
        logits = torch.zeros(())
        with torch.autocast(x.device.type, torch.bfloat16, enabled=precision == "bf16"):
            for share, view in views(normalize(images, data), count):
                logits = logits + share * model(view.contiguous(memory_format=torch.channels_last)).float()
        loss += F.cross_entropy(logits, labels, reduction="sum").item()
        right += int((logits.argmax(1) == labels).sum())
    return loss / len(y), 100 * right / len(y)
