"""The ``roadreel`` command. Each subcommand is one function that imports what it needs, so that ``--help`` is instant."""

from __future__ import annotations

import argparse
import errno
import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dwm.errors import InputError

if TYPE_CHECKING:
    from evaluators.mmdet3d import Mmdet3dDetector
    from evaluators.network_file import NetworkFile

# What the operating system says of a path that a user gave and a run cannot use.
_REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.ENAMETOOLONG)
Command = Callable[[argparse.Namespace], int]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one subcommand and returns its exit code: 0 done, 2 bad input, 3 shards quarantined, 75 resume later."""
    arguments = build_parser().parse_args(argv)
    level = logging.INFO if arguments.verbose else logging.WARNING
    logging.basicConfig(level=level, format="%(levelname)s %(name)s: %(message)s")
    try:
        code = arguments.run(arguments)
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # whoever reads the output has seen enough, e.g. `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141  # as a process that SIGPIPE ends
    except InputError as error:
        print(f"roadreel: error: {_one_line(str(error))}", file=sys.stderr)
        return 2
    except OSError as error:
        if error.errno not in _REFUSED:
            raise
        print(f"roadreel: error: {error.filename}: {error.strerror}; choose a path you may read and write", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("roadreel: interrupted; the same command resumes", file=sys.stderr)
        return 130


def build_parser() -> argparse.ArgumentParser:
    """The parser with every subcommand registered."""
    parser = argparse.ArgumentParser(prog="roadreel", description="New, labelled, scored driving video from logged scenes.")
    parser.add_argument("-v", "--verbose", action="store_true", help="log every state change to stderr")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for register in (
        _add_world, _add_train, _add_generate, _add_plan, _add_on_dataset, _add_quality, _add_detect, _add_bench, _add_later,
    ):  # fmt: skip
        register(commands)
    return parser


def _add(commands: argparse._SubParsersAction, name: str, text: str, run: Command) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=text, description=text)
    parser.set_defaults(run=run)
    return parser


def _add_config(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", type=Path, metavar="CONF", help="YAML file, e.g. conf/demo.yaml")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="fields to change, e.g. execution.workers=2")


def _add_world(commands: argparse._SubParsersAction) -> None:
    world = commands.add_parser("world", help="the proving ground: a procedural nuScenes dataset")
    actions = world.add_subparsers(metavar="ACTION", required=True)
    build = _add(actions, "build", "write a nuScenes dataroot of the proving ground", _world_build)
    build.add_argument("--out", type=Path, required=True, help="new folder")
    build.add_argument("--scenes", type=int, default=2, help="number of scenes (default 2)")
    build.add_argument("--seed", type=int, default=0)
    build.add_argument("--duration", type=float, default=20.0, metavar="SECONDS", help="length of a scene (default 20)")
    build.add_argument("--version", default="v1.0-mini", help="table folder (default v1.0-mini)")
    build.add_argument("--device", default="cpu", help="torch device that renders (default cpu)")


def _world_build(arguments: argparse.Namespace) -> int:
    if arguments.scenes < 1:
        raise InputError("--scenes", f"{arguments.scenes} scenes", "give 1 or more")
    if not arguments.duration > 0:
        raise InputError("--duration", f"{arguments.duration} seconds", "give a positive length")
    from dwm.scenes.proving_ground.build import build_world

    build_world(
        arguments.out, arguments.scenes, arguments.seed, duration_s=arguments.duration, version=arguments.version,
        device=arguments.device,
    )  # fmt: skip
    print(arguments.out)
    return 0


def _add_train(commands: argparse._SubParsersAction) -> None:
    text = (
        "work on a training target or a recipe of several: data (drives, clips, log_clips, replay) or weights "
        "(codec, things, world_model, distillation, detector, vad, ego_motion); the same command resumes"
    )
    parser = _add(commands, "train", text, _train)
    _add_config(parser)
    parser.add_argument("--device", help="torch device, e.g. cuda (default: as configured)")


def _train(arguments: argparse.Namespace) -> int:
    from pipelines.training import run_training

    overrides = list(arguments.overrides)
    if arguments.device:
        overrides.append(f"loop.device={arguments.device}")
    print(run_training(arguments.config, overrides))
    return 0


def _add_generate(commands: argparse._SubParsersAction) -> None:
    _add_config(_add(commands, "generate", "plan, roll out, score, gate, publish and report; resumes", _generate))


def _generate(arguments: argparse.Namespace) -> int:
    from dwm.config import load_config
    from pipelines.config import RunConfig
    from pipelines.generate import generate

    config = load_config(RunConfig, arguments.config, arguments.overrides)
    result = generate(config)
    summary = result.summary
    print(
        f"{result.planned} shards: {summary.committed} committed now ({summary.rejected} rejected scenarios), "
        f"{summary.quarantined} quarantined now, {summary.remaining} left"
    )
    for shard_id, cause in result.quarantined.items():
        print(f"roadreel: error: shard {shard_id} is quarantined: {_one_line(cause)}", file=sys.stderr)
    if result.quarantined:
        # With its counted failures a shard would be quarantined again at the next one.
        where = Path(config.out)
        fix = f"mend the cause, delete their entries in {where / 'quarantine'} and {where / 'attempts'}, then run again"
        print(f"roadreel: {len(result.quarantined)} shards are quarantined; {fix}", file=sys.stderr)
    if result.report is not None:
        print(f"version: {result.version}\nreport:  {result.report}")
    return result.exit_code


def _add_plan(commands: argparse._SubParsersAction) -> None:
    text = "show what a configuration would generate, from what, and at what cost; writes nothing"
    parser = _add(commands, "plan", text, _plan)
    _add_config(parser)
    parser.add_argument("--json", action="store_true", help="one JSON object with everything")
    parser.add_argument("--no-tags", action="store_true", help="without a mix: do not read the log's tables for its tags")
    parser.add_argument(
        "--gpu", action="store_true", help="also memory and time of the world model on GPUs; a training file always"
    )
    parser.add_argument("--processes", type=int, default=1, help="training: GPUs that share the work")
    parser.add_argument("--frames", type=int, help="training: frames of a clip; default: the configuration's")
    parser.add_argument(
        "--size", default="", metavar="HEIGHTxWIDTH", help="training: size of an image [px]; default: the model's"
    )


def _plan(arguments: argparse.Namespace) -> int:
    import json

    from dwm.config import load_config
    from pipelines.config import RunConfig
    from pipelines.generate import plan_run
    from pipelines.plan_view import PlanView
    from pipelines.training import is_training, load_training

    if is_training(arguments.config):
        from pipelines.gpu_costs import clip_of, frames_of, training_costs

        training = load_training(arguments.config, arguments.overrides)
        height, width = training.world.model.image_hw
        frames = frames_of(training) if arguments.frames is None else arguments.frames
        clip = clip_of(frames, arguments.size or f"{height}x{width}", training.loop.batch_size)
        print(training_costs(training, clip, arguments.processes))
        return 0
    config = load_config(RunConfig, arguments.config, arguments.overrides)
    plan = plan_run(config)
    view = PlanView(config, plan, tags=not arguments.no_tags)
    print(json.dumps(view.json(), indent=1, allow_nan=False) if arguments.json else view.text())
    if arguments.gpu and not arguments.json:
        from pipelines.gpu_costs import rollout_costs

        print(f"\n{rollout_costs(config, [shard.n_frames for shard in plan.shards])}")
    return 0


def _add_on_dataset(commands: argparse._SubParsersAction) -> None:
    report = _add(commands, "report", "write the validation report of a dataset", _report)
    validate = _add(commands, "validate", "check a dataset's files, tables and videos", _validate)
    validate.add_argument("--level", type=int, default=1, help="0 files, 1 tables (default), 2 every byte and sample frames")
    score = _add(commands, "score", "what VAD finds in a dataset's videos, beside true video: MiLA's table 7, planning", _score)
    score.add_argument(
        "--vad",
        type=Path,
        default=Path("weights/proving_ground_vad.safetensors"),
        help="weights, own or public",
    )
    score.add_argument("--size", default="vad_tiny", help="network of a public checkpoint: vad_tiny (default) or vad_base")
    score.add_argument("--mmdet3d", type=Path, metavar="CONFIG", help="mAP and NDS of a network of mmdet3d instead")
    score.add_argument("--checkpoint", type=Path, help="weights of that network; without, they are random")
    score.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a field of its config to change")
    score.add_argument("--scale", type=float, default=1.0, help="of the log's images that it sees (default 1)")
    score.add_argument("--skip-missing", action="store_true", help="leave out key frames of the log whose images are missing")
    score.add_argument("--rejected", action="store_true", help="score clips that the gate rejected too")
    score.add_argument("--dataroot", type=Path, help="where the source scenes lie: score the log's own images too")
    score.add_argument("--device", default="cpu", help="torch device (default cpu)")
    for parser in (report, validate, score):
        parser.add_argument("dataset", type=Path, metavar="DATASET", help="dataset root or version folder")


def _report(arguments: argparse.Namespace) -> int:
    from pipelines.dataset import Dataset
    from pipelines.report.build import write_report

    print(write_report(Dataset.open(arguments.dataset).folder))
    return 0


def _validate(arguments: argparse.Namespace) -> int:
    from pipelines.validate import validate

    findings = validate(arguments.dataset, arguments.level)
    for finding in findings:
        print(finding)
    print(f"{len(findings)} findings at level {arguments.level}")
    return 1 if findings else 0


def _score(arguments: argparse.Namespace) -> int:
    which = {"rejected": arguments.rejected, "dataroot": arguments.dataroot}
    if arguments.mmdet3d is not None:
        from pipelines.detection_scoring import score_detections

        detector = _mmdet3d(arguments.mmdet3d, arguments)
        print(
            score_detections(arguments.dataset, detector, scale=arguments.scale, skip_missing=arguments.skip_missing, **which)
        )
        return 0
    from pipelines.scoring import score_version

    print(score_version(arguments.dataset, arguments.vad, arguments.size, device=arguments.device, **which))
    return 0


def _add_quality(commands: argparse._SubParsersAction) -> None:
    text = "Frechet distances between a dataset's generated and true video: FID-pg, FVD-pg, and FID and FVD by given networks"
    parser = _add(commands, "quality", text, _quality)
    parser.add_argument("dataset", type=Path, metavar="DATASET", help="dataset root or version folder")
    for name, file, metric in (("inception", "inception-2015-12-05.pt", "FID"), ("i3d", "i3d_torchscript.pt", "FVD")):
        parser.add_argument(f"--{name}", type=Path, metavar="FILE", help=f"{file}: {metric} too")
        parser.add_argument(f"--{name}-sha256", metavar="HEX", help="what that file must be")
        parser.add_argument(f"--{name}-url", metavar="URL", help="from where to download it if it is missing; needs the sha256")
    parser.add_argument("--resize", choices=("anisotropic", "centre_crop"), default="anisotropic", help="of FVD's images")
    parser.add_argument("--views", choices=("all", "front"), default="all", help="cameras, each a sample (default all)")
    parser.add_argument("--given-frames", action="store_true", help="count the frames that the log gave")
    weights = Path("weights/proving_ground_detector.safetensors")
    parser.add_argument("--detector", type=Path, default=weights, metavar="FILE", help="weights behind FID-pg and FVD-pg")
    parser.add_argument("--rejected", action="store_true", help="take clips that the gate rejected too")
    parser.add_argument("--resamples", type=int, default=200, help="bootstrap draws of an interval (default 200)")
    parser.add_argument("--device", default="cpu", help="torch device (default cpu)")


def _quality(arguments: argparse.Namespace) -> int:
    if arguments.resamples < 1:
        raise InputError("--resamples", f"{arguments.resamples} bootstrap draws", "give 1 or more")
    from pipelines.quality import score_quality

    table = score_quality(
        arguments.dataset, arguments.detector, inception=_network_file(arguments, "inception"),
        i3d=_network_file(arguments, "i3d"), resize=arguments.resize, views=arguments.views,
        count_given_frames=arguments.given_frames, rejected=arguments.rejected, resamples=arguments.resamples,
        device=arguments.device,
    )  # fmt: skip
    print(table)
    return 0


def _network_file(arguments: argparse.Namespace, name: str) -> NetworkFile | None:
    from evaluators.network_file import NetworkFile

    path, sha256, url = (getattr(arguments, f"{name}{part}") for part in ("", "_sha256", "_url"))
    if path is None and (sha256 or url):
        raise InputError(f"--{name}", "a sha256 or url without a file", f"give --{name} FILE, where it lies or is to lie")
    return None if path is None else NetworkFile(path=str(path), sha256=sha256, url=url)


def _add_detect(commands: argparse._SubParsersAction) -> None:
    parser = _add(commands, "detect", "a nuScenes detection submission of logged images, by a network of mmdet3d", _detect)
    parser.add_argument("dataroot", type=Path, metavar="DATAROOT", help="nuScenes, or a data set in its format")
    parser.add_argument("--config", type=Path, required=True, help="a config of mmdet3d (FCOS3D, PGD). It is Python, and runs")
    parser.add_argument("--checkpoint", type=Path, help="its weights; without, they are random")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a field of the config to change")
    parser.add_argument("--version", default="v1.0-mini")
    parser.add_argument("--scenes", nargs="*", default=[], help="names; default: all")
    parser.add_argument("--scale", type=float, default=1.0, help="of the images that the network sees (default 1)")
    parser.add_argument("--skip-missing", action="store_true", help="list key frames whose images are missing without boxes")
    parser.add_argument("--device", default="cpu", help="torch device (default cpu)")
    parser.add_argument("--out", type=Path, required=True, help="the submission, a JSON file")


def _mmdet3d(config: Path, arguments: argparse.Namespace) -> Mmdet3dDetector:
    from evaluators.mmdet3d import Mmdet3dDetector
    from pipelines.detecting import options_of

    return Mmdet3dDetector(config, arguments.checkpoint, arguments.device, options_of(arguments.set))


def _detect(arguments: argparse.Namespace) -> int:
    from pipelines.detecting import detect_logs

    detector = _mmdet3d(arguments.config, arguments)
    where = (arguments.dataroot, arguments.version, arguments.scenes)
    print(detect_logs(*where, detector, arguments.out, scale=arguments.scale, skip_missing=arguments.skip_missing))
    return 0


def _add_bench(commands: argparse._SubParsersAction) -> None:
    from pipelines.bench import BENCHES

    parser = _add(commands, "bench", "print the table of a reproducible benchmark", _bench)
    parser.add_argument("name", choices=tuple(BENCHES))
    anywhere = "detector, vad, labels, scenarios, degenerate, traffic, scenario_cost: any dataroot in nuScenes format"
    world = f"a proving-ground world of held-out towns; {anywhere}"
    parser.add_argument("--dataroot", type=Path, required=True, help=world)
    parser.add_argument("--version", default="v1.0-mini")
    parser.add_argument("--split", default="pg_all", help="detector, vad: split to score")
    parser.add_argument("--codec", type=Path, default=Path("weights/proving_ground_codec.safetensors"))
    parser.add_argument("--world-model", type=Path, default=Path("weights/proving_ground_world.safetensors"))
    parser.add_argument("--things", type=Path, default=Path("weights/proving_ground_things.safetensors"))
    parser.add_argument("--detector", type=Path, default=Path("weights/proving_ground_detector.safetensors"))
    parser.add_argument("--vad", type=Path, default=Path("weights/proving_ground_vad.safetensors"))
    parser.add_argument(
        "--size", default="vad_tiny", help="vad: network of a public checkpoint, vad_tiny (default) or vad_base"
    )
    parser.add_argument("--ego-motion", type=Path, default=Path("weights/proving_ground_ego_motion.safetensors"))
    parser.add_argument(
        "--cases", type=int, default=12, help="starting moments; scenarios: tries of a family; scenario_cost: scenes"
    )
    parser.add_argument("--steps", type=int, default=1, help="denoising steps of roll-outs")
    parser.add_argument(
        "--duration", type=float, metavar="SECONDS", help="clip length (default: memory 10, ego_motion and gate 6, others 60)"
    )
    parser.add_argument("--contrast", type=float, default=10.5, metavar="SECONDS", help="layout: clip length without layout")
    parser.add_argument("--seeds", type=int, default=3, help="traffic: continuations of each scene")
    parser.add_argument("--systems", type=Path, default=Path("conf/bench/systems.yaml"), help="systems: what is compared")
    parser.add_argument(
        "--out", type=Path, help="scenarios, traffic: where to draw the figure (PNG); systems: folder of what is done"
    )
    parser.add_argument("--processes", type=int, default=1, help="systems: clips made at a time, each on one thread")


def _bench(arguments: argparse.Namespace) -> int:
    from pipelines import bench

    print(bench.run(arguments.name, arguments))
    return 0


# Named in the design; each leaves this list when its module arrives.
_LATER = {
    "export": "convert a dataset to another format",
    "study": "the equal-budget augmentation study",
}


def _add_later(commands: argparse._SubParsersAction) -> None:
    for name, text in _LATER.items():
        parser = _add(commands, name, f"{text} (not part of this version)", _not_yet)
        parser.set_defaults(command=name)
        parser.add_argument("rest", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)


def _not_yet(arguments: argparse.Namespace) -> int:
    raise InputError(f"roadreel {arguments.command}", "not part of this version", "see `roadreel --help` for what is")


def _one_line(text: str) -> str:
    return " ".join(text.split())


if __name__ == "__main__":
    sys.exit(main())
