"""Perturbations of a straight drive, whose results are known in closed form."""

from __future__ import annotations

import numpy as np
import pytest

from dwm.errors import InputError
from dwm.geometry import transform_from_xy_yaw, yaw_from_rotation
from dwm.scenario.feasibility import check_kinematics
from dwm.scenario.paths import ramp
from dwm.scenario.perturbations import BASELINE, FAMILIES, perturb, sample_perturbation
from dwm.scenario.retiming import BRAKE_JERK_MPS3, brake_distance_m, brake_duration_s
from dwm.scenario.types import Infeasible, Perturbation
from dwm.scenes.types import EgoTrack
from tests.factories import make_map

FPS = 12
STAMPS = np.round(np.arange(480) * 1e6 / FPS).astype(np.int64)
SECONDS = STAMPS * 1e-6


def straight(speed_mps=10.0, yaw=0.0) -> EgoTrack:
    s = speed_mps * SECONDS
    poses = transform_from_xy_yaw(5.0 + s * np.cos(yaw), s * np.sin(yaw), np.full_like(s, yaw))
    return EgoTrack(timestamps_us=STAMPS, ego_to_global=poses)


def circle(speed_mps=8.0, radius_m=40.0) -> EgoTrack:
    angle = speed_mps * SECONDS / radius_m
    poses = transform_from_xy_yaw(radius_m * np.sin(angle), radius_m * (1 - np.cos(angle)), angle)
    return EgoTrack(timestamps_us=STAMPS, ego_to_global=poses)


def make(name, **params) -> Perturbation:
    return Perturbation(name=name, params=params, severity=0.5)


def test_the_baseline_is_the_identity():
    track = circle()
    assert np.abs(perturb(track, STAMPS, BASELINE) - track.ego_to_global).max() < 1e-12


@pytest.mark.parametrize("offset", [-2.5, 0.7, 3.0])
def test_a_lateral_offset_is_reached_exactly_and_starts_at_its_onset(offset):
    poses = perturb(straight(yaw=0.6), STAMPS, make("lateral_offset", offset_m=offset, onset_s=2.0, ramp_s=4.0))
    left = -poses[:, 0, 3] * np.sin(0.6) + poses[:, 1, 3] * np.cos(0.6) + 5.0 * np.sin(0.6)
    assert np.abs(left[SECONDS <= 2.0]).max() < 1e-9
    assert left[SECONDS >= 6.01] == pytest.approx(offset, abs=1e-9)
    assert left[SECONDS == 4.0] == pytest.approx(offset / 2, abs=1e-9)


def test_a_shifted_ego_looks_where_it_drives():
    poses = perturb(circle(), STAMPS, make("lateral_offset", offset_m=2.0, onset_s=2.0, ramp_s=4.0))
    step = np.diff(poses[:, :2, 3], axis=0)
    driven = np.unwrap(np.arctan2(step[:, 1], step[:, 0]))
    yaw = np.unwrap(yaw_from_rotation(poses))
    assert np.abs(driven - (yaw[1:] + yaw[:-1]) / 2).max() < 5e-3


def test_an_offset_on_a_circle_changes_the_radius():
    poses = perturb(circle(radius_m=40.0), STAMPS, make("lateral_offset", offset_m=2.0, onset_s=1.0, ramp_s=3.0))
    radius = np.hypot(poses[:, 0, 3], poses[:, 1, 3] - 40.0)
    assert radius[SECONDS > 5.0] == pytest.approx(38.0, abs=1e-9)


@pytest.mark.parametrize("factor", [0.6, 1.4])
def test_speed_scale_reaches_its_factor_and_the_closed_form_distance(factor):
    poses = perturb(straight(), STAMPS[:240], make("speed_scale", factor=factor, onset_s=2.0, ramp_s=4.0))
    speed = np.diff(poses[:, 0, 3]) * FPS
    assert speed[: 2 * FPS] == pytest.approx(10.0, abs=1e-3) and speed[7 * FPS :] == pytest.approx(10.0 * factor, abs=1e-3)
    # Half of the ramp counts, as the quintic is symmetric.
    t = SECONDS[239]
    assert poses[-1, 0, 3] - 5.0 == pytest.approx(10.0 * (t + (factor - 1) * (t - 2.0 - 2.0)), abs=1e-4)


def test_speed_scale_stays_on_the_baselines_road():
    poses = perturb(circle(), STAMPS[:300], make("speed_scale", factor=1.3, onset_s=1.0, ramp_s=3.0))
    assert np.hypot(poses[:, 0, 3], poses[:, 1, 3] - 40.0) == pytest.approx(40.0, abs=1e-3)


