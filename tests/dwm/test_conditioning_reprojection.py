"""Layout depth and the frames carried along by it, on a town small enough to reason about."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from dwm.conditioning.layout import LAYOUT_CHANNELS, LayoutBoxes, LayoutCaster
from dwm.conditioning.reprojection import LEAST_SHARPNESS, SourceFrame, reproject, trace
from dwm.geometry import transform_from_xy_yaw
from dwm.scenes.proving_ground.rig import make_rig
from dwm.scenes.types import DETECTION_CLASSES, SceneMap

CAMERAS = make_rig((128, 224))
H, W = 64, 112


def open_field() -> SceneMap:
    """All drivable, so that no wall is imagined within 100 m."""
    layers = np.zeros((4, 600, 600), dtype=np.uint8)
    layers[0] = 1
    return SceneMap(layers=layers, origin_xy_m=np.array([-300.0, -300.0]), metres_per_pixel=1.0, lane_graph=None)


def car_at(x: float, y: float, yaw: float = 0.0) -> LayoutBoxes:
    return LayoutBoxes(
        classes=np.array([DETECTION_CLASSES.index("car")]), centers_m=np.array([[x, y, 0.9]]), sizes_wlh_m=np.array([[2.0, 4.0, 1.8]]),
        yaws_rad=np.array([yaw]), speeds_mps=np.array([0.0]), identities=np.array([0.25]),
    )  # fmt: skip


def nothing() -> LayoutBoxes:
    none = np.zeros(0)
    return LayoutBoxes(
        classes=np.zeros(0, dtype=np.int64), centers_m=np.zeros((0, 3)), sizes_wlh_m=np.zeros((0, 3)), yaws_rad=none,
        speeds_mps=none, identities=none,
    )  # fmt: skip


def painted(layout_points: torch.Tensor) -> torch.Tensor:
    """Images [V, 3, 128, 224] whose colour is a smooth function of where on the ground each pixel lies."""
    up = torch.nn.functional.interpolate(
        layout_points.permute(0, 3, 1, 2), size=(128, 224), mode="bilinear", align_corners=False
    )
    return torch.stack([torch.sin(up[:, 0] / 6), torch.cos(up[:, 1] / 6), torch.sin((up[:, 0] + up[:, 1]) / 9)], dim=1)


def test_a_box_ahead_fills_its_channel_at_its_depth() -> None:
    layout = LayoutCaster(open_field()).cast(CAMERAS, np.eye(4), car_at(12.0, 0.0), H, W)
    front = layout.maps_VCHW[0]
    assert front[LAYOUT_CHANNELS.index("car"), 16:20, 28].max() == 1.0
    assert layout.maps_VCHW[3, LAYOUT_CHANNELS.index("car")].max() == 0.0  # the back camera sees none
    # Its near face is 2 m closer than its centre and the camera sits 1.7 m ahead of the ego origin.
    assert float(layout.depth_VHW[0][layout.box_VHW[0] == 0].min()) == pytest.approx(12 - 2 - 1.7, abs=1e-3)


def test_an_imagined_wall_stands_behind_the_edge_of_the_road() -> None:
    layers = np.zeros((4, 2000, 2000), dtype=np.uint8)
    layers[0, 900:1100] = 1  # a road 40 m wide along x, metres_per_pixel 0.2
    town = SceneMap(layers=layers, origin_xy_m=np.array([-200.0, -200.0]), metres_per_pixel=0.2, lane_graph=None)
    layout = LayoutCaster(town).cast(CAMERAS, transform_from_xy_yaw(0.0, 0.0, np.pi / 2), nothing(), H, W)
    # The front camera looks across: 20 m to the edge less 1.7 m of mounting, to the next metre, plus 4.5 m of setback.
    assert float(layout.depth_VHW[0, 2, W // 2]) == pytest.approx(18.3 + 4.5, abs=1.2)
    assert float(layout.maps_VCHW[0, LAYOUT_CHANNELS.index("is_wall"), 1, 28]) == 1.0


def test_a_frame_carried_to_its_own_pose_is_itself() -> None:
    caster, boxes = LayoutCaster(open_field()), car_at(12.0, 1.0)
    layout = caster.cast(CAMERAS, np.eye(4), boxes, H, W)
    images = torch.rand(6, 3, 128, 224, generator=torch.Generator().manual_seed(0)) * 2 - 1
    images = torch.nn.functional.avg_pool2d(images, 9, stride=1, padding=4)
    source = SourceFrame(images_SCHW=images, cameras=CAMERAS, ego_to_global=np.eye(4), layout=layout, boxes=boxes)
    carried, valid = reproject(source, layout, boxes, np.array([0]))
    assert float(valid.mean()) > 0.999
    assert float((carried - images)[..., 2:-2, 2:-2].abs().mean()) < 2e-3


def test_the_ground_follows_the_path_and_beats_standing_still() -> None:
    caster = LayoutCaster(open_field())
    poses = [transform_from_xy_yaw(0.0, 0.0, 0.0), transform_from_xy_yaw(3.0, 0.8, 0.1)]
    old, new = (caster.cast(CAMERAS, pose, nothing(), H, W) for pose in poses)
    source = SourceFrame(
        images_SCHW=painted(old.points_VHW3), cameras=CAMERAS, ego_to_global=poses[0], layout=old, boxes=nothing()
    )
    carried, valid = reproject(source, new, nothing(), np.zeros(0, dtype=np.int64))
    near = (new.depth_VHW < 25)[:, None] & (valid > 0)
    near = torch.nn.functional.interpolate(near.float(), size=(128, 224)) > 0
    truth = painted(new.points_VHW3)
    error = (carried - truth).abs().mean(1, keepdim=True)[near].mean()
    still = (painted(old.points_VHW3) - truth).abs().mean(1, keepdim=True)[near].mean()
    assert float(error) < 0.1 * float(still)


def test_pixels_on_a_box_move_with_the_box() -> None:
    caster = LayoutCaster(open_field())
    before, after = car_at(12.0, -2.0), car_at(14.0, 3.0)
    old, new = (caster.cast(CAMERAS, np.eye(4), boxes, H, W) for boxes in (before, after))
    images = torch.full((6, 3, 128, 224), -1.0)
    red = torch.nn.functional.interpolate((old.box_VHW[:, None] == 0).float(), size=(128, 224)) > 0
    images[:, 0:1][red] = 1.0
    source = SourceFrame(images_SCHW=images, cameras=CAMERAS, ego_to_global=np.eye(4), layout=old, boxes=before)
    carried, valid = reproject(source, new, after, np.array([0]))
    on_new = new.box_VHW[0] == 0
    shown = torch.nn.functional.interpolate(carried, size=(H, W), mode="nearest")[0, 0]
    assert float((shown[on_new] > 0).float().mean()) > 0.85
    assert bool(valid[0, 0][on_new].float().mean() > 0.6)


def test_a_box_that_was_not_there_is_marked_unknown() -> None:
    caster, boxes = LayoutCaster(open_field()), car_at(12.0, 0.0)
    old, new = (caster.cast(CAMERAS, np.eye(4), b, H, W) for b in (nothing(), boxes))
    source = SourceFrame(
        images_SCHW=torch.zeros(6, 3, 128, 224), cameras=CAMERAS, ego_to_global=np.eye(4), layout=old, boxes=nothing()
    )
    _, valid = reproject(source, new, boxes, np.array([-1]))
    assert float(valid[0, 0][new.box_VHW[0] == 0].max()) == 0.0
    assert float(valid[0, 0][new.box_VHW[0] < 0].mean()) > 0.95


def walled_street() -> SceneMap:
    """A road along y, 24 m wide: fronts stand across it."""
    layers = np.zeros((4, 1000, 1000), dtype=np.uint8)
    layers[0, :, 440:560] = 1
    return SceneMap(layers=layers, origin_xy_m=np.array([-100.0, -100.0]), metres_per_pixel=0.2, lane_graph=None)


def test_what_comes_nearer_loses_sharpness_and_what_has_grown_too_much_is_not_carried() -> None:
    caster, none = LayoutCaster(walled_street()), np.zeros(0, dtype=np.int64)
    poses = [transform_from_xy_yaw(x, 0.0, 0.0) for x in (-10.0, -4.0, 8.0)]
    layouts = [caster.cast(CAMERAS, pose, nothing(), H, W) for pose in poses]
    source = SourceFrame(
        images_SCHW=torch.zeros(6, 3, 128, 224), cameras=CAMERAS, ego_to_global=poses[0], layout=layouts[0], boxes=nothing()
    )
    ahead = (0, 4, W // 2)
    depths = [float(layout.depth_VHW[ahead]) for layout in layouts]
    for layout, depth in zip(layouts, depths, strict=True):
        found = trace(source, layout, nothing(), none)
        assert float(found.sharpness_VHW[ahead]) == pytest.approx(min(depth / depths[0], 1.0), rel=0.02)
        assert bool(found.valid_VHW[ahead]) == (depth / depths[0] >= LEAST_SHARPNESS)
    assert [depth / depths[0] >= LEAST_SHARPNESS for depth in depths] == [True, True, False]
    back = trace(source, layouts[1], nothing(), none).sharpness_VHW[3]
    assert float(back.min()) == pytest.approx(1.0)  # behind the car everything only gets smaller
    worn = replace(source, sharpness_SHW=torch.full((6, H, W), 0.5))
    assert float(trace(worn, layouts[0], nothing(), none).sharpness_VHW[ahead]) == pytest.approx(0.5, rel=0.02)
    assert not bool(trace(worn, layouts[1], nothing(), none).valid_VHW[ahead])
