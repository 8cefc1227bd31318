"""Any monocular 3D detector of mmdet3d 1.4 (FCOS3D, PGD): config and checkpoint in, boxes of six cameras out.

Needs `make mmdet3d`. **A config of mmdet3d is Python and runs when it is read: give only those you trust.** A checkpoint is
read as tensors and plain values, nothing in it runs.

Six views go through the network as one batch. Their boxes meet in the ego frame, where those that overlap across cameras are thinned out
class by class, with mmdet3d's own limits for nuScenes (``NuScenesMetric._format_camera_bbox``).
"""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dwm.errors import InputError
from dwm.extras import optional_package
from dwm.geometry import apply
from dwm.models.weights import fit_tensors
from dwm.scenes.types import DETECTION_CLASSES
from evaluators.boxes import Boxes, attribute_index, boxes_from

Array = NDArray[np.float64]
EXTRA, INSTALL = "mmdet3d", "make mmdet3d"  # pip alone builds mmcv apart from torch, and then without its operators
# pip takes an mmcv that is there, or that it has built once, for the one it is asked for.
INSTALL_AGAIN = f"pip uninstall mmcv; pip cache remove mmcv; {INSTALL}"
# What the attribute head of mmdet3d's nuScenes models says, by index; the last is none.
ATTRIBUTES = (
    "cycle.with_rider", "cycle.without_rider", "pedestrian.moving", "pedestrian.standing", "pedestrian.sitting_lying_down",
    "vehicle.moving", "vehicle.parked", "vehicle.stopped", "",
)  # fmt: skip
OVERLAP, MIN_SCORE, MAX_BOXES = 0.05, 0.01, 500
_LOADERS = ("LoadImageFromFileMono3D",)


