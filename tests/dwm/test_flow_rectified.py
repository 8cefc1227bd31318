"""Noise levels, losses, schedules and the sampler, against closed forms."""

import math

import pytest
import torch

from dwm.flow.correcting import anchor_levels, correcting_noise, renoise_anchors
from dwm.flow.rectified import NoiseConfig, flow_loss, interpolate, sample_training_noise_levels, velocity
from dwm.flow.sampler import Start, denoise
from dwm.flow.schedule import ScheduleConfig, level_matrix, progressive_level
from dwm.models.conditioning import DenoiseCondition

SHAPE = (2, 5, 2, 3, 4, 4)  # B T V C h w


def rand(seed: int, shape=SHAPE) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def given(*frames: int) -> torch.Tensor:
    mask = torch.zeros(SHAPE[:2], dtype=torch.bool)
    mask[:, list(frames)] = True
    return mask


def make_condition() -> DenoiseCondition:
    yes = torch.ones(2, dtype=torch.bool)
    return DenoiseCondition(
        waypoints_BTK=torch.zeros(2, 5, 6), cameras_BVK=torch.zeros(2, 2, 16), times_BT=torch.zeros(2, 5),
        fps_B=torch.ones(2), text_BL=torch.ones(2, 1, dtype=torch.int64),
        has_text_B=yes, has_waypoints_B=yes, has_layout_B=yes, has_memory_B=yes, has_appearance_B=yes,
    )  # fmt: skip


def test_interpolation_is_noise_at_zero_and_exactly_clean_at_one():
    clean, noise = rand(0), rand(1)
    assert torch.equal(interpolate(clean, noise, torch.zeros(2, 5)), noise)
    assert torch.equal(interpolate(clean, noise, torch.ones(2, 5)), clean)
    quarter = interpolate(clean, noise, torch.full((2, 5), 0.25))
    torch.testing.assert_close(quarter, 0.25 * clean + 0.75 * noise)


def test_velocity_of_the_truth_is_clean_minus_noise():
    clean, noise, levels = rand(0), rand(1), torch.full((2, 5), 0.6)
    torch.testing.assert_close(velocity(clean, interpolate(clean, noise, levels), levels), clean - noise, atol=1e-5, rtol=1e-5)


def test_loss_weighs_frames_by_their_level_and_leaves_clean_frames_out():
    clean, levels = rand(0), torch.tensor([[1.0, 0.0, 0.25, 0.9, 1.0]] * 2)
    error = torch.tensor([100.0, 1.0, 2.0, 3.0, 100.0]).view(1, 5, 1, 1, 1, 1)
    expected = (1 * 1 + 4 / 0.75**2 + 9 * 4) / 3  # 1 / (1 - 0.9)^2 is capped at 4
    assert float(flow_loss(clean + error, clean, levels, 4.0)) == pytest.approx(expected, rel=1e-5)
    assert float(flow_loss(clean + error, clean, torch.ones(2, 5), 4.0)) == 0.0


def test_uncapped_loss_is_the_velocity_error():
    clean, noise, predicted, levels = rand(0), rand(1), rand(2), torch.full((2, 5), 0.3)
    wrong = velocity(predicted, interpolate(clean, noise, levels), levels) - (clean - noise)
    assert float(flow_loss(predicted, clean, levels, 1e9)) == pytest.approx(float(wrong.square().mean()), rel=1e-4)


def test_training_levels_are_one_at_given_frames_and_as_the_kind_says():
    def draw(kind):
        return sample_training_noise_levels(
            torch.Generator().manual_seed(3), given(0, 4), kind=kind, config=NoiseConfig(pure_noise_share=0.0)
        )

    for kind in ("shared", "independent", "progressive"):
        assert (draw(kind)[:, [0, 4]] == 1).all()
        assert ((draw(kind)[:, 1:4] > 0) & (draw(kind)[:, 1:4] < 1)).all()
    assert (draw("shared")[:, 1:4] == draw("shared")[:, 1:2]).all()
    assert (draw("progressive")[:, 1:4].diff(dim=1) < 0).all()
    assert len(draw("independent")[:, 1:4].unique()) == 6
    with pytest.raises(ValueError, match="kind 'other'"):
        draw("other")


def test_a_share_of_training_clips_is_pure_noise():
    mask = torch.zeros(4000, 1, dtype=torch.bool)
    levels = sample_training_noise_levels(torch.Generator().manual_seed(0), mask, config=NoiseConfig(pure_noise_share=0.25))
    assert float((levels == 0).float().mean()) == pytest.approx(0.25, abs=0.03)


def test_shared_training_levels_follow_the_logit_normal():
    mask = torch.zeros(20_000, 2, dtype=torch.bool)
    levels = sample_training_noise_levels(
        torch.Generator().manual_seed(0), mask, config=NoiseConfig(pure_noise_share=0.0, logit_mean=-0.3, logit_std=1.0)
    )
    assert float(levels[:, 0].median()) == pytest.approx(1 / (1 + math.exp(0.3)), abs=0.01)
    assert float(levels[:, 0].logit().std()) == pytest.approx(1.0, abs=0.02)


