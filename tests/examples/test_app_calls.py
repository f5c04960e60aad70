"""examples/app.py against calls made by hand: posted over HTTP to the running page, as a visitor without a browser may
do.
"""

import io
import json
import os
import socket
import sys
import threading
import time
import urllib.error
import urllib.request
import uuid
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image


pytest.importorskip("gradio", reason="gradio is not installed (the extra `app`)")

EXAMPLES = Path(__file__).parents[2] / "examples"
sys.path.append(str(EXAMPLES))

import app  # noqa: E402
import app_models  # noqa: E402
import app_results as results  # noqa: E402
from gradio.utils import get_upload_folder  # noqa: E402

from diffusers_lasers import AutoencoderDL  # noqa: E402


META = {"_type": "gradio.FileData"}
REFUSED = "is no file that was uploaded to this page"


def png(side=40, color=(200, 30, 30)):
    buffer = io.BytesIO()
    Image.new("RGB", (side, side), color).save(buffer, "png")
    return buffer.getvalue()


class Server:
    """The running page, and its address."""

    def __init__(self, address):
        self.address = address.rstrip("/")
        self.config = json.loads(self.get("/config")[1])
        upload = next(c["id"] for c in self.config["components"] if c["props"].get("elem_id") == "upload")
        self.read = next(d["id"] for d in self.config["dependencies"] if d["inputs"] == [upload])

    def get(self, path, data=None, headers=None, timeout=60):
        request = urllib.request.Request(self.address + path, data, headers or {})
        try:
            with urllib.request.urlopen(request, timeout=timeout) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()

    def upload(self, data, name="picture.png"):
        """Uploads a file, and returns what the page then sends for it."""
        line = uuid.uuid4().hex
        head = f'--{line}\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n\r\n'.encode()
        body = head + data + f"\r\n--{line}--\r\n".encode()
        status, answer = self.get(
            "/gradio_api/upload", body, {"Content-Type": f"multipart/form-data; boundary={line}"}
        )
        assert status == 200, answer
        return {"path": json.loads(answer)[0], "orig_name": name, "meta": META}

    def post(self, function, data, session=None, **more):
        call = {"data": data, "fn_index": function, "session_hash": session or uuid.uuid4().hex, **more}
        body = data if isinstance(data, bytes) else json.dumps(call).encode()
        return self.get("/gradio_api/queue/join", body, {"Content-Type": "application/json"})

    def picture(self, named):
        """
        What the page answers to an upload: the note and, where there is one, the picture's address. An error of HTTP
        is its sentence.
        """
        session = uuid.uuid4().hex
        status, answer = self.post(self.read, [named], session)
        if status != 200:
            return json.loads(answer)["detail"], None
        _, stream = self.get(f"/gradio_api/queue/data?session_hash={session}", timeout=30)
        events = [json.loads(line[6:]) for line in stream.decode().splitlines() if line.startswith("data: ")]
        done = next(event for event in events if event["msg"] == "process_completed")
        assert done["success"], done
        _, note, original = done["output"]["data"]
        return note, original and original["url"]

    def serves(self):
        """Whether another visitor's picture is still read."""
        note, url = self.picture(self.upload(png(50)))
        return "50 × 50 pixels" in note and self.get(url.removeprefix(self.address))[0] == 200


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    torch.manual_seed(0)
    network = {"block_out_channels": (8, 8, 16), "residual_channels": 8, "latent_channels": 6}
    model = AutoencoderDL(bottleneck_type="vq", bottleneck_config={"num_codewords": 16}, **network)
    folder = tmp_path_factory.mktemp("page")
    model.save_pretrained(folder / "vq")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(folder / "uploads"))
        library = app_models.Library([str(folder / "vq")], [], str(folder / "cache"), str(folder))
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        page = app.build(library, max_side=96)
        _, address, _ = app.launch(page, "127.0.0.1", port, wait=False)
        yield Server(address)
        page.close()


