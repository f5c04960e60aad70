"""Fresh processes, forked ones, and a Hub on this machine.

What a plug-in gets wrong shows only in a process that has not run the saving code, and from the Hub only. `fresh`
runs a script in a new interpreter, which spends seconds on its imports. Where a process of its own is needed but not a
new interpreter (limits, threads, kills, scripts with an environment of their own), `apart` and `killed_everywhere`
fork this one; not for code that calls faiss, whose pool of threads does not outlive a fork. `LocalHub` answers the
requests of the real `huggingface_hub` client, so that nothing of it is mocked.
"""

import base64
import contextlib
import io
import json
import os
import runpy
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


# Before anything imports huggingface_hub: no test reaches for the Hub, and a name that is no folder fails at once.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Tests compute on the CPU, also where there is a GPU: they compare with what this process computes, to the bit in
# places. `make test_cuda` runs those that need one, and they alone see it.
if not os.environ.get("DIFFUSERS_LASERS_TEST_CUDA"):
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
# Before anything imports torch: workers share the cores, in their own processes and in those that they start.
if "PYTEST_XDIST_WORKER_COUNT" in os.environ:
    share = (os.cpu_count() or 1) // int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, share)))

import pytest  # noqa: E402


SOURCE = Path(__file__).resolve().parents[1] / "src"
COMMIT = f"{1:040x}"


def run_fresh(script: str, folder: Path, **environment: str) -> dict:
    """Runs `script` in a new process inside `folder`; the dictionary `result` that it fills comes back."""
    code = f"result = {{}}\n{script}\nimport json\nprint('RESULT' + json.dumps(result))"
    variables = {
        **os.environ,
        "PYTHONPATH": str(SOURCE),
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(folder / "hf_home"),
        **environment,
    }
    process = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=variables, capture_output=True, text=True, timeout=300
    )
    assert process.returncode == 0, process.stderr[-4000:]
    return json.loads(process.stdout.rsplit("RESULT", 1)[1])


@pytest.fixture(scope="session")
def fresh():
    return run_fresh


def call_in_fork(function: Callable[[], object], folder: Path, **environment: str) -> object:
    """What `function()` returns in a forked child inside `folder`, through JSON; what it raises is shown here."""
    sys.stdout.flush(), sys.stderr.flush()
    answer = Path(tempfile.mkdtemp(dir=folder)) / "answer.json"
    child = os.fork()
    if child == 0:
        signal.alarm(300)  # a lock that a thread of ours held at the fork is never given back
        try:
            os.environ.update(environment)
            os.chdir(folder)
            if "torch" in sys.modules:  # GNU's pool of threads is gone in a child
                sys.modules["torch"].set_num_threads(1)
            answer.write_text(json.dumps({"value": function()}))
        except BaseException:
            answer.write_text(json.dumps({"raised": traceback.format_exc()}))
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    assert status == 0, f"the child ended with status {status}"
    found = json.loads(answer.read_text())
    shutil.rmtree(answer.parent)
    assert "raised" not in found, found["raised"]
    return found["value"]


def run_apart(script: Path, *words: object, folder: Path = Path(tempfile.gettempdir()), **environment: str):
    """Runs a script as `python SCRIPT WORDS…` does, in a forked child inside `folder`: code, stdout, stderr."""
    if not hasattr(os, "fork"):
        command, variables = [sys.executable, *map(str, (script, *words))], {**os.environ, "PYTHONPATH": str(SOURCE)}
        done = subprocess.run(
            command, cwd=folder, env={**variables, **environment}, capture_output=True, text=True, timeout=300
        )
        return done.returncode, done.stdout, done.stderr
    return call_in_fork(lambda: run_here(script, *words), folder, **environment)


@pytest.fixture(scope="session")
def apart():
    return run_apart


# Stops a child before and after each of its system calls and kills it where its folder has become another one for the
# N-th time, for every N until it ends by itself. Kills at boundaries with the same folder leave the same.
KILLED_EVERYWHERE = """
import ctypes, os, shutil, signal, sys
from pathlib import Path
{imports}
libc = ctypes.CDLL(None, use_errno=True)
TRACEME, SYSCALL = 0, 24

def child(folder):
    libc.ptrace(TRACEME, 0, 0, 0)
    os.kill(os.getpid(), signal.SIGSTOP)
    write(folder)
    os._exit(0)

def look(folder):
    paths = [os.path.join(top, name) for top, *names in os.walk(folder) for name in sum(names, [])]
    return {{path: (os.stat(path).st_mode, os.path.isfile(path) and Path(path).read_bytes()) for path in paths}}

{write}

kills, ended = 0, False
while not ended:
    folder = Path("run")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    prepare(folder)
    pid = os.fork()
    if pid == 0:
        child(folder)
    os.waitpid(pid, 0)
    last, states, boundaries = None, 0, 0
    while states <= kills:
        libc.ptrace(SYSCALL, pid, 0, 0)
        _, status = os.waitpid(pid, 0)
        if os.WIFEXITED(status):
            assert os.WEXITSTATUS(status) == 0
            ended = True
            break
        boundaries += 1
        found = look(folder)
        states += found != last
        last = found
    if not ended:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    check(folder, ended)
    kills += 1
result["boundaries"], result["kills"] = boundaries, kills - 1
"""


