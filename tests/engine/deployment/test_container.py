"""The container and the service of a bundle: their steps in an environment of their own."""

import json
import re
import shlex
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from engine.deployment.conftest import BUNDLE
from processes import REAL_PYTHON
from proj.engine.deployment.export import TEMPLATES

ROOT = Path(__file__).parents[3]


def test_versions_are_those_of_the_project() -> None:
    """A version of the container differs from the tested one only if someone has changed it."""
    pinned = dict(
        re.findall(r"^([\w-]+)==(\S+)", (TEMPLATES / "requirements-serve.txt").read_text(), re.M)
    )
    constraints = re.findall(r"^([\w-]+)==(\S+)", (ROOT / "constraints.txt").read_text(), re.M)
    tested = {name.lower(): version for name, version in constraints}
    shared = pinned.keys() & tested.keys()
    assert shared >= {"numpy", "onnxruntime", "pillow", "fastapi", "uvicorn", "starlette"}
    assert {name: pinned[name] for name in shared} == {name: tested[name] for name in shared}


@pytest.mark.long
@pytest.mark.usefixtures("table_bundle")
def test_linters_find_nothing() -> None:
    """The Dockerfile and the unit of systemd have no faults that tools know of."""
    hadolint, systemd = shutil.which("hadolint"), shutil.which("systemd-analyze")
    beside = Path(REAL_PYTHON).with_name("hadolint")
    hadolint = hadolint or (str(beside) if beside.exists() else None)
    if hadolint is None or systemd is None:
        pytest.skip("hadolint or systemd-analyze is not installed")
    for dockerfile in (BUNDLE / "Dockerfile", ROOT / "Dockerfile"):
        subprocess.run([hadolint, dockerfile], check=True)
    # The interpreter of the unit is made on the machine that serves.
    unit = (
        (BUNDLE / "serve.service")
        .read_text()
        .replace("/opt/bundle-venv/bin/python", sys.executable)
    )
    Path("serve.service").write_text(unit.replace("/opt/bundle", str(BUNDLE.absolute())))
    process = subprocess.run(
        [systemd, "verify", "./serve.service"], capture_output=True, text=True, check=True
    )
    assert "serve.service" not in process.stderr


@pytest.mark.slow
@pytest.mark.usefixtures("table_bundle")
def test_the_steps_of_the_container(tmp_path: Path) -> None:
    """In an environment without this project, the commands of the Dockerfile prove and serve."""
    subprocess.run([REAL_PYTHON, "-m", "venv", tmp_path / "venv"], check=True)
    image = shutil.copytree(BUNDLE, tmp_path / "bundle")
    path = {"PATH": f"{tmp_path}/venv/bin:/usr/bin:/bin", "PYTHONDONTWRITEBYTECODE": "1"}
    text = (image / "Dockerfile").read_text().replace("\\\n", "")
    runs = re.findall(r"^RUN (.+)$", text, re.M)
    assert len(runs) == 2
    for command in runs:
        subprocess.run(command, shell=True, check=True, cwd=image, env=path)
    assert not (image / "rows").exists()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = str(listener.getsockname()[1])
    words = [re.search(rf"^{name} (.+)$", text, re.M) for name in ("ENTRYPOINT", "CMD")]
    command = [word for match in words if match for word in json.loads(match[1])]
    command = [{"8000": port, "0.0.0.0": "127.0.0.1"}.get(word, word) for word in command]
    health = re.search(r"^HEALTHCHECK .*? CMD (.+)$", text, re.M)
    assert health
    check = [word.replace("8000", port) for word in json.loads(health[1])]
    server = subprocess.Popen(shlex.join(["exec", *command]), shell=True, cwd=image, env=path)
    try:
        end = time.monotonic() + 60
        while subprocess.run(check, cwd=image, env=path, capture_output=True).returncode:
            assert time.monotonic() < end
            time.sleep(0.1)
        request = f"http://127.0.0.1:{port}/openapi.json"
        document = json.load(urllib.request.urlopen(request))
        content = document["paths"]["/predict"]["post"]["requestBody"]["content"]
        body = json.dumps(content["application/json"]["example"]).encode()
        headers = {"Content-Type": "application/json"}
        url = f"http://127.0.0.1:{port}/predict"
        answer = urllib.request.urlopen(urllib.request.Request(url, body, headers))
        assert len(json.load(answer)["predictions"]) == 1
    finally:
        server.terminate()
        assert server.wait(20) == 0
