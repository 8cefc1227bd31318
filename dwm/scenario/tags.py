"""Tags of a stretch of a log: what one would search for, each with a stated definition."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from dwm.scenario.manoeuvres import MANOEUVRES, STRAIGHT, EgoMotion, ego_motion, manoeuvres
from dwm.scenario.proximity import Encounters, encounters
from dwm.scenes.prompts import WEATHERS, daytime, weather
from dwm.scenes.tracks import NO_CLASS, SceneTracks
from dwm.scenes.types import DETECTION_CLASSES

NEAR_M = 50.0  # agents further from the ego do not count
PEDESTRIANS, VEHICLES, AGENTS, FEW = 10, 15, 40, 3  # at one key frame
CLOSE_GAP_S = 1.0
DAYTIMES, WEATHER_TAGS = ("day", "dusk", "night"), ("clear", *WEATHERS)
# Beginning of a category's name -> tag. Classes that the ten of the detection task leave out or hide.
RARE_KINDS = {
    "animal": "animal", "vehicle.emergency": "emergency_vehicle", "movable_object.debris": "debris",
    "human.pedestrian.child": "child", "human.pedestrian.wheelchair": "wheelchair", "human.pedestrian.stroller": "stroller",
    "human.pedestrian.personal_mobility": "personal_mobility", "human.pedestrian.construction_worker": "construction_worker",
    "human.pedestrian.police_officer": "police_officer",
}  # fmt: skip
_VEHICLES = ("car", "truck", "bus", "trailer", "construction_vehicle")

# Every tag with its definition. "Near" is within 50 m of the ego at a key frame of the stretch.
TAGS: dict[str, str] = {
    **{name: f"time of day: {name}" for name in DAYTIMES}, **{name: f"weather: {name}" for name in WEATHER_TAGS},
    **{f"class.{name}": f"a {name} near" for name in DETECTION_CLASSES},
    **{f"kind.{name}": f"category {prefix} near" for prefix, name in RARE_KINDS.items()},
    "pedestrian_crowded": f"{PEDESTRIANS} pedestrians near at once", "vehicle_crowded": f"{VEHICLES} vehicles near at once",
    "crowded": f"{AGENTS} labelled things near at once", "empty": f"never {FEW} labelled things near at once",
    **{f"manoeuvre.{name}": text for name, (text, _) in MANOEUVRES.items()}, "manoeuvre.straight": STRAIGHT,
    "vulnerable_near_path": "somebody vulnerable within 2.5 m of where the ego drives in the next 5 s",
    "near_miss": f"less than {CLOSE_GAP_S:g} s between the ego and another road user at the same place",
    **{f"missed.{name}": f"the evaluator misses most {name} labels, more than in the corpus" for name in DETECTION_CLASSES},
}  # fmt: skip
MISSED = tuple(name for name in TAGS if name.startswith("missed."))


@dataclass(frozen=True, slots=True, kw_only=True)
class TaggedWindow:
    """A stretch of a log with its tags. ``unknown`` tags could not be judged and count neither way."""

    scene_name: str
    scene_token: str
    start_s: float  # from the first key frame
    end_s: float
    tags: frozenset[str]
    unknown: frozenset[str] = frozenset()
    counts: dict[str, int] = field(default_factory=dict)  # class -> most near at one key frame
    min_gap_s: float = float("inf")


def windows_of(length_s: float, duration_s: float, stride_s: float) -> list[tuple[float, float]]:
    """Starts and ends of the stretches of a log that a clip of ``duration_s`` can show.

    A clip longer than the log has one: all of it.
    """
    count = int(np.floor(max(length_s - duration_s, 0.0) / stride_s + 1e-6)) + 1
    starts = [round(k * stride_s, 6) for k in range(count)]
    return [(start, min(start + duration_s, length_s)) for start in starts]


def tag_windows(tracks: SceneTracks, stretches: list[tuple[float, float]]) -> list[TaggedWindow]:
    """Every stretch [s] of a scene with its tags; those of the evaluator's misses are unknown."""
    motion = ego_motion(tracks)
    met, near = encounters(tracks, motion), _near(tracks)
    return [_window(tracks, motion, met, near, start, end) for start, end in stretches]


