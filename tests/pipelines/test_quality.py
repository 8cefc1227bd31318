"""Frechet distances of a published version: which frames, cameras and clips are compared, and what the figures then are."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from dwm.errors import InputError
from evaluators.detector.model import BevDetector
from evaluators.detector.weights import save_detector
from evaluators.network_file import NetworkFile
from pipelines.atomic import readable_json, sha256_file
from pipelines.cli import main
from pipelines.layout import VersionLayout
from pipelines.quality import score_quality
from pipelines.schema import SCHEMA_VERSION, write_table
from pipelines.video import VideoWriter, video_row
from tests.evaluators.tiny_networks import TinyI3d, TinyInception, saved
from tests.pipelines.tiny_models import DETECTOR

CAMERAS, HW = ("CAM_FRONT", "CAM_BACK"), (32, 56)
MATRICES = {"intrinsics": [0.0] * 9, "camera_to_ego": [0.0] * 16, "ego_to_global": [0.0] * 16}
Clip = tuple[np.ndarray, np.ndarray | None]  # generated [T, V, H, W, 3] at 1 Hz, and true video of some of its frames


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, NetworkFile]:
    folder = tmp_path_factory.mktemp("networks")
    return {"inception": saved(TinyInception(), folder / "inception.pt"), "i3d": saved(TinyI3d(), folder / "i3d.pt")}


@pytest.fixture(scope="module")
def detector(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path, config = tmp_path_factory.mktemp("detector") / "detector.safetensors", replace(DETECTOR, image_hw=HW)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        save_detector(path, BevDetector(config).state_dict(), config, {})
    return path


def video(rng: np.random.Generator, frames: int) -> np.ndarray:
    """Grey of its own per frame and camera, with noise: what coding keeps."""
    grey = rng.integers(80, 140, (frames, len(CAMERAS), 1, 1, 1))
    return np.repeat(grey + rng.integers(0, 9, (frames, len(CAMERAS), *HW, 1)), 3, axis=-1).astype(np.uint8)


def videos(frames: int, clips: int = 3) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [video(rng, frames) for _ in range(clips)]


def brighter(clip: np.ndarray, frames: slice = slice(None), cameras: slice = slice(None)) -> np.ndarray:
    out = clip.copy()
    out[frames, cameras] += 10
    return out


def version(root: Path, clips: list[Clip], shown: range | None = None, given: int = 1) -> Path:
    """A published version; true video shows the clip's frames ``shown``, by default all. At 1 Hz every frame is coded alone."""
    folder, rows = root / "versions" / "v-test", {"clips": [], "videos": [], "camera_frames": []}
    for n, (made, true) in enumerate(clips):
        clip_id, frames = f"clip-{n}", len(made)
        clip = {"clip_id": clip_id, "n_frames": frames, "fps": 1.0, "verdict_keep": n != 3}
        rows["clips"].append(clip | {"lidar_to_ego": [0.0] * 16})
        for v, channel in enumerate(CAMERAS):
            for stream, images, at in (("rgb", made, range(frames)), ("truth", true, shown or range(frames))):
                if images is None:
                    continue
                where = root / "data" / clip_id / f"{channel}.{stream}.mp4"
                with VideoWriter(where, HW[1], HW[0], 1.0 / at.step, crf=1.0, preset="ultrafast") as writer:
                    for image in images[:, v]:
                        writer.write(image)
                row = video_row(writer, clip_id, channel, stream, shown=at)
                rows["videos"].append(row | {"uri": str(where.relative_to(root))})
            frame = {"clip_id": clip_id, "channel": channel, **MATRICES}
            rows["camera_frames"] += [
                frame | {"frame_index": t, "source_sample_data_token": "log" if t < given else None} for t in range(frames)
            ]
    layout = VersionLayout(folder)
    for name, own in rows.items():
        write_table(name, own, layout.table(name))
    layout.dataset_json.write_bytes(readable_json({"schema_version": SCHEMA_VERSION}))
    layout.success.write_bytes(readable_json({"dataset.json": sha256_file(layout.dataset_json)}))
    return folder


def rows_of(text: str) -> dict[tuple[str, str], list[str]]:
    """(metric, time) -> clips, samples, distance, floor."""
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("| ")]
    return {(cells[0], cells[1]): cells[2:] for cells in lines[2:]}


