from pathlib import Path

import numpy as np
import pytest
from pyquaternion import Quaternion

from dwm.scenes.interpolation import boxes_at, slerp
from dwm.scenes.nuscenes import read_scene


def test_halfway_between_key_frames_lies_halfway_between_annotations(pg_dataroot: Path) -> None:
    scene = read_scene(pg_dataroot, "v1.0-mini", "scene-0001")
    middle = boxes_at(scene, int(scene.key_timestamps_us[:2].mean()))
    assert middle.interpolated.sum() >= 3
    for i, index in enumerate(middle.agent_indices):
        if middle.interpolated[i]:
            np.testing.assert_allclose(middle.centers_m[i], scene.agents[index].centers_m[:2].mean(axis=0))


def test_key_frames_return_their_annotations_and_times_outside_are_clamped(pg_dataroot: Path) -> None:
    scene = read_scene(pg_dataroot, "v1.0-mini", "scene-0001")
    keys = scene.key_timestamps_us
    for asked, key in ((keys[0] - 10**6, keys[0]), (keys[1], keys[1]), (keys[-1] + 10**6, keys[-1])):
        boxes = boxes_at(scene, int(asked))
        present = [i for i, a in enumerate(scene.agents) if key in a.timestamps_us]
        np.testing.assert_array_equal(boxes.agent_indices, present)
        assert not boxes.interpolated.any()
        for i, index in enumerate(present):
            agent = scene.agents[index]
            np.testing.assert_allclose(boxes.centers_m[i], agent.centers_m[agent.timestamps_us == key][0], atol=1e-12)


@pytest.mark.parametrize("angle", [1e-4, 0.03, 0.5, 3.0])
def test_slerp_equals_pyquaternion_the_short_way_round(angle: float) -> None:
    a, b = Quaternion(axis=[0, 0, 1], radians=0.4), Quaternion(axis=[0, 0.6, 0.8], radians=0.4 + angle)
    for second in (b, -b):
        ours = slerp(a.elements, second.elements, 0.3)
        assert abs(ours @ Quaternion.slerp(a, second, 0.3).elements) == pytest.approx(1.0, abs=1e-12)
    assert slerp(a.elements, a.elements, 0.5) == pytest.approx(a.elements)
