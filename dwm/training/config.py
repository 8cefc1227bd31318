"""Settings of a training run; ``conf/train/*.yaml`` is merged over them."""

from __future__ import annotations

from dataclasses import dataclass, field

from dwm.codec.autoencoder import CodecConfig
from dwm.flow.rectified import NoiseConfig
from dwm.flow.schedule import ScheduleConfig
from dwm.models.dit import DiTConfig
from dwm.training.distillation import DistillationConfig
from dwm.training.faith import FaithConfig
from dwm.training.long_clips import KeyFrames
from dwm.training.wear import WearConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class LoopConfig:
    """The optimiser, its schedule, and how often things are written."""

    out: str = "out/training"  # folder of checkpoints, logs and weights; the same folder resumes
    device: str = "auto"  # "auto" is cuda where there is one, else cpu
    seed: int = 0
    steps: int = 10_000  # optimiser steps in all, over all resumptions
    max_minutes: float = 0.0  # training time in all, over all resumptions; 0 is no limit
    batch_size: int = 1  # samples of one forward pass
    accumulate: int = 1  # forward passes per optimiser step
    learning_rate: float = 3e-4
    warmup_steps: int = 200
    decay_fraction: float = 0.2  # the last part of the steps (or of the time) in which the rate falls to a tenth
    weight_decay: float = 0.01
    gradient_clip: float = 1.0  # largest gradient norm
    ema_decay: float = 0.999  # of the averaged weights, which are the ones exported
    shard: bool = False  # spread the model over the processes of ``torchrun`` (FSDP) instead of one copy each
    compile: bool = False  # torch.compile; worth it on a GPU
    # What forward passes multiply in: "bfloat16", "float32", or "auto", the first on a GPU and on a CPU with AMX.
    precision: str = "auto"
    loader_threads: int = 1  # batches prepared ahead, one per thread
    log_every: int = 20  # optimiser steps
    checkpoint_every: int = 500  # optimiser steps
    sample_every: int = 1_000  # optimiser steps between evaluations with an image strip; 0 is never


@dataclass(frozen=True, slots=True, kw_only=True)
class CodecTraining:
    """How the codec learns."""

    model: CodecConfig = field(default_factory=CodecConfig)
    gradient_weight: float = 0.5  # weight of the squared error of image gradients, next to the mean absolute error
    latent_noise: float = 0.1  # standard deviation of noise on training latents, so that near latents decode alike
    crop_height_px: int = 0  # train on crops of this size, faster; 0 is the whole image
    crop_width_px: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class WorldTraining:
    """How the world model learns."""

    model: DiTConfig = field(default_factory=DiTConfig)  # or the path of a file with its fields, e.g. in conf/model
    trainable: tuple[str, ...] = ()  # parameters that learn, as patterns of their names (*.temporal.*); empty: all
    noise: NoiseConfig = field(default_factory=NoiseConfig)
    wear: WearConfig = field(default_factory=WearConfig)
    faith: FaithConfig = field(default_factory=FaithConfig)
    shortcut_clips: int = 0  # clips that the linear shortcut is solved on before the first step; 0 leaves it to training
    adversary: float = 0.0  # strength of a critic's pull, as a share of the squared error's; 0 trains without one
    anchor_share: float = 0.25  # clips whose last frame is given too
    noisy_anchor_share: float = 0.0  # of the others, whose last frame is an anchor to be corrected (MiLA's third stage: 0.75)
    dirty_condition_share: float = 0.3  # clips whose given frames carry a little noise, like the model's own outputs
    dirty_condition_level: float = 0.85  # least level of those frames
    progressive_share: float = 0.15  # clips with earlier frames cleaner
    independent_share: float = 0.15  # clips with one level per frame
    drop_text: float = 0.15  # shares of clips that are not told ...
    drop_waypoints: float = 0.15
    drop_layout: float = 0.2
    drop_memory: float = 0.2
    drop_appearance: float = 0.2
    papers_inputs_share: float = 0.0  # clips that are told no layout, no memory and no appearance, as the papers' models
    mask_ratio: float = 0.25  # maskgwm: tokens of every row that are dropped; 0 drops none
    mask_time_share: float = 0.5  # maskgwm: clips whose frames drop different tokens (M_time, else M_spatial)
    most_given: int = 0  # leading frames given, drawn for each clip from 0 to this many (maskgwm: 3); 0 leaves it to the clip
    # What of a clip is learnt: all, its "coarse" key frames, a "dense" window between two of them, or a window at one of the "rates".
    cut: str = "whole"
    rates_hz: tuple[int, ...] = (12, 2, 1)  # of such windows, and
    window_frames: int = 16  # their frames
    key_frames: KeyFrames = field(default_factory=KeyFrames)  # of long clips
    distillation: DistillationConfig = field(default_factory=DistillationConfig)  # for the target "distillation"
    frames_per_clip: int = 0  # frames of a clip that a step looks at, the given ones among them; 0 is all
    held_out: int = 8  # the source's last clips, never trained on
    sample_steps: int = 4  # sampling steps of the image strips
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)  # of the image strips
    recompute_blocks: bool = False  # gradient checkpointing: a third more computing, a fraction of the memory
    codec_weights: str = ""  # codec, as in ClipsConfig, that turns samples into images; empty writes no strips


