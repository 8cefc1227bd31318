from __future__ import annotations

import numpy as np
import pytest

from pipelines.long_tail.solver import MixProblem, quotas, solve, systematic, whole_counts


def problem(own: np.ndarray, targets, clips: int, base=None, max_repeats: int = 3) -> MixProblem:
    """One group; ``own`` [W, T]."""
    return MixProblem(
        base=np.ones(len(own)) if base is None else np.asarray(base, float), features=np.asarray(own, float)[:, None],
        targets=np.asarray(targets, float), quotas=np.array([clips]), max_repeats=max_repeats,
    )  # fmt: skip


def test_without_targets_windows_are_drawn_by_their_base_measure():
    found = solve(problem(np.zeros((4, 0)), [], 4, base=[1, 2, 3, 2], max_repeats=3))
    assert found[:, 0] == pytest.approx([0.5, 1.0, 1.5, 1.0], abs=1e-3)


def test_a_target_weighs_its_windows_up_and_keeps_their_proportions():
    own = np.array([[1], [1], [0], [0]])
    found = solve(problem(own, [0.6], 10, base=[1, 3, 2, 2], max_repeats=10))[:, 0]
    assert found == pytest.approx([1.5, 4.5, 2.0, 2.0], abs=0.01)


def test_no_window_is_used_more_often_than_it_may_be():
    own = np.array([[1], [0], [0], [0], [0]])
    found = solve(problem(own, [0.8], 10, max_repeats=3))[:, 0]
    assert found == pytest.approx([3, 1.75, 1.75, 1.75, 1.75], abs=0.02)


def _planted(seed: int, windows: int, tags: int, clips: int, cap: int) -> tuple[MixProblem, np.ndarray]:
    """A target that a known drawing meets exactly; three groups, of which one sets the first tag and one clears the second."""
    rng = np.random.default_rng(seed)
    own = (rng.random((windows, tags)) < rng.uniform(0.05, 0.5, tags)).astype(float)
    features = np.repeat(own[:, None], 3, axis=1)
    features[:, 1, 0], features[:, 2, 1] = 1, 0
    per_group = quotas(np.array([5.0, 1.0, 2.0]), clips)
    weight = rng.uniform(0.2, 1, windows) ** 3
    drawn = np.repeat(np.arange(windows), systematic(weight / weight.sum() * clips, clips, cap, 0.3))
    groups = rng.permutation(np.repeat(np.arange(3), per_group))
    targets = features[drawn, groups].mean(0)
    return MixProblem(
        base=rng.uniform(1, 5, windows), features=features, targets=targets, quotas=per_group, max_repeats=cap
    ), own


@pytest.mark.parametrize(
    ("seed", "windows", "tags", "clips"), [(0, 40, 3, 50), (1, 300, 6, 211), (2, 1500, 8, 1000), (3, 25, 4, 50)]
)
def test_a_target_that_some_drawing_meets_is_met_within_a_clip(seed: int, windows: int, tags: int, clips: int):
    asked, _ = _planted(seed, windows, tags, clips, cap=2)
    expected = solve(asked)
    assert np.abs(np.einsum("wg,wgt->t", expected, asked.features) / clips - asked.targets).max() < 0.005
    assert expected.sum(1).max() < 2 + 0.1
    counts, kind = whole_counts(asked, expected)
    assert counts.min() >= 0 and (counts.sum(0) == asked.quotas).all()
    assert (counts.sum(1) <= 2 * np.bincount(kind)).all()
    first = [int(np.flatnonzero(kind == k)[0]) for k in range(len(counts))]
    met = np.einsum("kg,kgt->t", counts, asked.features[first])
    assert np.abs(met - asked.targets * clips).max() <= 1


def test_the_order_of_windows_does_not_matter():
    asked, _ = _planted(5, 60, 4, 50, cap=3)
    order = np.random.default_rng(0).permutation(60)
    turned = MixProblem(
        base=asked.base[order], features=asked.features[order], targets=asked.targets, quotas=asked.quotas, max_repeats=3
    )
    assert np.abs(solve(asked)[order] - solve(turned)).max() < 0.02


def test_an_unreachable_target_is_approached_and_not_at_the_cost_of_the_others():
    own = np.array([[1, 0], [0, 1], [0, 1], [0, 0], [0, 0], [0, 0]])
    asked = problem(own, [0.5, 0.25], 12, max_repeats=3)
    counts, kind = whole_counts(asked, solve(asked))
    first = [int(np.flatnonzero(kind == k)[0]) for k in range(len(counts))]
    assert np.einsum("kg,kgt->t", counts, asked.features[first]).tolist() == [3, 3]


def test_quotas_follow_weights_by_largest_remainder():
    assert quotas(np.array([1.0, 1.0, 1.0]), 10).tolist() == [4, 3, 3]
    assert quotas(np.array([0.0, 3.0, 1.0]), 8).tolist() == [0, 6, 2]


def test_systematic_draws_are_within_one_of_their_means_and_respect_the_cap():
    mean = np.array([0.4, 1.7, 2.2, 0.7])
    draws = np.array([systematic(mean, 5, 9, offset) for offset in np.arange(0, 1, 0.01)])
    assert (draws.sum(1) == 5).all()
    assert (np.abs(draws - mean) < 1).all()
    assert draws.mean(0) == pytest.approx(mean, abs=0.02)
    assert systematic(np.array([9.0, 0.5, 0.5]), 6, 2, 0.5).tolist() == [2, 2, 2]
    with pytest.raises(ValueError, match="7 draws from 3 windows of 2"):
        systematic(np.ones(3), 7, 2, 0.0)
