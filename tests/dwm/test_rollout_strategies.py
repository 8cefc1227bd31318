"""Roll-outs with an oracle in place of the network: which frames, in which order, from which noise, at which memory."""

from __future__ import annotations

import weakref
from dataclasses import dataclass, field, replace
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor

from dwm.codec.autoencoder import Autoencoder, CodecConfig
from dwm.conditioning.build import Given, ScenarioConditioner, Window
from dwm.conditioning.things import Things
from dwm.errors import InputError
from dwm.flow.correcting import renoise_anchors
from dwm.models.conditioning import DenoiseCondition
from dwm.rollout.config import RolloutConfig
from dwm.rollout.state import State, load_state, save_state
from dwm.rollout.strategies import STRATEGIES, Chunk, roll_out
from dwm.rollout.window import window_generator
from dwm.rollout.world_model import WorldModel
from dwm.scenario.build import build_scenario
from dwm.scenario.perturbations import BASELINE
from dwm.scenario.types import Scenario
from tests.factories import make_scene

V, H, W, FPS = 2, 16, 24, 12.0
# As many components as a block has numbers: the linear codec is exact.
CODEC = Autoencoder(CodecConfig(latent_channels=48, downsample=4, width=4, blocks=1)).eval()


def true_image(frame: int) -> Tensor:
    """A different picture [V, 3, H, W] for every frame."""
    return torch.rand(V, 3, H, W, generator=torch.Generator().manual_seed(frame)) * 2 - 1


class FakeConditioner:
    """Writes the frame numbers where waypoints belong, and remembers what it was asked for."""

    def __init__(self, total: int) -> None:
        self.scenario = SimpleNamespace(timestamps_us=np.arange(total), fps=FPS)
        self.asked: list[SimpleNamespace] = []

    def appearance(self, frame: int, images_V3HW: Tensor, things: Things) -> tuple[int, Tensor]:
        return frame, images_V3HW

    def sharpness(self, source: Given, target: int, *, log: bool = False) -> Tensor:
        """Halves per window."""
        before = torch.ones(V, H, W) if source.sharpness_VHW is None else source.sharpness_VHW
        return before / 2

    def window(self, frames, *, fps, codec, sources=(), appearance=None, layout=True, log=False) -> Window:
        source = sources[0] if sources else None
        picture = None if source is None else source.images_V3HW.clone()
        worn = None if source is None else source.sharpness_VHW
        self.asked.append(
            SimpleNamespace(
                frames=list(frames), fps=fps, source=None if source is None else source.frame, sources=[s.frame for s in sources], picture=picture, layout=layout, appearance=appearance,
                sharpness=None if worn is None else float(worn.mean()),
            )
        )  # fmt: skip
        on = torch.ones(1, dtype=torch.bool)
        condition = DenoiseCondition(
            waypoints_BTK=torch.tensor(frames).float()[None, :, None], cameras_BVK=torch.zeros(1, V, 16),
            times_BT=torch.zeros(1, len(frames)), fps_B=torch.tensor([fps]), text_BL=torch.zeros(1, 1, dtype=torch.int64),
            has_text_B=on, has_waypoints_B=on, has_layout_B=on, has_memory_B=on, has_appearance_B=on,
        )  # fmt: skip
        return Window(condition=condition)


@dataclass
class Oracle:
    """Knows the latents of every frame; ``noisy`` mixes in what it was given, so that noise shows."""

    noisy: float = 0.0
    seen: list[tuple[list[int], Tensor, Tensor]] = field(default_factory=list)
    batches: list[Tensor] = field(default_factory=list)

    def __call__(self, latents_BTVCHW: Tensor, levels_BT: Tensor, condition: DenoiseCondition) -> Tensor:
        numbers = [[int(f) for f in window[:, 0]] for window in condition.waypoints_BTK]
        self.seen += [(f, x.clone(), t.clone()) for f, x, t in zip(numbers, latents_BTVCHW, levels_BT, strict=True)]
        self.batches.append(levels_BT)
        truth = torch.stack([torch.stack([CODEC.encode(true_image(f)) for f in frames]) for frames in numbers])
        return truth + self.noisy * latents_BTVCHW


