"""Training: resumption, logs, exports and what chance decides, on tiny models."""

import json
import os
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch

from dwm.codec.autoencoder import CodecConfig
from dwm.errors import InputError
from dwm.flow.rectified import NoiseConfig
from dwm.models.dit import DiTConfig
from dwm.models.weights import load_model, save_model
from dwm.training.clips import TrainingClip, collate
from dwm.training.codec_trainer import CodecTask, open_images
from dwm.training.config import CodecTraining, LoopConfig, TrainConfig, WorldTraining
from dwm.training.loop import fit, learning_rate, sample_indices
from dwm.training.world_trainer import WorldTask, draw

T, V, ROWS, COLS = 4, 2, 2, 4


class ToyClips:
    """Eight clips that all drift the same way; the memory is the first frame."""

    def __len__(self) -> int:
        return 8

    def get(self, index: int, generator: np.random.Generator) -> TrainingClip:
        g = torch.Generator().manual_seed(index)
        first = torch.randn(1, V, 3, ROWS, COLS, generator=g)
        latents = first + 0.5 * torch.arange(T).view(T, 1, 1, 1, 1)
        cameras = torch.cat([torch.tensor([0.8, 1.4, 0.5, 0.5]), torch.eye(4)[:3].flatten()])
        return TrainingClip(
            latents_TVCHW=latents.half(),
            memory_TVCHW=first.expand_as(latents).half(),
            memory_valid_TV1HW=torch.full((T, V, 1, ROWS, COLS), 255, dtype=torch.uint8),
            appearance_TVCHW=torch.zeros_like(latents).half(),
            appearance_known_TV1HW=torch.zeros(T, V, 1, ROWS, COLS, dtype=torch.uint8),
            layout_TVCHW=torch.randint(0, 256, (T, V, 2, 2 * ROWS, 2 * COLS), generator=g, dtype=torch.uint8),
            waypoints_TK=torch.randn(T, 6, generator=g) + float(generator.normal()),
            cameras_VK=cameras.expand(V, 16),
            times_T=torch.arange(T) / 12,
            fps=12.0,
            text_L=torch.tensor([1, 2, 0]),
            given=1 + index % 2,
        )


def make_config(out, *, adversary: float = 0.0, **loop) -> TrainConfig:
    model = DiTConfig(
        d_model=16,
        depth=2,
        heads=2,
        local_widths=(8,),
        latent_channels=3,
        views=V,
        layout_channels=2,
        text_vocabulary=5,
        image_hw=(8 * ROWS, 8 * COLS),
        text_every=2,
    )
    # Compared with each other to rounding, on every machine.
    settings = {
        "steps": 6,
        "batch_size": 2,
        "accumulate": 2,
        "warmup_steps": 2,
        "log_every": 1,
        "sample_every": 0,
        "precision": "float32",
    }
    return TrainConfig(
        trained_on="toy clips",
        world=WorldTraining(model=model, held_out=2, adversary=adversary),
        loop=LoopConfig(out=str(out), device="cpu", **{**settings, **loop}),
    )


def run(config: TrainConfig):
    task = WorldTask(config, ToyClips())
    return task, fit(task, config.loop)


def steps_logged(out) -> list[int]:
    return [json.loads(line)["step"] for line in (out / "log.jsonl").read_text().splitlines()]


def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(tmp_path):
    class Interrupted(WorldTask):
        """Asks for a stop while the third step is under way."""

        calls = 0

        def loss(self, model, batch, generator):
            Interrupted.calls += 1
            if Interrupted.calls == 5:
                os.kill(os.getpid(), signal.SIGTERM)
            return super().loss(model, batch, generator)

    whole, whole_path = run(make_config(tmp_path / "whole"))
    config = make_config(tmp_path / "parts")
    fit(Interrupted(config, ToyClips()), config.loop)
    assert steps_logged(tmp_path / "parts") == [1, 2, 3]
    parts, parts_path = run(config)
    assert steps_logged(tmp_path / "parts") == [1, 2, 3, 4, 5, 6]
    for key, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, parts.model.state_dict()[key]), key
    whole_average, parts_average = load_model(whole_path)[0], load_model(parts_path)[0]
    for key, tensor in whole_average.state_dict().items():
        assert torch.equal(tensor, parts_average.state_dict()[key]), key


