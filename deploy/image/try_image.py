"""Runs the CPU image as a cluster would, and the smoke test against it: `python3 deploy/image/try_image.py`, as root.

Read-only root, a user that is not root, no capabilities, a network of its own, and the image's own environment, start
command and health check. Needs buildah and bubblewrap; where Docker works, this is
`docker run --read-only --tmpfs /tmp logit-fusion:cpu`.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
IMAGE = "logit-fusion:cpu"
STOP_SECONDS = 120
COMPILERS = ("cc", "gcc", "g++", "clang", "c++")


def buildah(*arguments: str) -> str:
    """Run buildah on the storage that the image was built in, and return what it prints."""
    script = f'cd "{ROOT}"; source deploy/image/buildah.sh; buildah_here "$@"'
    result = subprocess.run(["bash", "-c", script, "-", *arguments], stdout=subprocess.PIPE, text=True, check=True)
    return result.stdout.strip()


class Container:
    """The image's server in namespaces of its own."""

    def __init__(self, root: str, config: dict[str, Any], log: Path) -> None:
        self.environment = dict(entry.split("=", 1) for entry in config["Env"])
        user, _, group = config["User"].partition(":")
        self.sandbox = ["bwrap", "--ro-bind", root, "/", "--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp"]
        # As container engines do; vLLM asks there for the cores.
        self.sandbox += ["--ro-bind", "/sys", "/sys"]
        self.sandbox += ["--unshare-user", "--uid", user, "--gid", group, "--cap-drop", "ALL"]
        self.sandbox += ["--chdir", config["WorkingDir"], "--die-with-parent"]
        read, write = os.pipe()
        namespaces = ["--unshare-net", "--unshare-pid", "--unshare-ipc", "--as-pid-1", "--info-fd", str(write)]
        self.process = subprocess.Popen(
            [*self.sandbox, *namespaces, "--", *config["Entrypoint"], *config["Cmd"]],
            env=self.environment,
            pass_fds=[write],
            stdout=log.open("w"),
            stderr=subprocess.STDOUT,
        )
        os.close(write)
        with os.fdopen(read) as info:
            self.pid: int = json.load(info)["child-pid"]

    def run_beside(self, *command: str) -> subprocess.CompletedProcess[bytes]:
        """Run a command of this machine in the container's network."""
        return subprocess.run(["nsenter", "--net", "--target", str(self.pid), *command], check=False)

    def run_inside(self, *command: str) -> subprocess.CompletedProcess[bytes]:
        """Run a command of the image's in the container's network."""
        return subprocess.run(
            ["nsenter", "--net", "--target", str(self.pid), *self.sandbox, "--", *command],
            env=self.environment,
            capture_output=True,
            check=False,
        )

    def stop(self) -> int:
        """Send SIGTERM to the first process, as a container engine does, and return the exit code."""
        os.kill(self.pid, signal.SIGTERM)
        return self.process.wait(STOP_SECONDS)


def check(root: str, config: dict[str, Any], log: Path) -> None:
    """Start the server from the image and check what is said of it."""
    assert config["User"] not in ("", "0", "root"), "the image's user is root"
    found = [name for name in COMPILERS if Path(root, "usr/bin", name).exists()]
    assert not found, f"the image holds compilers: {found}"
    started = time.monotonic()
    container = Container(root, config, log)
    try:
        health = config["Healthcheck"]["Test"][1:]
        patience = config["Healthcheck"]["StartPeriod"] / 1e9
        while container.run_inside(*health).returncode != 0:
            assert container.process.poll() is None, f"the server ended:\n{log.read_text()}"
            assert time.monotonic() - started < patience, f"not healthy in time:\n{log.read_text()}"
            time.sleep(1)
        print(f"healthy after {time.monotonic() - started:.0f} s")
        touched = container.run_inside("touch", "/opt/logit-fusion/written")
        assert touched.returncode != 0
        assert b"Read-only" in touched.stderr
        smoke = container.run_beside(sys.executable, str(ROOT / "deploy/smoke.py"), "http://127.0.0.1:8000")
        assert smoke.returncode == 0, log.read_text()
        code = container.stop()
        assert code == 0, f"SIGTERM: exit code {code}\n{log.read_text()}"
        print("ended with 0 after SIGTERM")
    finally:
        container.process.kill()


def main() -> None:
    """Unpack the image, check it, and remove what was unpacked."""
    config = json.loads(buildah("inspect", "--type", "image", IMAGE))["Docker"]["config"]
    container = buildah("from", "--pull-never", IMAGE)
    try:
        check(buildah("mount", container), config, ROOT / "build/image.log")
    finally:
        buildah("rm", container)


if __name__ == "__main__":
    main()