def make_world(oracle: Oracle) -> WorldModel:
    return WorldModel(codec=CODEC, denoiser=oracle, device=torch.device("cpu"), things=Things.none())


def run(
    total: int, oracle: Oracle | None = None, seed: int = 5, after: State | None = None, **settings
) -> tuple[list[Chunk], FakeConditioner, Oracle]:
    conditioner, oracle = FakeConditioner(total), oracle or Oracle()
    config = RolloutConfig(**{"steps": 2, **settings})
    chunks = roll_out(make_world(oracle), conditioner, true_image(0), config, seed, after)  # type: ignore[arg-type]
    return list(chunks), conditioner, oracle


def spans(chunks: list[Chunk]) -> list[tuple[int, int]]:
    return [(c.first_frame, c.first_frame + len(c.images_NV3HW) - 1) for c in chunks if len(c.images_NV3HW)]


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize(("total", "condition_frames"), [(2, 1), (9, 1), (20, 2), (25, 3)])
def test_every_frame_comes_once_in_order_and_is_the_oracles(strategy, total, condition_frames):
    chunks, _, _ = run(total, strategy=strategy, condition_frames=condition_frames)
    made = [first + i for first, last in spans(chunks) for i in range(last - first + 1)]
    assert made == list(range(1, total))
    with torch.no_grad():
        for chunk in chunks:
            for i, image in enumerate(chunk.images_NV3HW):
                torch.testing.assert_close(image, true_image(chunk.first_frame + i), atol=2e-5, rtol=0)


def test_recurrent_windows_overlap_by_their_condition_frames():
    chunks, conditioner, _ = run(21, strategy="recurrent", window_frames=8, condition_frames=2)
    assert spans(chunks) == [(1, 7), (8, 13), (14, 19), (20, 20)]
    assert [a.frames for a in conditioner.asked] == [
        list(range(0, 8)), list(range(6, 14)), list(range(12, 20)), [18, 19, 20],
    ]  # fmt: skip
    assert {a.fps for a in conditioner.asked} == {FPS}


def test_every_window_gets_the_true_first_frames_look_or_none():
    for strategy in STRATEGIES:
        _, conditioner, _ = run(21, strategy=strategy, window_frames=8)
        assert len(conditioner.asked) > 2
        for asked in conditioner.asked:
            assert asked.appearance[0] == 0
            assert torch.equal(asked.appearance[1], true_image(0))
    _, conditioner, _ = run(9, appearance=False)
    assert {asked.appearance for asked in conditioner.asked} == {None}


def test_what_is_carried_on_wears_window_by_window():
    _, conditioner, _ = run(29, strategy="recurrent", window_frames=8)
    assert [asked.sharpness for asked in conditioner.asked] == [None, 0.5, 0.25, 0.125]
    _, conditioner, _ = run(29, strategy="coarse_to_refine", window_frames=3, anchor_fps=2.0)
    worn = {fps: [asked.sharpness for asked in conditioner.asked if asked.fps == fps] for fps in (FPS, 2.0)}
    assert worn == {FPS: [None, 0.5, 0.25, 0.125, 0.0625], 2.0: [None, 0.5]}


def test_coarse_windows_run_at_the_anchor_rate_and_one_window_ahead():
    chunks, conditioner, _ = run(21, strategy="coarse_to_refine", window_frames=3, anchor_fps=2.0)
    assert spans(chunks) == [(1, 6), (7, 12), (13, 18), (19, 20)]
    assert [(a.fps, a.frames) for a in conditioner.asked] == [
        (2.0, [0, 6, 12]), (12.0, list(range(0, 7))), (2.0, [12, 18]), (12.0, list(range(6, 13))),
        (12.0, list(range(12, 19))), (12.0, [18, 19, 20]),
    ]  # fmt: skip


