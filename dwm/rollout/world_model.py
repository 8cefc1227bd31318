"""A codec and a denoiser, loaded together."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from dwm.codec.interface import Codec
from dwm.conditioning.things import Things
from dwm.errors import InputError
from dwm.flow.sampler import Denoiser
from dwm.models.weights import load_model


@dataclass(frozen=True, slots=True, kw_only=True)
class WorldModel:
    """Everything a roll-out needs besides a scenario."""

    codec: Codec
    denoiser: Denoiser
    device: torch.device
    things: Things
    fine: Denoiser | None = None  # for frames between key frames; None: the same denoiser

    @staticmethod
    def load(
        codec_weights: Path, world_weights: Path, things: Path | None, device: str = "auto", fine: Path | None = None
    ) -> WorldModel:
        """Read the weight files; raises InputError where they are missing, broken, or do not fit each other.

        Without ``things`` the model only knows how those look that the first frame shows; without ``fine`` one model makes
        all frames.
        """
        where = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device)
        codec, codec_config = load_model(codec_weights, "autoencoder")

        def denoiser(weights: Path) -> Denoiser:
            model, config = load_model(weights, "multi_view_dit")
            if codec_config.latent_channels != config.latent_channels:
                raise InputError(
                    weights, f"expects {config.latent_channels} latent channels, but {codec_weights} makes {codec_config.latent_channels}",
                    "use a world model trained on this codec",
                )  # fmt: skip
            return model.to(where).eval()

        return WorldModel(
            codec=codec.to(where).eval(), denoiser=denoiser(world_weights), device=where,
            things=Things.load(things) if things else Things.none(), fine=denoiser(fine) if fine else None,
        )  # fmt: skip

    def decode(self, latents_NVCHW: Tensor) -> Tensor:
        """Images [N, V, 3, H, W] in about [-1, 1], frame by frame so that memory stays that of one frame."""
        return torch.stack([self.codec.decode(frame) for frame in latents_NVCHW])
