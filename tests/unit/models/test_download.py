"""Weights by address, from a real server on this machine."""

import logging
import os
import socket
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch

from gda.errors import UserError
from gda.models import create_model, load_checkpoint
from gda.models.weights import download as module
from gda.models.weights.download import cache_folder, cached_file, fetch, is_url
from gda.models.weights.file_hash import file_hash

WEIGHTS = bytes(range(256)) * 20_000


class Handler(BaseHTTPRequestHandler):
    """Serves weights, and all that can go wrong with them."""

    requests: Counter[str]
    weights: bytes

    def do_GET(self) -> None:
        self.requests[self.path] += 1
        route = self.path.partition("?")[0].rpartition("/")[2]
        {
            "weights.pth": self.send_weights,
            "unsized.pth": self.send_unsized,
            "short.pth": self.send_short,
            "page.pth": self.send_page,
            "moved.pth": self.send_elsewhere,
            "silent.pth": self.send_nothing,
            "garbled.pth": self.send_garbage,
        }.get(route, lambda: self.send_error(404))()

    def start(self, length: int | None, kind: str = "application/octet-stream") -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        if length is not None:
            self.send_header("Content-Length", str(length))
        self.end_headers()

    def send_weights(self) -> None:
        self.start(len(self.weights))
        self.wfile.write(self.weights)

    def send_unsized(self) -> None:
        self.start(None)
        self.wfile.write(self.weights)

    def send_short(self) -> None:
        self.start(len(self.weights))
        self.wfile.write(self.weights[:1000])

    def send_page(self) -> None:
        page = b"\n<!DOCTYPE html>\n<html><body>Sign in</body></html>"
        self.start(len(page), "text/html")
        self.wfile.write(page)

    def send_elsewhere(self) -> None:
        self.send_response(302)
        self.send_header("Location", "/there/weights.pth")
        self.end_headers()

    def send_nothing(self) -> None:
        self.server.stop.wait(10)  # type: ignore[attr-defined]

    def send_garbage(self) -> None:
        self.wfile.write(b"\x00\x01\x02\r\n\r\n")

    def log_message(self, *arguments: object) -> None:
        """Keeps the tests' output clean."""


@pytest.fixture
def handler() -> type[Handler]:
    return type("Fresh", (Handler,), {"requests": Counter(), "weights": WEIGHTS})


@pytest.fixture
def server(handler: type[Handler], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as http:
        http.stop = threading.Event()  # type: ignore[attr-defined]
        thread = threading.Thread(target=http.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{http.server_port}"
        http.stop.set()  # type: ignore[attr-defined]
        http.shutdown()
        thread.join()


@pytest.fixture
def requests(handler: type[Handler]) -> Counter[str]:
    """Counts what the server was asked for."""
    return handler.requests


def refusal(url: str, sha256: str | None = None) -> str:
    """Returns why a file is refused, after checking that nothing is kept of it."""
    with pytest.raises(UserError) as error:
        fetch(url, sha256)
    assert cached_file(url) is None
    assert not list(cache_folder().glob("*")) + list(cache_folder().glob(".*"))
    return str(error.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("https://example.org/a.pth", True),
        ("HTTP://example.org/a.pth", True),
        ("file:///data/a.pth", True),
        ("/data/a.pth", False),
        ("mlflow:0123", False),
        ("s3://bucket/a.pth", False),
        ("C:/a.pth", False),
        ("", False),
    ],
)
def test_what_is_an_address(text: str, expected: bool) -> None:
    assert is_url(text) is expected


@pytest.mark.parametrize(
    "name", ["weights.pth", "unsized.pth", "moved.pth", "with%20space/weights.pth?raw=true"]
)
def test_a_file_is_fetched_once(name: str, server: str, requests: Counter[str], tmp_path: Path) -> None:
    url = f"{server}/{name}"
    assert cached_file(url) is None
    path = fetch(url)
    assert path.read_bytes() == WEIGHTS
    assert path.parent == cache_folder() == tmp_path / "torch" / "hub" / "checkpoints" / "gda"
    assert path.name.endswith(".pth")
    assert fetch(url) == cached_file(url) == path
    assert requests[f"/{name}"] == 1
    assert [each.name for each in cache_folder().iterdir()] == [path.name]


def test_two_addresses_are_two_files(server: str) -> None:
    assert fetch(f"{server}/a/weights.pth") != fetch(f"{server}/b/weights.pth")
    assert fetch(f"{server}/a/weights.pth?v=1") != fetch(f"{server}/a/weights.pth?v=2")


def test_the_size_and_the_time_are_told(
    server: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PROGRESS_EVERY", -1.0)
    with caplog.at_level(logging.INFO, "gda"):
        fetch(f"{server}/weights.pth?token=secret")
        fetch(f"{server}/unsized.pth")
    assert f"Fetching {server}/weights.pth (5.1 MB)" in caplog.messages
    assert "Fetched 5.1 MB of 5.1 MB" in caplog.messages
    assert f"Fetching {server}/unsized.pth (of unknown size)" in caplog.messages
    assert "secret" not in caplog.text


def test_processes_may_fetch_the_same_file_at_once(server: str) -> None:
    with ThreadPoolExecutor(4) as pool:
        paths = set(pool.map(fetch, [f"{server}/weights.pth"] * 8))
    (path,) = paths
    assert path.read_bytes() == WEIGHTS
    assert list(cache_folder().iterdir()) == [path]


def test_the_hash_is_verified_also_of_what_was_fetched_before(
    server: str, requests: Counter[str], tmp_path: Path
) -> None:
    (tmp_path / "same").write_bytes(WEIGHTS)
    right, wrong = file_hash(tmp_path / "same"), "0" * 64
    url = f"{server}/weights.pth"
    message = refusal(url, wrong)
    assert right in message
    assert wrong in message
    path = fetch(url, right)
    path.write_bytes(b"damaged since")
    assert cached_file(url) == path
    assert cached_file(url, right) is None
    assert fetch(url) == path
    assert path.read_bytes() == b"damaged since"
    assert fetch(url, right).read_bytes() == WEIGHTS
    assert requests["/weights.pth"] == 3
    with pytest.raises(UserError, match=wrong):
        fetch(url, wrong)
    assert path.read_bytes() == WEIGHTS, "what was good before stays"


def test_a_hash_that_is_none_is_refused_before_anything_is_fetched(
    server: str, requests: Counter[str]
) -> None:
    assert "64 hexadecimal digits" in refusal(f"{server}/weights.pth", "abc")
    assert not requests


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("nothing.pth", "the server answers 404 Not Found"),
        ("short.pth", "the connection broke off after 1000 of 5120000 bytes"),
        (
            "page.pth",
            "is a web page, not a file of weights; name the address that its download button leads to",
        ),
        ("user/repo/blob/main/page.pth", "/user/repo/raw/main/page.pth"),
        ("garbled.pth", "can't be fetched"),
    ],
)
def test_answers_that_are_no_weights(name: str, expected: str, server: str) -> None:
    message = refusal(f"{server}/{name}")
    assert expected in message
    assert f"{server}/{name}" in message