def test_key_frames_divide_the_video_and_gaps_longer_than_a_window_are_divided_again():
    chunks, conditioner, _ = run(28, strategy="divide_and_conquer", window_frames=4, anchor_fps=12 / 9)
    assert [(a.frames, a.sources) for a in conditioner.asked] == [
        ([0, 9, 18, 27], [0]),
        ([0, 3, 6, 9], [0, 9]), ([0, 1, 2, 3], [0, 3]), ([3, 4, 5, 6], [3, 6]), ([6, 7, 8, 9], [6, 9]),
        ([9, 12, 15, 18], [9, 18]), ([9, 10, 11, 12], [9, 12]), ([12, 13, 14, 15], [12, 15]), ([15, 16, 17, 18], [15, 18]),
        ([18, 21, 24, 27], [18, 27]), ([18, 19, 20, 21], [18, 21]), ([21, 22, 23, 24], [21, 24]), ([24, 25, 26, 27], [24, 27]),
    ]  # fmt: skip
    assert spans(chunks) == [(a, a + 2) for a in range(1, 28, 3)]
    assert [round(a.fps, 3) for a in conditioner.asked][:3] == [round(12 / 9, 3), 4.0, 12.0]


def test_four_true_frames_lead_and_low_rates_follow_them_directly():
    """MiLA's second stage: condition frames at 12 Hz, then frames at a lower rate."""
    conditioner, oracle = FakeConditioner(40), Oracle()
    leading = torch.stack([true_image(i) for i in range(4)])
    config = RolloutConfig(strategy="coarse_to_refine", window_frames=7, condition_frames=4, anchor_fps=2.0, steps=1)
    chunks = list(roll_out(make_world(oracle), conditioner, leading, config, 0))  # type: ignore[arg-type]
    assert [(a.fps, a.frames) for a in conditioner.asked][:3] == [
        (2.0, [0, 1, 2, 3, 9, 15, 21]), (12.0, list(range(0, 10))), (12.0, list(range(6, 16))),
    ]  # fmt: skip
    assert spans(chunks)[0] == (4, 9)
    assert oracle.seen[0][2].tolist() == [1, 1, 1, 1, 0, 0, 0]
    for strategy in STRATEGIES:
        config = RolloutConfig(strategy=strategy, window_frames=8, condition_frames=3, anchor_fps=2.0, steps=1)
        made = list(roll_out(make_world(Oracle()), FakeConditioner(30), leading[:3], config, 0))  # type: ignore[arg-type]
        assert [first + i for first, last in spans(made) for i in range(last - first + 1)] == list(range(3, 30))


def test_the_last_key_frame_is_the_last_frame():
    _, conditioner, _ = run(12, strategy="divide_and_conquer", window_frames=8, anchor_fps=2.0)
    assert [a.frames for a in conditioner.asked] == [[0, 6, 11], list(range(0, 7)), list(range(6, 12))]


def test_a_hierarchy_is_one_coarse_pass_of_12n_plus_1_frames_and_gaps_side_by_side():
    total = 3 * 12 + 1
    chunks, conditioner, oracle = run(total, strategy="hierarchical", window_frames=13, anchor_fps=1.0, gaps_at_once=2, steps=1)
    assert [a.frames for a in conditioner.asked] == [[0, 12, 24, 36], *(list(range(12 * i, 12 * i + 13)) for i in range(3))]
    assert len(chunks[0].images_NV3HW) == 0 and [g.frame for g in chunks[0].after.ahead] == [12, 24, 36]
    assert spans(chunks) == [(1, 24), (25, 36)]
    assert [len(latents) for latents in oracle.batches] == [1, 2, 1]
    # A junction frame comes once: as the key frame that both its gaps are given.
    for chunk in chunks[1:]:
        assert torch.equal(chunk.images_NV3HW[-1], chunk.after.given[0].images_V3HW)
    fine = [(frames, levels) for frames, _, levels in oracle.seen if len(frames) == 13]
    assert all((levels == 1).nonzero()[:, 0].tolist() == [0, 12] for _, levels in fine)


@pytest.mark.parametrize("steps", [1, 3])
def test_gaps_filled_side_by_side_are_those_filled_one_after_another(steps):
    def video(gaps: int) -> Tensor:
        settings = dict(strategy="hierarchical", window_frames=5, anchor_fps=3.0, steps=steps, gaps_at_once=gaps)
        return torch.cat([chunk.images_NV3HW for chunk in run(30, Oracle(noisy=0.3), **settings)[0]])

    alone = video(1)
    assert float((alone - video(1)).abs().max()) == 0
    for gaps in (2, 3, 100):
        torch.testing.assert_close(video(gaps), alone, atol=1e-5, rtol=0)


