"""Annotations from what the sensors saw: visibility from instance masks, points counted in the stored sweep."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray
from nuscenes.utils.data_classes import Box
from nuscenes.utils.geometry_utils import points_in_box
from pyquaternion import Quaternion

from dwm.geometry import apply, box_corners, invert
from dwm.scenes.types import Array, Camera
from dwm.traffic.types import AgentSpec

NEAR_M = 0.1
MOVING_MPS = 0.2
ANNOTATION_RANGE_M = 80.0
# Share of a box's projected hull that its shape covers when nothing hides it: measured with the renderer, one agent
# alone, eight headings at 10 and 20 m (median). It turns the cheap hull area into the unoccluded pixel count.
FILL = {
    "car": 0.71, "truck": 0.86, "bus": 0.88, "trailer": 0.89, "construction_vehicle": 0.63,
    "pedestrian": 0.45, "motorcycle": 0.36, "bicycle": 0.35, "traffic_cone": 0.52, "barrier": 0.9,
}  # fmt: skip
# Corner pairs of the twelve edges, in the order of geometry.box_corners.
_EDGES = np.array([[0, 1], [1, 2], [2, 3], [3, 0], [4, 5], [5, 6], [6, 7], [7, 4], [0, 4], [1, 5], [2, 6], [3, 7]])


def hull_area_px(camera: Camera, camera_to_global: Array, center_m: Array, size_wlh_m: Array, yaw_rad: float) -> float:
    """Pixels inside the image that a box's silhouette covers when nothing hides it."""
    corners = apply(invert(camera_to_global), box_corners(center_m, size_wlh_m, yaw_rad))
    a, b = corners[_EDGES[:, 0]], corners[_EDGES[:, 1]]
    front = corners[corners[:, 2] >= NEAR_M]
    if not len(front):
        return 0.0
    crossing = (a[:, 2] >= NEAR_M) != (b[:, 2] >= NEAR_M)
    a, b = a[crossing], b[crossing]
    share = (NEAR_M - a[:, 2]) / (b[:, 2] - a[:, 2])
    points = np.concatenate([front, a + share[:, None] * (b - a)])
    uvw = points @ camera.intrinsics.T
    hull = cv2.convexHull((uvw[:, :2] / uvw[:, 2:]).astype(np.float32))
    width, height = camera.width_px, camera.height_px
    image = np.array([[0, 0], [width, 0], [width, height], [0, height]], np.float32)
    if len(hull) < 3:
        return 0.0
    area, _ = cv2.intersectConvexConvex(hull, image)
    return float(area)


def visibility_level(visible_px: float, amodal_px: float) -> int:
    """nuScenes level 1-4: up to 40, 60, 80 and 100 % visible."""
    share = visible_px / amodal_px if amodal_px > 0 else 0.0
    return 1 + int(np.searchsorted([0.4, 0.6, 0.8], share, side="left"))


def attribute_name(spec: AgentSpec, speed_mps: float) -> str:
    """The one attribute of an agent; '' for cones and barriers."""
    moving, name = speed_mps > MOVING_MPS, spec.detection_class
    if name == "pedestrian":
        return "pedestrian.moving" if moving else "pedestrian.standing"
    if name in ("bicycle", "motorcycle"):
        return "cycle.without_rider" if spec.behaviour == "static" else "cycle.with_rider"
    if name in ("traffic_cone", "barrier"):
        return ""
    if spec.behaviour == "static":
        return "vehicle.parked"
    return "vehicle.moving" if moving else "vehicle.stopped"


def count_points(points_lidar_m: NDArray[np.float32], annotation: dict, ego_pose: dict, calibration: dict) -> int:
    """Points [N, 3] of a stored sweep inside an annotation.

    The devkit's own steps in the devkit's own order: the ground lies exactly on the boxes' lower faces, so that any
    other rounding would give another count.
    """
    box = Box(annotation["translation"], annotation["size"], Quaternion(annotation["rotation"]))
    for frame in (ego_pose, calibration):
        box.translate(-np.array(frame["translation"]))
        box.rotate(Quaternion(frame["rotation"]).inverse)
    return int(points_in_box(box, points_lidar_m.T).sum())