def _window(
    tracks: SceneTracks, motion: EgoMotion, met: Encounters, near: np.ndarray, start_s: float, end_s: float
) -> TaggedWindow:
    key_s = (tracks.key_timestamps_us - tracks.key_timestamps_us[0]) * 1e-6
    keys = (key_s >= start_s - 1e-6) & (key_s <= end_s + 1e-6)
    if not keys.any():
        keys[np.argmin(np.abs(key_s - start_s))] = True
    rows = near & keys[tracks.annotations.key_index]
    counts, gap, part = _counts(tracks, rows), met.min_gap_s(start_s, end_s), motion.between(start_s, end_s)
    moves = manoeuvres(part) if part.is_judged else frozenset()
    tags = {*_conditions(tracks), *_crowds(tracks, rows, keys, counts), *(f"manoeuvre.{name}" for name in moves)}
    tags |= {f"class.{name}" for name, count in counts.items() if count}
    tags |= {"near_miss"} if gap < CLOSE_GAP_S else set()
    tags |= {"vulnerable_near_path"} if met.vulnerable_near(start_s, end_s) else set()
    unknown = set(MISSED) | (set() if part.is_judged else {name for name in TAGS if name.startswith("manoeuvre.")})
    return TaggedWindow(
        scene_name=tracks.name, scene_token=tracks.token, start_s=start_s, end_s=end_s, tags=frozenset(tags),
        unknown=frozenset(unknown), counts=counts, min_gap_s=gap,
    )  # fmt: skip


def _conditions(tracks: SceneTracks) -> set[str]:
    when = daytime(tracks.description, tracks.location, int(tracks.key_timestamps_us[0]))
    return {when if when in DAYTIMES else "day", weather(tracks.description) or "clear"}


def _near(tracks: SceneTracks) -> np.ndarray:
    """Which annotations [R] are within NEAR_M of the ego at their key frame."""
    rows = tracks.annotations
    ego = np.stack([np.interp(tracks.key_timestamps_us, tracks.ego_timestamps_us, tracks.ego_xy_m[:, i]) for i in (0, 1)], -1)
    return np.linalg.norm(rows.xy_m - ego[rows.key_index], axis=1) <= NEAR_M


def _most(tracks: SceneTracks, chosen: np.ndarray) -> int:
    """The most chosen annotations at one key frame."""
    return int(np.bincount(tracks.annotations.key_index[chosen], minlength=1).max())


def _counts(tracks: SceneTracks, rows: np.ndarray) -> dict[str, int]:
    label = tracks.annotations.label
    return {name: _most(tracks, rows & (label == i)) for i, name in enumerate(DETECTION_CLASSES)}


def _crowds(tracks: SceneTracks, rows: np.ndarray, keys: np.ndarray, counts: dict[str, int]) -> set[str]:
    kinds = {tracks.annotations.category[i] for i in np.flatnonzero(rows)}
    tags = {f"kind.{tag}" for prefix, tag in RARE_KINDS.items() if any(kind.startswith(prefix) for kind in kinds)}
    vehicles = np.isin(tracks.annotations.label, [DETECTION_CLASSES.index(name) for name in _VEHICLES])
    labelled = _most(tracks, rows & (tracks.annotations.label != NO_CLASS))
    tags |= {"pedestrian_crowded"} if counts["pedestrian"] >= PEDESTRIANS else set()
    tags |= {"vehicle_crowded"} if _most(tracks, rows & vehicles) >= VEHICLES else set()
    tags |= {"crowded"} if labelled >= AGENTS else {"empty"} if labelled < FEW else set()
    return tags
