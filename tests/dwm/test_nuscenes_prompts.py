from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dwm.errors import InputError
from dwm.scenes.nuscenes import read_scene
from dwm.scenes.prompts import (
    DAYTIMES,
    PROMPT_TOKENS,
    RIG,
    SEASONS,
    TEMPLATE,
    UTC_OFFSET_H,
    VOCABULARY,
    WEATHERS,
    camera_prompt,
    daytime,
    scene_prompt,
    season,
    tokenize,
    weather,
)

NOON_UTC_US = 1_533_124_800_000_000  # 2018-08-01 12:00 UTC


def test_the_template_is_filled_from_the_log(pg_dataroot: Path) -> None:
    scene = read_scene(pg_dataroot, "v1.0-mini", "scene-0001")
    expected = f"This is a driving scene video captured by camera in {RIG} of a car at {scene.location} during winter morning."
    assert scene_prompt(scene) == expected
    assert camera_prompt(scene, "CAM_BACK_LEFT") == expected.replace(RIG, "back left")
    with pytest.raises(InputError, match="CAM_TOP"):
        camera_prompt(scene, "CAM_TOP")


def test_what_a_log_does_not_know_is_left_out_in_good_english(pg_dataroot: Path) -> None:
    scene = replace(read_scene(pg_dataroot, "v1.0-mini", "scene-0001"), description="")
    start = f"This is a driving scene video captured by camera in {RIG} of a car"
    somewhere, undated = replace(scene, location=""), replace(scene, date_captured="")
    when = scene_prompt(scene).split(" during ")[1]
    assert scene_prompt(scene) == f"{start} at {scene.location} during {when}"
    assert scene_prompt(somewhere) == f"{start} in winter."
    assert scene_prompt(replace(somewhere, description="Dusk, rain")) == f"{start} during winter dusk. Weather: rain."
    assert scene_prompt(undated) == f"{start} at {scene.location} in the {when.split()[1]}"
    assert scene_prompt(replace(undated, location="")) == f"{start}."
    assert scene_prompt(replace(undated, location=""), ["night", "rain"]) == f"{start} at night. Weather: rain."


@pytest.mark.parametrize(("date", "name"), [("2018-01-31", "winter"), ("2018-03-01", "spring"), ("2018-08-01", "summer"),
                                            ("2018-11-30", "autumn"), ("2018-12-01", "winter")])  # fmt: skip
def test_seasons_follow_the_month(date: str, name: str) -> None:
    assert season(date) == name


def test_a_broken_date_is_named() -> None:
    with pytest.raises(InputError, match="18/08/01"):
        season("18/08/01")


def test_the_description_decides_the_daytime_before_the_clock() -> None:
    assert daytime("Night, peds", "boston-seaport", NOON_UTC_US) == "night"
    assert daytime("Fortnightly market", "boston-seaport", NOON_UTC_US) == "morning"
    assert daytime("", "singapore-onenorth", NOON_UTC_US) == "night"
    assert daytime("", "boston-seaport", NOON_UTC_US + 8 * 3600 * 10**6) == "afternoon"
    assert daytime("", "boston-seaport", NOON_UTC_US + 11 * 3600 * 10**6) == "dusk"


@pytest.mark.parametrize(
    ("description", "name"),
    [("Rain, dense traffic", "rain"), ("Heavy rain at night", "rain"), ("After rain, peds", None),
     ("Train crossing, terrain", None),
     ("Fog, traffic", "fog"), ("Night", None), ("no fog", None)],
)  # fmt: skip
def test_weather_is_read_as_whole_words(description: str, name: str | None) -> None:
    assert weather(description) == name


def test_every_prompt_of_the_template_is_in_the_vocabulary() -> None:
    assert len(set(VOCABULARY)) == len(VOCABULARY)
    for location in UTC_OFFSET_H:
        for sensor in (RIG, "front right", "back left"):
            for when in DAYTIMES:
                text = TEMPLATE.format(sensor=sensor, location=location, season=SEASONS[0], daytime=when)
                tokens = tokenize(f"{text} Weather: {WEATHERS[0]}.")
                assert tokens.shape == (PROMPT_TOKENS,)
                assert VOCABULARY.index("<unk>") not in tokens
                assert tokens[-1] == VOCABULARY.index("<pad>") == 0


def test_tokens_name_the_words_in_order() -> None:
    tokens = tokenize("Boston-Seaport, at NIGHT: zebra")
    assert tokens.dtype == np.int64
    assert [VOCABULARY[t] for t in tokens[:5]] == ["boston-seaport", "at", "night", "<unk>", "<pad>"]
    assert len(tokenize("a " * 100)) == PROMPT_TOKENS
