"""A codec, a denoiser and, where it reads one's features, a text encoder, loaded together."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from dwm.codec.interface import Codec
from dwm.codec.load import load_codec
from dwm.conditioning.build import ScenarioConditioner, cast_size
from dwm.conditioning.logged_points import LoggedPoints
from dwm.conditioning.things import Things
from dwm.device import pick_device
from dwm.errors import InputError
from dwm.flow.sampler import Denoiser
from dwm.models.dit import IMAGE_HW, DiTConfig
from dwm.models.text_encoder import TextEncoder, load_text_encoder
from dwm.models.weights import load_model
from dwm.scenario.types import Scenario


@dataclass(frozen=True, slots=True, kw_only=True)
class WorldModel:
    """Everything a roll-out needs besides a scenario."""

    codec: Codec
    denoiser: Denoiser
    device: torch.device
    things: Things
    fine: Denoiser | None = None  # for frames between key frames; None: the same denoiser
    text: TextEncoder | None = None  # None: the denoiser has words of its own
    image_hw: tuple[int, int] = IMAGE_HW  # height and width of the images it makes [px]

    @staticmethod
    def load(
        codec: Path | str, world_weights: Path, things: Path | None, device: str = "auto", fine: Path | None = None,
        text_encoder: str | None = None,
    ) -> WorldModel:  # fmt: skip
        """Read the models; raises InputError where they are missing, broken, or do not fit each other.

        ``codec`` as ``dwm.codec.load.load_codec``, ``text_encoder`` the folder or hub id of a T5. Without ``things`` the model only
        knows how those look that the first frame shows; without ``fine`` one model makes all frames.
        """
        where = pick_device(device)
        images = load_codec(str(codec)).to(where).eval()
        text = load_text_encoder(text_encoder).to(where) if text_encoder else None

        def denoiser(weights: Path) -> tuple[Denoiser, DiTConfig]:
            model, config = load_model(weights, "multi_view_dit")
            check_codec(config, images, f"{codec}", weights)
            check_text(config, text, weights)
            return model.to(where).eval(), config

        world, config = denoiser(world_weights)
        between, fine_config = denoiser(fine) if fine else (None, config)
        if fine_config.image_hw != config.image_hw:
            sizes = f"{_size(fine_config.image_hw)}, and the world model {_size(config.image_hw)}"
            raise InputError(str(fine), f"makes images of {sizes}", "use two models of one size")
        return WorldModel(
            codec=images, denoiser=world, device=where, things=Things.load(things) if things else Things.none(),
            fine=between, text=text, image_hw=config.image_hw,
        )  # fmt: skip

    def conditioner(self, scenario: Scenario, points: LoggedPoints | None = None) -> ScenarioConditioner:
        """What this model is told about a scenario; ``points`` as for ``ScenarioConditioner``."""
        return ScenarioConditioner(
            scenario, self.device, points, image_hw=self.image_hw, downsample=self.codec.downsample, text=self.text
        )  # fmt: skip

    def decode(self, latents_NVCHW: Tensor) -> Tensor:
        """Images [N, V, 3, H, W] in about [-1, 1], frame by frame so that memory stays that of one frame."""
        return torch.stack([self.codec.decode(frame) for frame in latents_NVCHW])


def check_codec(config: DiTConfig, codec: Codec, name: str, weights: Path) -> None:
    """InputError unless a world model reads a codec's latents and its images are a whole number of them."""
    if codec.latent_channels != config.latent_channels:
        problem = f"expects {config.latent_channels} latent channels, but {name} makes {codec.latent_channels}"
        raise InputError(weights, problem, "use a world model trained on this codec")
    cast_size(config.image_hw, codec.downsample)


def check_text(config: DiTConfig, text: TextEncoder | None, weights: Path) -> None:
    """InputError unless a world model reads a text encoder's features, or has words of its own and is given none."""
    made = text.features if text else 0
    if made == config.text_features:
        return
    if not config.text_features:
        raise InputError(
            weights, f"reads words of its own, not the {made} features of a text encoder", "leave out text_encoder"
        )
    problem = f"expects {config.text_features} text features, but gets {made or 'none'}"
    raise InputError(weights, problem, "set text_encoder to the T5 that it was trained with")


def _size(image_hw: tuple[int, int]) -> str:
    return f"{image_hw[0]}x{image_hw[1]} px"