def test_a_server_that_does_not_answer(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TIMEOUT", 0.2)
    assert "no answer within" in refusal(f"{server}/silent.pth")


def test_servers_that_are_not_there(server: str) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        assert "Connection refused" in refusal(f"http://127.0.0.1:{unused.getsockname()[1]}/weights.pth")
    assert "can't be fetched" in refusal("http://nowhere.invalid/weights.pth")


@pytest.mark.parametrize("url", ["http://[bad/weights.pth", "http:///weights.pth", "http://a b/weights.pth"])
def test_addresses_that_are_none(url: str, server: str) -> None:
    with pytest.raises(UserError):
        fetch(url)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_cache_that_can_not_be_written(server: str, tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    assert "can't be kept in" in refusal(f"{server}/weights.pth")


def test_a_cache_below_a_file(server: str, tmp_path: Path) -> None:
    (tmp_path / "torch").write_bytes(b"")
    with pytest.raises(UserError, match="can't be kept in"):
        fetch(f"{server}/weights.pth")


def test_an_address_of_a_file_is_the_file(tmp_path: Path) -> None:
    path = tmp_path / "with space.pth"
    path.write_bytes(WEIGHTS)
    assert fetch(path.as_uri()) == cached_file(path.as_uri()) == path
    with pytest.raises(UserError, match="0" * 64):
        fetch(path.as_uri(), "0" * 64)
    assert cached_file((tmp_path / "nothing").as_uri()) is None
    with pytest.raises(UserError, match="There is no file"):
        fetch((tmp_path / "nothing").as_uri())
    with pytest.raises(UserError, match="another machine"):
        fetch("file://server/share/weights.pth")


def test_weights_are_loaded_by_their_address(server: str, handler: type[Handler], tmp_path: Path) -> None:
    teacher = create_model("resnet8", 10)
    torch.save({"model": teacher.state_dict(), "epoch": 240, "best_acc": 70.5}, tmp_path / "weights.pth")
    handler.weights = (tmp_path / "weights.pth").read_bytes()
    model = create_model("resnet8", 10)
    url = f"{server}/weights.pth"
    loaded = load_checkpoint(model, url, sha256=file_hash(tmp_path / "weights.pth"))
    assert torch.equal(model.state_dict()["fc.weight"], teacher.state_dict()["fc.weight"])
    assert (loaded.source, loaded.path, loaded.metrics) == (url, cached_file(url), {"best_acc": 70.5})
    assert handler.requests["/weights.pth"] == 1
