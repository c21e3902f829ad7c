"""A training run's whole state as named tensors: weights, buffers, the optimizer's moments, random generators."""

import torch
from torch import Tensor, nn
from torch.optim import Optimizer


def get_state(model: nn.Module, optimizer: Optimizer) -> dict[str, Tensor]:
    """Everything that the next training step depends on, but for its images."""
    tensors = {f"model/{name}": tensor for name, tensor in model.state_dict().items()}
    for i, p in enumerate(model.parameters()):
        tensors |= {f"optimizer/{i}/{key}": value for key, value in optimizer.state[p].items()}
    tensors["rng/cpu"] = torch.get_rng_state()
    if p.is_cuda:
        tensors["rng/cuda"] = torch.cuda.get_rng_state(p.device)
    return tensors


def set_state(model: nn.Module, optimizer: Optimizer, tensors: dict[str, Tensor]) -> None:
    """Put `get_state`'s tensors back, into a model and an optimizer made in the same way."""
    model.load_state_dict({key.removeprefix("model/"): tensors[key] for key in tensors if key.startswith("model/")})
    for i, p in enumerate(model.parameters()):
        for key in [key for key in tensors if key.startswith(f"optimizer/{i}/")]:
            # Safetensors forgets strides, and a step is fastest where a moment lies in memory as its weight does.
            value = tensors[key].to(p.device)
            value = torch.empty_like(p).copy_(value).detach() if value.shape == p.shape else value
            optimizer.state[p][key.rsplit("/", 1)[1]] = value
    torch.set_rng_state(tensors["rng/cpu"])
    if p.is_cuda:
        torch.cuda.set_rng_state(tensors["rng/cuda"], p.device)
