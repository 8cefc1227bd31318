"""A public network's file on disk, fetched once from where the user says, and only with the sha256 that it must have."""

from __future__ import annotations

import http.client
import os
import shutil
import urllib.request
import uuid
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from tqdm import tqdm

from dwm.errors import InputError
from dwm.models.weights import weights_sha256

_TIMEOUT_S = 60.0  # without a byte


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkFile:
    """Where a network lies, or is to lie."""

    path: str
    sha256: str | None = None  # as it must be; None takes any file that is there and reports what it is
    url: str | None = None  # http or https; asked only where the file is missing, and never without ``sha256``


def obtained(file: NetworkFile) -> str:
    """The file's sha256, once it is there: downloaded where it is missing and has a url.

    Raises InputError where it is missing without a url, for a url without sha256 or of another scheme, for a download that
    fails, and for another sha256 than asked for. A download that is not what it must be leaves no file behind.
    """
    path = Path(file.path)
    if not path.is_file():
        if file.url is None:
            raise InputError(path, "no such network file", "download it yourself and give its path, or give its url and sha256")
        _download(path, file.url, file.sha256)
    return _checked(path, path, file.sha256)


def _checked(where: str | Path, path: Path, expected: str | None) -> str:
    found = weights_sha256(path)
    if expected is not None and found != expected.lower():
        fix = "give the file that the figures are to be compared with"
        raise InputError(where, f"sha256 {found}, expected {expected}", fix)
    return found


def _download(path: Path, url: str, sha256: str | None) -> None:
    """Puts the file into place as a whole, after its sha256 was checked."""
    if sha256 is None:
        raise InputError(url, "a download without its sha256", "give the sha256 that the file must have")
    if urlsplit(url).scheme.lower() not in ("http", "https"):
        raise InputError(url, "no http or https address", "download the file yourself and give its path")
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _web().open(url, timeout=_TIMEOUT_S) as response, temporary.open("xb") as out:
            size = int(response.headers.get("Content-Length") or 0) or None
            read = tqdm.wrapattr(response, "read", total=size, desc=path.name, disable=None)
            with read as body:
                shutil.copyfileobj(body, out)
        _checked(url, temporary, sha256)
        os.replace(temporary, path)
    except (OSError, http.client.HTTPException) as error:
        fix = "check the address and the connection, or download the file yourself and give its path"
        raise InputError(url, f"cannot be downloaded to {path} ({error})", fix) from error
    finally:
        temporary.unlink(missing_ok=True)


def _web() -> urllib.request.OpenerDirector:
    """Opens http and https alone, so that no redirection leads to files or ftp."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler, urllib.request.HTTPHandler, urllib.request.HTTPSHandler, urllib.request.UnknownHandler,
        urllib.request.HTTPDefaultErrorHandler, urllib.request.HTTPRedirectHandler, urllib.request.HTTPErrorProcessor,
    ):  # fmt: skip
        opener.add_handler(handler())
    return opener
