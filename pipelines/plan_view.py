"""``roadreel plan``: what would be generated, from what, and at what cost, as text or as one JSON object."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from typing import Any

from dwm.errors import InputError
from dwm.scenario.rarity import Rarity, TagCount
from dwm.scenario.tags import TAGS, TaggedWindow
from pipelines.config import RunConfig
from pipelines.estimates import Estimate, estimate
from pipelines.generate import RunPlan
from pipelines.long_tail.corpus import Corpus, read_corpus
from pipelines.long_tail.mix import clip_tags, shares_of
from pipelines.plan import Shard

_SHARDS_SHOWN, _RAREST_SHOWN, _REASONS_SHOWN = 40, 10, 4


class PlanView:
    """A plan with its corpus, read for it unless a mix already did. ``tags=False`` leaves the corpus out."""

    def __init__(self, config: RunConfig, plan: RunPlan, *, tags: bool = True) -> None:
        self.config, self.plan, self.notes = config, plan, list(plan.mix.notes if plan.mix else ())
        self.estimate: Estimate = estimate(config, plan.shards)
        self.corpus: Corpus | None = plan.corpus
        if self.corpus is None and tags:
            try:
                self.corpus = read_corpus(config, plan.scenes)
            except InputError as error:
                self.notes.append(f"the log's tags are not shown: {error}")
        if self.corpus is not None and not all(self.corpus.startable):
            lacking = self.corpus.startable.count(False)
            self.notes.append(
                f"{lacking} of {len(self.corpus.windows)} stretches lack images to start from; a mix leaves them out"
            )

    def text(self) -> str:
        """For people: shards, then families, tags, the rarest stretches, cost and what to know."""
        parts = [self._shards(), self._families()]
        if self.corpus is not None:
            parts += [self._tags(), self._rarest()]
        parts.append(self._cost())
        if self.notes:
            parts.append("\n".join(f"note: {note}" for note in self.notes))
        return "\n\n".join(parts)

    def json(self) -> dict[str, Any]:
        """For machines: everything, nothing shortened."""
        view: dict[str, Any] = {
            "shards": [asdict(shard) for shard in self.plan.shards], "families": dict(_families(self.plan.shards)),
            "estimate": asdict(self.estimate), "notes": self.notes,
        }  # fmt: skip
        if self.corpus is not None:
            view["tags"] = self.tag_rows()
            for name, windows, rarities in (
                ("windows", self.corpus.windows, self.corpus.rarities()),
                ("scenes", self.corpus.scenes, self.corpus.scene_rarities()),
            ):
                view[name] = [_window_json(window, rarity) for window, rarity in zip(windows, rarities, strict=True)]
        return view

    def tag_rows(self) -> list[dict[str, Any]]:
        """Every tag that is asked for, in the corpus or planned, in the order of their list: shares of windows and clips."""
        assert self.corpus is not None
        counts, mix = self.corpus.counts(), self.config.scenario.mix
        targets = mix.shares if mix else {}
        names = [name for name in TAGS if name in counts or name in targets]
        planned, reach = shares_of(self._planned(), names), self.plan.mix.reach if self.plan.mix else {}
        return [
            {
                "tag": name, "target": targets.get(name), "planned": planned[name],
                "corpus": _share(counts[name]) if name in counts else 0.0,
                "windows": counts[name].present if name in counts else 0,
                "reachable": [reach[name].low, reach[name].high] if name in reach else None,
            }
            for name in names
        ]  # fmt: skip

    def _feasible(self) -> list[Shard]:
        return [shard for shard in self.plan.shards if not shard.infeasible]

    def _planned(self) -> list[frozenset[str]]:
        """The tags of every shard that is not known to be infeasible: of its window, or of the nearest one of its scene."""
        assert self.corpus is not None
        by_scene: dict[str, list[TaggedWindow]] = {}
        for window in self.corpus.windows:
            by_scene.setdefault(window.scene_token, []).append(window)
        return [
            clip_tags(min(by_scene[s.scene_token], key=lambda w: abs(w.start_s - s.start_s)), s.perturbation.name)
            for s in self._feasible()
        ]

    def _shards(self) -> str:
        shards, cost, workers = self.plan.shards, self.estimate, self.config.execution.workers
        lines = [_shard_line(shard) for shard in shards[:_SHARDS_SHOWN]]
        if len(shards) > _SHARDS_SHOWN:
            lines.append(f"... and {len(shards) - _SHARDS_SHOWN} more; --json lists them all")
        total = f"{len(shards)} shards, {cost.worker_hours:.2f} worker hours, {cost.wall_hours:.2f} hours on {workers} workers"
        return "\n".join([*lines, total])

    def _families(self) -> str:
        rows = [(name, str(count), f"{count / len(self.plan.shards):.0%}") for name, count in _families(self.plan.shards)]
        if not self.config.scenario.draws:
            return _table(("family", "clips", "share"), rows)
        feasible = Counter(shard.perturbation.name for shard in self._feasible())
        return _table(("family", "clips", "share", "feasible"), [(*row, str(feasible[row[0]])) for row in rows])

    def _tags(self) -> str:
        assert self.corpus is not None
        percent = lambda value: "" if value is None else f"{value:.0%}"  # noqa: E731
        rows = [
            (row["tag"], percent(row["target"]), _range(row["reachable"]), percent(row["planned"]), percent(row["corpus"]),
             str(row["windows"]))
            for row in self.tag_rows()
        ]  # fmt: skip
        title = f"{len(self.corpus.windows)} stretches of {len(self.corpus.scenes)} scenes; shares of clips, and of the corpus"
        return f"{title}\n{_table(('tag', 'target', 'reachable', 'planned', 'corpus', 'stretches'), rows)}"

    def _rarest(self) -> str:
        assert self.corpus is not None
        counts, taken = self.corpus.counts(), Counter(shard.scene_token for shard in self.plan.shards)
        best: dict[str, tuple[TaggedWindow, Rarity]] = {}
        for window, own in zip(self.corpus.windows, self.corpus.rarities(), strict=True):
            if window.scene_token not in best or own.total_bits > best[window.scene_token][1].total_bits:
                best[window.scene_token] = window, own
        order = sorted(best.values(), key=lambda pair: -pair[1].total_bits)
        rows = [
            (window.scene_name, f"{window.start_s:.1f}-{window.end_s:.1f} s", f"{rarity.total_bits:.1f}",
             str(taken[window.scene_token]), _reasons(rarity, counts))
            for window, rarity in order[:_RAREST_SHOWN]
        ]  # fmt: skip
        head = ("scene", "stretch", "bits", "scene's clips", "why: tag, bits (in how many stretches)")
        return f"rarest stretch of each of the rarest scenes\n{_table(head, rows)}"

    def _cost(self) -> str:
        cost, execution = self.estimate, self.config.execution
        per = f"{execution.seconds_per_frame:g} s a frame (execution.seconds_per_frame)"
        time = f"time    {cost.worker_hours:.2f} worker hours at {per}"
        time += f", {cost.gpu_hours:.2f} GPU hours" if execution.gpus_per_worker else ", no GPU asked for"
        memory = f"memory  about {_bytes(cost.worker_memory_bytes)} a worker, {_bytes(cost.memory_bytes)} in all"
        disk = f"disk    about {_bytes(cost.disk_bytes)}"
        if cost.free_disk_bytes is not None:
            enough = "" if cost.free_disk_bytes > cost.disk_bytes else ": NOT ENOUGH"
            disk += f", {_bytes(cost.free_disk_bytes)} free at {self.config.out}{enough}"
        return "\n".join((time, memory, disk))


def _shard_line(shard: Shard) -> str:
    perturbation = shard.perturbation
    start = f" from {shard.start_s:g} s" if shard.start_s else ""
    what = f"{shard.scene_name}{start} {perturbation.name} severity={perturbation.severity:.2f} seed={shard.seed}"
    why = f"  infeasible: {shard.infeasible}" if shard.infeasible else ""
    return f"{shard.shard_id}  {shard.predicted_minutes:7.1f} min  {shard.n_frames:5d} frames  {what}{why}"


def _families(shards: list[Shard]) -> list[tuple[str, int]]:
    return sorted(Counter(shard.perturbation.name for shard in shards).items(), key=lambda item: (-item[1], item[0]))


def _share(count: TagCount) -> float:
    return count.present / count.known if count.known else 0.0


def _range(reachable: list[float] | None) -> str:
    return "" if reachable is None else f"{reachable[0]:.0%}-{reachable[1]:.0%}"


def _reasons(rarity: Rarity, counts: dict[str, TagCount]) -> str:
    shown = list(rarity.bits.items())[:_REASONS_SHOWN]
    return ", ".join(f"{tag} {bits:.1f} ({counts[tag].present} of {counts[tag].known})" for tag, bits in shown)


def _window_json(window: TaggedWindow, rarity: Rarity) -> dict[str, Any]:
    gap = window.min_gap_s if window.min_gap_s != float("inf") else None
    return {
        "scene": window.scene_name, "token": window.scene_token, "start_s": window.start_s, "end_s": window.end_s,
        "bits": rarity.total_bits, "bits_by_tag": rarity.bits, "counts": window.counts, "min_gap_s": gap,
    }  # fmt: skip


def _bytes(count: int) -> str:
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count / 1e3:.0f} kB"


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """Columns two spaces apart, the first to the left, numbers to the right, the last as it is."""
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
    line = lambda row: "  ".join(  # noqa: E731
        cell.ljust(width) if i == 0 or i == len(row) - 1 else cell.rjust(width)
        for i, (cell, width) in enumerate(zip(row, widths, strict=True))
    )
    return "\n".join(line(row).rstrip() for row in (head, *rows))