@pytest.mark.parametrize(("speed", "decel"), [(10.0, 4.0), (13.0, 6.0), (2.0, 6.0)])
def test_braking_takes_v_squared_over_two_a_plus_the_jerk_limits_share(speed, decel):
    reached = min(decel, np.sqrt(speed * BRAKE_JERK_MPS3))
    expected = speed**2 / (2 * reached) + speed * reached / (2 * BRAKE_JERK_MPS3)
    assert brake_distance_m(np.array(1e3), speed, decel) == pytest.approx(expected)
    t = np.linspace(0, brake_duration_s(speed, decel), 20001)
    v = np.gradient(brake_distance_m(t, speed, decel), t)
    assert v[-1] == pytest.approx(0.0, abs=1e-3) and v[0] == pytest.approx(speed, abs=1e-3)
    assert np.gradient(v, t).min() == pytest.approx(-reached, abs=2e-2)


def test_a_hard_brake_stops_holds_and_drives_off_to_the_old_speed():
    poses = perturb(straight(), STAMPS, make("hard_brake", decel_mps2=5.0, onset_s=3.0, hold_s=2.0))
    x = poses[:, 0, 3] - 5.0
    stop = 30.0 + 100 / 10 + 10 * 5 / (2 * BRAKE_JERK_MPS3)
    standing = (3.0 + brake_duration_s(10.0, 5.0) < SECONDS) & (3.0 + brake_duration_s(10.0, 5.0) + 2.0 > SECONDS)
    assert standing.sum() >= 23 and x[standing] == pytest.approx(stop, abs=1e-3)
    speed = np.diff(x) * FPS
    assert speed.min() > -1e-6 and speed[-60:] == pytest.approx(10.0, abs=1e-3)


@pytest.mark.parametrize("name", [name for name, kind in FAMILIES.items() if kind.move is not None])
@pytest.mark.parametrize("severity", [0.0, 1.0])
def test_every_sampled_perturbation_of_an_easy_drive_is_drivable(name, severity):
    for seed in range(4):
        p = sample_perturbation(name, severity, np.random.default_rng(seed))
        assert check_kinematics(perturb(straight(8.0), STAMPS[:300], p), FPS) is None
        assert p == sample_perturbation(name, severity, np.random.default_rng(seed))


def test_severity_maps_to_the_documented_ranges():
    rng = np.random.default_rng(0)
    assert abs(sample_perturbation("lateral_offset", 0.0, rng).params["offset_m"]) == pytest.approx(0.5)
    assert abs(sample_perturbation("lateral_offset", 1.0, rng).params["offset_m"]) == pytest.approx(3.0)
    assert abs(sample_perturbation("speed_scale", 1.0, rng).params["factor"] - 1) == pytest.approx(0.4)
    assert sample_perturbation("hard_brake", 0.5, rng).params["decel_mps2"] == pytest.approx(4.0)


def test_the_ramp_is_symmetric_and_flat_at_both_ends():
    u = np.linspace(-0.5, 1.5, 2001)
    assert ramp(u) + ramp(1 - u) == pytest.approx(1.0)
    assert np.abs(np.gradient(ramp(u), u)[(u < 0.005) | (u > 0.995)]).max() < 1e-2


def test_unknown_names_parameters_and_severities_are_input_errors():
    with pytest.raises(InputError, match=r"no perturbation 'teleport'.*lateral_offset"):
        sample_perturbation("teleport", 0.5, np.random.default_rng(0))
    with pytest.raises(InputError, match="severity"):
        sample_perturbation("hard_brake", 1.5, np.random.default_rng(0))
    with pytest.raises(InputError, match="give exactly"):
        perturb(straight(), STAMPS, make("hard_brake", decel=5.0))


def lateral(poses, yaw=0.0):
    return -poses[:, 0, 3] * np.sin(yaw) + poses[:, 1, 3] * np.cos(yaw)


def test_a_swerve_reaches_its_offset_in_the_middle_and_comes_back():
    poses = perturb(straight(), STAMPS, make("swerve", offset_m=-1.5, onset_s=2.0, duration_s=4.0))
    assert lateral(poses)[SECONDS == 4.0] == pytest.approx(-1.5, abs=1e-9)
    assert np.abs(lateral(poses)[(SECONDS < 2.0) | (SECONDS > 6.01)]).max() < 1e-9


