"""A real vLLM server of tiny-math on loopback, one a session; and how many tests ran with each
shape of vLLM in this process.
"""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from like_cuda import SHAPES

LOG = pytest.StashKey[Path]()
STARTS_WITHIN = 600  # seconds; half a minute on two quiet cores
# as a module: the CPU build's `vllm` command looks for the GPU build's version and stops
START = [sys.executable, "-m", "vllm.entrypoints.openai.api_server"]
ON_A_CPU = [
    *("--enforce-eager", "--distributed-executor-backend", "uni"),
    "--no-enable-chunked-prefill",  # on a CPU a seeded request whose prompt is cut in two ends the server
]
SERVE = [
    *(*START, *ON_A_CPU, "--dtype", "float32", "--max-model-len", "512"),
    *("--enable-lora", "--max-lora-rank", "16", "--max-loras", "2", "--logprobs-mode", "processed_logprobs"),
]
ENVIRONMENT = {
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
    # with the executor `uni`: one process less that has to import everything
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
}


@pytest.fixture(scope="session")
def server_url(request, tmp_path_factory):
    """Its address. Prompts and answers of 512 tokens, adapters up to rank 16; the
    log is shown where a test fails.
    """
    from lgrpo_lite.policy.load import locate

    log = request.session.stash[LOG] = tmp_path_factory.mktemp("server") / "log"
    with _serving([*SERVE, "--model", locate("builtin:tiny-math")], log) as url:
        yield url


@pytest.fixture
def serving(tmp_path):
    """`with serving(words) as url`: a server by `vllm serve` and those words."""

    def started(words: list[str]) -> contextlib.AbstractContextManager[str]:
        return _serving([*START, *ON_A_CPU, "--model", *words], tmp_path / "log")

    return started


@contextlib.contextmanager
def _serving(command: list[str], log: Path):
    port = free_port()
    with log.open("w") as out:
        server = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--port", str(port)],
            stdout=out,
            stderr=subprocess.STDOUT,
            env=os.environ | ENVIRONMENT,
            start_new_session=True,
        )
    try:
        url = f"http://127.0.0.1:{port}"
        _wait(url, server)
        yield url
    finally:
        _stop(server)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    log = item.session.stash.get(LOG, None)
    if report.failed and log and "server_url" in item.fixturenames:
        report.sections.append(
            ("end of the vLLM server's log", "\n".join(log.read_text("utf-8").splitlines()[-40:]))
        )
    return report


def pytest_terminal_summary(terminalreporter):
    """Of the tests that ran: skipped ones have nothing to do with that kind of engine."""
    passed = [report.nodeid for report in terminalreporter.stats.get("passed", [])]
    counts = [f"{sum(shape in name for name in passed)} {shape}" for shape in SHAPES]
    terminalreporter.write_line(f"tests that passed with a vLLM in this process: {', '.join(counts)}")


def _wait(url: str, server: subprocess.Popen) -> None:
    end = time.monotonic() + STARTS_WITHIN
    while time.monotonic() < end and server.poll() is None:
        with contextlib.suppress(OSError), urllib.request.urlopen(url + "/health", timeout=5):
            return
        time.sleep(0.5)
    pytest.fail(f"the vLLM server did not start (exit code {server.poll()})")


def _stop(server: subprocess.Popen) -> None:
    """The whole process group: a server that is killed leaves its engine behind."""
    for sign in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, sign)
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.wait(20)
