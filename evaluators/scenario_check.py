"""A second opinion on emitted scenarios, by other means than those that emitted them.

Derivatives are differences after a Gaussian filter instead of a polynomial fit, footprints are shapely polygons instead of separating
axes, and the road is made of polygons (of the map expansion, else outlines of the drivable mask) instead of a distance raster.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import shapely
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter1d

from dwm.footprints import rectangles
from dwm.geometry import yaw_from_rotation
from dwm.scenario.feasibility import LIMITS, Limits
from dwm.scenario.types import Scenario
from dwm.scenes.types import MAP_LAYERS, Scene
from dwm.traffic.simulate import EGO_SIZE_WLH_M, REAR_AXLE_TO_CENTRE_M

Array = NDArray[np.float64]
SIGMA_S = 0.25
ROAD_TOLERANCE_M = 0.5
SAME_PLACE_M = 5.0
NO_ROAD_M = 10.0
SLOWEST_TURN_MPS = 1.5
_NEAR_M = 20.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Opinion:
    """What was found on one scenario: the largest value of each quantity over the judged frames, and what it breaks."""

    acceleration_mps2: float
    deceleration_mps2: float
    lateral_acceleration_mps2: float
    jerk_mps3: float
    curvature_per_m: float
    steering_rate_radps: float
    off_road_m: float  # beyond what is tolerated there; 0 on the road
    collisions: int  # frames in which the ego's outline meets another that the log did not let it meet
    broken: tuple[str, ...]  # names of broken limits


class RoadPolygons:
    """The drivable area around a scene as polygons; none where the map has none."""

    def __init__(self, scene: Scene) -> None:
        expansion = scene.dataroot / "maps" / "expansion" / f"{scene.location}.json"
        (x, y), mpp = scene.map.origin_xy_m.tolist(), scene.map.metres_per_pixel
        rows, cols = scene.map.layers.shape[1:]
        window = self._window = shapely.box(x, y, x + cols * mpp, y + rows * mpp)
        found = _of_expansion(expansion) if expansion.is_file() else _of_mask(scene)
        # Mending an outline that touches itself leaves stray lines, which would make every question slow.
        parts = shapely.get_parts(shapely.get_parts(shapely.intersection(shapely.union_all(found), window))) if found else []
        self.area = shapely.multipolygons([part for part in parts if isinstance(part, shapely.Polygon)])
        shapely.prepare(self.area)
        self._edges = shapely.STRtree(_edges(self.area))

    def excess_m(self, outlines: NDArray, allowed_m: Array | float = 0.0) -> Array:
        """How far the outermost corner of each outline [N] is off the road, beyond what is allowed; 0 beyond the map."""
        if self.area.is_empty:
            return np.zeros(len(outlines))
        corners = np.asarray(shapely.points(shapely.get_coordinates(outlines).reshape(len(outlines), 5, 2)[:, :4]))
        off = np.zeros(corners.shape)
        outside = ~shapely.covers(self.area, corners) & shapely.covers(self._window, corners)
        if outside.any():
            _, off[outside] = self._edges.query_nearest(corners[outside], all_matches=False, return_distance=True)
        return np.maximum(off.max(axis=1, initial=0.0) - allowed_m, 0.0)


def second_opinion(scenario: Scenario, road: RoadPolygons, limits: Limits = LIMITS) -> Opinion:
    """Judges a scenario's ego path from where it leaves the log's own driving."""
    poses, base = scenario.ego_to_global, scenario.baseline_ego_to_global
    moved = np.abs(poses - base).max(axis=(1, 2)) > 1e-6
    first = min(int(np.argmax(moved)) if moved.any() else len(poses), scenario.log_end_index)
    outlines = _ego_outlines(poses)
    logged = _ego_outlines(base[: scenario.log_end_index])
    motion = motion_of(poses, scenario.fps, limits.wheelbase_m)
    worst = {name: float(values[first:].max(initial=0.0)) for name, values in motion.items()}
    off = _off_road(road, outlines[first:], poses[first:], base, logged)
    hits = int(_collisions(scenario, outlines, logged).sum())
    broken = [name for name, value in worst.items() if value > getattr(limits, name)]
    if off.max(initial=0.0) > 1e-6:
        broken.append("off_road_m")
    if hits:
        broken.append("collisions")
    return Opinion(**worst, off_road_m=float(off.max(initial=0.0)), collisions=hits, broken=tuple(broken))


def motion_of(poses: Array, fps: float, wheelbase_m: float) -> dict[str, Array]:
    """Named magnitudes [T] of how poses [T, 4, 4] move, differences of what a Gaussian of 0.25 s has smoothed."""
    sigma = SIGMA_S * fps
    xy, yaw = poses[:, :2, 3] - poses[0, :2, 3], np.unwrap(yaw_from_rotation(poses))

    def derive(values: Array, order: int) -> Array:
        pad = min(int(4 * sigma) + 1, len(values) - 1)
        # Continued by point reflection, so that an end is no jolt.
        whole = np.concatenate([2 * values[0] - values[pad:0:-1], values, 2 * values[-1] - values[-2 : -pad - 2 : -1]])
        # A sampled kernel of a derivative does not sum to 0: far from the origin that would pass for a force.
        smooth = gaussian_filter1d(whole, sigma, axis=0)
        for _ in range(order):
            smooth = np.gradient(smooth, axis=0) * fps
        return smooth[pad : pad + len(values)]

    velocity, acceleration = derive(xy, 1), derive(xy, 2)
    heading = np.stack([np.cos(yaw), np.sin(yaw)], axis=-1)
    speed, along = (velocity * heading).sum(-1), (acceleration * heading).sum(-1)
    rate = derive(yaw, 1)
    turning = np.abs(speed) > SLOWEST_TURN_MPS
    turning &= np.roll(turning, 1) & np.roll(turning, -1)
    curvature = np.where(turning, rate / np.where(turning, speed, 1.0), 0.0)
    steering = np.where(turning, np.gradient(np.arctan(wheelbase_m * curvature)) * fps, 0.0)
    steering[~(np.roll(turning, 1) & np.roll(turning, -1))] = 0.0
    return {
        "acceleration_mps2": np.maximum(along, 0.0), "deceleration_mps2": np.maximum(-along, 0.0),
        "lateral_acceleration_mps2": np.abs(speed * rate), "jerk_mps3": np.linalg.norm(derive(xy, 3), axis=-1),
        "curvature_per_m": np.abs(curvature), "steering_rate_radps": np.abs(steering),
    }  # fmt: skip


def _ego_outlines(poses: Array) -> NDArray:
    yaw = yaw_from_rotation(poses)
    centre = poses[:, :2, 3] + REAR_AXLE_TO_CENTRE_M * np.stack([np.cos(yaw), np.sin(yaw)], axis=-1)
    return rectangles(centre, yaw, np.array(EGO_SIZE_WLH_M))


def _off_road(road: RoadPolygons, outlines: NDArray, poses: Array, base: Array, logged: NDArray) -> Array:
    """Metres off the road [N] beyond the tolerance; 0 where the map knows no road near any of the path."""
    if not len(outlines) or road.excess_m(outlines).min() > NO_ROAD_M:
        return np.zeros(len(outlines))
    return road.excess_m(outlines, ROAD_TOLERANCE_M + _off_in_log(road, poses, base, logged))


def _off_in_log(road: RoadPolygons, poses: Array, base: Array, logged: NDArray) -> Array:
    off = road.excess_m(logged)
    if not len(off) or off.max() == 0:
        return np.zeros(len(poses))
    apart = np.linalg.norm(poses[:, None, :2, 3] - base[None, : len(off), :2, 3], axis=-1)
    return np.where(apart < SAME_PLACE_M, off, 0.0).max(axis=1)


def _collisions(scenario: Scenario, outlines: NDArray, logged: NDArray) -> NDArray[np.bool_]:
    """Frames [T] in which the ego's outline meets an agent's; not where the log's own did (annotations are not perfect)."""
    agents, out = scenario.agents, np.zeros(len(outlines), dtype=bool)
    original = {a.instance_token for a in scenario.scene.agents}
    for i, token in enumerate(agents.instance_tokens):
        apart = np.linalg.norm(agents.centers_m[i, :, :2] - scenario.ego_to_global[:, :2, 3], axis=1)
        frames = np.flatnonzero(agents.present[i] & (apart < _NEAR_M))
        theirs = rectangles(agents.centers_m[i, frames, :2], agents.yaws_rad[i, frames], agents.sizes_wlh_m[i])
        met = shapely.area(shapely.intersection(outlines[frames], theirs)) > 1e-6
        if token in original:
            own = frames < len(logged)
            # The clearance that the log itself did not keep is not asked of others either.
            met[own] &= shapely.distance(logged[frames[own]], theirs[own]) > LIMITS.clearance_m
        out[frames[met]] = True
    return out