def test_training_lowers_the_held_out_error_below_the_memory(tmp_path):
    config = make_config(tmp_path, steps=150, accumulate=1, batch_size=4, learning_rate=3e-3, ema_decay=0.95, sample_every=75)
    run(config)
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    last = [row for row in rows if "held_out_one_step_error" in row][-1]
    losses = [row["clean_error"] for row in rows if "clean_error" in row]
    assert np.mean(losses[-20:]) < 0.6 * np.mean(losses[:20])
    assert last["held_out_memory_error"] > 1
    assert last["held_out_sampled_error"] < 0.5 * last["held_out_memory_error"]


def test_held_out_clips_tell_what_training_tells(tmp_path):
    def held_out(**drops) -> dict[str, float]:
        config = make_config(tmp_path)
        task = WorldTask(replace(config, world=replace(config.world, **drops)), ToyClips())
        with torch.no_grad():
            return task.evaluate(task.model, torch.device("cpu"))[0]

    # An untrained model answers with its prior: the memory where it is told one, else nothing.
    told, blind = held_out(), held_out(drop_memory=1.0)
    assert told["held_out_one_step_error"] == pytest.approx(told["held_out_memory_error"], rel=1e-5)
    clips = [ToyClips().get(i, np.random.default_rng(0)) for i in (6, 7)]
    plain = [float(clip.latents_TVCHW[clip.given :].float().square().mean()) for clip in clips]
    assert blind["held_out_one_step_error"] == pytest.approx(np.mean(plain), rel=1e-5)


def test_exported_weights_are_the_average_and_say_what_they_are(tmp_path):
    from dwm.models.weights import load_tensors

    task, path = run(make_config(tmp_path, ema_decay=0.5))
    tensors, metadata = load_tensors(path)
    assert metadata["kind"] == "multi_view_dit"
    assert (metadata["steps"], metadata["trained_on"], metadata["clips"]) == ("6", "toy clips", "6")
    assert not torch.equal(tensors["head.weight"], task.model.state_dict()["head.weight"])


def test_a_folder_of_another_run_is_refused(tmp_path):
    run(make_config(tmp_path, steps=1))
    config = make_config(tmp_path, steps=1)
    other = replace(config, world=replace(config.world, model=replace(config.world.model, mlp_ratio=2.0)))
    with pytest.raises(InputError, match="another world"):
        run(other)


def test_a_torn_checkpoint_is_an_input_error(tmp_path):
    run(make_config(tmp_path, steps=1))
    checkpoint = tmp_path / "checkpoint.pt"
    checkpoint.write_bytes(checkpoint.read_bytes()[:1000])
    with pytest.raises(InputError, match="cannot be read"):
        run(make_config(tmp_path, steps=2))


