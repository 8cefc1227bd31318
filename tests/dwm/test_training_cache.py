"""From drives to clips on a small town: what is made, what is not made twice, and what a clip's memory is."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from dwm.codec.autoencoder import Autoencoder, CodecConfig
from dwm.conditioning.build import Given, ScenarioConditioner, images_to_tensor
from dwm.conditioning.logged_points import LoggedPoints, Sweep, build_logged_points
from dwm.conditioning.photos import Boxes, Shot
from dwm.conditioning.things import Things
from dwm.errors import InputError
from dwm.models.dit import IMAGE_HW
from dwm.models.weights import save_model
from dwm.scenes.proving_ground.city import FIRST_HELD_OUT_TOWN, build_city
from dwm.training import cache, sequences
from dwm.training.cache import ClipCache, encode_clips, render_drives
from dwm.training.clips import TrainingClip
from dwm.training.config import ClipsConfig, DrivesConfig
from dwm.training.encoding import encode
from dwm.training.long_clips import KeyFrames, cut
from dwm.training.sequences import Town

SEED = 3


def small_town(seed: int, *_: object, **__: object) -> Town:
    return Town(city=build_city(seed, 200.0), renderer=None)


def short_drive(town: Town, seed: int):
    return sequences.drive(town, seed, duration_s=6.0, n_agents=8)


def smooth_pictures(town: Town, scenario, weather: str, frames: np.ndarray) -> np.ndarray:
    """Pictures [T, 6, H, W, 3] that tell their frame and view, in place of a render."""
    v, u = np.mgrid[0 : IMAGE_HW[0], 0 : IMAGE_HW[1]]
    out = np.empty((len(frames), 6, *IMAGE_HW, 3), np.uint8)
    for i, frame in enumerate(frames):
        for view in range(6):
            for c in range(3):
                out[i, view, ..., c] = 127 + 60 * np.sin(u / (9 + c) + frame) + 60 * np.cos(v / (7 + view))
    return out


@pytest.fixture(scope="module")
def patched():
    with pytest.MonkeyPatch.context() as patch:
        town = small_town(SEED)
        patch.setattr(cache, "open_town", lambda seed, *_, **__: town)
        patch.setattr(cache, "drive", short_drive)
        patch.setattr(cache, "render_frames", smooth_pictures)
        yield town


@pytest.fixture(scope="module")
def codec() -> Autoencoder:
    model = Autoencoder(CodecConfig()).eval()
    model.fit_blocks(images_to_tensor(smooth_pictures(None, None, "", np.arange(3))[:, 0]))  # type: ignore[arg-type]
    return model


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, patched: Town, codec: Autoencoder) -> tuple[DrivesConfig, ClipsConfig]:
    """One drive: fourteen frames at 12 Hz and eight at 2 Hz, so two clips at 12 Hz and one at 2 Hz."""
    root = tmp_path_factory.mktemp("training")
    drives = DrivesConfig(
        out=str(root / "drives"), device="cpu", first_town=SEED, towns=1, drives_per_town=1, frames_12hz=14, low_fps=(2,)
    )
    clips = ClipsConfig(drives=drives.out, out=str(root / "clips"), device="cpu", window_step=4)
    render_drives(drives, progress=False)
    encode_clips(clips, codec, progress=False)
    return drives, clips


def record_of(drives: DrivesConfig) -> dict:
    return json.loads(next(Path(drives.out).glob("*.json")).read_text())


def test_a_drive_holds_its_runs_and_every_frame_of_them_once(made):
    drives, _ = made
    record = record_of(drives)
    (fps, fast), (slow_fps, slow) = record["runs"]
    assert (fps, slow_fps, len(fast), len(slow)) == (12, 2, 14, 8)
    assert set(np.diff(fast)) == {1}
    assert set(np.diff(slow)) == {6}
    assert min(fast[0], slow[0]) >= 12
    assert record["frames"] == sorted(set(fast) | set(slow))
    images = np.load(Path(drives.out) / "drive-0003-0000.npy")
    assert images.shape == (6 * len(record["frames"]), *IMAGE_HW, 3)
    expected = smooth_pictures(None, None, "", np.array(record["frames"][2:3]))[0, 4]  # type: ignore[arg-type]
    np.testing.assert_array_equal(images[2 * 6 + 4], expected)


def indices_of(clip: TrainingClip, run: list[int], start: int) -> list[int]:
    """Which frames of a run a clip shows, by their times."""
    return [run[start + round(float(t) * clip.fps)] for t in clip.times_T]


def test_clips_begin_with_what_is_given_and_reach_to_the_end_of_their_run(made, codec):
    drives, clips = made
    found = ClipCache(Path(clips.out))
    (_, fast), (_, slow) = record_of(drives)["runs"]
    assert len(found) == 3
    shown = []
    for index, (fps, run, start, given) in enumerate([(12, fast, 0, 1), (12, fast, 4, 2), (2, slow, 0, 1)]):
        clip = found.get(index, np.random.default_rng(0))
        assert clip.latents_TVCHW.shape == (8, 6, 16, 16, 28)
        assert (clip.fps, clip.given) == (fps, given)
        frames = indices_of(clip, run, start)
        shown.append(frames)
        assert frames == sorted(set(frames))
        assert frames[:given] == run[start : start + given]
        assert frames[-1] == run[-1]
        picture = smooth_pictures(None, None, "", np.array(frames[3:4]))[0]  # type: ignore[arg-type]
        expected = codec.encode(images_to_tensor(picture))
        torch.testing.assert_close(clip.latents_TVCHW[3].float(), expected, atol=2e-2, rtol=1e-2)
    assert shown[2] == slow  # eight of eight: none is left out


def test_a_stretch_of_just_as_many_frames_becomes_one_long_clip_that_can_be_cut(made, codec, patched, tmp_path):
    drives, clips = made
    fast = record_of(drives)["runs"][0][1]
    encode_clips(replace(clips, out=str(tmp_path), window_frames=14), codec, progress=False)
    found = ClipCache(tmp_path)
    assert len(found) == 1
    clip = found.get(0, np.random.default_rng(0))
    assert (indices_of(clip, fast, 0), clip.given, clip.fps) == (fast, 1, 12)
    conditioner, keys = ScenarioConditioner(short_drive(patched, 0)[0]), KeyFrames(gaps=4, stride=3)
    for frames in (keys.coarse, keys.window(2)):
        shown, part = [fast[f] for f in frames], cut(clip, frames)
        torch.testing.assert_close(part.times_T, conditioner.times(shown), atol=1e-5, rtol=0)
        torch.testing.assert_close(part.waypoints_TK, conditioner.waypoints(shown), atol=1e-5, rtol=1e-5)
        expected = conditioner.layout(shown[2]).maps_VCHW.half()
        assert torch.equal(part.layout_TVCHW[2], expected)


def test_stretches_too_short_for_a_clip_and_too_long_for_a_drive_are_told(made, codec, patched, tmp_path):
    drives, clips = made
    with pytest.raises(InputError, match=r"no stretch of 15 frames.*drives\.frames_12hz"):
        encode_clips(replace(clips, out=str(tmp_path), window_frames=15), codec, progress=False)
    with pytest.raises(InputError, match=r"frames_12hz: 98 frames at 12 Hz of a drive of 109; give at most 97"):
        render_drives(replace(drives, out=str(tmp_path), frames_12hz=98), progress=False)
    with pytest.raises(InputError, match=r"low_fps_frames: 18 frames at 2 Hz of a drive of 109; give at most 17"):
        render_drives(replace(drives, out=str(tmp_path), low_fps_frames=18), progress=False)
    with pytest.raises(InputError, match=r"neither frames_12hz nor low_fps"):
        render_drives(replace(drives, out=str(tmp_path), frames_12hz=0, low_fps=()), progress=False)


def test_a_drive_may_be_filmed_twice_a_second_alone_and_read_back_in_shares(patched, tmp_path):
    most = DrivesConfig(
        out=str(tmp_path), device="cpu", first_town=SEED, towns=1, drives_per_town=2, frames_12hz=0, low_fps=(2,), low_fps_frames=17
    )  # fmt: skip
    render_drives(most, progress=False)
    record = record_of(most)
    assert record["runs"] == [[2, record["frames"]]] and record["frames"] == list(range(12, 109, 6))
    shares = [[each.name for each in cache.rendered_drives(tmp_path, False, part, 2)] for part in range(2)]
    assert shares == [["drive-0003-0000"], ["drive-0003-0001"]]
    with pytest.raises(InputError, match="no rendered drives"):
        next(cache.rendered_drives(tmp_path, False, 2, 3))


def test_a_clips_memory_is_its_last_given_frame_decoded_carried_along_and_encoded_again(made, codec, patched):
    drives, clips = made
    clip = ClipCache(Path(clips.out)).get(1, np.random.default_rng(0))
    frames = indices_of(clip, record_of(drives)["runs"][0][1], 4)
    assert clip.given == 2
    scenario, _ = short_drive(patched, 0)
    conditioner = ScenarioConditioner(scenario)
    with torch.inference_mode():
        seen = images_to_tensor(smooth_pictures(None, None, "", np.array(frames[1:2]))[0])  # type: ignore[arg-type]
        latents = codec.encode(seen)
        carried, valid = conditioner.memory(
            Given(frame=frames[1], latents_VCHW=latents, images_V3HW=codec.decode(latents)), frames[4]
        )
        expected = codec.encode(carried)
    torch.testing.assert_close(clip.memory_TVCHW[4].float(), expected, atol=2e-2, rtol=1e-2)
    share, box = (
        torch.nn.functional.avg_pool2d(shown, 4)
        for shown in (valid, (conditioner.layout(frames[4]).box_VHW[:, None] >= 0).float())
    )
    less = share - clip.memory_valid_TV1HW[4].float() / 255  # what is painted on boxes
    torch.testing.assert_close(less[box == 0], torch.zeros_like(less[box == 0]), atol=0.003, rtol=0)
    assert (less <= box + 0.003).all()
    assert (less > 0.2).any()


def test_a_clips_appearance_is_a_true_frames_of_the_same_run(made, codec, patched):
    drives, clips = made
    clip = ClipCache(Path(clips.out)).get(2, np.random.default_rng(0))
    frames = record_of(drives)["runs"][1][1]
    scenario, _ = short_drive(patched, 0)
    conditioner = ScenarioConditioner(scenario)
    errors = []
    with torch.inference_mode():
        for look in frames:
            picture = images_to_tensor(smooth_pictures(None, None, "", np.array([look]))[0])  # type: ignore[arg-type]
            painted, _ = conditioner.painted(conditioner.appearance(look, picture, Things.none()), frames[5])
            errors.append(float((codec.encode(painted) - clip.appearance_TVCHW[5].float()).abs().max()))
    assert min(errors) < 0.02 < 0.5 < sorted(errors)[1]


def test_a_second_call_makes_nothing(made, codec, monkeypatch):
    drives, clips = made
    monkeypatch.setattr(cache, "open_town", lambda *_, **__: pytest.fail("a town was built"))
    monkeypatch.setattr(cache, "render_frames", lambda *_: pytest.fail("something was rendered"))
    files = sorted(p for folder in (drives.out, clips.out) for p in Path(folder).iterdir())
    before = {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in files}
    render_drives(drives, progress=False)
    encode_clips(clips, codec, progress=False)
    assert {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in files} == before
    assert not [p for p in files if p.suffix == ".part"]


def test_a_lost_clip_is_made_again_the_same(made, codec):
    _, clips = made
    path = sorted(Path(clips.out).glob("*.pt"))[0]
    before = torch.load(path, weights_only=True)
    path.unlink()
    encode_clips(clips, codec, progress=False)
    after = torch.load(path, weights_only=True)
    assert before.keys() == after.keys()
    assert all(torch.equal(torch.as_tensor(before[key]), torch.as_tensor(after[key])) for key in before)


def test_of_several_processes_each_encodes_its_own_towns(made, codec, tmp_path):
    _, clips = made
    found = {p.name for p in Path(clips.out).glob("*.pt")}
    for part in range(2):
        mine = replace(clips, out=str(tmp_path / str(part)), processes=2)
        encode_clips(mine, codec, progress=False, part=part)
        names = {p.name for p in Path(mine.out).glob("*.pt")}
        assert names == (found if part == SEED % 2 else set())


def test_processes_pass_on_what_stopped_one_of_them(tmp_path):
    save_model(Autoencoder(CodecConfig()), tmp_path / "codec.safetensors", {})
    config = ClipsConfig(
        drives=str(tmp_path), out=str(tmp_path / "clips"), processes=2, codec_weights=str(tmp_path / "codec.safetensors")
    )
    with pytest.raises(InputError, match="no rendered drives"):
        encode(config, encode_clips, progress=False)


def test_held_out_towns_are_refused(tmp_path):
    last = dict(first_town=FIRST_HELD_OUT_TOWN - 1, drives_per_town=0, out=str(tmp_path / "drives"), device="cpu")
    with pytest.raises(InputError, match="held out"):
        render_drives(DrivesConfig(towns=2, **last), progress=False)
    assert not (tmp_path / "drives").exists()
    assert render_drives(DrivesConfig(towns=1, **last), progress=False) == tmp_path / "drives"


def test_folders_without_drives_or_clips_are_told(tmp_path, codec):
    with pytest.raises(InputError, match="no rendered drives"):
        encode_clips(ClipsConfig(drives=str(tmp_path), out=str(tmp_path / "clips")), codec, progress=False)
    with pytest.raises(InputError, match="no encoded clips"):
        ClipCache(tmp_path)


def test_a_drive_with_a_log_remembers_more_of_the_street_and_all_else_stays(made, codec, patched, tmp_path, monkeypatch):
    drives, clips = made
    scans = []

    def scanned(town: Town, scenario, weather: str, frames, rng) -> LoggedPoints:
        """A grey screen around where the drive ends, as if the log had seen nothing else."""
        scans.append((weather, list(frames)))
        centre, yaw = scenario.ego_to_global[-1][:3, 3], np.linspace(0, 2 * np.pi, 700)[:, None]
        height = np.linspace(0.5, 4.5, 30)
        ring = np.stack(np.broadcast_arrays(12 * np.cos(yaw), 12 * np.sin(yaw), height), -1).reshape(-1, 3) + centre
        ego = scenario.ego_to_global[-1]
        nothing = Boxes(
            agents=np.zeros(0, np.int64), centers_m=np.zeros((0, 3)), rotations=np.zeros((0, 3, 3)), sizes_wlh_m=np.zeros((0, 3)),
            speeds_mps=np.zeros(0),
        )  # fmt: skip
        grey = np.full((*IMAGE_HW, 3), 128, np.uint8)
        shots = [Shot(image=grey, camera=c, ego_to_global=ego, boxes=nothing) for c in scenario.scene.cameras]
        return build_logged_points([Sweep(xyz_m=ring, origin_m=centre + np.array([0, 0, 1.8]), boxes=nothing)], shots)

    monkeypatch.setattr(cache, "scan_log", scanned)
    encode_clips(replace(clips, out=str(tmp_path), log_share=1.0), codec, progress=False)
    assert len(scans) == 1
    assert scans[0][1] == record_of(drives)["frames"]
    past, log = (ClipCache(Path(folder)).get(0, np.random.default_rng(0)) for folder in (clips.out, str(tmp_path)))
    for name in ("latents_TVCHW", "appearance_TVCHW", "layout_TVCHW", "waypoints_TK"):
        torch.testing.assert_close(getattr(log, name), getattr(past, name))
    more = log.memory_valid_TV1HW.float() - past.memory_valid_TV1HW.float()
    assert float(more.min()) >= 0.0
    differs = (log.memory_TVCHW - past.memory_TVCHW).abs().amax(2) > 0.05
    assert 0.02 < float(differs.float().mean()) < 0.98
