"""Cross-granularity distillation: how a long clip is cut, what the teacher is asked, and what is learnt from it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dwm.conditioning.build import ScenarioConditioner
from dwm.errors import InputError
from dwm.flow.rectified import NoiseConfig
from dwm.models.dit import DiTConfig
from dwm.models.systems import build_denoiser
from dwm.models.weights import load_model, load_tensors, save_model
from dwm.training.clips import ClipBatch, MixedClips, TrainingClip, collate
from dwm.training.config import LoopConfig, TrainConfig, WorldTraining
from dwm.training.distillation import DistillationConfig, distillation_losses, high_pass, teacher_target, total_loss
from dwm.training.distillation_trainer import DistillationTask
from dwm.training.encoding import save_clip
from dwm.training.long_clips import KeyFrames, cut, cut_clips, rebased
from dwm.training.loop import fit
from dwm.training.run import train
from dwm.training.wear import WearConfig
from dwm.training.world_trainer import WorldTask
from tests.dwm.test_conditioning_build import on_a_circle

CONF = Path(__file__).parents[2] / "conf"
V, C, ROWS, COLS = 2, 3, 4, 4
KEYS = KeyFrames(gaps=2, stride=3)
MODEL = DiTConfig(
    system="longdwm", d_model=16, depth=2, heads=2, modulation_width=8, injected_depth=1, local_widths=(8,), latent_channels=C,
    views=V, layout_channels=2, text_vocabulary=5, image_hw=(8 * ROWS, 8 * COLS),
)  # fmt: skip


class LongClips:
    """Clips of seven frames that drift the same way; every per-frame tensor knows its frame."""

    def __init__(self, frames: int = KEYS.frames) -> None:
        self.frames = frames

    def __len__(self) -> int:
        return 5

    def get(self, index: int, generator: np.random.Generator) -> TrainingClip:
        g = torch.Generator().manual_seed(index)
        first, frame = torch.randn(1, V, C, ROWS, COLS, generator=g), torch.arange(self.frames)
        steps = frame.view(-1, 1, 1, 1, 1)
        yaw = 0.05 * frame
        waypoints = torch.stack([0.1 * frame, 0.01 * frame**2, yaw.sin(), yaw.cos(), 0 * yaw + 1.2, 0 * yaw + 0.6], dim=-1)
        dense = (first + 0.1 * steps).half()
        shares = steps.expand(-1, V, 1, ROWS, COLS).to(torch.uint8)
        return TrainingClip(
            latents_TVCHW=dense, memory_TVCHW=dense - 1, memory_valid_TV1HW=shares, appearance_TVCHW=dense + 1,
            appearance_known_TV1HW=shares, layout_TVCHW=steps.expand(-1, V, 2, 2 * ROWS, 2 * COLS).to(torch.uint8),
            waypoints_TK=waypoints, cameras_VK=torch.cat([torch.tensor([0.8, 1.4, 0.5, 0.5]), torch.eye(4)[:3].flatten()]).expand(V, 16),
            times_T=frame / 12, fps=12.0, text_L=torch.tensor([1, 2, 0]), given=1,
        )  # fmt: skip


def long_clip(index: int = 0) -> TrainingClip:
    return LongClips().get(index, np.random.default_rng(0))


@pytest.fixture(scope="module")
def teacher(tmp_path_factory) -> Path:
    torch.manual_seed(7)
    model = build_denoiser(MODEL)
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape)
    return save_model(model, tmp_path_factory.mktemp("teacher") / "teacher.safetensors", {})


def make_config(
    out, teacher: Path | str, *, distillation: dict | None = None, world: dict | None = None, **loop
) -> TrainConfig:
    settings = {"steps": 3, "batch_size": 2, "warmup_steps": 2, "log_every": 1, "sample_every": 0, **loop}
    return TrainConfig(
        target="distillation",
        world=WorldTraining(
            **{
                "model": MODEL,
                "key_frames": KEYS,
                "held_out": 1,
                "distillation": DistillationConfig(teacher_weights=str(teacher), **(distillation or {})),
                **(world or {}),
            }
        ),
        loop=LoopConfig(out=str(out), device="cpu", **settings),
    )


def run(config: TrainConfig) -> DistillationTask:
    task = DistillationTask(config, LongClips())
    fit(task, config.loop)
    return task


def logged(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def test_key_frames_and_windows_share_their_ends():
    assert (KEYS.frames, list(KEYS.coarse)) == (7, [0, 3, 6])
    assert [list(KEYS.window(i)) for i in range(2)] == [[0, 1, 2, 3], [3, 4, 5, 6]]
    longdwm = KeyFrames()
    assert (longdwm.frames, list(longdwm.coarse)) == (145, [0, 12, 24, 36, 48, 60, 72, 84, 96, 108, 120, 132, 144])
    assert list(longdwm.window(11)) == list(range(132, 145))
    with pytest.raises(InputError, match=r"world\.key_frames: 0 gaps"):
        KeyFrames(gaps=0)


@pytest.mark.parametrize("frames", [KEYS.coarse, KEYS.window(1)])
def test_a_cut_takes_every_tensor_of_its_frames_and_counts_time_from_its_first(frames):
    whole, part = long_clip(), cut(long_clip(), frames)
    for name in (
        "latents_TVCHW", "memory_TVCHW", "memory_valid_TV1HW", "appearance_TVCHW", "appearance_known_TV1HW", "layout_TVCHW",
    ):  # fmt: skip
        assert torch.equal(getattr(part, name), getattr(whole, name)[list(frames)]), name
    assert torch.equal(part.waypoints_TK, rebased(whole.waypoints_TK[list(frames)]))
    torch.testing.assert_close(part.times_T, (torch.tensor(list(frames)) - frames[0]) / 12)
    assert part.fps == 12 / frames.step
    assert torch.equal(part.cameras_VK, whole.cameras_VK)
    assert part.given == 1


def test_a_clip_that_is_too_short_is_told_with_both_lengths():
    short = LongClips(frames=6).get(0, np.random.default_rng(0))
    assert cut(short, KEYS.window(0)).latents_TVCHW.shape[0] == 4
    with pytest.raises(InputError, match=r"6 frames, 7 are needed.*frames_12hz"):
        cut(short, KEYS.coarse)


def test_rebased_waypoints_are_those_of_the_window_itself():
    conditioner = ScenarioConditioner(on_a_circle(radius_m=20.0, speed_mps=9.0, start_yaw_rad=2.9))
    start, keys = 3, KeyFrames(gaps=3, stride=5)
    long = conditioner.waypoints(range(start, start + keys.frames))
    for frames in (keys.coarse, *(keys.window(i) for i in range(3))):
        expected = conditioner.waypoints([start + f for f in frames])
        torch.testing.assert_close(rebased(long[list(frames)]), expected, atol=1e-5, rtol=1e-5)
    assert (rebased(long[5:11]) - long[5:11]).abs().max() > 0.1


def test_dense_cuts_are_drawn_from_all_gaps_and_unknown_cuts_are_told():
    rng = np.random.default_rng(0)
    dense, coarse = (cut_clips(LongClips(), how, KEYS) for how in ("dense", "coarse"))
    starts = {int(dense.get(0, rng).layout_TVCHW[0, 0, 0, 0, 0]) for _ in range(30)}
    assert starts == {0, 3}
    assert coarse.get(0, rng).layout_TVCHW[:, 0, 0, 0, 0].tolist() == [0, 3, 6]
    assert len(dense) == len(coarse) == 5
    with pytest.raises(InputError, match=r"world\.cut: 'fine'.*whole, coarse, dense, rates"):
        cut_clips(LongClips(), "fine", KEYS)


def test_windows_at_several_rates_start_anywhere_and_are_as_long_as_the_clip_allows():
    rng, frames = np.random.default_rng(0), 25
    windows = cut_clips(LongClips(frames), "rates", KEYS, rates_hz=(12, 6, 1), window_frames=8)
    seen = {}
    for _ in range(200):
        clip = windows.get(0, rng)
        shown = clip.layout_TVCHW[:, 0, 0, 0, 0].tolist()
        seen.setdefault(clip.fps, set()).add(shown[0])
        stride = round(12 / clip.fps)
        assert shown == list(range(shown[0], shown[0] + stride * len(shown), stride)) and shown[-1] < frames
        assert len(shown) == {12: 8, 6: 8, 1: 3}[clip.fps] and clip.given == 1 and float(clip.times_T[0]) == 0.0
    assert seen == {12: set(range(18)), 6: set(range(11)), 1: {0}}
    whole = cut_clips(LongClips(8), "rates", KEYS, window_frames=8).get(1, rng)
    assert whole.layout_TVCHW[:, 0, 0, 0, 0].tolist() == list(range(8)), "a short clip comes as it is"
    with pytest.raises(InputError, match="windows of 1 frames"):
        cut_clips(LongClips(), "rates", KEYS, window_frames=1)


def test_mixed_clips_come_equally_often_and_the_first_sources_last():
    class Named(LongClips):
        def __init__(self, name: str, count: int) -> None:
            super().__init__()
            self.name, self.count = name, count

        def __len__(self) -> int:
            return self.count

        def get(self, index: int, generator: np.random.Generator):
            return f"{self.name}{index}"

    mixed = MixedClips(first=Named("short", 5), others=(Named("long", 2),))
    found = [mixed.get(i, np.random.default_rng(0)) for i in range(len(mixed))]
    assert found == ["long0", "long1", "long0", "long1", "long0", *(f"short{k}" for k in range(5))]


def test_the_teachers_key_frames_are_the_ends_of_its_windows_asked_for_one_at_a_time():
    g = torch.Generator().manual_seed(0)
    predictions = [torch.randn(2, 4, V, C, ROWS, COLS, generator=g) for _ in range(3)]
    asked: list[int] = []

    def windows():
        for i in range(3):
            assert len(asked) == i, "the window before is still waiting"
            yield i

    def denoised(i) -> Tensor:
        asked.append(i)
        return predictions[i]

    target = teacher_target(denoised, windows())
    expected = torch.empty(2, 4, V, C, ROWS, COLS)
    for clip in range(2):
        expected[clip, 0] = predictions[0][clip, 0]
        for i in range(3):
            expected[clip, i + 1] = predictions[i][clip, 3]
    assert torch.equal(target, expected)


def wave(rows: int, cols: int, v: int, u: int) -> Tensor:
    """A cosine with so many periods along each side."""
    return torch.cos(2 * torch.pi * (v * torch.arange(rows)[:, None] / rows + u * torch.arange(cols) / cols)).expand(
        1, 1, 1, 1, -1, -1
    )


def test_what_is_slow_vanishes_and_a_checkerboard_passes():
    rows, cols = 16, 28
    board = wave(rows, cols, rows // 2, cols // 2)
    assert set(board.round().unique().tolist()) == {-1.0, 1.0}
    slow, fast = wave(rows, cols, 2, 3), wave(rows, cols, 4, 0)  # squared radii 0.11 and 0.25
    mixed = high_pass(3.0 + 2 * slow + fast + 0.5 * board)
    torch.testing.assert_close(mixed, fast + 0.5 * board, atol=1e-5, rtol=0)


def test_high_pass_equals_sums_over_shifted_frequencies():
    rows, cols = 4, 6
    picture = torch.randn(rows, cols, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    v, u = (torch.arange(size, dtype=torch.float64) for size in (rows, cols))
    out = torch.zeros(rows, cols, dtype=torch.complex128)
    for h in range(rows):
        for w in range(cols):
            if (2 * h / rows - 1) ** 2 + (2 * w / cols - 1) ** 2 <= 2 * 0.1:
                continue
            angles = 2 * torch.pi * ((h - rows // 2) * v[:, None] / rows + (w - cols // 2) * u / cols)
            coefficient = (picture * torch.exp(-1j * angles)).sum()
            out += coefficient * torch.exp(1j * angles) / (rows * cols)
    torch.testing.assert_close(high_pass(picture.expand(1, 1, 1, 1, rows, cols))[0, 0, 0, 0], out.real)


def test_losses_are_weighed_squares_of_what_student_and_teacher_miss():
    clean = torch.randn(2, 3, V, C, 8, 8, generator=torch.Generator().manual_seed(0))
    board = wave(8, 8, 4, 4)
    levels = torch.tensor([[1.0, 0.5, 0.5], [1.0, 0.0, 0.0]])
    losses = distillation_losses(clean + 0.3 * board + 0.2, clean - 0.1, clean, levels, NoiseConfig(robust=0.0, weight_cap=3.0))
    weight = (3.0 + 1.0) / 2  # 1 / (1 - 0.5)^2 capped, and 1 at pure noise; the given frame does not count
    assert float(losses["distill"]) == pytest.approx(weight * (0.3**2 + 0.3**2), rel=1e-4)
    assert float(losses["flow"]) == pytest.approx(weight * (0.3**2 + 0.2**2), rel=1e-4)
    assert float(losses["high_frequency"]) == pytest.approx(weight * 0.3**2, rel=1e-4)
    expected = weight * (0.18 + 0.13 + 0.5 * 0.09)
    assert float(total_loss(losses, DistillationConfig())) == pytest.approx(expected, rel=1e-4)
    other = DistillationConfig(distill_weight=0.0, flow_weight=2.0, high_frequency_weight=3.0)
    assert float(total_loss(losses, other)) == pytest.approx(weight * (2 * 0.13 + 3 * 0.09), rel=1e-4)


class Heard(nn.Module):
    """A model that remembers what it was asked, and answers in turn."""

    def __init__(self, answers: list[Tensor]) -> None:
        super().__init__()
        self.answers, self.asked = answers, []

    def forward(self, latents, levels, condition, mask=None) -> Tensor:
        self.asked.append((latents, levels, condition))
        return self.answers[len(self.asked) - 1]


def test_a_teacher_that_knows_the_truth_makes_distillation_the_plain_loss(tmp_path, teacher):
    task = DistillationTask(make_config(tmp_path, teacher), LongClips())
    batch = task.load([0, 1], np.random.default_rng(0)).to(torch.device("cpu"))
    truth = [window.latents_BTVCHW.float() for window in batch.windows]
    task.teacher = Heard(truth)
    student = Heard([batch.coarse.latents_BTVCHW + torch.randn(2, 3, V, C, ROWS, COLS)])
    _, figures = task.loss(student, batch, torch.Generator().manual_seed(0))
    assert float(figures["distill_loss"]) == float(figures["flow_loss"]) > 0.1
    task.teacher = Heard([truth[0], truth[1] + 1])
    student.asked.clear()
    _, figures = task.loss(student, batch, torch.Generator().manual_seed(0))
    assert float(figures["distill_loss"]) != float(figures["flow_loss"])


def test_student_and_teacher_see_one_level_and_one_noise_and_a_clean_first_frame(tmp_path, teacher):
    world = {"noise": NoiseConfig(pure_noise_share=0.0), "drop_text": 0.5, "drop_waypoints": 0.5}
    task = DistillationTask(make_config(tmp_path, teacher, world=world), LongClips())
    batch = task.load([0, 1], np.random.default_rng(0)).to(torch.device("cpu"))
    clips = [batch.coarse, *(window.to(torch.device("cpu")) for window in batch.windows)]
    task.teacher = heard_by_teacher = Heard([clip.latents_BTVCHW for clip in clips[1:]])
    student = Heard([batch.coarse.latents_BTVCHW])
    task.loss(student, batch, torch.Generator().manual_seed(3))
    noises, levels = [], []
    for clip, (seen, level, condition) in zip(clips, [*student.asked, *heard_by_teacher.asked], strict=True):
        assert torch.equal(seen[:, 0], clip.latents_BTVCHW[:, 0])
        assert (level[:, 0] == 1).all()
        assert (level[:, 1:] == level[:, 1:2]).all()
        t = level[:, 1:, None, None, None, None]
        noises.append((seen[:, 1:] - t * clip.latents_BTVCHW[:, 1:]) / (1 - t))
        levels.append(level[:, 1])
        assert torch.equal(condition.waypoints_BTK, clip.waypoints_BTK)
        assert torch.equal(condition.has_text_B, student.asked[0][2].has_text_B)
        assert torch.equal(condition.has_waypoints_B, student.asked[0][2].has_waypoints_B)
    for noise, level in zip(noises[1:], levels[1:], strict=True):
        torch.testing.assert_close(noise[:, :2], noises[0], atol=1e-4, rtol=1e-4)
        assert torch.equal(level, levels[0])
    assert levels[0][0] != levels[0][1]
    assert float(noises[1].std()) == pytest.approx(1.0, abs=0.1)


def test_windows_wait_as_they_were_stored(tmp_path, teacher):
    batch = DistillationTask(make_config(tmp_path, teacher), LongClips()).load([0], np.random.default_rng(0))
    moved = batch.to(torch.device("cpu"))
    assert moved.coarse.latents_BTVCHW.dtype == torch.float32
    assert [window.latents_BTVCHW.dtype for window in moved.windows] == [torch.float16] * 2


def test_the_teacher_stays_as_it_is_while_the_student_learns(tmp_path, teacher):
    task = run(make_config(tmp_path, teacher))
    stored, _ = load_model(teacher)
    for key, tensor in stored.state_dict().items():
        assert torch.equal(tensor, task.teacher.state_dict()[key]), key
    assert all(p.grad is None and not p.requires_grad for p in task.teacher.parameters())
    assert not torch.equal(task.model.head.weight, torch.zeros_like(task.model.head.weight))
    assert load_model(tmp_path / "weights.safetensors")[1] == MODEL  # the student alone is exported


class Knowing(nn.Module):
    """The truth about ``LongClips``, whose memory is off by one."""

    def forward(self, latents, levels, condition) -> Tensor:
        return condition.memory_BTVCHW + 1


def test_the_loss_falls(tmp_path, teacher):
    world = {"noise": NoiseConfig(pure_noise_share=1.0), "drop_memory": 0.0}
    config = make_config(tmp_path, teacher, world=world, steps=30, batch_size=4, learning_rate=5e-3)
    task = DistillationTask(config, LongClips())
    task.teacher = Knowing()
    fit(task, config.loop)
    for name in ("loss", "distill_loss", "flow_loss"):
        losses = [row[name] for row in logged(tmp_path)]
        assert np.mean(losses[-5:]) < 0.5 * np.mean(losses[:5]), name


def test_a_resumed_distillation_equals_an_uninterrupted_one_and_keeps_its_teacher(tmp_path, teacher):
    rate = {"warmup_steps": 0, "decay_fraction": 0.0}  # the same at each step, however many are planned
    whole = run(make_config(tmp_path / "whole", teacher, steps=4, **rate))
    run(make_config(tmp_path / "parts", teacher, steps=2, **rate))
    parts = run(make_config(tmp_path / "parts", teacher, steps=4, **rate))
    for key, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, parts.model.state_dict()[key]), key
    other = save_model(build_denoiser(MODEL), tmp_path / "other.safetensors", {})
    with pytest.raises(InputError, match="another distillation"):
        run(make_config(tmp_path / "parts", other, steps=5, **rate))


def test_teachers_that_cannot_teach_are_told(tmp_path, teacher):
    with pytest.raises(InputError, match="teacher_weights: no teacher"):
        run(make_config(tmp_path, ""))
    with pytest.raises(InputError, match=r"world\.adversary"):
        run(make_config(tmp_path, teacher, world={"adversary": 0.4}))
    narrow = save_model(build_denoiser(replace(MODEL, latent_channels=2)), tmp_path / "narrow.safetensors", {})
    with pytest.raises(InputError, match=r"narrow.*latent_channels is 2, the student's 3"):
        run(make_config(tmp_path, narrow))


def save_long_clips(folder: Path, count: int) -> Path:
    names = dict(
        latents="latents_TVCHW", memory="memory_TVCHW", memory_valid="memory_valid_TV1HW", appearance="appearance_TVCHW",
        appearance_known="appearance_known_TV1HW", layout="layout_TVCHW", waypoints="waypoints_TK", cameras="cameras_VK",
        times="times_T", fps="fps", text="text_L", given="given",
    )  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        save_clip({key: getattr(long_clip(i), name) for key, name in names.items()}, folder / f"clip-{i}.pt")
    return folder


def test_further_folders_of_clips_are_learnt_from_too(tmp_path):
    data, more = (save_long_clips(tmp_path / name, count) for name, count in (("data", 3), ("more", 2)))
    world = WorldTraining(model=MODEL, held_out=1, cut="dense", key_frames=KEYS)
    config = TrainConfig(
        data=str(data), more_data=(str(more),), world=world, loop=LoopConfig(out=str(tmp_path / "out"), steps=1)
    )
    assert load_tensors(train(config))[1]["clips"] == "5", "three of each but for the one held out"


def test_the_target_distillation_trains_on_cached_long_clips(tmp_path, teacher):
    save_long_clips(tmp_path, 3)
    config = replace(make_config(tmp_path / "out", teacher, steps=1, sample_every=1), data=str(tmp_path))
    assert load_model(train(config))[1] == MODEL
    assert {"distill_loss", "held_out_sampled_error"} <= set().union(*logged(tmp_path / "out"))


def fine_task(tmp_path) -> WorldTask:
    world = WorldTraining(
        model=replace(MODEL, injection="own"),
        held_out=1,
        anchor_share=1.0,
        dirty_condition_share=0.0,
        wear=WearConfig(share=0.0),
    )
    return WorldTask(TrainConfig(world=world, loop=LoopConfig(out=str(tmp_path))), cut_clips(LongClips(), "dense", KEYS))


def test_the_fine_model_is_given_both_ends_untouched_and_learns_what_is_between(tmp_path):
    task = fine_task(tmp_path)
    batch: ClipBatch = task.load([0, 1, 2], np.random.default_rng(0)).to(torch.device("cpu"))
    clean = batch.latents_BTVCHW
    off_at_the_ends = clean.clone()
    off_at_the_ends[:, [0, -1]] += 5
    model = Heard([off_at_the_ends, clean + 1])
    for seed, expected in ((0, 0.0), (1, 1.0)):
        _, figures = task.loss(model, batch, torch.Generator().manual_seed(seed))
        assert float(figures["clean_error"]) == pytest.approx(expected, abs=1e-6)
        seen, levels, _ = model.asked[-1]
        assert (levels[:, [0, -1]] == 1).all()
        assert (levels[:, 1:-1] < 1).all()
        assert torch.equal(seen[:, [0, -1]], clean[:, [0, -1]])
        assert (seen[:, 1:-1] - clean[:, 1:-1]).abs().amax(dim=(2, 3, 4, 5)).min() > 0.1


@torch.no_grad()
def test_the_fine_model_is_judged_with_both_ends_given(tmp_path):
    task = fine_task(tmp_path)
    batch = collate([task.clips.get(0, np.random.default_rng(0))]).to(torch.device("cpu"))
    sampled, _ = task._try(task.model.eval(), batch, torch.Generator().manual_seed(0))
    assert torch.equal(sampled[:, [0, -1]], batch.latents_BTVCHW[:, [0, -1]])
    assert not torch.equal(sampled[:, 1:-1], batch.latents_BTVCHW[:, 1:-1])