def test_progressive_level_follows_equation_13():
    mask, t, omega = torch.zeros(1, 4, dtype=torch.bool), 0.3, 1.2
    levels = progressive_level(torch.full((1, 4), t), mask, omega)
    for s in range(4):
        phi = 0.5 * math.pi * s / 4
        expected = 1 - (math.cos((1 - t) * omega + phi) - math.cos(phi)) / (math.cos(omega + phi) - math.cos(phi))
        assert float(levels[0, s]) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("omega", [0.0, 0.5, math.pi / 2])
def test_levels_rise_from_zero_to_one_and_earlier_frames_lead(omega):
    levels = level_matrix(7, given(0, 4), ScheduleConfig(progressive_omega=omega))
    assert levels.shape == (8, 2, 5)
    assert (levels[:, :, [0, 4]] == 1).all()
    assert (levels[0, :, 1:4] == 0).all()
    assert (levels[-1] == 1).all()
    assert (levels[:, :, 1:4].diff(dim=0) > 0).all()
    lead = levels[1:-1, :, 1:3] - levels[1:-1, :, 2:4]
    assert (lead > 1e-3).all() if omega else (lead == 0).all()


def test_anchors_keep_the_common_pace_and_are_not_counted_among_the_others():
    anchors = torch.zeros(2, 5, dtype=torch.bool)
    anchors[:, 4] = True
    levels = level_matrix(6, given(0), ScheduleConfig(progressive_omega=1.2), anchors)
    torch.testing.assert_close(levels[:, 0, 4], torch.linspace(0, 1, 7))
    torch.testing.assert_close(
        levels[:, :, 1:4], level_matrix(6, given(0, 4), ScheduleConfig(progressive_omega=1.2))[:, :, 1:4]
    )


def test_a_shift_above_one_lingers_at_noisy_levels():
    levels = level_matrix(4, given(), ScheduleConfig(shift=3.0))[:, 0, 0]
    torch.testing.assert_close(levels, torch.tensor([0, 0.25 / 2.5, 0.5 / 2, 0.75 / 1.5, 1]))


@pytest.mark.parametrize("omega", [-1.0, 1.6])
def test_an_omega_that_is_not_monotone_is_refused(omega):
    with pytest.raises(ValueError, match="progressive_omega"):
        level_matrix(3, given(), ScheduleConfig(progressive_omega=omega))


@pytest.mark.parametrize("steps", [1, 4])
@pytest.mark.parametrize("omega", [0.0, 1.5])
def test_with_an_oracle_the_sampler_returns_the_truth_exactly(steps, omega):
    truth = rand(0)
    schedule = ScheduleConfig(progressive_omega=omega)
    out = denoise(lambda *_: truth, rand(1), truth, given(0), make_condition(), steps, schedule=schedule)
    assert torch.equal(out, truth)


def test_given_frames_come_back_untouched_from_a_model_that_is_wrong():
    clean, seen = rand(0), []

    def wrong(latents, levels, condition):
        seen.append((latents[:, [0, 4]].clone(), levels[:, [0, 4]].clone()))
        return torch.full_like(latents, 7.0)

    out = denoise(wrong, rand(1), clean, given(0, 4), make_condition(), 3)
    assert torch.equal(out[:, [0, 4]], clean[:, [0, 4]])
    assert (out[:, 1:4] == 7).all()
    assert all(torch.equal(latents, clean[:, [0, 4]]) and (levels == 1).all() for latents, levels in seen)


def test_the_sampler_integrates_a_linear_model_like_the_closed_form():
    """With x1_hat = a x, Euler multiplies x by 1 + (a - 1) dt / (1 - t) at every step."""
    noise, a, steps = rand(1), 0.3, 4
    out = denoise(lambda x, *_: a * x, noise, rand(0), given(), make_condition(), steps)
    factor = math.prod(1 + (a - 1) * (1 / steps) / (1 - k / steps) for k in range(steps))
    torch.testing.assert_close(out, factor * noise)


def test_guidance_moves_away_from_the_blind_prediction():
    def model(latents, levels, condition):
        told = condition.has_text_B.float() + condition.has_waypoints_B.float() + condition.has_memory_B.float()
        return torch.ones_like(latents) * told[:, None, None, None, None, None]

    out = denoise(model, rand(1), rand(0), given(), make_condition(), 1, guidance=3.0)
    assert (out == 1 + 3.0 * (3 - 1)).all(), "memory stays on in the blind call"


def test_noise_comes_from_the_generator():
    def run(seed):
        generator = torch.Generator().manual_seed(seed)
        return denoise(lambda x, *_: 0.5 * x, None, rand(0), given(0), make_condition(), 2, generator=generator)

    assert torch.equal(run(4), run(4))
    assert not torch.equal(run(4), run(5))


