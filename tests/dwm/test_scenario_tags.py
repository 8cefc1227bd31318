from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from dwm.scenario.manoeuvres import ego_motion, manoeuvres
from dwm.scenario.proximity import encounters
from dwm.scenario.tags import MISSED, TAGS, TaggedWindow, tag_windows, windows_of
from dwm.scenes.nuscenes import list_scenes, read_scene
from dwm.scenes.track_tables import read_tracks
from dwm.scenes.tracks import SceneTracks, tracks_of
from dwm.traffic.simulate import EGO_SIZE_WLH_M, REAR_AXLE_TO_CENTRE_M
from tests.conftest import VERSION
from tests.factories import START_US, key_times, make_agent, make_scene

FRONT_M = REAR_AXLE_TO_CENTRE_M + EGO_SIZE_WLH_M[1] / 2
WALKER = dict(category="human.pedestrian.adult", detection_class="pedestrian", size_wlh_m=(0.6, 0.6, 1.8))


def driven(speed_mps, yaw_rate_radps=None, seconds: float = 20.0) -> SceneTracks:
    """An ego that drives with speed(t) and yaw rate(t) alone on its road."""
    tracks = tracks_of(make_scene(key_frames=int(seconds * 2) + 1, agents=()))
    t = np.arange(0, seconds + 1e-9, 0.01)
    speed = np.array([speed_mps(x) for x in t])
    yaw = np.cumsum([yaw_rate_radps(x) if yaw_rate_radps else 0.0 for x in t]) * 0.01
    xy = np.cumsum(np.stack([speed * np.cos(yaw), speed * np.sin(yaw)], axis=-1) * 0.01, axis=0)
    return dataclasses.replace(
        tracks, ego_timestamps_us=START_US + np.round(t * 1e6).astype(np.int64), ego_xy_m=xy, ego_yaw_rad=yaw
    )


def pulse(start_s: float, end_s: float, value: float):
    return lambda t: value if start_s <= t < end_s else 0.0


def lane_change(t: float) -> float:
    """The yaw rate of 4 s of a sine at 10 m/s that end 3.5 m to the left."""
    return 3.5 * 2 * np.pi / (4.0**2 * 10.0) * np.sin(2 * np.pi * (t - 5) / 4.0) if 5 <= t < 9 else 0.0


@pytest.mark.parametrize(
    ("speed", "yaw_rate", "expected"),
    [
        (lambda t: 10.0, None, {"straight"}),
        (lambda t: 0.0, None, {"standing"}),
        (lambda t: 6.0, pulse(5, 9, np.radians(90) / 4), {"turn_left"}),
        (lambda t: 6.0, pulse(5, 9, -np.radians(90) / 4), {"turn_right"}),
        (lambda t: 4.0, pulse(5, 15, np.radians(175) / 10), {"u_turn"}),
        (lambda t: 10.0, pulse(0, 20, np.radians(90) / 20), {"straight"}),  # a long bend
        (lambda t: 10.0, lane_change, {"lane_change"}),
        (lambda t: max(10.0 - 1.5 * t, 0.0), None, {"straight", "stop"}),
        (lambda t: min(max(t - 5, 0.0), 8.0), None, {"straight", "start"}),
        (lambda t: min(max(10.0 - 5.0 * (t - 5), 0.0), 10.0), None, {"straight", "stop", "hard_brake"}),
        (lambda t: 0.6, None, set()),  # creeps
    ],
)
def test_a_manoeuvre_is_told_from_the_path_alone(speed, yaw_rate, expected: set[str]):
    assert manoeuvres(ego_motion(driven(speed, yaw_rate))) == expected


def test_a_stretch_knows_its_own_manoeuvres_only():
    tracks = driven(lambda t: 6.0, pulse(12, 16, np.radians(90) / 4))
    early, late = tag_windows(tracks, [(0.0, 10.0), (10.0, 20.0)])
    assert "manoeuvre.straight" in early.tags and "manoeuvre.turn_left" not in early.tags
    assert "manoeuvre.turn_left" in late.tags


def test_following_at_a_steady_speed_leaves_the_time_gap_of_the_free_road_between():
    keys = key_times(21)
    for gap_m in (5.0, 12.0):
        leader = make_agent("leader", lambda t, gap_m=gap_m: (FRONT_M + gap_m + 2.3 + 10 * t, 0.0, 0.0), keys)
        tracks = tracks_of(make_scene(agents=[leader], ego_speed_mps=10.0))
        (found,) = tag_windows(tracks, [(0.0, 8.0)])
        assert found.min_gap_s == pytest.approx(gap_m / 10, abs=1e-3)
        assert ("near_miss" in found.tags) == (gap_m < 10)