def distances(text: str) -> dict[tuple[str, str], float]:
    return {key: float(cells[2].split(" ")[0]) for key, cells in rows_of(text).items()}


def test_the_same_pixels_are_not_apart_by_any_metric(networks: dict[str, NetworkFile], detector: Path, tmp_path: Path) -> None:
    folder = version(tmp_path, [(clip, clip) for clip in videos(17)])
    text = score_quality(folder, detector, resamples=10, **networks)
    found = rows_of(text)
    times = ("at any time", "at 0-10 s", "at 10-20 s")
    # From the second frame on: of FVD's 16 successive frames there is one sample, of FVD-pg's 8 there are two.
    assert list(found) == [
        *[("FID-pg", t) for t in times], ("FVD-pg", times[0]), ("FVD-pg", times[1]), *[("FID", t) for t in times],
        ("FVD", times[0]), ("FVD", times[1]),
    ]  # fmt: skip
    assert list(distances(text).values()) == pytest.approx([0] * 10, abs=1e-4)
    samples = [found[metric, times[0]][1] for metric in ("FID-pg", "FVD-pg", "FID", "FVD")]
    assert samples == [f"{n}, {n}" for n in (3 * 2 * 16, 3 * 2 * 2, 3 * 2 * 16, 3 * 2)]
    assert float(found["FID", times[0]][3]) > 0
    cards = [line for line in text.splitlines() if line.startswith("- ")]
    assert len(cards) == 10
    for part in ("FID-pg: 3 clips of 16 frames at 1 Hz", "2 cameras, 32x56 px (decoded video; resize none)", "layer images.stride8",
                 "the 1 given frames of a clip are left out", "true halves, by clip, are"):  # fmt: skip
        assert part in cards[0]
    assert "8 successive frames to a sample" in cards[3] and "16 successive frames to a sample" in cards[8]
    assert f"weights {sha256_file(Path(networks['i3d'].path))[:12]}" in cards[8] and "anisotropic" in cards[8]


def test_a_shift_of_brightness_is_the_square_of_its_length(
    networks: dict[str, NetworkFile], detector: Path, tmp_path: Path
) -> None:
    folder = version(tmp_path, [(brighter(clip), clip) for clip in videos(17)])
    found = distances(score_quality(folder, detector, resamples=10, **networks))
    assert found["FID", "at any time"] == pytest.approx(3 * 10**2, rel=0.03)
    assert found["FVD", "at any time"] == pytest.approx(3 * (2 * 10 / 255) ** 2, rel=0.04)
    assert found["FID-pg", "at any time"] > 0 and found["FVD-pg", "at any time"] > 0