@dataclass(frozen=True, slots=True, kw_only=True)
class DrivesConfig:
    """Which drives to render."""

    out: str = "out/training/drives"
    device: str = "auto"
    first_town: int = 0  # town seeds first_town .. first_town + towns - 1
    towns: int = 12
    drives_per_town: int = 6
    frames_12hz: int = 24  # consecutive frames of each drive
    low_fps: tuple[int, ...] = (2, 1)  # and one stretch at each of these rates [Hz]
    low_fps_frames: int = 8  # of each such stretch


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipsConfig:
    """How drives become training clips."""

    drives: str = "out/training/drives"
    out: str = "out/training/clips"
    codec_weights: str = "weights/proving_ground_codec.safetensors"  # or diffusers:<folder or hub id>[#subfolder]
    text_encoder: str = ""  # folder or hub id of a T5; empty: the world model has words of its own
    device: str = "auto"
    window_frames: int = 8  # frames of a clip; a stretch of just as many is kept whole
    window_step: int = 4  # frames between the starts of consecutive 12 Hz windows
    log_share: float = (
        0.0  # drives whose clips remember a log of the street besides the last given frame; its filming needs a render
    )
    things: str = ""  # file of ``ThingsConfig.out``; empty: only what the first frame shows has a look
    processes: int = 1  # that share the towns; appearance is painted on the CPU, whatever the device


@dataclass(frozen=True, slots=True, kw_only=True)
class LogClipsConfig:
    """How logs become training clips."""

    dataroot: str = "data/nuscenes"  # nuScenes format: the real thing, or a proving ground
    version: str = "v1.0-trainval"
    names: tuple[str, ...] = ()  # scenes; empty: those of `split`
    split: str = "train"  # nuScenes split, or one of the dataroot's splits.json; empty with no names: every scene
    out: str = "out/training/log_clips"
    codec_weights: str = "diffusers:stabilityai/sd-vae-ft-ema"  # as in ClipsConfig
    text_encoder: str = ""  # as in ClipsConfig
    image_hw: tuple[int, int] = (360, 640)  # height and width that the logged images are resized to [px]
    rates: tuple[int, ...] = (12, 2, 1)  # of the clips' frames [Hz]
    given_rate: int = 12  # of the given frames among them [Hz]; 0: the clip's own
    window_frames: int = 16  # frames of a clip, the given ones among them
    given: tuple[int, ...] = (1, 4)  # leading frames that are given, by turns
    windows: int = 8  # of each scene and rate, at most
    things: str = ""  # as in ClipsConfig
    seed: int = 0  # draws where windows begin
    device: str = "auto"
    processes: int = 1  # that share the scenes


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayConfig:
    """How far the model drives itself, and where."""

    out: str = "out/training/clips"  # beside the clips of true drives
    codec_weights: str = "out/training/codec/weights.safetensors"
    world_weights: str = "out/training/world/weights.safetensors"
    text_encoder: str = ""  # as in ClipsConfig
    things: str = ""  # as in ClipsConfig
    device: str = "auto"
    first_town: int = 100
    towns: int = 12
    drives_per_town: int = 2
    windows: int = 8  # windows of one roll-out, each a clip
    duration_s: float = 20.0  # of a drive; a roll-out of that many windows must fit into it


@dataclass(frozen=True, slots=True, kw_only=True)
class ThingsConfig:
    """Which logs teach how things look."""

    dataroot: str = "out/training/things"  # nuScenes format, with LiDAR
    version: str = "v1.0-mini"
    world_scenes: int = 0  # of the proving ground, built at ``dataroot`` when it does not exist
    world_seed: int = 400
    world_duration_s: float = 6.0
    device: str = "auto"  # that renders the world
    out: str = "out/training/things.safetensors"
    examples: int = 8  # of each class
    trained_on: str = ""  # what the logs are, in words; stored with the file


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """One training run."""

    # "drives" (render), "codec", "clips" (encode them), "log_clips" (encode logs), "world_model", "distillation", "replay" (its own
    # windows) or "things"
    target: str = "world_model"
    data: str = "out/training/clips"  # folder: rendered drives for the codec, encoded clips for world models
    more_data: tuple[str, ...] = ()  # further folders of clips, each seen as often as `data`, whose last clips are held out
    initial_weights: str = ""  # safetensors to start from
    initial_shell: str = ""  # safetensors of another system, to start from everything that both have
    initial_open_sora: str = ""  # or those of Open-Sora 1.1 (STDiT2), for a model of conf/model/mila_700m.yaml's kind
    trained_on: str = ""  # what the data is, in words; stored with the weights
    drives: DrivesConfig = field(default_factory=DrivesConfig)
    clips: ClipsConfig = field(default_factory=ClipsConfig)
    log_clips: LogClipsConfig = field(default_factory=LogClipsConfig)
    replay: ReplayConfig = field(default_factory=ReplayConfig)
    things: ThingsConfig = field(default_factory=ThingsConfig)
    codec: CodecTraining = field(default_factory=CodecTraining)
    world: WorldTraining = field(default_factory=WorldTraining)
    loop: LoopConfig = field(default_factory=LoopConfig)