@pytest.fixture
def secret(tmp_path):
    path = tmp_path / "secret.png"
    path.write_bytes(png(64, (1, 2, 3)))
    return str(path)


def hostile(kind, secret):
    """A call's file that is none of the visitor's."""
    uploads = get_upload_folder()
    os.makedirs(uploads, exist_ok=True)
    if kind == "folder":
        return uploads
    if kind == "link":
        link = os.path.join(uploads, f"{uuid.uuid4().hex}.png")
        os.symlink(secret, link)
        return link
    if kind == "linked folder":
        link = os.path.join(uploads, uuid.uuid4().hex)
        os.symlink(os.path.dirname(secret), link)
        return os.path.join(link, "secret.png")
    if kind == "dots":
        return os.path.join(uploads, os.path.relpath(secret, uploads))
    if kind == "neighbour":  # whose name begins like the folder's
        os.makedirs(f"{uploads}-2", exist_ok=True)
        path = os.path.join(f"{uploads}-2", "secret.png")
        Path(path).write_bytes(Path(secret).read_bytes())
        return path
    return {
        "server file": secret,
        "password file": "/etc/passwd",
        "device": "/dev/zero",
        "missing": os.path.join(uploads, "nothing.png"),
        "empty": "",
        "null byte": os.path.join(uploads, "a\0b"),
        "long": os.path.join(uploads, "a" * 5000),
        "address": "https://example.invalid/picture.png",
        "file address": "file:///etc/passwd",
        "number": 3,
        "list": [secret],
    }[kind]


KINDS = ["server file", "password file", "device", "missing", "empty", "null byte", "long", "address", "file address"]
KINDS += ["number", "list", "folder", "link", "linked folder", "dots", "neighbour"]


@pytest.mark.parametrize(
    "meta", [{"meta": META}, {}, {"meta": {}}, {"meta": "x"}], ids=["meta", "none", "empty", "text"]
)
@pytest.mark.parametrize("kind", KINDS)
def test_no_call_reads_what_was_not_uploaded(kind, meta, server, secret):
    sentence, url = server.picture({"path": hostile(kind, secret), "orig_name": "x.png"} | meta)
    assert url is None and sentence.startswith("“x.png” ") and REFUSED in sentence and sentence.count(".") == 2
    assert server.serves()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no FIFOs on this system")
@pytest.mark.parametrize("meta", [{"meta": META}, {}], ids=["meta", "none"])
@pytest.mark.parametrize("inside", [True, False])
def test_a_fifo_stops_nobody(inside, meta, server, tmp_path):
    path = os.path.join(get_upload_folder() if inside else tmp_path, f"{uuid.uuid4().hex}.png")
    os.makedirs(os.path.dirname(path), exist_ok=True)
    os.mkfifo(path)
    release = threading.Timer(40, lambda: os.close(os.open(path, os.O_RDWR | os.O_NONBLOCK)))
    release.start()  # only a page that waits needs it
    start = time.monotonic()
    sentence, url = server.picture({"path": path} | meta)
    assert url is None and REFUSED in sentence and server.serves() and time.monotonic() - start < 20
    release.cancel()


def test_an_upload_without_meta_and_data_addresses_are_refused(server):
    named = server.upload(png())
    assert server.picture({"path": named["path"]})[1] is None
    assert server.picture({"path": None, "url": "data:image/png;base64,iVBORw0KGgo=", "meta": META})[1] is None
    note, url = server.picture(named)
    assert "40 × 40 pixels" in note and url is not None
    assert server.picture(None)[0].count("Choose a picture") == 1


def test_no_input_of_any_function_may_name_a_file(server, secret):
    """gradio fetches files and addresses that stand in any input, a dropdown's too, before the function is asked."""
    for function in server.config["dependencies"]:
        for place in range(len(function["inputs"])):
            for path in (secret, "https://example.invalid/x.png"):
                data = [None] * len(function["inputs"])
                data[place] = {"value": [{"path": path, "meta": META}]}
                status, answer = server.post(function["id"], data)
                assert status == 400 and REFUSED in json.loads(answer)["detail"], function
    assert server.serves()


