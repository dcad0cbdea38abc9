"""What is answered over HTTP, with an API server in memory that knows versions as the real one does."""
from __future__ import annotations

import hmac
import http.client
import json
import threading
import time
from http.server import ThreadingHTTPServer

import pytest
from kubernetes import client

import billing
import mapping
from test_mapping import call, event

SECRET = "whsec_canary"


class Kubernetes:
    """One Subscription, and who else writes it."""

    def __init__(self) -> None:
        self.kept, self.fails, self.others = None, None, 0

    def get_namespaced_custom_object(self, name: str, **_: object) -> dict:
        if self.fails:
            raise self.fails
        if self.kept is None:
            raise client.ApiException(404)
        return json.loads(json.dumps(self.kept))

    def patch_namespaced_custom_object(self, body: dict, **_: object) -> None:
        version = self.kept["metadata"]["resourceVersion"] if self.kept else "1"
        if self.others and self.kept:
            self.others -= 1
            self.kept["metadata"]["resourceVersion"] = version = str(int(version) + 1)
        if body["metadata"]["resourceVersion"] != version:
            raise client.ApiException(409)
        self.kept = body | {"metadata": body["metadata"] | {"resourceVersion": str(int(version) + 1)}}


@pytest.fixture
def kubernetes() -> Kubernetes:
    return Kubernetes()


@pytest.fixture
def port(kubernetes, tmp_path):
    (tmp_path / "secret").write_text(f"old\n{SECRET}\n")
    sources = {"/stripe": billing.Source("Stripe-Signature", tmp_path / "secret", mapping.stripe),
               "/whmcs": billing.Source("Whmcs-Signature", tmp_path / "secret", mapping.whmcs)}
    server = ThreadingHTTPServer(("127.0.0.1", 0), billing.handler(sources, billing.Subscriptions(kubernetes, "agents")))
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield server.server_port
    server.shutdown()
    server.server_close()


def post(port: int, message: object, path: str = "/stripe", secret: str = SECRET, **headers: str) -> http.client.HTTPResponse:
    body = message if isinstance(message, bytes) else json.dumps(message).encode()
    at = int(time.time())
    signed = f"t={at},v1={hmac.new(secret.encode(), f'{at}.'.encode() + body, 'sha256').hexdigest()}"
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request("POST", path, body, {path[1:].capitalize() + "-Signature": signed} | headers)
    return connection.getresponse()


def test_what_is_signed_is_written_and_a_repetition_is_well_too(port, kubernetes):
    assert post(port, event("created")).status == 200
    kept = kubernetes.kept
    assert post(port, event("created")).status == 200
    assert kubernetes.kept == kept and kept["spec"]["state"] == "Active"
    assert post(port, call("CreateAccount"), "/whmcs").status == 200


def test_what_is_not_signed_is_not_read(port, kubernetes, caplog):
    assert post(port, event(), secret="wrong").status == 401
    assert post(port, b"no JSON", secret="wrong").status == 401
    assert kubernetes.kept is None
    assert SECRET not in caplog.text


@pytest.mark.parametrize("message", [b"", b"no JSON", b"[]", b'"text"', b"{}", event(status="new"), event(items={"data": []}), event(at=10**30), b"\xff"])
def test_what_has_no_form_is_refused(port, kubernetes, message):
    assert post(port, message).status == 422
    assert kubernetes.kept is None


def test_bodies_and_paths_are_bounded(port):
    assert post(port, event(), "/other").status == 404
    assert post(port, b"", **{"Content-Length": str(billing.BODY_MAX + 1)}).status == 413
    assert post(port, b"", **{"Content-Length": "9" * 5000}).status == 413
    assert post(port, b"", **{"Content-Length": "-1"}).status == 411
    assert post(port, b"", **{"Content-Length": "", "Transfer-Encoding": "chunked"}).status == 411


def test_whoever_writes_at_the_same_time_makes_it_look_again_and_who_writes_always_makes_it_ask_for_a_repetition(port, kubernetes):
    post(port, event("created"))
    kubernetes.others = billing.ATTEMPTS - 1
    assert post(port, event(status="unpaid")).status == 200
    assert kubernetes.kept["spec"]["state"] == "Unpaid"
    kubernetes.others = billing.ATTEMPTS
    again = post(port, event("resumed"))
    assert (again.status, again.getheader("Retry-After")) == (503, "1")
    assert kubernetes.kept["spec"]["state"] == "Unpaid"


@pytest.mark.parametrize("failure", [client.ApiException(403), client.ApiException(500), ConnectionError()])
def test_what_kubernetes_cannot_do_now_is_to_be_sent_again(port, kubernetes, failure):
    kubernetes.fails = failure
    assert post(port, event()).status == 503


def test_what_is_being_deleted_is_waited_for(port, kubernetes):
    post(port, event("created"))
    kubernetes.kept["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    assert post(port, event()).status == 503


def test_a_secret_that_was_changed_counts_at_once_and_without_one_it_does_not_begin(port, tmp_path):
    (tmp_path / "secret").write_text("another\n")
    assert (post(port, event()).status, post(port, event(), secret="another").status) == (401, 200)
    with pytest.raises(SystemExit):
        (tmp_path / "none").write_text("\n")
        billing.Source("Stripe-Signature", tmp_path / "none", mapping.stripe)