def test_lines_beyond_the_checkpoint_are_dropped_on_resumption(tmp_path):
    run(make_config(tmp_path, steps=2))
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"step": 3, "loss": 0}\n{"step": 4, "lo')
    run(make_config(tmp_path, steps=3))
    assert steps_logged(tmp_path) == [1, 2, 3]


def test_a_run_without_finite_gradients_leaves_the_weights_alone_and_gives_up(tmp_path):
    class Broken(WorldTask):
        def loss(self, model, batch, generator):
            loss, scalars = super().loss(model, batch, generator)
            return loss * float("nan"), scalars

    config = make_config(tmp_path, steps=100, accumulate=1)
    task = Broken(config, ToyClips())
    before = {key: tensor.clone() for key, tensor in task.model.state_dict().items()}
    with pytest.raises(FloatingPointError, match="without finite gradients"):
        fit(task, config.loop)
    assert all(torch.equal(tensor, before[key]) for key, tensor in task.model.state_dict().items())


def test_time_runs_out_over_resumptions(tmp_path):
    config = make_config(tmp_path, steps=10_000, max_minutes=1e-6)
    run(config)
    run(config)
    assert steps_logged(tmp_path) == [1]


def test_learning_rate_warms_up_holds_and_decays():
    config = LoopConfig(steps=100, warmup_steps=10, learning_rate=1.0, decay_fraction=0.2)
    rates = [learning_rate(config, step, 0.0) for step in (0, 4, 9, 50, 80, 90, 100)]
    assert rates == pytest.approx([0.1, 0.5, 1.0, 1.0, 1.0, 0.55, 0.1])
    timed = replace(config, steps=10**9, max_minutes=1.0)
    assert learning_rate(timed, 1000, 54.0) == pytest.approx(0.55)


def test_every_sample_is_seen_once_an_epoch_in_another_order():
    epochs = [[i for b in range(e * 3, e * 3 + 3) for i in sample_indices(7, b, 4, 12)] for e in range(2)]
    assert [sorted(epoch) for epoch in epochs] == [list(range(12))] * 2
    assert epochs[0] != epochs[1]


def test_shares_of_what_chance_decides():
    config = WorldTraining(anchor_share=0.25, dirty_condition_share=0.3, drop_text=0.15, drop_memory=0.2)
    given = torch.arange(4000) % 2 + 1
    drawn = draw(torch.Generator().manual_seed(0), given, 8, config)
    levels = drawn.levels_BT
    clean = ~((levels[:, 0] >= 0.85) & (levels[:, 0] < 1))
    assert float(clean.float().mean()) == pytest.approx(0.7, abs=0.03)
    assert float((levels[clean][:, 7] == 1).float().mean()) == pytest.approx(0.25, abs=0.03)
    assert torch.equal(levels[clean][:, 1] == 1, given[clean] == 2)
    assert (levels[clean][:, 0] == 1).all()
    assert (levels[:, 2:7] < 1).all()
    assert float(drawn.has_text_B.float().mean()) == pytest.approx(0.85, abs=0.02)
    assert float(drawn.has_memory_B.float().mean()) == pytest.approx(0.8, abs=0.02)


def test_the_papers_inputs_are_without_layout_memory_and_appearance_at_once():
    config = WorldTraining(drop_waypoints=0.0, drop_layout=0.0, drop_memory=0.0, drop_appearance=0.0, papers_inputs_share=0.7)
    drawn = draw(torch.Generator().manual_seed(0), torch.ones(4000, dtype=torch.long), 3, config)
    assert float(drawn.has_layout_B.float().mean()) == pytest.approx(0.3, abs=0.02)
    assert torch.equal(drawn.has_layout_B, drawn.has_memory_B) and torch.equal(drawn.has_layout_B, drawn.has_appearance_B)
    assert drawn.has_waypoints_B.all()


def test_a_system_starts_from_the_shell_of_another(tmp_path):
    mila = WorldTask(make_config(tmp_path / "a"), ToyClips()).model
    save_model(mila, tmp_path / "mila.safetensors", {})
    config = make_config(tmp_path / "b")
    model = replace(config.world.model, system="maskgwm", decoder_depth=1)
    config = replace(config, world=replace(config.world, model=model), initial_shell=str(tmp_path / "mila.safetensors"))
    started, own = WorldTask(config, ToyClips()).model, mila.state_dict()
    for name, tensor in started.state_dict().items():
        if name.split(".")[0] in ("stem", "down", "up", "rays", "frame", "text", "head", "head_modulation", "shortcut"):
            assert torch.equal(tensor, own[name]), name
    narrow = replace(
        config,
        world=replace(
            config.world,
            model=replace(
                model, d_model=8, heads=2, local_widths=(4,), latent_channels=2, layout_channels=1, text_vocabulary=3
            ),
        ),
    )
    with pytest.raises(InputError, match="has no tensor in common with the model"):
        WorldTask(narrow, ToyClips())


def test_only_what_is_named_learns(tmp_path):
    config = make_config(tmp_path, steps=3)
    config = replace(config, world=replace(config.world, trainable=("*.spatial.*", "head.*")))
    task = WorldTask(config, ToyClips())
    before = {name: p.detach().clone() for name, p in task.model.named_parameters()}
    fit(task, config.loop)
    changed = {name for name, p in task.model.named_parameters() if not torch.equal(p, before[name])}
    assert "head.weight" in changed
    assert all(".spatial." in name or name.startswith("head.") for name in changed)
    with pytest.raises(InputError, match=r"no parameter is named 'haed\.\*'"):
        WorldTask(replace(config, world=replace(config.world, trainable=("haed.*",))), ToyClips())
    with pytest.raises(InputError, match="another world"):  # the optimiser's state is that of other parameters
        fit(WorldTask(replace(config, world=replace(config.world, trainable=())), ToyClips()), config.loop)


def test_anchors_to_be_corrected_are_the_tails_that_are_not_given():
    config = WorldTraining(anchor_share=0.2, noisy_anchor_share=0.75, dirty_condition_share=0.0, independent_share=0.0)
    config = replace(config, noise=NoiseConfig(pure_noise_share=1.0, anchor_noise=0.6))
    levels = draw(torch.Generator().manual_seed(0), torch.ones(4000), 8, config).levels_BT
    given, corrected, noise = (float((levels[:, 7] - at).abs().lt(1e-6).float().mean()) for at in (1.0, 0.4, 0.0))
    assert given == pytest.approx(0.2, abs=0.02)
    assert corrected == pytest.approx(0.75 * 0.8, abs=0.02)
    assert noise == pytest.approx(0.25 * 0.8, abs=0.02)


def test_stored_bytes_become_shares_on_the_device():
    batch = collate([ToyClips().get(i, np.random.default_rng(0)) for i in range(3)]).to(torch.device("cpu"))
    assert (batch.memory_valid_BTV1HW == 1).all()
    assert batch.latents_BTVCHW.dtype == torch.float32
    assert batch.text_BL.dtype == torch.int64
    assert batch.fps_B.tolist() == [12.0] * 3


def test_a_codec_learns_and_exports_latents_of_unit_variance(tmp_path):
    rng = np.random.default_rng(0)
    blocks = rng.integers(0, 256, (30, 2, 2, 3), dtype=np.uint8)
    np.save(tmp_path / "images.npy", blocks.repeat(16, axis=1).repeat(16, axis=2))
    model = CodecConfig(latent_channels=4, downsample=8, width=8, blocks=1)
    loop = LoopConfig(
        out=str(tmp_path / "out"), device="cpu", steps=200, batch_size=4, learning_rate=6e-3, warmup_steps=5,
        ema_decay=0.9, sample_every=200, log_every=1,
    )  # fmt: skip
    config = TrainConfig(target="codec", data=str(tmp_path), codec=CodecTraining(model=model), loop=loop)
    task = CodecTask(config, open_images(tmp_path))
    codec, _ = load_model(fit(task, loop), "autoencoder")
    rows = [json.loads(line) for line in (tmp_path / "out" / "log.jsonl").read_text().splitlines()]
    assert rows[-1]["held_out_psnr_db"] > 14  # a flat grey image has 10.8 dB
    images = torch.from_numpy(np.stack([task.images[i] for i in range(18)])).permute(0, 3, 1, 2).float() / 127.5 - 1
    latents = codec.encode(images)
    assert float(latents.var(dim=(0, 2, 3)).mean()) == pytest.approx(1.0, abs=0.15)
    assert (tmp_path / "out" / "samples" / "step_00000200.png").is_file()


def test_a_thinned_clip_keeps_what_is_given_and_some_of_the_rest_in_order():
    clip, rng = ToyClips().get(1, np.random.default_rng(0)), np.random.default_rng(1)
    assert clip.given == 2
    seen = set()
    for _ in range(20):
        thin = clip.thinned(3, rng)
        kept = [round(float(t) * 12) for t in thin.times_T]
        assert kept[:2] == [0, 1]
        seen.add(kept[2])
        for name in ("latents_TVCHW", "memory_TVCHW", "memory_valid_TV1HW", "layout_TVCHW", "waypoints_TK", "appearance_TVCHW"):
            assert torch.equal(getattr(thin, name), getattr(clip, name)[kept]), name
        assert torch.equal(thin.cameras_VK, clip.cameras_VK)
    assert seen == {2, 3}
    assert clip.thinned(4, rng) is clip


def test_an_anchor_never_leaves_a_clip_with_nothing_to_learn():
    config = WorldTraining(anchor_share=1.0, dirty_condition_share=0.0)
    for seed in range(20):
        levels = draw(torch.Generator().manual_seed(seed), torch.tensor([2, 1]), 3, config).levels_BT
        assert (levels < 1).any(dim=1).all()
        assert levels[1, -1] == 1  # where a frame is left between, the last one is given too
