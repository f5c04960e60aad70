"""Writing of all files of the package: a file is either completely written or unchanged.

The bytes go into a new hidden file with a unique name in the same folder. When they are on the disk, the hidden file is
renamed in one step. A process that is killed leaves the old file unchanged, and at worst a hidden `.….tmp` beside it.
Links are followed. An existing file keeps its mode. A path that exists and is not a regular file (a folder, a pipe, a
device) is refused.
"""

from __future__ import annotations

import json
import math
import os
import secrets
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from safetensors import SafetensorError

from .command_line import one_line


if TYPE_CHECKING:
    from PIL import Image


__all__ = [
    "atomic_file",
    "fill_folder",
    "image_format",
    "save_image",
    "write_bytes",
    "write_json",
    "write_text",
]

#: The files that make a folder loadable. They are replaced after all others.
_CONFIGS = ("config.json", "scheduler_config.json", "model_index.json")


@contextmanager
def atomic_file(path: str | os.PathLike) -> Iterator[BinaryIO]:
    """
    Opens a new file that replaces `path` when the block ends. If the block fails, the new file is deleted.

    Args:
        path (`str` or `os.PathLike`): The file, in an existing folder. Links are followed, and the mode of an existing
            file is kept.

    Yields:
        `BinaryIO`: A new file, open for reading and writing.

    Raises:
        ValueError: If `path` exists and is not a regular file, such as a folder, a pipe or a device.
        OSError: If the file cannot be written, as on a full disk; the error names `path`.
    """
    target, found = _regular(path)
    folder, name = os.path.split(target)
    scratch = os.path.join(folder, f".{name[:40]}.{secrets.token_hex(8)}.tmp")
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
    mode = 0o666 if found is None else stat.S_IMODE(found.st_mode)  # for a new file, the umask decides
    with _naming(path):
        descriptor = os.open(scratch, flags, mode)
        try:
            with os.fdopen(descriptor, "w+b") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())  # the bytes are on the disk before the file is renamed
                if found is not None:
                    with suppress(OSError, AttributeError):
                        os.fchown(file.fileno(), found.st_uid, found.st_gid)
                    os.chmod(scratch, mode)
            os.replace(scratch, target)
        except BaseException:
            with suppress(OSError):
                os.unlink(scratch)
            raise


def write_bytes(path: str | os.PathLike, data: bytes) -> None:
    """
    Writes a file of bytes.

    Args:
        path (`str` or `os.PathLike`): The file, as in [`atomic_file`].
        data (`bytes`): The content.

    Raises:
        ValueError: If `path` exists and is not a regular file.
        OSError: If the file cannot be written; the error names it.
    """
    with atomic_file(path) as file:
        file.write(data)


def write_text(path: str | os.PathLike, text: str) -> None:
    """
    Writes a text file, UTF-8.

    Args:
        path (`str` or `os.PathLike`): The file, as in [`atomic_file`].
        text (`str`): The content. Characters that UTF-8 cannot encode, as in file names of other encodings, are written
            as `\\udc..`.

    Raises:
        ValueError: If `path` exists and is not a regular file.
        OSError: If the file cannot be written; the error names it.
    """
    write_bytes(path, text.encode("utf-8", errors="backslashreplace"))


def write_json(path: str | os.PathLike, value: Any) -> None:
    """
    Writes a JSON file. Values that JSON does not have become strings: infinities, NaN and objects of other types.

    Args:
        path (`str` or `os.PathLike`): The file, as in [`atomic_file`].
        value: The content.

    Raises:
        ValueError: If `path` exists and is not a regular file.
        OSError: If the file cannot be written; the error names it.
    """
    text = json.dumps(_finite(value), indent=2, ensure_ascii=False, allow_nan=False, default=str)
    write_text(path, text + "\n")


