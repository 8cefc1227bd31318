"""Tries, before a run, whether what is planned makes a scenario, and draws again what is left open where it does not.

A run that resumes need not try again: its stored plan says what was chosen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path

from dwm.errors import InputError
from dwm.scenario.build import ScenarioBuilder
from dwm.scenario.types import Perturbation, Rejection
from dwm.scenes.nuscenes import read_scene
from dwm.scenes.types import Scene
from pipelines.atomic import canonical_json
from pipelines.config import RunConfig
from pipelines.logged_frames import led_by_log
from pipelines.plan import Draw, SceneRef, Settle, Shard

_SCENES_HELD, _CLIPS_HELD = 4, 8


class Trial:
    """Builds scenarios without generating them; ``settle`` chooses among draws."""

    def __init__(self, config: RunConfig) -> None:
        self._config = config
        self._scene = lru_cache(maxsize=_SCENES_HELD)(self._read)
        self._builder = lru_cache(maxsize=_CLIPS_HELD)(self._open)

    def settle(self, scene: SceneRef, start_s: float, seed: int, draw: Draw) -> tuple[Perturbation, str]:
        """The first of ``scenario.draws`` draws that is feasible and ""; without any, the first one and why it is not."""
        first, why = draw(0), ""
        for number in range(self._config.scenario.draws):
            drawn = draw(number)
            if number and drawn == first:
                break  # nothing is left open
            try:
                built = self._builder(scene.name, start_s, seed).build(drawn)
            except InputError as error:
                return first, str(error)  # the run goes on with what is sound
            made = led_by_log(built, self._config.rollout.logged_frames)
            if not isinstance(made, Rejection):
                return drawn, ""
            why = why or f"{made.reason}: {made.detail}"
        return first, why

    def _read(self, name: str) -> Scene:
        scenes = self._config.scenes
        return read_scene(Path(scenes.dataroot), scenes.version, name)

    def _open(self, name: str, start_s: float, seed: int) -> ScenarioBuilder:
        scenario = self._config.scenario
        return ScenarioBuilder(self._scene(name), seed, duration_s=scenario.duration_s, fps=scenario.fps, start_s=start_s)


def as_planned(shards: Sequence[Shard], draws: int) -> Settle:
    """Chooses the draw that a stored plan holds; what it does not hold was found infeasible when it was made."""

    def key(scene_token: str, start_s: float, seed: int, drawn: Perturbation) -> bytes:
        return canonical_json([scene_token, float(start_s), seed, asdict(drawn)])

    chosen = {key(s.scene_token, s.start_s, s.seed, s.perturbation): s for s in shards}

    def settle(scene: SceneRef, start_s: float, seed: int, draw: Draw) -> tuple[Perturbation, str]:
        keys = (key(scene.token, start_s, seed, draw(number)) for number in range(draws))
        shard = next((chosen[k] for k in keys if k in chosen), None)
        return (draw(0), "not in the stored plan") if shard is None else (shard.perturbation, shard.infeasible)

    return settle