def kill_everywhere(imports: str, write: str, folder: Path) -> int:
    """Kills `write(folder)` at the boundaries of its system calls, each time on what `prepare(folder)` made;
    `check(folder, ended)` looks.

    `write` is the source of the three functions. The number of boundaries comes back.
    """
    if sys.platform != "linux":
        pytest.skip("ptrace of Linux")
    names = {"result": {}}
    script = compile(KILLED_EVERYWHERE.format(imports=imports, write=write), "killed", "exec")
    found = call_in_fork(lambda: exec(script, names) or names["result"], folder)
    assert found["kills"] > 2  # as it was, and at least two states on the way to what the writer leaves
    return found["boundaries"]


@pytest.fixture(scope="session")
def killed_everywhere():
    return kill_everywhere


def run_ranks(worker: Callable, folder: Path) -> list[dict]:
    """Runs `worker(rank, port, folder)` in two processes for a gloo group; what rank r saves as `r.pt` in `folder`
    comes back."""
    import torch

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    torch.multiprocessing.start_processes(worker, args=(port, str(folder)), nprocs=2, start_method="fork")
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(2)]


@pytest.fixture(scope="session")
def in_two_processes():
    return run_ranks


@contextlib.contextmanager
def refuse_waiting():
    """Any read of a GPU's value on the host raises."""
    import torch

    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.fixture(scope="session")
def never_waiting():
    return refuse_waiting


def run_here(script: Path, *words: object) -> tuple[int, str, str]:
    """Runs a script as `python SCRIPT WORDS…` does, but in this process, which has imported torch already: code,
    stdout, stderr."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    argv, path, modules = sys.argv, list(sys.path), set(sys.modules)
    sys.argv = [str(script), *map(str, words)]
    sys.path.insert(0, str(Path(script).parent))
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            runpy.run_path(str(script), run_name="__main__")
    except SystemExit as stopped:
        if isinstance(stopped.code, str):
            err.write(stopped.code)
        code = 1 if isinstance(stopped.code, str) else stopped.code or 0
    finally:
        sys.argv, sys.path[:] = argv, path
        for name in set(sys.modules) - modules:  # what stands beside the script is imported anew by the next one
            if Path(getattr(sys.modules[name], "__file__", None) or "/").parent == Path(script).parent:
                del sys.modules[name]
    return code, out.getvalue(), err.getvalue()


@pytest.fixture(scope="session")
def here():
    return run_here


class LocalHub(ThreadingHTTPServer):
    """A Hub whose repositories are folders `root/user/name`, with one commit each: enough to create, push and pull."""

    def __init__(self, root: Path):
        self.root = root
        super().__init__(("127.0.0.1", 0), _HubRequest)

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    @property
    def environment(self) -> dict[str, str]:
        return {
            "HF_ENDPOINT": self.endpoint,
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "HF_TOKEN": "hf_local",
            "NO_PROXY": "127.0.0.1",
            "no_proxy": "127.0.0.1",
        }


class _HubRequest(BaseHTTPRequestHandler):
    def log_message(self, *arguments):
        pass

    def reply(self, status: int, content=b"", **headers: str):
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), "X-Repo-Commit": COMMIT, **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_GET(self):
        parts = self.path.split("?")[0].strip("/").split("/")
        if (
            parts[:2] == ["api", "models"]
            and len(parts) >= 4
            and (folder := self.server.root.joinpath(*parts[2:4])).is_dir()
        ):
            files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
            names = [path.relative_to(folder).as_posix() for path in files]
            if "tree" in parts:
                sizes = [path.stat().st_size for path in files]
                self.reply(200, [{"type": "file", "path": n, "size": s, "oid": "0"} for n, s in zip(names, sizes)])
            else:
                siblings = [{"rfilename": name} for name in names]
                self.reply(200, {"id": "/".join(parts[2:4]), "sha": COMMIT, "siblings": siblings})
        elif len(parts) > 4 and parts[2] == "resolve":
            path = self.server.root.joinpath(*parts[:2], *parts[4:])
            if path.is_file():
                self.reply(200, path.read_bytes(), ETag=f'"{"-".join(parts[4:])}-{path.stat().st_size}"')
            else:
                known = path.parents[len(parts) - 5].is_dir()
                self.reply(404, X_Error_Code="EntryNotFound" if known else "RepoNotFound")
        else:
            self.reply(404, X_Error_Code="RepoNotFound")

    do_HEAD = do_GET

    def do_POST(self):
        content = self.rfile.read(int(self.headers["Content-Length"]))
        parts = self.path.split("?")[0].strip("/").split("/")
        if self.path == "/api/repos/create":
            name = json.loads(content)
            name = "/".join(filter(None, (name.get("organization"), name["name"])))
            (self.server.root / name).mkdir(parents=True, exist_ok=True)
            self.reply(200, {"url": f"{self.server.endpoint}/{name}", "id": name})
        elif "preupload" in parts:
            files = json.loads(content)["files"]
            self.reply(
                200, {"files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files]}
            )
        elif "commit" in parts:
            for line in map(json.loads, content.splitlines()):
                if line["key"] == "file":
                    path = self.server.root.joinpath(*parts[2:4], line["value"]["path"])
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_bytes(base64.b64decode(line["value"]["content"]))
            url = f"{self.server.endpoint}/{'/'.join(parts[2:4])}/commit/{COMMIT}"
            self.reply(200, {"commitUrl": url, "commitOid": COMMIT})
        else:
            self.reply(200, {})


@pytest.fixture(scope="module")
def local_hub(tmp_path_factory):
    with LocalHub(tmp_path_factory.mktemp("hub")) as hub:
        threading.Thread(target=hub.serve_forever, daemon=True).start()
        yield hub
        hub.shutdown()
