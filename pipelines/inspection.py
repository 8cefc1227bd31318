"""Re-opens a written file and counts what is in it: the check between writing and committing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dwm.errors import InputError


@dataclass(frozen=True, slots=True, kw_only=True)
class FileFacts:
    """What a file holds; None where the kind of file has no such thing."""

    n_rows: int | None = None
    n_frames: int | None = None


def inspect_file(path: Path) -> FileFacts:
    """Rows of a Parquet file, frames of an mp4 (its first and last frame are decoded). InputError when unreadable."""
    if path.suffix == ".parquet":
        return FileFacts(n_rows=_parquet_rows(path))
    if path.suffix == ".mp4":
        from pipelines.video import check_video

        return FileFacts(n_frames=check_video(path))
    return FileFacts()


def _parquet_rows(path: Path) -> int:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.read_metadata(path).num_rows
    except (OSError, pa.ArrowException) as error:
        raise InputError(path, f"unreadable Parquet file ({error})", "generate the shard again") from error
