"""The painted ground of the proving ground as one raster of surface codes."""

from __future__ import annotations

import numpy as np
import shapely
from numpy.typing import NDArray
from shapely.ops import substring

from dwm.scenes.proving_ground.curves import Array
from dwm.scenes.proving_ground.ground_plan import GroundPlan
from dwm.scenes.raster import draw_lines, fill

SURFACES = ("terrain", "sidewalk", "asphalt", "white_line", "yellow_line", "crossing", "parking")
TERRAIN, SIDEWALK, ASPHALT, WHITE_LINE, YELLOW_LINE, CROSSING, PARKING = range(len(SURFACES))
DRIVABLE_CODES = (ASPHALT, WHITE_LINE, YELLOW_LINE, CROSSING)
METRES_PER_PIXEL = 0.1
_LINE_M, _DASH_M, _GAP_M = 0.15, 3.0, 6.0
_DOUBLE_M = 0.16  # each of the two yellow lines lies this far from the axis


def paint(plan: GroundPlan, size_m: float) -> NDArray[np.uint8]:
    """Surface codes [rows, cols] at 0.1 m: origin (0, 0), rows grow with y. ``crossing`` marks the painted bars only."""
    side = round(size_m / METRES_PER_PIXEL)
    raster = np.full((side, side), TERRAIN, np.uint8)
    fill(raster, plan.walkways, SIDEWALK, METRES_PER_PIXEL)
    # The pieces of sidewalk meet at hairline seams along their cuts.
    fill(raster, plan.drivable, ASPHALT, METRES_PER_PIXEL)
    draw_lines(raster, plan.edge_lines, _LINE_M, WHITE_LINE, METRES_PER_PIXEL)
    draw_lines(raster, (dash for line in plan.lane_dividers for dash in dashes(line)), _LINE_M, WHITE_LINE, METRES_PER_PIXEL)
    axes = [shapely.LineString(line) for _, _, line in plan.road_dividers]
    doubles = (np.asarray(axis.offset_curve(side).coords) for axis in axes for side in (-_DOUBLE_M, _DOUBLE_M))
    draw_lines(raster, doubles, _LINE_M, YELLOW_LINE, METRES_PER_PIXEL)
    fill(raster, (stop.polygon for stop in plan.stop_lines), WHITE_LINE, METRES_PER_PIXEL)
    fill(raster, (bar for crossing in plan.crossings for bar in crossing.bars), CROSSING, METRES_PER_PIXEL)
    return raster


def dashes(line: Array) -> list[Array]:
    """The dashes [P, 2] of a dashed line [P, 2]: 3 m painted, 6 m not, centred on its length."""
    path = shapely.LineString(line)
    count = int((path.length + _GAP_M) // (_DASH_M + _GAP_M))
    first = (path.length - count * (_DASH_M + _GAP_M) + _GAP_M) / 2
    starts = first + np.arange(count) * (_DASH_M + _GAP_M)
    return [np.asarray(substring(path, start, start + _DASH_M).coords) for start in starts]