def test_only_moments_that_both_show_are_compared_by_the_clips_own_time(
    networks: dict[str, NetworkFile], detector: Path, tmp_path: Path
) -> None:
    shown = range(3, 24, 1)
    folder = version(
        tmp_path, [(brighter(clip, slice(10, 20)), clip[shown.start :]) for clip in videos(24)], shown=shown
    )  # fmt: skip
    text = score_quality(folder, detector, inception=networks["inception"], resamples=10)
    stretches = [("FID", f"at {a}-{a + 10} s") for a in (0, 10, 20)]
    assert [distances(text)[key] for key in stretches] == pytest.approx([0, 300, 0], abs=9)
    assert [rows_of(text)[key][1] for key in stretches] == [f"{3 * 2 * n}, {3 * 2 * n}" for n in (7, 10, 4)]
    sparse = range(0, 24, 3)
    level = np.arange(24)[:, None, None, None, None].astype(np.uint8) * 3
    clips = [clip // 2 + level for clip in videos(24)]
    folder = version(tmp_path / "sparse", [(clip, clip[:: sparse.step]) for clip in clips], shown=sparse)
    text = score_quality(folder, detector, inception=networks["inception"], resamples=10)
    assert distances(text)["FID", "at any time"] == pytest.approx(0, abs=0.5)
    assert "FID: 3 clips of 7 frames at 0.333333 Hz" in text
    assert "- no FVD-pg: a sample takes 8 successive frames, 7 of a clip count" in text


def test_given_frames_count_only_where_asked_for(networks: dict[str, NetworkFile], detector: Path, tmp_path: Path) -> None:
    folder = version(tmp_path, [(brighter(clip, slice(0, 3)), clip) for clip in videos(8)], given=3)
    ask = {"inception": networks["inception"], "resamples": 10}
    without, counted = (score_quality(folder, detector, count_given_frames=given, **ask) for given in (False, True))
    assert distances(without)["FID", "at any time"] == pytest.approx(0, abs=0.1)
    assert distances(counted)["FID", "at any time"] > 1
    assert [rows_of(text)["FID", "at any time"][1] for text in (without, counted)] == ["30, 30", "48, 48"]
    assert "the 3 given frames of a clip count" in counted
    assert ("FVD-pg", "at any time") in rows_of(counted) and ("FVD-pg", "at any time") not in rows_of(without)


def test_every_camera_or_the_front_one_alone_is_compared(
    networks: dict[str, NetworkFile], detector: Path, tmp_path: Path
) -> None:
    folder = version(tmp_path, [(brighter(clip, cameras=slice(1, 2)), clip) for clip in videos(9)])
    ask = {"inception": networks["inception"], "resamples": 10}
    front, everything = (score_quality(folder, detector, views=views, **ask) for views in ("front", "all"))
    assert distances(front)["FID", "at any time"] == pytest.approx(0, abs=0.1)
    assert distances(everything)["FID", "at any time"] > 30
    assert [rows_of(text)["FID", "at any time"][1] for text in (front, everything)] == ["24, 24", "48, 48"]
    assert "front camera only" in front


def test_clips_without_true_video_are_left_out_and_counted(detector: Path, tmp_path: Path) -> None:
    a, b, c = videos(9)
    text = score_quality(version(tmp_path / "some", [(a, a), (b, None), (c, c)]), detector, resamples=10)
    assert "v-test: 2 clips" in text and "; 1 without true video left out" in text
    assert rows_of(text)["FID-pg", "at any time"][0] == "2"
    with pytest.raises(InputError, match="no clip has true video of the same moments; generate from a proving ground"):
        score_quality(version(tmp_path / "none", [(a, None)]), detector)


def test_rejected_clips_are_compared_where_asked_for(detector: Path, tmp_path: Path) -> None:
    folder = version(tmp_path, [(clip, clip) for clip in videos(9, clips=4)])
    kept, everything = (score_quality(folder, detector, rejected=rejected, resamples=10) for rejected in (False, True))
    assert [rows_of(text)["FID-pg", "at any time"][0] for text in (kept, everything)] == ["3", "4"]


def test_what_gives_no_figure_is_told(networks: dict[str, NetworkFile], detector: Path, tmp_path: Path) -> None:
    a, b = videos(9, clips=2)
    with pytest.raises(InputError, match="clips clip-0 and clip-1 differ"):
        score_quality(version(tmp_path / "mixed", [(a, a), (b[:8], b[:8])]), detector)
    one = version(tmp_path / "one", [(a[:2], a[:2])])
    with pytest.raises(InputError, match="no FID-pg: 1 clips give 1 samples; no FVD-pg: a sample takes 8"):
        score_quality(one, detector, views="front")
    two = score_quality(one, detector, resamples=10)
    assert rows_of(two)["FID-pg", "at any time"] == ["1", "2, 2", "0.0000", ""]
    config, other = replace(DETECTOR, image_hw=(64, 112)), tmp_path / "other.safetensors"
    save_detector(other, BevDetector(config).state_dict(), config, {})
    text = score_quality(one, other, inception=networks["inception"])
    assert "- no FID-pg: its network reads images of 64x112 px, these have 32x56" in text
    assert {metric for metric, _ in rows_of(text)} == {"FID"}


def test_the_command_refuses_what_it_could_not_use(detector: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clip = videos(3, clips=1)[0]
    command = ["quality", str(version(tmp_path, [(clip, clip)])), "--detector", str(detector)]
    for options, message in (
        (["--resamples", "0"], "--resamples: 0 bootstrap draws"),
        (["--i3d-url", "http://localhost/i3d.pt"], "--i3d: a sha256 or url without a file"),
        (["--inception", str(tmp_path / "none.pt"), "--inception-url", "http://localhost/x"], "a download without its sha256"),
        (["--inception", str(tmp_path / "none.pt")], "no such network file"),
    ):
        assert main([*command, *options]) == 2
        assert message in capsys.readouterr().err
