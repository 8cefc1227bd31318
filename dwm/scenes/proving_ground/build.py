"""Builds a proving-ground dataroot: a complete nuScenes dataset of procedural cities, with no download."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import count, islice
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from dwm.errors import InputError
from dwm.geometry import yaw_from_rotation
from dwm.scenes.prompts import UTC_OFFSET_H
from dwm.scenes.proving_ground.can_bus import BLACKLISTED_SCENES, write_can_bus
from dwm.scenes.proving_ground.capture import SceneJob, SceneRenderer, SceneWriter
from dwm.scenes.proving_ground.city import FIRST_HELD_OUT_TOWN, LOCATIONS, City, build_city, map_mask
from dwm.scenes.proving_ground.map_expansion import write_map_expansion
from dwm.scenes.proving_ground.render import Renderer
from dwm.scenes.proving_ground.rig import CAMERA_HZ, KEY_FRAME_EVERY, frame_times_us
from dwm.scenes.proving_ground.tables import TableWriter
from dwm.scenes.proving_ground.tokens import APPEARANCE_RULE, make_token
from dwm.scenes.proving_ground.weather import WEATHERS
from dwm.scenes.proving_ground.world import World, make_world
from dwm.scenes.types import CAMERAS

WORLD_FILE = "proving_ground.json"
VEHICLE = "pg"
# Local hour at which each weather is filmed, so that the log's time fits what the images show.
HOURS = {"day": 10, "dusk": 19, "night": 22, "rain": 15, "fog": 8}
FIRST_DATE, DAYS_APART = datetime(2024, 1, 15, tzinfo=UTC), 37  # a year of scenes sees all seasons
TRAFFIC_RADIUS_M, MODERATE, DENSE = 40.0, 6, 14  # agents near the ego


@dataclass(frozen=True, slots=True, kw_only=True)
class WorldOptions:
    """What a dataroot is made of."""

    n_scenes: int
    seed: int
    size_hw: tuple[int, int] = (128, 224)  # image height and width [px]
    duration_s: float = 20.0  # per scene, rounded to whole key-frame periods of 0.5 s
    n_agents: int = 60  # per scene
    version: str = "v1.0-mini"
    lidar: bool = True
    city_size_m: float = 420.0

    def check(self, out: Path) -> None:
        """InputError for the first option that makes no world."""
        limits = [
            ("n_scenes", 1 <= self.n_scenes <= 9000, "choose 1 to 9000 scenes"),
            ("seed", self.seed >= 0, "choose a seed of 0 or more"),
            ("size_hw", min(self.size_hw) >= 16, "choose at least 16 x 16 pixels"),
            ("duration_s", 0.5 <= self.duration_s <= 600.0, "choose 0.5 to 600 seconds"),
            ("n_agents", 1 <= self.n_agents <= 400, "choose 1 to 400 agents"),
            ("version", self.version == Path(self.version).name and bool(self.version), "name a folder such as v1.0-mini"),
        ]
        for name, holds, fix in limits:
            if not holds:
                raise InputError(out, f"{name} = {getattr(self, name)} makes no world", fix)


def build_world(
    out: Path, n_scenes: int, seed: int, *, size_hw: tuple[int, int] = (128, 224), duration_s: float = 20.0, n_agents: int = 60,
    version: str = "v1.0-mini", device: str = "cpu", lidar: bool = True, city_size_m: float = 420.0, progress: bool = True,
    make_renderer: Callable[[City], SceneRenderer] | None = None,
) -> Path:  # fmt: skip
    """Writes a nuScenes dataroot to ``out``, which appears only when it is complete. Returns ``out``.

    Scenes share at most four cities, since the devkit knows four map names. splits.json names ``pg_train`` and, from the
    last fifth of the scenes, ``pg_val``; a single scene is in both. The same arguments give the same bytes.

    Raises:
        InputError: ``out`` exists and is not empty, or an option makes no world.
    """
    options = WorldOptions(
        n_scenes=n_scenes, seed=seed, size_hw=size_hw, duration_s=duration_s, n_agents=n_agents, version=version, lidar=lidar,
        city_size_m=city_size_m,
    )  # fmt: skip
    options.check(out)
    with _published(Path(out)) as folder:
        _Builder(options, folder, make_renderer or (lambda city: Renderer(city, device)), progress).build()
    return Path(out)


@contextmanager
def _published(out: Path) -> Iterator[Path]:
    """A temporary sibling of ``out`` that becomes ``out`` when the block succeeds and vanishes when it fails."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(out, "exists and is not empty", "choose another folder or remove this one")
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".partial", dir=out.parent))
    try:
        yield partial
        partial.chmod(0o755)
        if out.exists():
            out.rmdir()
        partial.rename(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


class _Builder:
    def __init__(
        self, options: WorldOptions, root: Path, make_renderer: Callable[[City], SceneRenderer], progress: bool
    ) -> None:
        self.options, self.root, self.make_renderer = options, root, make_renderer
        self.tables = TableWriter(options.seed)
        self.names = scene_names(options.n_scenes)
        self.n_frames = round(options.duration_s * CAMERA_HZ / KEY_FRAME_EVERY) * KEY_FRAME_EVERY + 1
        total = options.n_scenes * self.n_frames * len(CAMERAS)
        self.bar = tqdm(total=total, unit="image", desc="proving ground", disable=None if progress else True)

    def build(self) -> None:
        # Cities of other world seeds are other cities: worlds for training and testing never share a street.
        n_cities = min(len(LOCATIONS), self.options.n_scenes)
        facts: dict[str, dict] = {}
        with self.bar:
            for c in range(n_cities):
                city = build_city(first_city_seed(self.options.seed) + c, self.options.city_size_m)
                renderer = self.make_renderer(city)
                scenes = range(c, self.options.n_scenes, n_cities)
                logs = [self._scene(i, city, renderer, facts) for i in scenes]
                self._map(city, logs)
        for table in ("scene", "log"):
            self.tables.rows[table].sort(key=lambda row: row["name"] if table == "scene" else row["logfile"])
        self.tables.write(self.root / self.options.version)
        self._write_json(f"{self.options.version}/splits.json", splits(self.names))
        world = {"format": 1, "seed": self.options.seed, "appearance_seed": APPEARANCE_RULE, "scenes": facts}
        self._write_json(WORLD_FILE, world)

    def _scene(self, index: int, city: City, renderer: SceneRenderer, facts: dict[str, dict]) -> str:
        """Writes one scene; returns the token of its log."""
        options, name, tables = self.options, self.names[index], self.tables
        rng = np.random.default_rng([options.seed, index])
        weather = WEATHERS[weather_of(options.seed, index)]
        start = start_time(index, city.location, weather.name)
        times = frame_times_us(int(start.timestamp()) * 1_000_000, self.n_frames)
        world = make_world(
            city, weather, int(times[0]), self.n_frames, options.n_agents, partial(tables.token, "instance", name), rng
        )
        date = (start + timedelta(hours=UTC_OFFSET_H[city.location])).strftime("%Y-%m-%d")
        logfile = f"{VEHICLE}-{date}-{name}"
        job = SceneJob(
            name=name, token=tables.token("scene", name), logfile=logfile, world=world, frame_times_us=times,
            size_hw=options.size_hw, lidar=options.lidar,
        )  # fmt: skip
        writer = SceneWriter(job, tables, self.root, renderer, self.bar.update)
        writer.write()
        log = tables.token("log", name)
        tables.add("log", log, logfile=logfile, vehicle=VEHICLE, date_captured=date, location=city.location)
        tables.add(
            "scene", job.token, log_token=log, nbr_samples=len(writer.sample_tokens), name=name,
            first_sample_token=writer.sample_tokens[0], last_sample_token=writer.sample_tokens[-1],
            description=describe(world, times),
        )  # fmt: skip
        route = world.ego.ego_to_global[::2, :2, 3]
        write_can_bus(self.root / "can_bus", name, world.ego, int(times[0]), int(times[-1]), route)
        facts[name] = {"city_seed": city.seed, "city_size_m": city.size_m, "weather": weather.name}
        return log

    def _map(self, city: City, logs: list[str]) -> None:
        token = self.tables.token("map", city.location)
        filename = f"maps/{token}.png"
        (self.root / "maps").mkdir(exist_ok=True)
        Image.fromarray(map_mask(city)).save(self.root / filename)
        self.tables.add("map", token, log_tokens=logs, category="semantic_prior", filename=filename)
        write_map_expansion(city, self.root / "maps" / "expansion" / f"{city.location}.json")

    def _write_json(self, name: str, content: object) -> None:
        (self.root / name).write_text(json.dumps(content, indent=1) + "\n")


def first_city_seed(seed: int) -> int:
    """The first of the four consecutive city seeds that belong to a world seed; none of them is a training town."""
    return FIRST_HELD_OUT_TOWN + len(LOCATIONS) * seed


def scene_names(n_scenes: int) -> list[str]:
    """scene-0001 and on, without the numbers for which the devkit's CAN bus reader always raises."""
    return [f"scene-{i:04d}" for i in islice((i for i in count(1) if i not in BLACKLISTED_SCENES), n_scenes)]


def splits(names: list[str]) -> dict[str, list[str]]:
    """The last fifth (at least one) for validation; a single scene in both; ``pg_all`` is every scene."""
    n_val = max(1, round(0.2 * len(names)))
    train = names[:-n_val] if len(names) > 1 else names
    return {"pg_train": train, "pg_val": names[-n_val:], "pg_all": names}


def weather_of(seed: int, index: int) -> str:
    """Day first, then all weathers in turn, in an order drawn per round."""
    if index == 0:
        return "day"
    order = sorted(WEATHERS, key=lambda name: make_token(seed, "weather", (index - 1) // len(WEATHERS), name))
    return order[(index - 1) % len(WEATHERS)]


def start_time(index: int, location: str, weather: str) -> datetime:
    """UTC start of a scene's log."""
    local = FIRST_DATE + timedelta(days=(index * DAYS_APART) % 3650, hours=HOURS[weather], minutes=7 * (index % 8))
    return local - timedelta(hours=UTC_OFFSET_H[location])


def describe(world: World, times_us: np.ndarray) -> str:
    """Weather, traffic density and manoeuvre, in the style of nuScenes descriptions."""
    poses = world.ego.at(times_us)
    middle = world.state(int(times_us[len(times_us) // 2]))
    near = np.linalg.norm(middle.centers_m[:, :2] - poses[len(poses) // 2, :2, 3], axis=1) < TRAFFIC_RADIUS_M
    density = ("light traffic", "traffic", "dense traffic")[int(np.searchsorted([MODERATE, DENSE], near.sum(), side="right"))]
    words = [world.weather.words, density]
    turn = float(np.unwrap(yaw_from_rotation(poses))[-1] - yaw_from_rotation(poses[:1])[0])
    if abs(turn) > 0.6:
        words.append("turn left" if turn > 0 else "turn right")
    steps = np.linalg.norm(np.diff(poses[:, :2, 3], axis=0), axis=1)
    if (steps * CAMERA_HZ < 0.3).sum() > 2 * CAMERA_HZ:
        words.append("wait")
    classes = {world.specs[i].detection_class for i in middle.indices[near]}
    seen = {"pedestrian": "peds", "construction_vehicle": "construction vehicle", "bus": "bus", "bicycle": "bicycle"}
    return ", ".join([*words, *(word for name, word in seen.items() if name in classes)])
