"""True masks of single agents in a proving-ground world: what shows of each, and what would if it stood alone.

Only the part of each image that an agent's box projects into is rendered: the same rays as in the whole image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from dwm.raycast import PinholeViews, Primitives
from dwm.scenario.types import Scenario
from dwm.scenes.proving_ground.capture import SceneRenderer
from dwm.scenes.proving_ground.counterfactual import CounterfactualRenderer, frame_agents
from dwm.scenes.proving_ground.render import RenderAgent, Renderer
from dwm.scenes.types import Camera

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """One agent in one camera, in the window of the image that its box projects into."""

    agent: int  # index into scenario.agents
    camera: Camera  # of the whole image
    camera_to_global: Array  # [4, 4]
    left_top_px: NDArray[np.int64]  # [2] where the window lies in the image
    alone: Mask  # [h, w] the agent without the rest of the world
    visible: Mask  # [h, w] what nothing hides of it

    @property
    def extents_px(self) -> Array:
        """Left, top, right, bottom [4] of the agent alone, in the image."""
        rows, columns = np.nonzero(self.alone)
        here = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1], np.float64)
        return here + np.tile(self.left_top_px, 2)


class MaskTruth:
    """A world that can be rendered with and without its houses and other agents."""

    def __init__(self, world: CounterfactualRenderer) -> None:
        self._world = world
        # A renderer wants at least one thing that stands: one beyond its range.
        far = replace(world.city.statics[0], center_m=np.array([1e5, 1e5, 1.0]))
        self._empty = Renderer(replace(world.city, statics=(far,)))

    def shown(
        self, scenario: Scenario, frame: int, asked: Sequence[int], size_hw: tuple[int, int], *, whole_from_px: int = 0
    ) -> list[Shown]:
        """Masks of agents (indices into ``scenario.agents``) in every camera their boxes project into.

        With ``whole_from_px`` only windows of at least this width and height that do not touch the image's border.
        """
        index, agents = frame_agents(scenario, frame)
        drawn = [(i, k) for k, i in enumerate(index) if i in set(asked)]
        cameras = tuple(camera.resized(size_hw[1], size_hw[0]) for camera in scenario.scene.cameras)
        ego, found = scenario.ego_to_global[frame], []
        for v, which, low, high in _windows(cameras, ego, [agents[k] for _, k in drawn]):
            size = [cameras[v].width_px, cameras[v].height_px]
            if whole_from_px and ((low <= 0).any() or (high >= size).any() or (high - low < whole_from_px).any()):
                continue
            i, k = drawn[which]
            crop = _cropped(cameras[v], low, high)
            alone = self._mask(self._empty, crop, ego, [agents[k]], 0)
            visible = self._mask(self._world.renderer, crop, ego, agents, k) if alone.any() else alone
            found.append(Shown(
                agent=i, camera=cameras[v], camera_to_global=ego @ cameras[v].camera_to_ego, left_top_px=low,
                alone=alone, visible=visible,
            ))  # fmt: skip
        return found

    def _mask(self, renderer: SceneRenderer, camera: Camera, ego: Array, agents: list[RenderAgent], which: int) -> Mask:
        return renderer.render((camera,), ego[None], agents, self._world.weather, 0).instance[0] == which


def _windows(
    cameras: tuple[Camera, ...], ego_to_global: Array, agents: list[RenderAgent]
) -> list[tuple[int, int, NDArray[np.int64], NDArray[np.int64]]]:
    """Camera, agent, first pixel (x, y) and the one behind the last of every projection of a box."""
    if not agents:
        return []
    views = PinholeViews(
        torch.from_numpy(np.stack([ego_to_global @ c.camera_to_ego for c in cameras])),
        torch.from_numpy(np.stack([c.intrinsics for c in cameras])), cameras[0].height_px, cameras[0].width_px,
    )  # fmt: skip
    boxes = Primitives(
        center_N3=torch.from_numpy(np.stack([a.center_m for a in agents])).float(),
        half_N3=torch.from_numpy(np.stack([a.size_wlh_m[[1, 0, 2]] / 2 for a in agents])).float(),
        yaw_N=torch.tensor([a.yaw_rad for a in agents]), ellipsoid_N=torch.zeros(len(agents), dtype=torch.bool),
    )  # fmt: skip
    found = views.rectangles(boxes)
    table = torch.stack([found.view, found.primitive, found.u0, found.v0, found.u1, found.v1], 1).numpy().astype(np.int64)
    return [(int(row[0]), int(row[1]), row[2:4], row[4:6]) for row in table]


def _cropped(camera: Camera, low_px: NDArray[np.int64], high_px: NDArray[np.int64]) -> Camera:
    intrinsics = camera.intrinsics.copy()
    intrinsics[:2, 2] -= low_px
    width, height = (int(x) for x in high_px - low_px)
    return replace(camera, intrinsics=intrinsics, width_px=width, height_px=height)
