"""Text conditioning by template (MiLA, appendix): one sentence from the log's metadata, and a vocabulary that covers it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import numpy as np
from numpy.typing import NDArray

from dwm.errors import InputError
from dwm.scenes.types import CAMERAS, Scene

TEMPLATE = "This is a driving scene video captured by camera in {sensor} of a car at {location} during {season} {daytime}."
RIG = "six surround cameras"
# Local time of the nuScenes cities; Boston's logs are all from summer and autumn (daylight-saving time).
UTC_OFFSET_H = {"boston-seaport": -4, "singapore-onenorth": 8, "singapore-hollandvillage": 8, "singapore-queenstown": 8}
_UNDATED = {"morning": "in the morning", "afternoon": "in the afternoon", "dusk": "at dusk", "night": "at night"}
SEASONS = ("winter", "spring", "summer", "autumn")
DAYTIMES = ("morning", "afternoon", "dusk", "night")
WEATHERS = ("rain", "fog", "snow")
PROMPT_TOKENS = 32
_TEMPLATE_WORDS = "this is a driving scene video captured by camera in of car at during weather"
_SENSOR_WORDS = "six surround cameras front back left right"
VOCABULARY = ("<pad>", "<unk>", *_TEMPLATE_WORDS.split(), *_SENSOR_WORDS.split(), *UTC_OFFSET_H, *SEASONS, *DAYTIMES, *WEATHERS)
_INDEX = {word: i for i, word in enumerate(VOCABULARY)}
_WEATHER_PATTERNS = {
    "rain": r"(?<!after )(?<!no )\b(?:rain|rainy|raining)\b",
    "fog": r"(?<!no )\b(?:fog|foggy)\b",
    "snow": r"(?<!no )\b(?:snow|snowy|snowing)\b",
}


def scene_prompt(scene: Scene, conditions: Sequence[str] = ()) -> str:
    """The prompt of the whole rig; places and dates that the log leaves empty are left out.

    ``conditions`` (night, or words of WEATHERS) hold besides what the log says.
    """
    return _fill(scene, RIG, conditions)


def camera_prompt(scene: Scene, channel: str, conditions: Sequence[str] = ()) -> str:
    """The prompt of one camera, e.g. '... by camera in front right of a car ...'."""
    if channel not in CAMERAS:
        raise InputError(scene.name, f"no channel '{channel}'", f"channels: {', '.join(CAMERAS)}")
    return _fill(scene, channel.removeprefix("CAM_").replace("_", " ").lower(), conditions)


def clip_weather(scene: Scene, conditions: Sequence[str] = ()) -> str:
    """Weather and darkness of a clip in words, e.g. 'night, rain', from the log and conditions; 'clear' for a clear day."""
    dark = ["night"] if _daytime(scene, conditions) == "night" else []
    return ", ".join([*dark, *_weathers(scene, conditions)]) or "clear"


def season(date_captured: str) -> str:
    """The northern season of a date YYYY-MM-DD."""
    try:
        month = datetime.strptime(date_captured, "%Y-%m-%d").month
    except ValueError as error:
        raise InputError("log.date_captured", f"'{date_captured}' is not a date", "write it as YYYY-MM-DD") from error
    return SEASONS[month % 12 // 3]


def daytime(description: str, location: str, timestamp_us: int) -> str:
    """What the description says (night, dusk), else the local hour."""
    if word := _said_daytime(description):
        return word
    local = datetime.fromtimestamp(timestamp_us / 1e6, UTC) + timedelta(hours=UTC_OFFSET_H.get(location, 0))
    hour = local.hour + local.minute / 60
    if 5 <= hour < 12:
        return "morning"
    return "afternoon" if 12 <= hour < 18.5 else "dusk" if 18.5 <= hour < 20 else "night"


def weather(description: str) -> str | None:
    """The weather a description mentions, or None for a clear one."""
    return next((name for name, pattern in _WEATHER_PATTERNS.items() if re.search(pattern, description.lower())), None)


def tokenize(prompt: str, length: int = PROMPT_TOKENS) -> NDArray[np.int64]:
    """Word indices [length] into VOCABULARY: unknown words become <unk>, the end is filled with <pad> or cut."""
    words = re.findall(r"[^\W_]+(?:-[^\W_]+)*", prompt.lower())[:length]
    tokens = np.full(length, _INDEX["<pad>"], np.int64)
    tokens[: len(words)] = [_INDEX.get(word, _INDEX["<unk>"]) for word in words]
    return tokens


def _fill(scene: Scene, sensor: str, conditions: Sequence[str]) -> str:
    template = TEMPLATE if scene.location else TEMPLATE.replace(" at {location}", "")
    when = _when(scene, conditions)
    template = template.replace(" during {season} {daytime}", f" {when}" if when else "")
    text = template.format(sensor=sensor, location=scene.location)
    found = _weathers(scene, conditions)
    return f"{text} Weather: {', '.join(found)}." if found else text


def _when(scene: Scene, conditions: Sequence[str]) -> str:
    """Season and daytime as far as they are known; a clock tells the daytime only where the place is known."""
    clock_counts = scene.location or "night" in conditions or _said_daytime(scene.description)
    day = _daytime(scene, conditions) if clock_counts else None
    if not scene.date_captured:
        return _UNDATED[day] if day else ""
    year = season(scene.date_captured)
    return f"during {year} {day}" if day else f"in {year}"


def _said_daytime(description: str) -> str | None:
    return next((word for word in ("night", "dusk") if re.search(rf"\b{word}\b", description.lower())), None)


def _daytime(scene: Scene, conditions: Sequence[str]) -> str:
    by_log = daytime(scene.description, scene.location, int(scene.key_timestamps_us[0]))
    return "night" if "night" in conditions else by_log


def _weathers(scene: Scene, conditions: Sequence[str]) -> list[str]:
    """What falls or hangs in the air, in the order of WEATHERS."""
    return [word for word in WEATHERS if word == weather(scene.description) or word in conditions]