def _edges(area: shapely.MultiPolygon) -> NDArray:
    """The boundary as single line segments."""
    rings = shapely.get_rings(shapely.get_parts(area))
    coords, ring = shapely.get_coordinates(rings, return_index=True)
    pairs = np.stack([coords[:-1], coords[1:]], axis=1)
    return np.asarray(shapely.linestrings(pairs[ring[:-1] == ring[1:]]))


def _of_expansion(path: Path) -> list[shapely.Geometry]:
    tables = json.loads(path.read_text())
    nodes = {n["token"]: (n["x"], n["y"]) for n in tables["node"]}
    polygons = {p["token"]: p for p in tables["polygon"]}

    def shape(token: str) -> shapely.Geometry:
        polygon = polygons[token]
        ring = [nodes[n] for n in polygon["exterior_node_tokens"]]
        holes = [[nodes[n] for n in hole["node_tokens"]] for hole in polygon["holes"] if len(hole["node_tokens"]) > 2]
        return shapely.make_valid(shapely.Polygon(ring, holes))

    return [shape(token) for area in tables["drivable_area"] for token in area["polygon_tokens"]]


def _of_mask(scene: Scene) -> list[shapely.Geometry]:
    """Pixels of the drivable layer as polygons with holes."""
    layer = scene.map.layers[MAP_LAYERS.index("drivable")]
    # Each pixel doubled, so that outlines run along pixel borders to a quarter of a pixel.
    big = cv2.resize(layer, None, fx=2, fy=2, interpolation=cv2.INTER_NEAREST)
    outlines, tree = cv2.findContours(big, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    scale, low = scene.map.metres_per_pixel / 2, scene.map.origin_xy_m

    def ring(outline: NDArray) -> Array:
        return (outline[:, 0].astype(np.float64) + 0.5) * scale + low

    found = []
    for i, outline in enumerate(outlines):
        if tree[0, i, 3] < 0 and len(outline) > 2:
            holes, child = [], tree[0, i, 2]
            while child >= 0:
                if len(outlines[child]) > 2:
                    holes.append(ring(outlines[child]))
                child = tree[0, child, 0]
            found.append(shapely.make_valid(shapely.Polygon(ring(outline), holes)))
    return found
