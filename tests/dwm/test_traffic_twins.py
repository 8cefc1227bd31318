"""Fast paths of the traffic and of the log's boxes against slow, obvious twins."""

from __future__ import annotations

import numpy as np
import pytest

from dwm.geometry import rotation_from_quaternion, wrap_angle, yaw_from_rotation
from dwm.scenario.logged import log_boxes
from dwm.scenario.types import LabelSource
from dwm.scenes.interpolation import boxes_at
from dwm.scenes.lane_graph import LaneGraph
from dwm.traffic.obstacles import WINDOW_M, Discs, find_blockers
from dwm.traffic.pedestrians import PROBE_M, Pedestrians
from dwm.traffic.routes import network_of
from dwm.traffic.types import AgentSpec
from tests.factories import START_US, arc_lane, key_times, make_agent, make_road, make_scene


def test_boxes_over_all_times_are_those_of_each_time_alone():
    rng = np.random.default_rng(0)
    keys, agents = key_times(9), []
    for i in range(12):
        kept = np.sort(rng.choice(9, size=int(rng.integers(1, 10)), replace=False))
        x, y, turn = rng.normal(size=3) * [20.0, 5.0, 3.0]
        agents.append(
            make_agent(f"a{i}", lambda t, x=x, y=y, r=turn: (x + 3 * t, y, r * t + x), keys[kept], attribute=f"at{i}")
        )
    scene = make_scene(key_frames=9, agents=agents)
    times = START_US + np.round(np.arange(-3, 55) * 1e6 / 12).astype(np.int64)
    table = log_boxes(scene, times, len(times) + 4)
    assert not table.present[:, len(times) :].any()
    for t, now in enumerate(times):
        boxes = boxes_at(scene, int(now))
        rows = boxes.agent_indices
        assert np.array_equal(np.flatnonzero(table.present[:, t]), rows)
        assert table.centers_m[rows, t] == pytest.approx(boxes.centers_m, abs=1e-9)
        if len(rows):
            yaw = yaw_from_rotation(rotation_from_quaternion(boxes.rotations_wxyz))
            assert np.abs(wrap_angle(table.yaws_rad[rows, t] - yaw)).max() < 1e-9
        for row, token in zip(rows, boxes.annotation_tokens, strict=True):
            k = scene.agents[row].annotation_tokens.index(token)
            assert table.attributes[row][t] == scene.agents[row].attributes[k]
            exact = now in keys
            assert table.num_lidar_pts[row, t] == (scene.agents[row].num_lidar_pts[k] if exact else -1)
            assert table.sources[row, t] == (LabelSource.LOG if exact else LabelSource.INTERPOLATED)


def slow_blockers(paths, s, lateral, width, length, discs: Discs) -> set[tuple[int, int, float]]:
    """Vehicle by vehicle, disc by disc."""
    found = set()
    for v in range(len(paths)):
        start = int(s[v])
        ahead = paths[v, start : start + WINDOW_M + 1, :3]
        for d in range(len(discs.xy_m)):
            squared = ((ahead[:, :2] - discs.xy_m[d]) ** 2).sum(axis=1)
            if discs.owner[d] == v or np.isnan(squared).all() or np.nanmin(squared) >= 36.0:
                continue
            k = int(np.nanargmin(squared))
            dx, dy = discs.xy_m[d] - ahead[k, :2]
            cos, sin = np.cos(ahead[k, 2]), np.sin(ahead[k, 2])
            residual, aside = dx * cos + dy * sin, -dx * sin + dy * cos
            turn = abs(float(wrap_angle(discs.yaw_rad[d] - ahead[k, 2])))
            oncoming = turn > 2.1
            margin = min(discs.margin_m[d], -0.2) if oncoming else discs.margin_m[d]
            corner = 1.0 if oncoming else abs(np.cos(turn)) + abs(np.sin(turn))
            along = start + k + residual - s[v]
            reach = width[v] / 2 + discs.radius_m[d] * corner + margin
            if abs(aside - lateral[v]) < reach and abs(residual) < 1.5 and along > length[v] / 2 - 0.3:
                found.add((v, d, round(along - discs.radius_m[d] - length[v] / 2, 6)))
    return found


