"""Networks' files: taken where they lie, downloaded once with their sha256, never otherwise."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from dwm.errors import InputError
from evaluators.network_file import NetworkFile, obtained

BODY = b"a network" * 1000
SHA256 = hashlib.sha256(BODY).hexdigest()


class Site(BaseHTTPRequestHandler):
    """``/network`` is the file, ``/short`` ends early, ``/moved`` and ``/inside`` lead elsewhere."""

    asked: list[str] = []  # noqa: RUF012

    def do_GET(self) -> None:
        self.asked.append(self.path)
        moved = {"/moved": "/network", "/inside": "file:///etc/hostname", "/ftp": "ftp://localhost/network"}
        if self.path in moved:
            self.send_response(302)
            self.send_header("Location", moved[self.path])
            self.end_headers()
            return
        if self.path not in ("/network", "/short"):
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(BODY)))
        self.end_headers()
        self.wfile.write(BODY if self.path == "/network" else BODY[:100])

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("no_proxy", "*")
    Site.asked.clear()
    with ThreadingHTTPServer(("127.0.0.1", 0), Site) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_a_missing_file_is_downloaded_once_and_checked(site: str, tmp_path: Path) -> None:
    path = tmp_path / "new" / "network.pt"
    file = NetworkFile(path=str(path), sha256=SHA256.upper(), url=f"{site}/moved")
    assert obtained(file) == SHA256 and path.read_bytes() == BODY
    assert obtained(file) == SHA256
    assert Site.asked == ["/moved", "/network"] and list(path.parent.iterdir()) == [path]


def test_a_file_that_is_there_is_never_downloaded_even_if_it_is_another(site: str, tmp_path: Path) -> None:
    path = tmp_path / "network.pt"
    path.write_bytes(b"own")
    assert obtained(NetworkFile(path=str(path), url=f"{site}/network")) == hashlib.sha256(b"own").hexdigest()
    with pytest.raises(InputError, match=f"expected {SHA256}"):
        obtained(NetworkFile(path=str(path), sha256=SHA256, url=f"{site}/network"))
    assert path.read_bytes() == b"own" and Site.asked == []


@pytest.mark.parametrize(
    ("page", "sha256", "message"),
    [
        ("/network", "00" * 32, f"sha256 {SHA256}, expected 00"),
        ("/short", SHA256, f"expected {SHA256}"),
        ("/nothing", SHA256, "cannot be downloaded .*404"),
        ("/inside", SHA256, "cannot be downloaded"),
        ("/ftp", SHA256, "cannot be downloaded"),
        ("/network", None, "a download without its sha256"),
    ],
)
def test_what_is_not_the_file_leaves_nothing_behind(
    site: str, tmp_path: Path, page: str, sha256: str | None, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        obtained(NetworkFile(path=str(tmp_path / "network.pt"), sha256=sha256, url=site + page))
    assert list(tmp_path.iterdir()) == []
    assert Site.asked == ([] if sha256 is None else [page])


def test_only_the_web_is_asked_and_only_with_a_url(tmp_path: Path) -> None:
    there = tmp_path / "there.pt"
    there.write_bytes(BODY)
    for url in (there.as_uri(), str(there), "ftp://localhost/network.pt", "data:,x"):
        with pytest.raises(InputError, match="no http or https address"):
            obtained(NetworkFile(path=str(tmp_path / "network.pt"), sha256=SHA256, url=url))
    with pytest.raises(InputError, match="no such network file"):
        obtained(NetworkFile(path=str(tmp_path / "network.pt"), sha256=SHA256))
    with pytest.raises(InputError, match="cannot be downloaded"):
        obtained(NetworkFile(path=str(tmp_path / "network.pt"), sha256=SHA256, url="http://127.0.0.1:1/network.pt"))
    assert list(tmp_path.iterdir()) == [there]