@pytest.mark.parametrize("route", ["run", "api", "call", "call/v2", "queue/join"])
@pytest.mark.parametrize("name", ["upload", "upload/", "reset", "cancel"])
def test_the_name_of_a_route_that_is_used_opens_no_other(route, name, server, secret):
    """gradio calls `/run/NAME` by the function's number in the call, whatever the name."""
    for path in (secret, "https://example.invalid/x.png"):
        call = {"data": [{"path": path, "meta": META}], "fn_index": server.read, "session_hash": "x"}
        header = {"Content-Type": "application/json"}
        status, answer = server.get(f"/gradio_api/{route}/{name}", json.dumps(call).encode(), header)
        assert status == 404 and json.loads(answer)["detail"] == "This page has no such address."


def test_calls_are_bounded_and_unused_routes_closed(server):
    assert server.post(server.read, b"[" * 100_000)[0] == 400
    assert server.post(server.read, b"no JSON")[0] == 400
    assert server.post(server.read, ["x" * 2**21])[0] == 400
    for path in ("/gradio_api/file=https://example.invalid/x.png", "/gradio_api/proxy=https://example.invalid/x.png"):
        assert server.get(path)[0] == 404
    for path in ("process_recording", "component_server", "vibe-edit", "run/predict", "call/predict"):
        assert server.get(f"/gradio_api/{path}", b"{}", {"Content-Type": "application/json"})[0] == 404
    assert server.get("/gradio_api/file=/etc/passwd")[0] == 403
    assert server.serves()


def test_uploads_are_bounded_in_bytes(server, monkeypatch):
    assert server.config.get("max_file_size") in (None, app.MOST_BYTES)
    with pytest.raises((AssertionError, OSError)):
        server.upload(bytes(app.MOST_BYTES + 1))
    named = server.upload(png())
    with pytest.raises(results.PictureError, match="“picture.png” is larger than the 20 bytes"):
        app.read_upload(named, get_upload_folder(), most_bytes=20)
    assert server.serves()


@pytest.mark.parametrize("kind", ["EPS", "TIFF", "GIF", "PCX"])
def test_only_the_named_formats_are_decoded(kind, server):
    buffer = io.BytesIO()
    Image.new("RGB", (40, 40)).save(buffer, kind)
    sentence, url = server.picture(server.upload(buffer.getvalue()))
    assert url is None and "“picture.png” cannot be read as a picture: give a PNG, JPEG or WebP file." in sentence


def progressive(scans):
    """A JPEG whose last scan is there many times: each is decoded over all pixels."""
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(
        buffer, "jpeg", progressive=True
    )
    data = buffer.getvalue()
    last = data.rindex(b"\xff\xda")
    return data[:last] + data[last:-2] * scans + data[-2:]


def test_a_jpeg_of_endless_scans_is_refused_and_a_good_one_is_not(server):
    good = progressive(1)
    assert results.jpeg_scans(good) == good.count(b"\xff\xda") == 10
    assert "64 × 64 pixels" in server.picture(server.upload(good, "good.jpg"))[0]
    assert (
        "64 × 64 pixels" in server.picture(server.upload(good + b"\xff\xda" * 500, "motion.jpg"))[0]
    )  # behind its end
    sentence, url = server.picture(server.upload(progressive(200), "long.jpg"))
    assert url is None and "“long.jpg” is a JPEG of more than the 100 scans" in sentence


def test_an_example_of_any_number_is_an_example(server):
    select = next(
        d["id"] for d in server.config["dependencies"] if any(event == "select" for _, event in d["targets"])
    )
    for index in (-1, 10**6, "x", [1, 2]):
        session = uuid.uuid4().hex
        status, _ = server.post(select, [], session, event_data={"index": index, "value": None, "selected": True})
        _, stream = server.get(f"/gradio_api/queue/data?session_hash={session}")
        assert status == 200 and b'"success":true' in stream.replace(b" ", b""), index
