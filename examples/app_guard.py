"""What a visitor's call to examples/app.py may name: files that were uploaded to the page, and nothing else of the
server or of the network.

gradio looks where a file lies only if the call says that it is one (`meta`), and then opens whatever path stands
there; a path or an address in any input of any function is fetched before the function sees it. So two checks of our
own: `OnlyUploads` stands before gradio and refuses each call that names a file without `meta`, outside the upload
folder (links followed), or that is no regular file, each address of another server, and the routes that this page
does not use; `read_upload` does the same where the bytes are read. A refusal is one sentence, the same whether or not
the file exists.
"""

import json
import os
import re
import stat
from collections.abc import Iterator
from typing import Any

from app_results import PictureError


MOST_BYTES = 50 * 2**20  # of an upload
MOST_CALL = 2**20  # bytes of a call, which has settings and names, not pixels
ROUTES = "/gradio_api"
POSTED = tuple(f"{ROUTES}/{name}" for name in ("upload", "queue/join", "cancel", "reset"))  # what the page posts to
ELSEWHERE = re.compile(r"/(file|stream|proxy)=(?![A-Za-z]:[\\/])[A-Za-z][A-Za-z0-9+.-]*:", re.IGNORECASE)


def regular_file(named: Any, folder: str) -> str:
    """
    The real path of an uploaded file.

    Args:
        named: What stands in a call for a file: `{"path": …, "meta": {"_type": "gradio.FileData"}, …}`.
        folder (`str`): The folder of uploads.

    Returns:
        `str`: Its path without links.

    Raises:
        PictureError: If it is none, does not lie in the folder once links are followed, or is no regular file.
    """
    error = PictureError(
        f"{called(named)} is no file that was uploaded to this page: upload it, or choose an example."
    )
    path, meta = (named.get("path"), named.get("meta")) if isinstance(named, dict) else (None, None)
    if not isinstance(path, str) or not isinstance(meta, dict) or meta.get("_type") != "gradio.FileData":
        raise error
    try:
        real, folder = os.path.realpath(path), os.path.realpath(folder)
        if os.path.commonpath((real, folder)) != folder or not stat.S_ISREG(os.lstat(real).st_mode):
            raise error
    except (OSError, ValueError):  # not there, another drive, a name that no file can have
        raise error from None
    return real


def called(named: Any) -> str:
    """How a visitor calls a file: its own name, no path of the server."""
    name = named.get("orig_name") if isinstance(named, dict) else None
    return f"“{name[:80]}”" if isinstance(name, str) and name else "The picture"


def read_upload(named: Any, folder: str, most_bytes: int = MOST_BYTES) -> bytes:
    """
    What an uploaded file holds, read without waiting.

    Args:
        named: As in `regular_file`.
        folder (`str`): The folder of uploads.
        most_bytes (`int`, defaults to 50 MiB): The largest file that is read.

    Raises:
        PictureError: If it is no uploaded file, or a larger one.
    """
    path = regular_file(named, folder)
    flags = sum(getattr(os, name, 0) for name in ("O_NOFOLLOW", "O_NONBLOCK", "O_CLOEXEC", "O_BINARY"))
    try:
        with open(os.open(path, os.O_RDONLY | flags), "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):  # exchanged since
                raise PictureError(f"{called(named)} is no file that was uploaded to this page.")
            data = file.read(most_bytes + 1)
    except OSError as error:
        raise PictureError(f"{called(named)} cannot be read any more: upload it again.") from error
    if len(data) > most_bytes:
        raise PictureError(f"{called(named)} is larger than the {most_bytes:,} bytes that are read here.")
    return data


def files_in(value: Any) -> Iterator[dict]:
    """Everything in a call that gradio would take for a file: each dictionary with a path or an address."""
    if isinstance(value, dict):
        if value.get("path") is not None or value.get("url") is not None:
            yield value
        yield from files_in(list(value.values()))
    elif isinstance(value, list):
        for entry in value:
            yield from files_in(entry)


def check_call(body: bytes, folder: str) -> None:
    """
    Looks through the inputs of a call.

    Raises:
        PictureError: If it is too long, no JSON object, or names a file that is no upload.
    """
    if len(body) > MOST_CALL:
        raise PictureError(f"A call has at most {MOST_CALL:,} bytes.")
    try:
        call = json.loads(body or b"{}")
        named = list(files_in(call.get("data")))
    except (ValueError, RecursionError, AttributeError):
        raise PictureError("A call is a JSON object.") from None
    for file in named:
        regular_file(file, folder)


class OnlyUploads:
    """
    Creates an ASGI layer that answers 400, with one sentence, to calls that name anything but an upload, and 404 to
    routes that the page does not use.

    Args:
        app: What it stands before.
        folder (`str`): The folder of uploads.
    """

    def __init__(self, app, folder: str):
        self.app, self.folder = app, folder

    async def __call__(self, scope, receive, send):
        if scope["type"] == "http":
            path, posted = scope["path"].rstrip("/"), scope["method"] not in ("GET", "HEAD", "OPTIONS")
            if ELSEWHERE.search(path) or (posted and path not in POSTED):
                return await refuse(send, 404, "This page has no such address.")
            if posted and path != f"{ROUTES}/upload":
                body = await read_body(receive)
                try:
                    check_call(body, self.folder)
                except PictureError as error:
                    return await refuse(send, 400, str(error))
                receive = replay(body, receive)
        return await self.app(scope, receive, send)


async def read_body(receive) -> bytes:
    """The body of a request, as far as one byte over what is allowed."""
    body, more = bytearray(), True
    while more and len(body) <= MOST_CALL:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
    return bytes(body)


def replay(body: bytes, receive):
    """A `receive` that gives a body again, and then what else comes."""
    messages = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive_again():
        return messages.pop() if messages else await receive()

    return receive_again


async def refuse(send, status: int, sentence: str) -> None:
    """Answers with a status and a sentence, as gradio does."""
    body = json.dumps({"detail": sentence}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