class Mmdet3dDetector:
    """A network of mmdet3d with the pipeline of its config."""

    def __init__(
        self, config: Path, checkpoint: Path | None = None, device: str = "cpu", options: dict[str, Any] | None = None
    ) -> None:
        """Without a checkpoint the weights are random; ``options`` change the config, e.g. ``{"model.test_cfg.score_thr": 0.1}``.

        Raises InputError where the packages are missing, a file is missing or broken, or the model is not monocular.
        """
        for package in ("mmdet3d", "mmdet", "mmcv", "mmengine"):
            optional_package(package, EXTRA, INSTALL)
        optional_package("mmcv.ops", EXTRA, INSTALL_AGAIN)
        from mmdet3d.registry import MODELS
        from mmdet3d.structures import get_box_type
        from mmdet3d.utils import register_all_modules
        from mmengine.config import Config
        from mmengine.dataset import Compose

        if not config.is_file():
            raise InputError(config, "no such mmdet3d config", "give one of its configs, e.g. configs/fcos3d/...nus-mono3d.py")
        register_all_modules(init_default_scope=True)
        self.config = Config.fromfile(config)
        if options:
            self.config.merge_from_dict(options)
        pipeline = deepcopy(self.config.test_dataloader.dataset.pipeline)
        if pipeline[0]["type"] not in _LOADERS:
            problem = f"its pipeline starts with {pipeline[0]['type']}"
            raise InputError(config, problem, "give a monocular model (FCOS3D, PGD): one image at a time")
        self._pipeline = Compose(pipeline[1:])  # images are at hand, not in files
        self._box_type, self._box_mode = get_box_type(self.config.test_dataloader.dataset.box_type_3d)
        self.classes: tuple[str, ...] = tuple(self.config.class_names)
        unknown = sorted(set(self.classes) - set(DETECTION_CLASSES))
        if unknown:
            raise InputError(config, f"class '{unknown[0]}' is none of nuScenes'", "give a model of nuScenes")
        self.config.model.train_cfg = None
        self.config.model.backbone.pop("init_cfg", None)  # nothing is downloaded
        self.model = MODELS.build(self.config.model)
        if checkpoint is not None:
            _load(self.model, checkpoint)
        self.model.to(device).eval()

    @torch.inference_mode()
    def detect(self, images: Sequence[NDArray[np.uint8]], intrinsics: Array, camera_to_ego: Array) -> Boxes:
        """Boxes in the ego frame from RGB images [H, W, 3] of cameras [V, 3, 3], [V, 4, 4]; best first."""
        from mmengine.dataset import pseudo_collate

        batch = [self._pipeline(self._sample(image, k)) for image, k in zip(images, intrinsics, strict=True)]
        found = self.model.test_step(pseudo_collate(batch))
        parts = [self._boxes(sample.pred_instances_3d, pose) for sample, pose in zip(found, camera_to_ego, strict=True)]
        names = Boxes.__dataclass_fields__
        return _thinned(Boxes(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in names}))

    def _sample(self, image: NDArray[np.uint8], intrinsics: Array) -> dict[str, Any]:
        """What mmdet3d's loader would have made of a file."""
        return {
            "img": np.ascontiguousarray(image[..., ::-1]), "img_shape": image.shape[:2], "ori_shape": image.shape[:2],
            "cam2img": intrinsics.tolist(), "box_type_3d": self._box_type, "box_mode_3d": self._box_mode,
        }  # fmt: skip

    def _boxes(self, found: Any, camera_to_ego: Array) -> Boxes:
        """Camera boxes (x right, y down, z ahead; length along x at yaw 0, turned about y) in the ego frame."""
        boxes = found.bboxes_3d
        code = boxes.tensor.double().cpu().numpy()
        centers = apply(camera_to_ego, boxes.gravity_center.double().cpu().numpy())
        length, height, width, yaw = code[:, 3], code[:, 4], code[:, 5], code[:, 6]
        heading = np.stack([np.cos(yaw), np.zeros_like(yaw), -np.sin(yaw)], axis=-1) @ camera_to_ego[:3, :3].T
        still = np.zeros_like(yaw)
        speed = np.stack([code[:, 7], still, code[:, 8]], axis=-1) if code.shape[1] > 8 else np.full((len(code), 3), np.nan)
        attributes = found.attr_labels.cpu().numpy() if "attr_labels" in found else np.full(len(code), len(ATTRIBUTES) - 1)
        return boxes_from(
            np.array([DETECTION_CLASSES.index(self.classes[k]) for k in found.labels_3d.tolist()], np.int64), centers,
            np.column_stack([width, length, height]), np.arctan2(heading[:, 1], heading[:, 0]),
            velocities_mps=(speed @ camera_to_ego[:3, :3].T)[:, :2],
            attributes=np.array([attribute_index(ATTRIBUTES[k]) for k in attributes], np.int64),
            scores=found.scores_3d.double().cpu().numpy(),
        )  # fmt: skip


def _load(model: torch.nn.Module, checkpoint: Path) -> None:
    if not checkpoint.is_file():
        raise InputError(checkpoint, "no such checkpoint", "download it from mmdet3d's model zoo")
    try:
        content = torch.load(checkpoint, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        problem = f"not a readable checkpoint ({str(error).splitlines()[0]})"
        raise InputError(
            checkpoint, problem, "download it again; one with more than tensors and plain values is not read"
        ) from error
    fit_tensors(model, content.get("state_dict", content) if isinstance(content, dict) else {}, checkpoint)


def _thinned(boxes: Boxes) -> Boxes:
    """The best of boxes that overlap from above, class by class."""
    from mmcv.ops import nms_rotated

    boxes = boxes.select(boxes.scores >= MIN_SCORE)
    if not len(boxes):
        return boxes
    plan = np.column_stack([boxes.centers_m[:, :2], boxes.sizes_wlh_m[:, [1, 0]], boxes.yaws_rad])
    kept = []
    for label in np.unique(boxes.labels):  # on a CPU mmcv does not look at labels
        rows = np.flatnonzero(boxes.labels == label)
        flat, scores = (torch.from_numpy(part[rows]).float() for part in (plan, boxes.scores))
        kept.append(rows[nms_rotated(flat, scores, OVERLAP)[1].numpy()])
    best = np.concatenate(kept)
    return boxes.select(best[np.argsort(-boxes.scores[best], kind="stable")][:MAX_BOXES])