def test_frames_between_key_frames_are_made_by_a_model_of_their_own():
    coarse, fine = Oracle(), Oracle()
    conditioner, config = FakeConditioner(25), RolloutConfig(strategy="hierarchical", anchor_fps=1.0, steps=1)
    world = replace(make_world(coarse), fine=fine)
    list(roll_out(world, conditioner, true_image(0), config, 0))  # type: ignore[arg-type]
    assert [frames for frames, _, _ in coarse.seen] == [[0, 12, 24]]
    assert [frames for frames, _, _ in fine.seen] == [list(range(0, 13)), list(range(12, 25))]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_roll_out_goes_on_from_a_saved_state_as_if_it_had_never_stopped(strategy, tmp_path):
    settings = dict(strategy=strategy, window_frames=5, condition_frames=2, anchor_fps=3.0, gaps_at_once=2)
    whole, _, _ = run(40, Oracle(noisy=0.3), **settings)
    assert len(whole) >= 4
    for i in (0, 1, 2):
        save_state(whole[i].after, tmp_path / "state", of="clip-7")
        state = load_state(tmp_path / "state", of="clip-7")
        rest, _, _ = run(40, Oracle(noisy=0.3), after=state, **settings)
        assert spans(rest) == spans(whole[i + 1 :])
        assert all(torch.equal(a.images_NV3HW, b.images_NV3HW) for a, b in zip(rest, whole[i + 1 :], strict=True))


def test_a_state_of_another_roll_out_is_refused(tmp_path):
    chunks, _, _ = run(9)
    save_state(chunks[0].after, tmp_path / "state", of="clip-7")
    with pytest.raises(InputError, match=r"is the state of roll-out 'clip-7', not of 'clip-8'"):
        load_state(tmp_path / "state", of="clip-8")


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_what_lies_ahead_changes_no_earlier_window(strategy):
    """A frame number far ahead stands for a waypoint there: windows that do not hold it are as they were."""
    settings = dict(strategy=strategy, window_frames=5, anchor_fps=3.0, gaps_at_once=1)

    class Swayed(Oracle):
        def __call__(self, latents: Tensor, levels: Tensor, condition: DenoiseCondition) -> Tensor:
            moved = (condition.waypoints_BTK[..., 0] == 30).any(1)[:, None, None, None, None, None]
            return super().__call__(latents, levels, condition) + moved

    plain, swayed = (torch.cat([c.images_NV3HW for c in run(40, oracle, **settings)[0]]) for oracle in (Oracle(), Swayed()))
    changed = (plain - swayed).abs().amax((1, 2, 3, 4)) > 1e-4
    window = 4 if strategy in ("recurrent", "coarse_to_refine") else 16
    assert bool(changed[29])
    assert not bool(changed[: 29 - window].any())


def test_given_frames_enter_clean_and_are_those_of_the_window_before():
    _, _, oracle = run(14, Oracle(noisy=0.1), strategy="recurrent", window_frames=8, condition_frames=2)
    firsts = [calls for calls in oracle.seen if calls[0] == list(range(6, 14))]
    assert len(firsts) == 2  # one per step
    for _, latents, levels in firsts:
        assert levels[:2].tolist() == [1.0, 1.0]
        assert (levels[2:] < 1).all()
        torch.testing.assert_close(latents[:2], firsts[0][1][:2])
    # The frames as the first window left them: its last network output, since the last step goes all the way.
    frames, before, _ = [calls for calls in oracle.seen if calls[0] == list(range(0, 8))][-1]
    left = torch.stack([CODEC.encode(true_image(f)) for f in frames[6:]]) + 0.1 * before[6:]
    torch.testing.assert_close(firsts[0][1][:2], left)


