"""From a scenario to the tensors the world model reads.

Shapes: T frames, V views, C channels, H W images, h w latent grid, H/s W/s layout cast (s = 2 for latents of 8 px a side).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from dwm.codec.interface import Codec
from dwm.conditioning.appearance import Appearance, Street, View
from dwm.conditioning.layout import Layout, LayoutBoxes, LayoutCaster
from dwm.conditioning.log_memory import Memory, merged, usable, worn
from dwm.conditioning.log_reader import read_logged_points
from dwm.conditioning.logged_points import Drawn, LoggedPoints
from dwm.conditioning.photos import Boxes
from dwm.conditioning.reprojection import SourceFrame, Trace, fetched, reproject, trace
from dwm.conditioning.things import Things
from dwm.errors import InputError
from dwm.geometry import invert, rotation_from_yaw, wrap_angle, yaw_from_rotation
from dwm.models.conditioning import DenoiseCondition
from dwm.models.dit import IMAGE_HW, LAYOUT_FINER
from dwm.models.text_encoder import TextEncoder
from dwm.scenario.conditions import air_in, conditions_of, new_conditions
from dwm.scenario.types import Scenario
from dwm.scenes.prompts import tokenize
from dwm.scenes.types import DETECTION_CLASSES, Camera

_CAST_FINER = 2  # rays along each side of a layout pixel
_BOX_RANGE_M = 90.0
_PAINTERS = 2  # threads; NumPy lets go of the interpreter while it works
_WEAR_PER_WINDOW = 0.9  # codec and model cost a little each time
Pictures = list[tuple[Tensor, Tensor]]  # images [V, 3, H, W] in [-1, 1] with the share [V, 1, H/s, W/s] that they cover


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """A frame that is known: its index in the clip, its latents, and what it looks like."""

    frame: int
    latents_VCHW: Tensor
    images_V3HW: Tensor  # in [-1, 1]
    sharpness_VHW: Tensor | None = None  # dwm.conditioning.reprojection.Trace; None: sharp throughout


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """What the network reads about some frames (a batch of one), and the pictures behind it."""

    condition: DenoiseCondition
    shown_TVCHW: Tensor | None = None  # [T, V, 3, H, W] in [-1, 1]: the memory where it holds, else the appearance
    known_TVCHW: Tensor | None = None  # [T, V, 1, H/s, W/s]: the share that either covers


class ScenarioConditioner:
    """Computes layouts, waypoints and re-projected memory of a scenario's frames, on demand.

    ``points`` are the log's, for memory from the log; without them they are read from the scene's files when first needed.
    Images are ``image_hw``, a whole number of latents of ``downsample`` pixels a side; so many latents have layouts and shares.
    With a ``text`` encoder windows carry its features of the prompt, else the numbers of the prompt's words.
    """

    def __init__(
        self,
        scenario: Scenario,
        device: str | torch.device = "cpu",
        points: LoggedPoints | None = None,
        *,
        image_hw: tuple[int, int] = IMAGE_HW,
        downsample: int = 8,
        text: TextEncoder | None = None,
    ) -> None:
        self.scenario, self.device, self._given_points = scenario, torch.device(device), points
        self._text_encoder = text
        self.image_hw, self.cast_hw = image_hw, cast_size(image_hw, downsample)
        height, width = image_hw
        self.cameras = tuple(c.resized(width, height) for c in scenario.scene.cameras)
        self._caster = LayoutCaster(scenario.scene.map, self.device)
        agents = scenario.agents
        self._known = np.array([c is not None for c in agents.detection_classes], dtype=bool)
        self._classes = np.array([DETECTION_CLASSES.index(c) if c else 0 for c in agents.detection_classes], dtype=np.int64)
        self._identities = np.array([_identity(token) for token in agents.instance_tokens])
        self._yaw_rad = np.unwrap(yaw_from_rotation(scenario.ego_to_global))
        logged = {agent.instance_token: i for i, agent in enumerate(scenario.scene.agents)}
        # A drive of the proving ground has no log: there, an agent's number is its place among the scenario's.
        self._numbers = np.array(
            [logged.get(token, -1) if logged else i for i, token in enumerate(agents.instance_tokens)], dtype=np.int64
        )
        self._asked, _ = new_conditions(scenario.scene, conditions_of(scenario.perturbation))
        self.notes: tuple[str, ...] = ()  # what was asked for and could not be had, in words
        self.layout = lru_cache(maxsize=48)(self._layout)
        self._drawn = lru_cache(maxsize=2)(self._draw)

    def visible_agents(self, frame: int) -> NDArray[np.int64]:
        """Indices of the agents that are drawn in a frame's layout."""
        agents, ego = self.scenario.agents, self.scenario.ego_to_global[frame, :2, 3]
        near = np.linalg.norm(agents.centers_m[:, frame, :2] - ego, axis=-1) < _BOX_RANGE_M
        return np.flatnonzero(agents.present[:, frame] & self._known & near)

    def boxes(self, frame: int) -> LayoutBoxes:
        """The boxes drawn in a frame's layout."""
        agents, index = self.scenario.agents, self.visible_agents(frame)
        return LayoutBoxes(
            classes=self._classes[index], centers_m=agents.centers_m[index, frame], sizes_wlh_m=agents.sizes_wlh_m[index],
            yaws_rad=agents.yaws_rad[index, frame],
            # An agent seen once has no velocity, and its NaN would spread over the whole picture.
            speeds_mps=np.nan_to_num(np.linalg.norm(agents.velocities_mps[index, frame], axis=-1)),
            identities=self._identities[index],
        )  # fmt: skip

    def _layout(self, frame: int) -> Layout:
        ego = self.scenario.ego_to_global[frame]
        return self._caster.cast(self.cameras, ego, self.boxes(frame), *self.cast_hw)

    def seen_rays(self, frame: int) -> NDArray[np.int64]:
        """How many of the layout's rays, over all views, meet each agent first [A]."""
        near, hit = self.visible_agents(frame), self.layout(frame).box_VHW
        rays = np.zeros(len(self._classes), dtype=np.int64)
        rays[near] = torch.bincount(hit[hit >= 0].flatten(), minlength=len(near)).cpu().numpy()
        return rays

    def memory(self, source: Given, target: int, *, log: bool = False) -> tuple[Tensor, Tensor]:
        """A known frame carried to a target frame: images [V, 3, H, W] in [-1, 1], validity [V, 1, H/s, W/s] in [0, 1].

        With ``log``, what the whole log's LiDAR points and pictures show takes its place wherever that is sharper.
        """
        if log and self.points is not None:
            _, _, memory = self._from_log(source, target)
            return memory.images_V3HW, self._at_cast(memory.known_VHW[:, None].float())
        same = self._same_boxes(source.frame, target)
        return reproject(self._source(source), self.layout(target), self.boxes(target), same)

    def sharpness(self, source: Given, target: int, *, log: bool = False) -> Tensor:
        """How sharp a target made from a source is [V, H/s, W/s]: what was carried wears, what was painted is new."""
        if log and self.points is not None:
            return worn(*self._from_log(source, target), _WEAR_PER_WINDOW)
        found = trace(self._source(source), self.layout(target), self.boxes(target), self._same_boxes(source.frame, target))
        return torch.where(found.valid_VHW, found.sharpness_VHW * _WEAR_PER_WINDOW, 1.0)

    @cached_property
    def points(self) -> LoggedPoints | None:
        """The log's coloured points; None, and a line in ``notes``, when there are none or they show another light."""
        if self._asked:
            names = " and ".join(condition.name for condition in self._asked)
            self.notes += (f"the log's pictures do not show {names}: memory `log` falls back to `past`",)
            return None
        points = read_logged_points(self.scenario.scene) if self._given_points is None else self._given_points
        if points is None:
            self.notes += ("no LiDAR files or no images to colour them: memory `log` falls back to `past`",)
            return None
        return points.to(self.device)

    def logged(self, frame: int) -> tuple[Tensor, Tensor]:
        """What the log's points alone show of a frame: images [V, 3, H, W] in [-1, 1] and known share [V, 1, H/s, W/s].

        Without LiDAR files nothing is known.
        """
        if self.points is None:
            views = len(self.cameras)
            nothing = torch.zeros(views, 3, *self.image_hw, device=self.device)
            return nothing, torch.zeros(views, 1, *self.cast_hw, device=self.device)
        drawn, known = self._drawn(frame)
        return drawn.images_V3HW, self._at_cast(known[:, None].float())

    def _draw(self, frame: int) -> tuple[Drawn, Tensor]:
        """The log's points in a frame, and where they hold [V, H, W]."""
        assert self.points is not None
        agents = self.scenario.agents
        index = np.flatnonzero(agents.present[:, frame] & (self._numbers >= 0))
        boxes = Boxes(
            agents=self._numbers[index], centers_m=agents.centers_m[index, frame], sizes_wlh_m=agents.sizes_wlh_m[index],
            rotations=rotation_from_yaw(agents.yaws_rad[index, frame]), speeds_mps=np.zeros(len(index)),
        )  # fmt: skip
        drawn = self.points.draw(self.cameras, self.scenario.ego_to_global[frame], boxes, *self.image_hw)
        return drawn, usable(drawn, self.layout(frame), self._numbers[self.visible_agents(frame)])

    def _from_log(self, source: Given, target: int) -> tuple[Trace, Drawn, Memory]:
        before = self._source(source)
        found = trace(before, self.layout(target), self.boxes(target), self._same_boxes(source.frame, target))
        drawn, known = self._drawn(target)
        return found, drawn, merged(fetched(before, found), found, drawn, known)

    def _source(self, given: Given) -> SourceFrame:
        return SourceFrame(
            images_SCHW=given.images_V3HW, cameras=self.cameras, ego_to_global=self.scenario.ego_to_global[given.frame],
            layout=self.layout(given.frame), boxes=self.boxes(given.frame), sharpness_SHW=given.sharpness_VHW,
        )  # fmt: skip

    def _same_boxes(self, source: int, target: int) -> NDArray[np.int64]:
        """For each box drawn in the target, its index among the source's, -1 when it was not there."""
        position = {int(agent): i for i, agent in enumerate(self.visible_agents(source))}
        return np.array([position.get(int(agent), -1) for agent in self.visible_agents(target)], dtype=np.int64)

    @cached_property
    def _street(self) -> Street:
        return Street(self.scenario.scene.map)

    def _view(self, frame: int) -> View:
        tokens = tuple(self.scenario.agents.instance_tokens[i] for i in self.visible_agents(frame))
        return View(
            cameras=self.cameras, ego_to_global=self.scenario.ego_to_global[frame], layout=self.layout(frame),
            boxes=self.boxes(frame), tokens=tokens,
        )  # fmt: skip

    def appearance(self, frame: int, images_V3HW: Tensor, things: Things) -> Appearance:
        """The look of a true frame [V, 3, H, W] in [-1, 1]; ``things`` stand in for what it does not show."""
        return Appearance(self._street, things, self._view(frame), images_V3HW, air_in(self.scenario.scene, self._asked))

    def painted(self, appearance: Appearance, target: int) -> tuple[Tensor, Tensor]:
        """A look laid over a frame: images [V, 3, H, W] in [-1, 1] and the share [V, 1, H/s, W/s] that it covers."""
        images, known = appearance.paint(self._view(target))
        return images, self._at_cast(known)

    def _at_cast(self, share_V1HW: Tensor) -> Tensor:
        """A share of an image's pixels as one of the cast's."""
        return F.avg_pool2d(share_V1HW, self.image_hw[0] // self.cast_hw[0])

    def window(
        self,
        frames: Sequence[int],
        *,
        fps: float,
        codec: Codec,
        sources: Sequence[Given] = (),
        appearance: Appearance | None = None,
        layout: bool = True,
        log: bool = False,
    ) -> Window:
        """The condition of a window of frames.

        Of the ``sources`` the nearest in time is carried along as memory, with ``log`` helped by the log's points; without any the
        memory is off. The ``appearance`` is laid over the layout; without it, or without the layout, it is off. What is painted on a box has the shape
        of its class, what is carried with it that of the box: there, carried pictures give way to painted ones.
        """
        layouts = torch.stack([self.layout(f).maps_VCHW for f in frames]) if layout else None
        painted: Pictures | None = None
        carried: Pictures | None = None
        for f in frames if layout or sources else ():
            self.layout(f)  # cast before the threads ask for them
        if appearance is not None and layout:
            with ThreadPoolExecutor(_PAINTERS) as pool:
                painted = list(pool.map(lambda f: self.painted(appearance, f), frames))
        if sources:
            log = log and self.points is not None  # read before the threads ask for them
            with ThreadPoolExecutor(_PAINTERS) as pool:
                carried = list(pool.map(lambda f: self.memory(nearest(sources, f), f, log=log), frames))
            if painted and not log:
                boxes = [(self.layout(f).box_VHW >= 0)[:, None] for f in frames]
                carried = [
                    (images, share * (1 - box * look)) for (images, share), (_, look), box in zip(carried, painted, boxes, strict=True)
                ]  # fmt: skip
        memory, valid = _encoded(codec, carried) if carried else (None, None)
        colours, known = _encoded(codec, painted) if painted else (None, None)
        on = torch.ones(1, dtype=torch.bool, device=self.device)
        condition = DenoiseCondition(
            waypoints_BTK=self.waypoints(frames)[None].to(self.device), cameras_BVK=camera_features(self.cameras)[None].to(self.device),
            times_BT=self.times(frames)[None].to(self.device), fps_B=torch.tensor([fps], device=self.device),
            text_BL=self._text[1], text_features_BLK=self._text[0],
            has_text_B=on, has_waypoints_B=on, has_layout_B=on if layout else ~on, has_memory_B=~on if memory is None else on,
            has_appearance_B=~on if colours is None else on,
            layout_BTVCHW=None if layouts is None else layouts[None],
            memory_BTVCHW=None if memory is None else memory[None],
            memory_valid_BTV1HW=None if valid is None else valid[None],
            appearance_BTVCHW=None if colours is None else colours[None],
            appearance_known_BTV1HW=None if known is None else known[None],
        )  # fmt: skip
        shown, share = laid_over(carried, painted)
        return Window(condition=condition, shown_TVCHW=shown, known_TVCHW=share)

    @cached_property
    def _text(self) -> tuple[Tensor | None, Tensor]:
        """``text_features_BLK`` and ``text_BL`` of the prompt."""
        if self._text_encoder is None:
            return None, torch.from_numpy(tokenize(self.scenario.prompt))[None].to(self.device)
        features, tokens = self._text_encoder.encode([self.scenario.prompt])
        return features.to(self.device), tokens.to(self.device)

    def waypoints(self, frames: Sequence[int]) -> Tensor:
        """[T, 6]: see ``dwm.models.conditioning.WAYPOINT_SIZE``."""
        poses, times = self.scenario.ego_to_global, self.scenario.timestamps_us * 1e-6
        speed = (
            np.gradient(poses[:, 0, 3], times) ** 2 + np.gradient(poses[:, 1, 3], times) ** 2 if len(poses) > 1 else np.zeros(1)
        )
        rate = np.gradient(self._yaw_rad, times) if len(poses) > 1 else np.zeros(1)
        index = np.asarray(frames)
        relative = invert(poses[index[0]]) @ poses[index]
        yaw = wrap_angle(yaw_from_rotation(relative))
        columns = [
            relative[:, 0, 3] / 10,
            relative[:, 1, 3] / 10,
            np.sin(yaw),
            np.cos(yaw),
            np.sqrt(speed[index]) / 10,
            rate[index],
        ]
        return torch.from_numpy(np.stack(columns, axis=-1)).float()

    def times(self, frames: Sequence[int]) -> Tensor:
        """Seconds [T] since the window's first frame."""
        times = self.scenario.timestamps_us[np.asarray(frames)]
        return torch.from_numpy((times - times[0]) * 1e-6).float()


def cast_size(image_hw: tuple[int, int], downsample: int) -> tuple[int, int]:
    """Height and width [rays] of the layout cast: ``LAYOUT_FINER`` layout pixels a latent pixel, two rays a layout pixel.

    Raises InputError for images that are no whole number of latents, and for latents that no such grid fits.
    """
    finer = LAYOUT_FINER * _CAST_FINER
    if downsample % finer:
        raise InputError("codec", f"{downsample} image pixels a latent", f"use a codec of a multiple of {finer}")
    height, width = image_hw
    if min(image_hw) < downsample or height % downsample or width % downsample:
        raise InputError("image_hw", f"{height}x{width} px", f"give multiples of the codec's {downsample} px")
    return height * finer // downsample, width * finer // downsample


def nearest(sources: Sequence[Given], frame: int) -> Given:
    """The known frame that is nearest in time; the earlier of two."""
    return min(sources, key=lambda source: abs(source.frame - frame))


def laid_over(carried: Pictures | None, painted: Pictures | None) -> tuple[Tensor | None, Tensor | None]:
    """Carried pictures laid over painted ones, and the share that either covers."""
    parts = [tuple(torch.stack(part) for part in zip(*pictures, strict=True)) for pictures in (carried, painted) if pictures]
    if not parts:
        return None, None
    images, share = parts[0]
    for below, below_share in parts[1:]:
        over = share.repeat_interleave(images.shape[-1] // share.shape[-1], -1)
        over = over.repeat_interleave(images.shape[-2] // share.shape[-2], -2)
        images, share = over * images + (1 - over) * below, share + (1 - share) * below_share
    return images, share


def _encoded(codec: Codec, pictures: Pictures) -> tuple[Tensor, Tensor]:
    """Images with shares to latents [T, V, C, h, w] with shares [T, V, 1, h, w]."""
    latents = torch.stack([codec.encode(images) for images, _ in pictures])
    return latents, torch.stack([F.avg_pool2d(share, LAYOUT_FINER * _CAST_FINER) for _, share in pictures])


def camera_features(cameras: Sequence[Camera]) -> Tensor:
    """[V, 16]: see ``dwm.models.conditioning.CAMERA_SIZE``."""
    rows = []
    for camera in cameras:
        k, pose = camera.intrinsics, camera.camera_to_ego[:3].copy()
        pose[:, 3] /= 10
        w, h = camera.width_px, camera.height_px
        rows.append(np.concatenate([[k[0, 0] / w, k[1, 1] / h, k[0, 2] / w, k[1, 2] / h], pose.ravel()]))
    return torch.from_numpy(np.stack(rows)).float()


def images_to_tensor(images: NDArray[np.uint8], device: str | torch.device = "cpu") -> Tensor:
    """uint8 [..., H, W, 3] to float [..., 3, H, W] in [-1, 1]."""
    return torch.from_numpy(images).to(device).float().div(127.5).sub(1).movedim(-1, -3)


def tensor_to_images(images: Tensor) -> NDArray[np.uint8]:
    """Float [..., 3, H, W] in [-1, 1] to uint8 [..., H, W, 3]."""
    return images.clamp(-1, 1).add(1).mul(127.5).round().to(torch.uint8).movedim(-3, -1).cpu().numpy()


def _identity(token: str) -> float:
    return int(hashlib.sha256(token.encode()).hexdigest()[:6], 16) / 0xFFFFFF
