"""The plan: which shards a run consists of, and what each is called.

A shard is one scene window with one perturbation and one seed. Its id hashes everything that changes pixels and nothing
else, so that the same work has the same name on any pool of machines.
"""

from __future__ import annotations

import hashlib
import json
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dwm.config import to_yaml
from dwm.errors import InputError
from dwm.scenario.types import Perturbation
from pipelines.atomic import (
    canonical_json,
    create_if_absent,
    naming_full_disk,
    read_json,
    readable_json,
    sha256_file,
    write_atomic,
)
from pipelines.config import RunConfig, config_sha256, identity_of
from pipelines.layout import RunLayout
from pipelines.provenance import git_state, package_versions
from pipelines.schema import SCHEMA_VERSION

if TYPE_CHECKING:
    from pipelines.long_tail.mix import MixedClip

# Raise it with every change of the code that changes pixels.
GENERATOR_VERSION = "5"

PerturbationSampler = Callable[[str, float, np.random.Generator], Perturbation]
RangedSampler = Callable[[str, float, np.random.Generator, Mapping[str, tuple[float, float]]], Perturbation]
Draw = Callable[[int], Perturbation]  # the draw of that number; each number draws something else


@dataclass(frozen=True, slots=True, kw_only=True)
class SceneRef:
    """A scene as the plan needs it, without reading its images."""

    name: str
    token: str
    fingerprint: str = ""  # of the scene's table row; tells apart datasets that reuse tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """One unit of work."""

    shard_id: str  # 32 hex digits
    scene_name: str
    scene_token: str
    start_s: float  # from the start of the scene
    duration_s: float
    fps: float
    perturbation: Perturbation
    seed: int
    predicted_minutes: float
    infeasible: str = ""  # why none of the draws that were tried makes a scenario

    @property
    def n_frames(self) -> int:
        return round(self.duration_s * self.fps)


# (scene, start_s, seed, its draws) -> the one that is planned, and why it is infeasible or ""
Settle = Callable[[SceneRef, float, int, Draw], tuple[Perturbation, str]]


def untried(scene: SceneRef, start_s: float, seed: int, draw: Draw) -> tuple[Perturbation, str]:
    """The first draw, feasible or not."""
    return draw(0), ""


def make_plan(
    config: RunConfig, scenes: Sequence[SceneRef], weights_sha: dict[str, str], sample: PerturbationSampler | None = None,
    settle: Settle = untried,
) -> list[Shard]:  # fmt: skip
    """Every scene with every perturbation and seed, longest first; the same arguments give the same list.

    ``weights_sha`` maps model part to the SHA-256 of its file. ``sample`` draws parameters a perturbation leaves open, ``settle``
    chooses a draw.
    """
    start_s, shards = config.scenario.start_s, []
    for scene in scenes:
        for entry in config.scenario.listed:
            for seed in (config.seed + offset for offset in config.scenario.seeds):
                settled = settle(scene, start_s, seed, partial(_perturbation, entry, scene, seed, sample or _sample))
                shards.append(_shard(config, scene, settled, seed, weights_sha, start_s))
    return in_order(shards)


def mixed_shard(
    config: RunConfig, scene: SceneRef, clip: MixedClip, weights_sha: dict[str, str], sample: RangedSampler | None = None,
    settle: Settle = untried,
) -> Shard:  # fmt: skip
    """The shard of a mix's clip. ``sample`` draws the parameters of a family within its ranges, ``settle`` chooses a draw."""
    seed, start_s = config.seed + clip.repeat, clip.window.start_s
    ranges = {name: (low, high) for name, (low, high) in clip.family.ranges.items()}

    def draw(number: int) -> Perturbation:
        rng = _generator(["mix", clip.family.name, clip.severity, scene.token, start_s, seed], number)
        return (sample or _sample)(clip.family.name, clip.severity, rng, ranges)

    return _shard(config, scene, settle(scene, start_s, seed, draw), seed, weights_sha, start_s)


def in_order(shards: Sequence[Shard]) -> list[Shard]:
    """Each shard once, longest first."""
    unique = list({shard.shard_id: shard for shard in shards}.values())
    return sorted(unique, key=lambda shard: -shard.predicted_minutes)