@pytest.mark.parametrize("seed", range(3))
def test_blockers_are_those_of_a_search_one_by_one(seed: int):
    rng = np.random.default_rng(seed)
    line = arc_lane("arc", (0, 0), 60.0, 0.0, 3.0).centerline
    paths = np.full((6, 224, 4), np.nan)
    for v in range(6):
        paths[v, : len(line), :3] = line + np.append(rng.normal(0, 2.0, 2), 0.0)
    s, lateral = rng.uniform(0, 120, 6), rng.normal(0, 0.3, 6)
    width, length = rng.uniform(1.5, 2.5, 6), rng.uniform(4, 9, 6)
    place = line[rng.integers(len(line), size=150)]
    discs = Discs(
        xy_m=place[:, :2] + rng.normal(0, 2.5, (150, 2)), radius_m=rng.uniform(0.3, 1.2, 150),
        yaw_rad=place[:, 2] + rng.choice([0.0, 1.5, np.pi], 150), speed_mps=rng.uniform(0, 9, 150), margin_m=np.full(150, 0.2),
        owner=rng.integers(-1, 6, 150),
    )  # fmt: skip
    found = find_blockers(paths, s, lateral, width, length, discs)
    fast = {(int(v), int(d), round(float(g), 6)) for v, d, g in zip(found.vehicle, found.disc, found.gap_m, strict=True)}
    assert fast == slow_blockers(paths, s, lateral, width, length, discs) and len(fast) > 50
    some = find_blockers(paths, s, lateral, width, length, discs, rows=np.array([1, 4]))
    assert set(some.vehicle.tolist()) == {1, 4} and len(some.vehicle) == np.isin(found.vehicle, (1, 4)).sum()


def test_a_corridor_that_widens_towards_another_lane_sees_both_lanes():
    paths = np.stack([np.arange(224.0), np.zeros(224), np.zeros(224)], axis=-1)[None]
    lanes = np.array([0.0, -3.5, 3.5])
    discs = Discs(
        xy_m=np.column_stack([np.full(3, 30.0), lanes]), radius_m=np.full(3, 0.9), yaw_rad=np.zeros(3), speed_mps=np.zeros(3),
        margin_m=np.zeros(3), owner=np.full(3, -1),
    )  # fmt: skip
    one, size = np.ones(1), (np.array([1.9]), np.array([4.5]))
    alone = find_blockers(paths, 0 * one, -3.5 * one, *size, discs)
    both = find_blockers(paths, 0 * one, -3.5 * one, *size, discs, toward_m=0 * one)
    assert alone.disc.tolist() == [1] and both.disc.tolist() == [0, 1]


def test_pedestrians_know_when_they_reach_the_road_without_asking_at_every_step():
    network = network_of(LaneGraph(make_road().lanes))
    walkers = Pedestrians(network)
    rng = np.random.default_rng(1)
    for i in range(20):
        x, y = rng.uniform(0, 50), rng.uniform(-12.0, 12.0)
        walkers.add(
            AgentSpec(
                token=str(i), category="human.pedestrian.adult", detection_class="pedestrian", size_wlh_m=(0.7, 0.7, 1.8), x_m=x,
                y_m=y, yaw_rad=rng.uniform(-3, 3), speed_mps=1.0, behaviour="pedestrian", desired_speed_mps=1.0,
            ),
            rng,
        )  # fmt: skip
    for _ in range(200):
        walkers.xy = walkers.xy + rng.normal(0, 0.15, walkers.xy.shape)
        now, ahead = walkers._roads(walkers.ahead())
        assert np.array_equal(now, network.on_road(walkers.xy)) and np.array_equal(ahead, network.on_road(walkers.ahead()))
    assert pytest.approx(np.linalg.norm(walkers.ahead() - walkers.xy, axis=1)) == PROBE_M