def test_the_gap_to_somebody_who_crossed_is_the_time_until_the_ego_arrives_there():
    # The walker is on the ego's line, 60 m on, at 4 s; the ego's front arrives there, less half its size, at about 5.7 s.
    walker = make_agent("walker", lambda t: (60.0, 1.5 * (t - 4.0), np.pi / 2), key_times(21), **WALKER)
    tracks = tracks_of(make_scene(agents=[walker], ego_speed_mps=10.0))
    found = encounters(tracks, ego_motion(tracks))
    arrives = (60.0 - 0.3 - FRONT_M) / 10
    leaves_path = 4.0 + (EGO_SIZE_WLH_M[0] / 2 + 0.3 - 0.3) / 1.5
    assert found.min_gap_s(0, 10) == pytest.approx(arrives - leaves_path, abs=0.1)
    assert found.vulnerable_near(0, 10)


def test_being_tailgated_and_what_stands_beside_the_road_are_no_near_miss():
    keys = key_times(21)
    behind = make_agent("behind", lambda t: (-6.0 + 10 * t, 0.0, 0.0), keys)
    parked = make_agent("parked", lambda t: (50.0, -1.8, 0.0), keys)
    tracks = tracks_of(make_scene(agents=[behind, parked], ego_speed_mps=10.0))
    assert encounters(tracks, ego_motion(tracks)).min_gap_s(0, 10) == float("inf")


def test_classes_are_counted_at_one_key_frame_within_fifty_metres():
    keys = key_times(21)
    far = [make_agent(f"far{i}", lambda t, i=i: (10.0 * t, 51.0 + i, 0.0), keys) for i in range(3)]
    near = [make_agent(f"w{i}", lambda t, i=i: (10.0 * t, 8.0 + i, 0.0), keys, **WALKER) for i in range(10)]
    child = make_agent("child", lambda t: (10.0 * t, 20.0, 0.0), keys, **{**WALKER, "category": "human.pedestrian.child"})
    (found,) = tag_windows(tracks_of(make_scene(agents=[*far, *near])), [(0.0, 5.0)])
    assert (found.counts["car"], found.counts["pedestrian"]) == (0, 10)
    assert {"class.pedestrian", "pedestrian_crowded", "rain", "day"} <= found.tags
    assert not {"class.car", "kind.child", "crowded", "empty"} & found.tags
    (other,) = tag_windows(tracks_of(make_scene(agents=[child])), [(0.0, 5.0)])
    assert {"kind.child", "empty", "class.pedestrian"} <= other.tags


def test_stretches_fill_the_log_and_a_longer_clip_has_one():
    assert windows_of(20.0, 10.0, 5.0) == [(0.0, 10.0), (5.0, 15.0), (10.0, 20.0)]
    assert windows_of(19.9, 10.0, 5.0) == [(0.0, 10.0), (5.0, 15.0)]
    assert windows_of(20.0, 60.0, 30.0) == [(0.0, 20.0)]
    assert windows_of(0.0, 5.0, 2.5) == [(0.0, 0.0)]


def test_a_log_of_one_key_frame_leaves_manoeuvres_unknown():
    (found,) = tag_windows(tracks_of(make_scene(key_frames=1)), [(0.0, 0.0)])
    assert not any(tag.startswith("manoeuvre.") for tag in found.tags)
    assert found.unknown == {*MISSED, *(tag for tag in TAGS if tag.startswith("manoeuvre."))}


def test_the_tables_alone_give_the_tags_of_scenes_that_are_read_in_full(pg_dataroot):
    lean = read_tracks(pg_dataroot, VERSION)
    assert [tracks.name for tracks in lean] == list_scenes(pg_dataroot, VERSION)
    for tracks in lean:
        full = tracks_of(read_scene(pg_dataroot, VERSION, tracks.name))
        assert tracks.key_images == full.key_images and len(tracks.key_images[0]) == 6
        assert _facts(tracks) == _facts(full)
        rows = lambda t: sorted(zip(t.annotations.key_index, t.annotations.category, t.annotations.xy_m.tolist(), strict=True))  # noqa: E731
        assert rows(tracks) == rows(full)
        at = np.interp(tracks.ego_timestamps_us, full.ego_timestamps_us, full.ego_xy_m[:, 0])
        assert np.abs(tracks.ego_xy_m[:, 0] - at).max() < 1e-9
    assert [t.name for t in read_tracks(pg_dataroot, VERSION, {lean[1].name})] == [lean[1].name]


def _facts(tracks: SceneTracks) -> list[TaggedWindow]:
    rounded = lambda w: dataclasses.replace(w, min_gap_s=round(w.min_gap_s, 2))  # noqa: E731
    return [rounded(w) for w in tag_windows(tracks, windows_of(tracks.length_s, 0.5, 0.5))]
