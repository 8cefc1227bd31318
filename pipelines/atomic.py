"""Files that are either whole or absent: the primitives under the ledger and the publisher."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dwm.errors import InputError


class DiskFullError(InputError):
    """No space left. It stops a run; trying another shard would not help."""

    def __reduce__(self) -> tuple[type[InputError], tuple[str, str, str]]:
        return (DiskFullError, (self.where, self.problem, self.fix))


@contextmanager
def naming_full_disk(folder: Path) -> Iterator[None]:
    """Turns "no space left" inside the block into a DiskFullError that names ``folder``."""
    try:
        yield
    except OSError as error:
        # Arrow raises OSError with the reason only in its text.
        full = error.errno in (errno.ENOSPC, errno.EDQUOT) or "No space left on device" in str(error)
        if not full:
            raise
        fix = "free space or choose another out folder, then run the same command again"
        raise DiskFullError(folder, "no space left", fix) from error


def canonical_json(value: Any) -> bytes:
    """The one JSON text of a value: sorted keys, no spaces, no NaN. What identities are hashed from."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=True).encode()


def readable_json(value: Any) -> bytes:
    """JSON for files that people open."""
    return (json.dumps(value, sort_keys=True, indent=1, allow_nan=False) + "\n").encode()


def read_json(path: Path) -> Any:
    """The parsed file; InputError when it is not JSON."""
    try:
        return json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(path, f"not valid JSON ({error})", "restore the file, or choose another out folder") from error


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def write_atomic(path: Path, data: bytes) -> None:
    """Replaces a file as a whole; the last writer wins."""
    temporary = _written_beside(path, data)
    try:
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    fsync_folder(path.parent)


def create_if_absent(path: Path, data: bytes) -> bool:
    """Creates a file as a whole unless it exists; True when the stored content is ``data``.

    A hard link is atomic on local disks, NFS and Lustre. The answer comes from reading the file back, because a network
    file system may report failure for a link that was made. ``data`` should name its writer to tell racing writers apart.
    """
    temporary = _written_beside(path, data)
    try:
        os.link(temporary, path)
    except FileExistsError:
        pass
    except OSError as error:
        if error.errno in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS):
            fix = "put the out folder on a POSIX file system"
            raise InputError(path.parent, "this file system has no hard links", fix) from error
        raise
    finally:
        temporary.unlink(missing_ok=True)
    fsync_folder(path.parent)
    return path.read_bytes() == data


def fsync_file(path: Path) -> None:
    """Flushes a file's content to stable storage."""
    with path.open("rb") as stream:
        os.fsync(stream.fileno())


def fsync_folder(folder: Path) -> None:
    """Flushes a folder's entries; best effort, since some file systems refuse."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO):
            raise
    finally:
        os.close(descriptor)


def _written_beside(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".{path.name}.{uuid.uuid4().hex}.tmp"
    try:
        with temporary.open("xb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return temporary