def weights_sha256(config: RunConfig) -> dict[str, str]:
    """SHA-256 of every weight file, or folder of an outside model, that takes part in making pixels."""
    from dwm.codec.load import codec_sha256, is_outside  # here: torch takes a second that most commands do not need
    from dwm.models.outside import outside_sha256

    found, model = {}, config.model
    if is_outside(model.codec):
        found["codec"] = codec_sha256(model.codec)
    if model.text_encoder:
        found["text_encoder"] = outside_sha256(model.text_encoder)
    for part in ("codec", "world_model", "fine_model", "things"):
        name = getattr(model, part)
        if name is None or part in found:
            continue
        path = Path(name)
        if not path.is_file():
            fix = f"set model.{part} to a .safetensors file, e.g. one made by `roadreel train`"
            raise InputError(path, "no such weight file", fix)
        found[part] = sha256_file(path)
    return found


def stored_plan(layout: RunLayout, config: RunConfig, weights_sha: dict[str, str]) -> list[Shard] | None:
    """The plan in a run folder, if it was made from the same configuration, weights and generator; None otherwise."""
    if not (layout.run_json.is_file() and layout.plan_json.is_file()):
        return None
    stored = read_json(layout.run_json)
    same = isinstance(stored, dict) and not _difference(stored, _identity(config, weights_sha))
    return read_plan(layout) if same else None


def open_run(layout: RunLayout, config: RunConfig, shards: Sequence[Shard], weights_sha: dict[str, str]) -> dict[str, Any]:
    """Creates ``run.json`` and ``plan.json`` in the run folder, or resumes the same run; returns the run's record.

    Raises InputError when the folder holds another configuration, other weights or other scenes.
    """
    commit, dirty = git_state()
    record = _identity(config, weights_sha) | {
        "run_id": uuid.uuid4().hex, "started_us": time.time_ns() // 1000, "config_yaml": to_yaml(config),
        "git_commit": commit, "dirty": dirty, "packages": package_versions(),
        "seed_policy": "shard seed = run seed + scenario seed; noise is drawn from the shard id",
    }  # fmt: skip
    with naming_full_disk(layout.root):
        _refuse_strangers(layout)
        create_if_absent(layout.run_json, readable_json(record))
        stored = read_json(layout.run_json)
        if isinstance(stored, dict) and _is_untouched(layout) and _difference(stored, record):
            # Nothing was made yet: a corrected configuration may simply start over.
            write_atomic(layout.run_json, readable_json(record))
            layout.plan_json.unlink(missing_ok=True)
            stored = record
        _refuse_other_run(layout.run_json, stored, record)
        create_if_absent(layout.plan_json, readable_json([asdict(shard) for shard in shards]))
    planned = {entry["shard_id"] for entry in read_json(layout.plan_json)}
    if planned != {shard.shard_id for shard in shards}:
        problem = "the stored plan lists other shards: scenes changed since it was made"
        raise InputError(layout.plan_json, problem, "choose another out folder")
    return stored


def _identity(config: RunConfig, weights_sha: dict[str, str]) -> dict[str, Any]:
    """What a run folder must agree in to be resumed."""
    return {
        "config_sha256": config_sha256(config), "weights_sha256": weights_sha, "generator_version": GENERATOR_VERSION,
        "schema_version": SCHEMA_VERSION,
    }  # fmt: skip


def _refuse_strangers(layout: RunLayout) -> None:
    if layout.root.is_dir() and not layout.run_json.exists() and any(not p.name.startswith(".") for p in layout.root.iterdir()):
        raise InputError(layout.root, "this folder is not empty and holds no run", "choose another out folder")


def _is_untouched(layout: RunLayout) -> bool:
    return not any(folder.is_dir() and any(folder.iterdir()) for folder in (layout.data, layout.commits, layout.quarantine))


def _difference(stored: dict[str, Any], wanted: dict[str, Any]) -> str:
    reasons = {"config_sha256": "another configuration", "weights_sha256": "other weights"}
    reasons |= {"generator_version": "another generator version", "schema_version": "another schema version"}
    return next((reason for key, reason in reasons.items() if stored.get(key) != wanted[key]), "")