def test_a_drifting_ego_points_where_it_drifts_and_returns():
    poses = perturb(straight(), STAMPS, make("heading_drift", angle_rad=0.05, onset_s=2.0, drift_s=3.0, recover_s=3.0))
    yaw, side = yaw_from_rotation(poses), lateral(poses)
    assert yaw.max() == pytest.approx(0.05, abs=1e-4) and SECONDS[np.argmax(yaw)] == pytest.approx(3.5, abs=1 / FPS)
    # The bump 64 u^3 (1 - u)^3 has the area 16/35.
    assert side.max() == pytest.approx(np.tan(0.05) * 30.0 * 16 / 35, abs=1e-6)
    assert np.abs(side[SECONDS > 8.01]).max() < 1e-9
    driven = np.arctan2(np.diff(poses[:, 1, 3]), np.diff(poses[:, 0, 3]))
    assert np.abs(driven - (yaw[1:] + yaw[:-1]) / 2).max() < 2e-3


def test_a_lane_change_ends_in_the_middle_of_the_next_lane():
    change = make("lane_change", side=1.0, onset_s=1.0, duration_s=4.0)
    poses = perturb(straight(), STAMPS, change, make_map())
    assert lateral(poses)[SECONDS > 5.01] == pytest.approx(3.5, abs=1e-6)
    with pytest.raises(Infeasible, match=r"no_lane: lane right has no neighbour of its direction to the right at 1.0 s"):
        perturb(straight(), STAMPS, make("lane_change", side=-1.0, onset_s=1.0, duration_s=4.0), make_map())
    # Without vectors a lane is taken to be 3.5 m wide.
    assert lateral(perturb(straight(), STAMPS, change, make_map(lane_graph=False)))[-1] == pytest.approx(3.5)


def test_stop_and_go_stands_as_often_as_asked_and_goes_on_at_the_old_speed():
    params = dict(stops=3.0, decel_mps2=3.0, onset_s=2.0, hold_s=2.0, roll_s=5.0)
    speed = np.diff(perturb(straight(), STAMPS, make("stop_and_go", **params))[:, 0, 3]) * FPS
    stands = speed < 1e-3
    assert np.diff(stands.astype(int)).clip(min=0).sum() == 3
    assert speed[-12:] == pytest.approx(10.0, abs=1e-3)


def test_joined_moves_are_made_one_after_the_other():
    params = {"hard_brake.decel_mps2": 5.0, "hard_brake.onset_s": 3.0, "hard_brake.hold_s": 2.0}
    params |= {"lateral_offset.offset_m": 1.0, "lateral_offset.onset_s": 0.0, "lateral_offset.ramp_s": 2.0}
    both = perturb(straight(), STAMPS, make("hard_brake+lateral_offset", **params))
    brake = perturb(straight(), STAMPS, make("hard_brake", decel_mps2=5.0, onset_s=3.0, hold_s=2.0))
    assert both[:, 0, 3] == pytest.approx(brake[:, 0, 3], abs=1e-6)
    assert lateral(both)[SECONDS > 2.1] == pytest.approx(1.0, abs=1e-9)


def test_a_joined_sample_holds_the_parameters_of_each_part():
    p = sample_perturbation("hard_brake+lateral_offset", 0.5, np.random.default_rng(0), {"hard_brake.decel_mps2": (3.0, 3.0)})
    assert [part.name for part in p.parts()] == ["hard_brake", "lateral_offset"]
    assert p.parts()[0].params["decel_mps2"] == 3.0 and set(p.parts()[1].params) == {"offset_m", "onset_s", "ramp_s"}
    with pytest.raises(InputError, match="no parameter 'force_n'; it has: decel_mps2"):
        sample_perturbation("hard_brake", 0.5, np.random.default_rng(0), {"force_n": (1.0, 2.0)})
    with pytest.raises(InputError, match="names a family twice"):
        sample_perturbation("hard_brake+hard_brake", 0.5, np.random.default_rng(0))


def test_draws_of_the_first_families_never_change():
    """Shards are named after them."""
    drawn = {
        n: sample_perturbation(n, 0.5, np.random.default_rng(7)).params for n in ("lateral_offset", "speed_scale", "hard_brake")
    }
    assert drawn["lateral_offset"] == {"offset_m": 1.75, "onset_s": 2.7430345024239386, "ramp_s": 4.551371380490387}
    assert drawn["speed_scale"] == {"factor": 1.225, "onset_s": 2.7430345024239386, "ramp_s": 4.551371380490387}
    assert drawn["hard_brake"] == {"decel_mps2": 4.0, "onset_s": 4.125477333023335, "hold_s": 3.6916414029087266}