def image_format(path: str | os.PathLike) -> str:
    """
    The format in which Pillow writes a picture with this name.

    Args:
        path (`str` or `os.PathLike`): The file. Only its suffix matters.

    Returns:
        `str`: Pillow's name of the format, such as `"PNG"`.

    Raises:
        ValueError: If Pillow has no writer for the suffix.
    """
    from PIL import Image

    suffix = Path(path).suffix.lower()
    kind = Image.registered_extensions().get(suffix)
    if kind not in Image.SAVE:
        raise ValueError(
            f"`path` must have the suffix of a picture that Pillow can write, such as .png, got {os.fspath(path)!r}."
        )
    return kind


def save_image(path: str | os.PathLike, image: Image.Image, **options: Any) -> None:
    """
    Writes a picture.

    Args:
        path (`str` or `os.PathLike`): The file, as in [`atomic_file`]. Its suffix decides the format.
        image (`PIL.Image.Image`): The picture.
        **options: Options of Pillow's writer, such as `quality`.

    Raises:
        ValueError: If Pillow cannot write such a picture, or if `path` exists and is not a regular file.
        OSError: If the file cannot be written.
    """
    kind = image_format(path)
    with atomic_file(path) as file:
        image.save(file, format=kind, **options)


def fill_folder(folder: str | os.PathLike, write: Callable[[str], Any]) -> None:
    """
    Writes the files of a model, scheduler or pipeline into a folder, and replaces files of the same names.

    All files are first written to a hidden folder inside. Then they are moved, weights first and configurations last.
    A configuration that changes is deleted before the weights are replaced. So a process that is killed in between
    never leaves weights with the configuration of another model.

    Args:
        folder (`str` or `os.PathLike`): The folder, which is made if it is missing. Other files in it stay.
        write (`Callable[[str], Any]`): A function that writes all files below the path that it receives.

    Raises:
        ValueError: If one of the files exists and is not a regular file.
        OSError: If something cannot be written, as on a full disk. The folder is then unchanged.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    scratch = folder / f".{secrets.token_hex(8)}.tmp"
    scratch.mkdir()
    try:
        try:
            with _naming(folder):
                write(str(scratch))
        except (RuntimeError, SafetensorError) as error:  # raised by torch and safetensors on a full disk
            raise OSError(f"{folder} could not be written: {one_line(error)}") from error
        files = [path.relative_to(scratch) for path in scratch.rglob("*") if path.is_file()]
        files.sort(key=lambda path: (_CONFIGS.index(path.name) if path.name in _CONFIGS else -1, path))
        targets = {name: _regular(folder / name) for name in files}  # all are checked before one is replaced
        for name in files:
            if name.name in _CONFIGS and (folder / name).exists() and not _same(folder / name, scratch / name):
                (folder / name).unlink()
        for name in files:
            if name.suffix == ".safetensors":  # an old index of several weight files would be read first
                (folder / name).with_name(f"{name.name}.index.json").unlink(missing_ok=True)
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            target, found = targets[name]
            with (scratch / name).open("rb") as file:
                os.fsync(file.fileno())
            if found is not None:
                os.chmod(scratch / name, stat.S_IMODE(found.st_mode))
            os.replace(scratch / name, target)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _regular(path: str | os.PathLike) -> tuple[str, os.stat_result | None]:
    """The path with links resolved, and its status or `None` if it is new. Raises a `ValueError` if it exists and is
    not a regular file."""
    target = os.path.realpath(path)
    try:
        found = os.lstat(target)
    except FileNotFoundError:
        return target, None
    if not stat.S_ISREG(found.st_mode):
        raise ValueError(f"`path` must be a regular file or new, got {os.fspath(path)!r}.")
    return target, found


@contextmanager
def _naming(path: str | os.PathLike) -> Iterator[None]:
    """Makes errors of the system name this path, and not a hidden file. Errors of libraries are not changed."""
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, os.fspath(path)) from error


def _same(path: Path, other: Path) -> bool:
    return path.read_bytes() == other.read_bytes()


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(entry) for entry in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