def test_the_memory_comes_from_the_last_given_frame_as_it_looks():
    chunks, conditioner, _ = run(14, strategy="recurrent", window_frames=8, condition_frames=2)
    assert [a.source for a in conditioner.asked] == [0, 7]
    torch.testing.assert_close(conditioner.asked[1].picture, chunks[0].images_NV3HW[-1])
    _, off, _ = run(14, strategy="recurrent", memory="none", layout=False)
    assert [(a.source, a.picture, a.layout) for a in off.asked] == [(None, None, False)] * len(off.asked)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_same_seed_gives_the_same_pixels_and_another_seed_others(strategy):
    a, b, c = (
        torch.cat([chunk.images_NV3HW for chunk in run(15, Oracle(noisy=0.3), seed, strategy=strategy)[0]])
        for seed in (5, 5, 6)
    )
    assert torch.equal(a, b)
    assert float((a - c).abs().mean()) > 0.01


def test_a_windows_noise_depends_on_seed_and_frames_alone():
    def draw(seed: int, frames: list[int]) -> Tensor:
        return torch.randn(8, generator=window_generator(seed, frames))

    expected = draw(3, [7, 8, 9])
    draw(3, [0, 1, 2])
    torch.randn(100)
    assert torch.equal(draw(3, [7, 8, 9]), expected)
    others = [draw(4, [7, 8, 9]), draw(3, [7, 8]), draw(3, [7, 8, 10]), draw(3, [9, 8, 7])]
    assert all(not torch.equal(other, expected) for other in others)
    # And it is what a window starts from, wherever it stands in the roll-out.
    _, _, oracle = run(14, strategy="recurrent", window_frames=8, condition_frames=2, seed=3)
    frames, latents, _ = next(calls for calls in oracle.seen if calls[0][0] == 6)
    noise = torch.randn((1, *latents.shape), generator=window_generator(3, frames))[0]
    assert torch.equal(latents[2:], noise[2:])


def test_a_seed_as_large_as_a_shards_is_accepted():
    assert torch.randn(1, generator=window_generator(2**63 - 1, [0, 1])).isfinite().all()


def test_anchors_enter_their_window_noised_again_at_the_level_they_are_corrected_from():
    settings = dict(strategy="coarse_to_refine", anchor_fps=2.0, anchor_error=0.2, anchor_noise=0.5)
    _, _, oracle = run(9, seed=11, **settings)
    frames, latents, levels = next(calls for calls in oracle.seen if calls[0] == list(range(0, 7)))
    noise = torch.randn((1, *latents.shape), generator=window_generator(11, frames))[0]
    anchor = CODEC.encode(true_image(6))
    assert levels.tolist() == [1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.5]
    torch.testing.assert_close(latents[6], renoise_anchors(anchor, noise[6], alpha_1=0.2, total=0.5))
    torch.testing.assert_close(latents[1:6], noise[1:6])
    last = next(calls for calls in oracle.seen if calls[0] == [6, 7, 8])  # no anchor lies behind the end
    assert last[2].tolist() == [1.0, 0.0, 0.0]


def test_anchors_that_are_not_corrected_are_given_as_they_were_made():
    settings = dict(strategy="coarse_to_refine", anchor_fps=2.0, correct_anchors=False, steps=1)
    chunks, _, oracle = run(15, Oracle(noisy=0.1), **settings)
    windows = {tuple(frames): levels.tolist() for frames, _, levels in oracle.seen}
    assert windows[tuple(range(0, 7))] == [1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0]
    assert windows[(12, 13, 14)] == [1.0, 0.0, 0.0]
    made = next(latents for frames, latents, _ in oracle.seen if frames == [0, 6, 12])
    truth = torch.stack([CODEC.encode(true_image(f)) for f in (6, 12)])
    with torch.no_grad():
        anchors = CODEC.decode((truth + 0.1 * made[1:]).flatten(0, 1)).unflatten(0, (2, V))
    for chunk, anchor in zip(chunks, anchors, strict=False):
        torch.testing.assert_close(chunk.images_NV3HW[-1], anchor, atol=1e-5, rtol=0)
        assert torch.equal(chunk.after.given[-1].images_V3HW, chunk.images_NV3HW[-1])


