"""A simulator, the official client on it, and a check of every body that comes back."""
import json
import re
import subprocess
import tempfile
import time
from pathlib import Path
from urllib.parse import urlsplit

import departures
import pytest
import requests
from hcloud import Client
from jsonschema import Draft202012Validator

HERE = Path(__file__).parent
TOKEN = "conformance".ljust(64, "0")
START = 20  # seconds


def pytest_addoption(parser):
    parser.addoption("--simulator", required=True, help="the simulator's binary")


class Checker:
    """Validates answers against the reduced specification and remembers which operations it saw."""

    def __init__(self) -> None:
        schemas = departures.apply(json.loads((HERE / "schemas.json").read_text()))
        self.operations, self.error = schemas["operations"], schemas["error"]
        self.defs, self.seen, self.bodies = schemas["$defs"], set(), 0

    def operation(self, method: str, path: str) -> str:
        kinds = [f"{method} {re.sub(r'[0-9]+', '{id}', path)}"]
        if found := re.fullmatch(r"/(\w+)/([0-9]+)/actions/([0-9]+)", path):
            kinds = [f"{method} /{found[1]}/{{id}}/actions/{{action_id}}"]
        return kinds[0]

    def __call__(self, response: requests.Response, *_args, **_kwargs) -> None:
        method, path = response.request.method, urlsplit(response.request.url).path.removeprefix("/v1")
        name = self.operation(method, path)
        self.bodies += 1
        for header in ("X-Correlation-Id", "RateLimit-Limit", "RateLimit-Remaining", "RateLimit-Reset"):
            assert header in response.headers, f"{name} lacks {header}"
        if response.ok:
            assert name in self.operations, f"{name} is not in the specification"
            self.seen.add(name)
            expected = self.operations[name]
            assert response.status_code == expected["status"], name
            schema = expected["schema"]
        else:
            schema = self.error
        if schema is None:
            assert response.content == b"", f"{name} has a body"
            return
        errors = Draft202012Validator(schema | {"$defs": self.defs}).iter_errors(response.json())
        found = [f"{error.json_path}: {error.message}" for error in errors]
        assert not found, f"{name} {response.status_code}: {found[:5]}"


@pytest.fixture(scope="session")
def checker():
    return Checker()


@pytest.fixture(scope="session")
def endpoint(request):
    with tempfile.TemporaryDirectory() as folder:
        ready = Path(folder) / "ready.json"
        command = [request.config.getoption("--simulator"), "--token", TOKEN, "--ready-file", ready,
                   "--action-s", "0.02..0.05", "--rate-limit", "3600000"]
        simulator = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        try:
            deadline = time.monotonic() + START
            while not ready.exists():
                assert simulator.poll() is None, "the simulator ended"
                assert time.monotonic() < deadline, "the simulator is not ready"
                time.sleep(0.02)
            yield json.loads(ready.read_text())
        finally:
            simulator.terminate()
            assert simulator.wait(START) == 0


@pytest.fixture
def client(endpoint, checker):
    client = Client(token=TOKEN, api_endpoint=endpoint["endpoint"], poll_interval=0.02)
    client._client._session.hooks["response"].append(checker)
    return client


@pytest.fixture
def control(endpoint):
    def post(path: str, body: dict) -> dict:
        answer = requests.post(endpoint["control"] + path, json=body, timeout=10)
        answer.raise_for_status()
        return answer.json()

    return post
