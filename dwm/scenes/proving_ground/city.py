"""The proving-ground city: a small procedural town, the same for the same seed on every machine."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dwm.errors import InputError
from dwm.scenes.lane_graph import LaneGraph
from dwm.scenes.proving_ground.ground_plan import GroundPlan, lay_out
from dwm.scenes.proving_ground.roads import RoadNetwork, build_network
from dwm.scenes.proving_ground.scenery import StaticBox, furnish
from dwm.scenes.proving_ground.surface import DRIVABLE_CODES, METRES_PER_PIXEL, SURFACES, paint
from dwm.scenes.raster import map_layers
from dwm.scenes.types import SceneMap

__all__ = ["LOCATIONS", "SURFACES", "City", "StaticBox", "build_city", "map_mask", "scene_map"]

# Towns below this seed train the shipped weights; worlds built for use and every published figure start from it.
FIRST_HELD_OUT_TOWN = 1000
# The devkit's NuScenesMap accepts no other names.
LOCATIONS = ("boston-seaport", "singapore-onenorth", "singapore-hollandvillage", "singapore-queenstown")
_SMALLEST_M = 200.0  # three by three junctions: fewer make a ring, whose two directions never meet


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class City:
    """Everything of the town that does not move. The ground is z = 0; x and y run from 0 to ``size_m``."""

    seed: int
    size_m: float
    location: str
    lane_graph: LaneGraph
    surface: NDArray[np.uint8]  # [rows, cols] indices into SURFACES; origin (0, 0), rows grow with y, cols with x
    metres_per_pixel: float
    statics: tuple[StaticBox, ...]
    network: RoadNetwork
    plan: GroundPlan


def build_city(seed: int, size_m: float = 420.0) -> City:
    """Build the town of a seed. Right-hand traffic; every lane can be reached from every other.

    Raises InputError where the town would be too small for a block.
    """
    if not size_m >= _SMALLEST_M:
        raise InputError("size_m", f"a town of {size_m} m has no room for a block", f"give at least {_SMALLEST_M:g} m")
    road_rng, scenery_rng = np.random.default_rng(seed).spawn(2)
    network = build_network(seed, size_m, road_rng)
    plan = lay_out(network)
    crossings = tuple(np.asarray(crossing.polygon.exterior.coords)[:-1] for crossing in plan.crossings)
    return City(
        seed=seed,
        size_m=size_m,
        location=LOCATIONS[seed % len(LOCATIONS)],
        lane_graph=LaneGraph(network.lanes, crossings),
        surface=paint(plan, size_m),
        metres_per_pixel=METRES_PER_PIXEL,
        statics=furnish(network, plan, size_m, scenery_rng),
        network=network,
        plan=plan,
    )


def scene_map(city: City, metres_per_pixel: float = 0.2) -> SceneMap:
    """The town as a ``SceneMap``, drawn from the same geometry as its surface."""
    side = round(city.size_m / metres_per_pixel)
    dividers = [line for _, _, line in city.plan.road_dividers] + list(city.plan.lane_dividers)
    layers = map_layers(
        drivable=city.plan.drivable,
        dividers=dividers,
        crossings=[crossing.polygon for crossing in city.plan.crossings],
        walkways=city.plan.walkways,
        shape=(side, side),
        metres_per_pixel=metres_per_pixel,
    )
    return SceneMap(layers=layers, origin_xy_m=np.zeros(2), metres_per_pixel=metres_per_pixel, lane_graph=city.lane_graph)


def map_mask(city: City) -> NDArray[np.uint8]:
    """The image of the nuScenes ``map`` table: 255 where drivable, 0.1 m a pixel, the first row at the largest y."""
    drivable = np.isin(city.surface, DRIVABLE_CODES)
    return np.where(np.flipud(drivable), np.uint8(255), np.uint8(0))
