"""The linear part of the world model, solved instead of trained.

Much of a street is linear in what the model is told (a lane line is the layout's divider times a colour), and gradient steps
find that slowly. Here the shortcut from the inputs to the output is set by ridge regression of what the rest of the model
still gets wrong at pure noise, the level that one-step sampling starts from.

Shapes: I images (batch x frames x views), K inputs of a 3x3 neighbourhood, C latent channels, P latent pixels.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

from dwm.models.conditioning import DenoiseCondition
from dwm.models.dit import MultiViewDiT

_RIDGE = 0.005  # of the number of samples; inputs are of order 1
_PIXELS_PER_CLIP = 4000


@torch.no_grad()
def fit_shortcut(model: MultiViewDiT, examples: Iterable[tuple[Tensor, Tensor, DenoiseCondition]]) -> None:
    """Add the least-squares correction to the model's shortcut.

    ``examples`` are (clean latents [B, T, V, C, h, w], levels [B, T], condition) with levels 0 or 1; frames at 1 are given.
    """
    seen: list[Tensor] = []
    hook = model.shortcut.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0]))
    generator = torch.Generator().manual_seed(0)
    products, targets, count = torch.zeros(1), torch.zeros(1), 0
    for clean, levels, condition in examples:
        given = (levels >= 1)[:, :, None, None, None, None]
        noise = torch.randn(clean.shape, generator=generator).to(clean.device)
        missing = clean - model(torch.where(given, clean, noise), levels, condition)
        new = (levels < 1)[:, :, None].expand(clean.shape[:3]).flatten()
        inputs = seen.pop()[new]
        x = F.unfold(inputs.contiguous(), 3, padding=1).movedim(1, 2).flatten(0, 1)  # [P, K]
        y = (missing.flatten(0, 2)[new] / model.spread_at_noise(inputs)).flatten(2).movedim(1, 2).flatten(0, 1)  # [P, C]
        kept = torch.randperm(len(x), generator=generator)[:_PIXELS_PER_CLIP].to(x.device)
        x = torch.cat([x[kept], torch.ones_like(x[kept, :1])], dim=1)
        products, targets = products.to(x.device) + (x.T @ x).double(), targets.to(x.device) + (x.T @ y[kept]).double()
        count += len(kept)
    hook.remove()
    ridge = torch.full((len(products),), _RIDGE * count, dtype=torch.float64, device=products.device)
    ridge[-1] = 0.0  # the bias goes free
    solution = torch.linalg.solve(products + ridge.diag(), targets).T.float()
    model.shortcut.weight += solution[:, :-1].view_as(model.shortcut.weight)
    assert model.shortcut.bias is not None
    model.shortcut.bias += solution[:, -1]
