"""What the numbers of the systems bench look like: the first starting moment in every variant, beside the truth."""

from __future__ import annotations

from pathlib import Path

from evaluators.buckets import BUCKET_S
from pipelines.bench.systems_run import Run

_INCHES = (1.75, 1.0)  # of an image, width and height
_NAMES_INCHES = 2.6


def draw_fronts(runs: dict[str, list[Run]], out: Path) -> None:
    """The front camera's last image of every bucket as PNG; a row for each of ``runs``, empty where a variant ends earlier."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    shown = [(name, made[0].buckets) for name, made in runs.items()]
    columns = max(len(buckets) for _, buckets in shown)
    size = (_NAMES_INCHES + _INCHES[0] * columns, _INCHES[1] * len(shown) + 0.2)
    figure, axes = plt.subplots(len(shown), columns, figsize=size, squeeze=False, layout="constrained")
    for row, (name, buckets) in zip(axes, shown, strict=True):
        for axis in row:
            axis.set_axis_off()
        for axis, bucket in zip(row, buckets, strict=False):
            axis.imshow(bucket.front_HW3)
        row[0].text(-0.05, 0.5, name, transform=row[0].transAxes, ha="right", va="center", fontsize=8)
    for b, axis in enumerate(axes[0]):
        axis.set_title(f"{(b + 1) * BUCKET_S:g} s", fontsize=9)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=130)
    plt.close(figure)