def _refuse_other_run(path: Path, stored: dict[str, Any], wanted: dict[str, Any]) -> None:
    if not isinstance(stored, dict) or "config_sha256" not in stored:
        raise InputError(path, "not a run record", "choose another out folder")
    if difference := _difference(stored, wanted):
        fix = "choose another out folder or restore the configuration stored in run.json"
        raise InputError(path, f"this folder holds another run ({difference})", fix)


def _shard(
    config: RunConfig,
    scene: SceneRef,
    settled: tuple[Perturbation, str],
    seed: int,
    weights_sha: dict[str, str],
    start_s: float,
) -> Shard:
    perturbation, infeasible = settled
    _in_range(perturbation)
    scenario = config.scenario
    identity = {
        "scene": scene.token, "scene_row": scene.fingerprint, "start_s": float(start_s),
        "duration_s": float(scenario.duration_s), "fps": float(scenario.fps), "perturbation": perturbation.name,
        "params": {key: float(value) for key, value in perturbation.params.items()}, "severity": float(perturbation.severity),
        "seed": seed, "rollout": identity_of("rollout", config.rollout), "video": asdict(config.video), "weights": weights_sha,
        "generator_version": GENERATOR_VERSION, "schema_version": SCHEMA_VERSION,
    }  # fmt: skip
    minutes = round(scenario.duration_s * scenario.fps) * config.execution.seconds_per_frame / 60
    return Shard(
        shard_id=hashlib.sha256(canonical_json(identity)).hexdigest()[:32], scene_name=scene.name, scene_token=scene.token,
        start_s=float(start_s), duration_s=float(scenario.duration_s), fps=float(scenario.fps),
        perturbation=perturbation, seed=seed, predicted_minutes=minutes, infeasible=infeasible,
    )  # fmt: skip


def _perturbation(entry: Any, scene: SceneRef, seed: int, sample: PerturbationSampler, number: int) -> Perturbation:
    if entry.name == "baseline":
        return Perturbation(name="baseline", params={}, severity=0.0)
    rng = _generator([entry.name, float(entry.severity), scene.token, seed], number)
    drawn = sample(entry.name, float(entry.severity), rng)
    if unknown := set(entry.params) - set(drawn.params):
        known = ", ".join(sorted(drawn.params)) or "none"
        raise InputError("scenario.perturbations", f"{entry.name} has no parameter {sorted(unknown)}", f"it has: {known}")
    return Perturbation(name=entry.name, params={**drawn.params, **entry.params}, severity=drawn.severity)


def _in_range(perturbation: Perturbation) -> None:
    """Raises InputError for a condition that no air can be in, before any worker meets it."""
    from dwm.scenario.conditions import air_of, conditions_of

    air_of(conditions_of(perturbation))


def _generator(key: list[Any], number: int) -> np.random.Generator:
    named = canonical_json([*key, *([number] if number else [])])
    return np.random.default_rng(int.from_bytes(hashlib.sha256(named).digest()[:8], "little"))


def _sample(
    name: str, severity: float, rng: np.random.Generator, ranges: Mapping[str, tuple[float, float]] | None = None
) -> Perturbation:
    from dwm.scenario.perturbations import sample_perturbation

    return sample_perturbation(name, severity, rng, ranges)


def shard_from_json(entry: dict[str, Any]) -> Shard:
    """A shard as stored in ``plan.json`` or a commit record."""
    return Shard(**{**entry, "perturbation": Perturbation(**entry["perturbation"])})


def shard_seed(shard_id: str) -> int:
    """The 63-bit seed from which a shard's noise is drawn."""
    return int(shard_id[:16], 16) >> 1


def read_plan(layout: RunLayout) -> list[Shard]:
    """The plan stored in a run folder."""
    try:
        return [shard_from_json(entry) for entry in json.loads(layout.plan_json.read_text())]
    except FileNotFoundError as error:
        raise InputError(layout.root, "no plan.json here", "give a folder made by `roadreel generate`") from error
