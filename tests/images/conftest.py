"""A container engine of the tests' own: Debian's Docker without systemd, and a base image made from Debian's packages."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

BASE = "llm-retriever-base:test"
CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "llm-retriever-tests"
CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")


@pytest.fixture(scope="session")
def engine() -> Iterator[str]:
    """Address of a running engine; `DOCKER_HOST` is set to it."""
    missing = [name for name in ("dockerd", "docker", "debootstrap") if shutil.which(name, path=_path()) is None]
    if missing or os.geteuid() != 0:
        pytest.skip(f"no engine can be started: {'not root' if not missing else ', '.join(missing) + ' not installed'}")
    home = Path(tempfile.mkdtemp(prefix="llm-retriever-engine-", dir="/tmp"))
    address = f"unix://{home}/docker.sock"
    command = ["dockerd", "--iptables=false", "--ip6tables=false", "--bridge=none", "-H", address]
    command += [f"--data-root={home}/data", f"--exec-root={home}/exec", f"--pidfile={home}/pid"]
    with (home / "log").open("w") as log:
        daemon = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, "PATH": _path()})
    before = os.environ.get("DOCKER_HOST")
    os.environ["DOCKER_HOST"] = address
    try:
        if not _answers(daemon):
            pytest.skip(f"dockerd does not start here: {(home / 'log').read_text().strip().splitlines()[-1:]}")
        yield address
    finally:
        daemon.terminate()
        daemon.wait()
        subprocess.run(["umount", str(home / "exec" / "netns" / "default")], capture_output=True, check=False)
        os.environ.pop("DOCKER_HOST")
        if before is not None:
            os.environ["DOCKER_HOST"] = before
        shutil.rmtree(home, ignore_errors=True)


def _path() -> str:
    return os.pathsep.join([os.environ["PATH"], "/usr/sbin", "/sbin"])


def _answers(daemon: subprocess.Popen[bytes]) -> bool:
    for _ in range(120):
        if daemon.poll() is not None:
            return False
        if subprocess.run(["docker", "version"], capture_output=True, check=False).returncode == 0:
            return True
        time.sleep(0.25)
    return False


@pytest.fixture(scope="session")
def base(engine: str) -> str:
    """An image with Debian's Python, as `BASE` of the Dockerfiles; its archive is kept for the next time."""
    archive = CACHE / "base.tar"
    if not archive.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        _make_base(archive)
    path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    subprocess.run(["docker", "import", "--change", f"ENV PATH={path}", str(archive), BASE], check=True)
    return BASE


def _make_base(archive: Path) -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as scratch:
        root = Path(scratch) / "root"
        wanted = "--include=python3,python3-pip,python3-venv,ca-certificates"
        command = ["debootstrap", "--variant=minbase", wanted, "bookworm", str(root)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env={**os.environ, "PATH": _path()})
        shutil.rmtree(root / "var" / "cache" / "apt", ignore_errors=True)
        for marker in root.glob("usr/lib/python3*/EXTERNALLY-MANAGED"):
            marker.unlink()
        for name in ("python", "python3"):
            (root / "usr" / "local" / "bin" / name).symlink_to("/usr/bin/python3")
        # Behind a private certificate authority pip inside the build needs it too.
        shutil.copy(CERTIFICATES, root / "etc" / "ssl" / "certs" / "ca-certificates.crt")
        draft = archive.with_suffix(".partial")
        subprocess.run(["tar", "-C", str(root), "-cf", str(draft), "."], check=True)
        draft.replace(archive)