def test_started_frames_begin_at_their_own_level():
    levels_seen, start_latents = [], rand(5)

    def model(latents, levels, condition):
        levels_seen.append(levels[0].tolist())
        return latents

    start = Start(latents_BTVCHW=start_latents, levels_BT=torch.tensor([[0, 0, 0, 0, 0.6]] * 2))
    noise = rand(1)
    out = denoise(model, noise, rand(0), given(0), make_condition(), 2, start=start)
    assert levels_seen[0] == pytest.approx([1, 0, 0, 0, 0.6])
    assert levels_seen[1] == pytest.approx([1, 0.5, 0.5, 0.5, 0.8])
    torch.testing.assert_close(out[:, 4], start_latents[:, 4])
    torch.testing.assert_close(out[:, 1], noise[:, 1])


@pytest.mark.parametrize(("alpha_1", "total"), [(0.1, 0.4), (0.2, 0.5), (0.3, 0.95)])
def test_renoised_anchors_carry_the_noise_of_their_level(alpha_1, total):
    """Anchors drawn by equation 8 and noised by equation 9 have mean (1 - g) x and variance g^2 (equations 10-11)."""
    count, truth = 1_000_000, 2.0
    errors, noise = rand(0, (count,)), rand(1, (count,))
    anchors = (1 - alpha_1) * truth + alpha_1 * errors
    renoised = renoise_anchors(anchors, noise, alpha_1=alpha_1, total=total)
    assert float(renoised.mean()) == pytest.approx((1 - total) * truth, rel=0.01)
    assert float(renoised.var()) == pytest.approx(total**2, rel=0.01)


@pytest.mark.parametrize(("alpha_1", "total"), [(0.0, 0.3), (0.2, 0.5), (0.4, 1.0)])
def test_equation_12_goes_there_and_back(alpha_1, total):
    alpha_2, sigma = correcting_noise(alpha_1, total)
    assert 1 - (1 - alpha_1) * (1 - alpha_2) == pytest.approx(total)
    assert (alpha_2 * sigma) ** 2 + (alpha_1 * (1 - alpha_2)) ** 2 == pytest.approx(total**2)


def test_an_anchors_noise_falls_linearly_to_what_a_prediction_carries():
    levels = anchor_levels(torch.tensor([0.0, 0.25, 1.0]), alpha_1=0.2, total=0.6)
    torch.testing.assert_close(levels, torch.tensor([0.4, 0.5, 0.8]))


def test_training_anchors_have_the_level_of_equation_15_and_the_others_that_of_their_place():
    anchors = torch.zeros(2, 5, dtype=torch.bool)
    anchors[:, 4] = True
    config = NoiseConfig(pure_noise_share=0.0, anchor_error=0.2, anchor_noise=0.6, progressive_omega=1.2)

    def draw(kind):
        generator = torch.Generator().manual_seed(3)
        return sample_training_noise_levels(generator, given(0), kind=kind, config=config, anchor_mask_BT=anchors)

    shared, progressive = draw("shared"), draw("progressive")
    torch.testing.assert_close(shared[:, 4], 0.4 + 0.4 * shared[:, 1])
    torch.testing.assert_close(progressive[:, 4], shared[:, 4])  # at the common pace
    three = progressive_level(shared[:, 1:2].expand(2, 3), torch.zeros(2, 3, dtype=torch.bool), 1.2)
    torch.testing.assert_close(progressive[:, 1:4], three)


def test_with_a_quarter_turn_the_first_frame_clears_fast_first_and_the_last_one_late():
    """MiLA figures 4b and 10."""
    levels = level_matrix(50, torch.zeros(1, 12, dtype=torch.bool), ScheduleConfig(progressive_omega=math.pi / 2))[:, 0]
    assert (levels[0] == 0).all() and (levels[-1] == 1).all()
    assert (levels.diff(dim=0) > 0).all() and (levels[1:-1].diff(dim=1) < 0).all()
    steps = levels.diff(dim=0)
    assert (steps[:, 0].diff() < 0).all()  # ever slower: cos((1 - t) pi / 2)
    assert float(steps[-5:, -1].mean()) > 4 * float(steps[:5, -1].mean())  # in the last few steps
    torch.testing.assert_close(levels[:, 0], torch.sin(torch.linspace(0, 1, 51) * math.pi / 2), atol=1e-6, rtol=0)


def test_noise_scales_that_cannot_be_reached_are_refused():
    with pytest.raises(ValueError, match=r"alpha_1 0\.5 and total 0\.4"):
        correcting_noise(0.5, 0.4)


def test_the_robust_error_is_squared_when_small_and_absolute_when_large():
    clean, levels = torch.zeros(1, 1, 1, 1, 1, 1), torch.zeros(1, 1)

    def error(size: float) -> float:
        return float(flow_loss(torch.full_like(clean, size), clean, levels, 1.0, robust=0.2))

    assert error(0.01) == pytest.approx(0.01**2, rel=1e-2)
    assert error(20.0) == pytest.approx(2 * 0.2 * 20.0, rel=2e-2)
    assert error(0.2) == pytest.approx(2 * 0.04 * (2**0.5 - 1))