def test_temporal_progressive_denoising_cleans_earlier_frames_first():
    _, _, oracle = run(8, strategy="recurrent", steps=3, progressive_omega=1.5)
    middle = oracle.seen[1][2]
    assert middle[0] == 1.0
    assert all(a > b for a, b in pairwise(middle[1:].tolist()))


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_pictures_of_the_past_are_let_go(strategy):
    conditioner = FakeConditioner(80)
    conditioner.window = lambda *a, **k: FakeConditioner.window(FakeConditioner(1), *a, **k)  # type: ignore[method-assign]
    oracle = Oracle()
    alive: list[weakref.ref[Tensor]] = []
    most = 0
    config = RolloutConfig(strategy=strategy, steps=1, window_frames=7, gaps_at_once=1)
    for chunk in roll_out(make_world(oracle), conditioner, true_image(0), config, 0):  # type: ignore[arg-type]
        oracle.seen.clear()
        alive.append(weakref.ref(chunk.images_NV3HW))
        del chunk
        most = max(most, sum(ref() is not None for ref in alive))
    assert len(alive) >= 12
    assert most <= 2


def test_a_conditioner_keeps_a_bounded_number_of_layouts():
    class Cheap(ScenarioConditioner):
        def _layout(self, frame: int) -> Tensor:  # type: ignore[override]
            return torch.tensor(frame)

    scenario = build_scenario(make_scene(), BASELINE, 0, duration_s=10.0)
    assert isinstance(scenario, Scenario)
    conditioner = Cheap(scenario)
    refs = [weakref.ref(conditioner.layout(frame)) for frame in range(len(scenario.timestamps_us))]
    assert len(refs) == 120
    assert sum(ref() is not None for ref in refs) == 48
    assert int(conditioner.layout(119)) == 119  # type: ignore[call-overload]


@pytest.mark.parametrize("memory", ["past", "log"])  # this scene has no LiDAR files: there, both are the same
def test_with_a_real_conditioner_a_standing_car_that_echoes_its_memory_sees_the_same_street(memory):
    scenario = build_scenario(make_scene(ego_speed_mps=0.0, agents=()), BASELINE, 0, duration_s=4 / 12)
    assert isinstance(scenario, Scenario)
    rough = torch.rand(6, 3, 128, 224, generator=torch.Generator().manual_seed(0)) * 2 - 1
    first = torch.nn.functional.avg_pool2d(rough, 9, stride=1, padding=4) * 3
    world = WorldModel(
        codec=CODEC,
        denoiser=lambda x, levels, c: c.memory_BTVCHW * c.memory_valid_BTV1HW,
        device=torch.device("cpu"),
        things=Things.none(),
    )
    chunks = list(
        roll_out(world, world.conditioner(scenario), first, RolloutConfig(window_frames=3, steps=1, memory=memory), 0)
    )
    assert spans(chunks) == [(1, 2), (3, 3)]
    error = (chunks[-1].images_NV3HW[-1] - first)[..., 4:-4, 4:-4].abs().mean()
    assert float(error) < 0.02


def test_settings_that_no_roll_out_can_use_are_told():
    with pytest.raises(
        InputError,
        match=r"unknown strategy 'sideways'; choose one of recurrent, coarse_to_refine, divide_and_conquer, hierarchical",
    ):
        run(5, strategy="sideways")
    for given in (0, 8):
        with pytest.raises(InputError, match="of a window of 8"):
            run(5, condition_frames=given, window_frames=8)


@pytest.mark.parametrize(("precision", "half"), [("bfloat16", True), ("float32", False), ("auto", False)])
def test_networks_multiply_in_the_precision_that_is_asked_for_and_frames_are_whole(precision, half):
    ran: list[bool] = []

    class Watched(Oracle):
        def __call__(self, *told) -> Tensor:
            ran.append(torch.is_autocast_enabled("cpu"))
            return super().__call__(*told)

    chunks, _, _ = run(9, Watched(), precision=precision)
    assert ran and all(on is half for on in ran) and not torch.is_autocast_enabled("cpu")
    assert {chunk.images_NV3HW.dtype for chunk in chunks} == {torch.float32}
