"""A critic for one-step sampling: squared error alone paints the mean of what could be there, which is blur.

The critic sees latents with their layout and says, patch by patch, rendered or generated; the denoiser is pulled towards
latents it takes for rendered ones (adversarial distillation, Sauer et al. 2023, with a patch critic in place of a teacher).

Shapes: I images (batch x frames x views), C latent channels, L layout channels, h w latent pixels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from dwm.models.dit import LAYOUT_FINER, DiTConfig
from dwm.models.systems import build_denoiser


class LatentCritic(nn.Module):
    """Logits of patches: positive for rendered latents, negative for generated ones."""

    def __init__(self, latent_channels: int, layout_channels: int, width: int = 64) -> None:
        super().__init__()
        inside = latent_channels + LAYOUT_FINER**2 * layout_channels
        sizes = [(inside, width, 1, 1), (width, width, 3, 1), (width, 2 * width, 3, 2), (2 * width, 2 * width, 3, 1)]
        layers: list[nn.Module] = []
        for in_width, out_width, kernel, stride in sizes:
            layers += [spectral_norm(nn.Conv2d(in_width, out_width, kernel, stride, kernel // 2)), nn.LeakyReLU(0.2)]
        self.layers = nn.Sequential(*layers, spectral_norm(nn.Conv2d(2 * width, 1, 3, padding=1)))
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, latents_ICHW: Tensor, layout_ILHW: Tensor) -> Tensor:
        """Logits [I, 1, h / 2, w / 2]; the layout is ``LAYOUT_FINER`` times finer than the latents."""
        stack = torch.cat([latents_ICHW, F.pixel_unshuffle(layout_ILHW, LAYOUT_FINER)], dim=1)
        return self.layers(stack.contiguous(memory_format=torch.channels_last))


class Duel(nn.Module):
    """A denoiser and its critic, trained side by side; called like the denoiser alone."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.denoiser = build_denoiser(config)
        self.critic = LatentCritic(config.latent_channels, config.layout_channels)

    def forward(self, *args: Tensor) -> Tensor:
        return self.denoiser(*args)


def critic_loss(critic: nn.Module, real_ICHW: Tensor, made_ICHW: Tensor, layout_ILHW: Tensor) -> Tensor:
    """Hinge loss of the critic; gradients reach the critic only."""
    return (F.relu(1 - critic(real_ICHW, layout_ILHW)).mean() + F.relu(1 + critic(made_ICHW.detach(), layout_ILHW)).mean()) / 2


def persuasion(critic: nn.Module, made_ICHW: Tensor, layout_ILHW: Tensor) -> Tensor:
    """Gradient [I, C, h, w], with respect to the generated latents, of what the critic holds against them."""
    made = made_ICHW.detach().requires_grad_()
    return torch.autograd.grad(-critic(made, layout_ILHW).mean(), made)[0]


def pulled(loss: Tensor, predicted: Tensor, pull: Tensor, share: float) -> Tensor:
    """A loss whose gradient is that of ``loss`` plus ``pull`` scaled to ``share`` of its norm; its value stays that of ``loss``.

    Both are taken at ``predicted``: a fixed weight between a squared error and a critic fits neither the start nor the
    end of training.
    """
    (gradient,) = torch.autograd.grad(loss, predicted, retain_graph=True)
    scale = share * gradient.norm() / pull.norm().clamp_min(1e-12)
    term = (predicted * (scale * pull)).sum()
    return loss + term - term.detach()
