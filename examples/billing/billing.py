"""Takes Stripe's webhooks and the calls of a WHMCS module, and writes Subscriptions. It keeps nothing itself, so any number of it may run."""
from __future__ import annotations

import argparse
import json
import logging
import signal
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Callable

from kubernetes import client, config

from mapping import Change, Dropped, Refused, settle, stripe, whmcs
from signature import is_valid

MANAGER = "billing"
# Well above what Stripe and WHMCS send.
BODY_MAX = 256 * 1024
ATTEMPTS = 5
TIMEOUT_S = 10
LOG = logging.getLogger("billing")


class Busy(Exception):
    """The same message has to be sent again later."""


class Subscriptions:
    """The Subscriptions of one namespace."""

    def __init__(self, api: client.CustomObjectsApi, namespace: str) -> None:
        self.api = api
        self.namespace = namespace
        self.kind = {"group": "agentfleet.dev", "version": "v1alpha1", "namespace": namespace, "plural": "subscriptions", "_request_timeout": TIMEOUT_S}

    def write(self, change: Change) -> str:
        """Settles a change on what is there; answers the state. Whoever else writes meanwhile makes it read again."""
        for _ in range(ATTEMPTS):
            body = settle(change, self.read(change.agent), self.namespace)
            try:
                self.api.patch_namespaced_custom_object(
                    **self.kind, name=change.agent, body=body, field_manager=MANAGER, force=True, _content_type="application/apply-patch+yaml")
                return body["spec"]["state"]
            except client.ApiException as error:
                if error.status == 422:
                    raise Refused(json.loads(error.body)["message"]) from error
                if error.status != 409:
                    raise
        raise Busy("others write it too")

    def read(self, name: str) -> dict | None:
        try:
            found = self.api.get_namespaced_custom_object(**self.kind, name=name)
        except client.ApiException as error:
            if error.status == 404:
                return None
            raise
        if "deletionTimestamp" in found["metadata"]:
            raise Busy("it is being deleted")
        return found


class Source:
    """One sender: the header with his signature, the file with his secrets (one a line, read each time), and how he is read."""

    def __init__(self, header: str, secrets: Path, parse: Callable[[dict], Change | None]) -> None:
        self.header, self.file, self.parse = header, secrets, parse
        if not self.secrets():
            raise SystemExit(f"{secrets} holds no secret")

    def secrets(self) -> list[bytes]:
        return self.file.read_bytes().split()

    def change(self, body: bytes) -> Change | None:
        try:
            return self.parse(json.loads(body))
        except (LookupError, TypeError, ValueError, ArithmeticError, AttributeError, OSError) as error:
            raise Refused(f"it does not have the form of such a message: {error!r}") from error


def answer(source: Source, subscriptions: Subscriptions, signed: str, body: bytes) -> tuple[int, str]:
    """Handles one message: 2xx is never sent again, 503 is."""
    if not is_valid(signed, body, source.secrets(), time.time()):
        LOG.warning("401: a message without a valid %s", source.header)
        return 401, "the signature is not valid"
    change = None
    try:
        change = source.change(body)
        if change is None:
            return 200, "it is about nothing that runs an agent"
        status, text = 200, f"written: {subscriptions.write(change)}"
    except Dropped as reason:
        status, text = 200, f"dropped: {reason}"
    except Refused as reason:
        status, text = 422, f"refused: {reason}"
    except Busy as reason:
        status, text = 503, f"again, please: {reason}"
    except Exception as error:  # The API server, or the way to it.
        status, text = 503, f"again, please: Kubernetes says {getattr(error, 'status', type(error).__name__)}"
    LOG.info("%d %r of agent %r: %r", status, change and change.id, change and change.agent, text)
    return status, text


def handler(sources: dict[str, Source], subscriptions: Subscriptions) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        timeout = TIMEOUT_S

        def do_GET(self) -> None:
            self.reply(200 if self.path == "/healthz" else 404, "")

        def do_POST(self) -> None:
            source, length = sources.get(self.path), self.headers.get("Content-Length", "")
            if source is None:
                self.reply(404, "")
            elif not (length.isascii() and length.isdigit()):
                self.reply(411, "a Content-Length is needed")
            elif len(length) > 9 or int(length) > BODY_MAX:
                self.reply(413, "the body is too large")
            else:
                body = self.rfile.read(int(length))
                self.reply(*answer(source, subscriptions, self.headers.get(source.header, ""), body))

        def reply(self, status: int, text: str) -> None:
            body = text.encode() + b"\n"
            self.send_response(status)
            self.send_header("Content-Type", "text/plain; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            if status == 503:
                self.send_header("Retry-After", "1")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Each message is logged once it was judged, without what it holds."""

    return Handler


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--listen", default="0.0.0.0:8080", help="address and port")
    parser.add_argument("--namespace", required=True, help="where the Subscriptions are")
    parser.add_argument("--stripe-secret", type=Path, help="file with the signing secret of the webhook; /stripe is served with it")
    parser.add_argument("--whmcs-secret", type=Path, help="file with the secret that the WHMCS module signs with; /whmcs is served with it")
    parser.add_argument("--serve-uncollected", action="store_true", help="run agents on while Stripe's pause_collection is set")
    flags = parser.parse_args()
    logging.basicConfig(format="%(asctime)s %(message)s", level=logging.INFO)
    sources = {}
    if flags.stripe_secret:
        sources["/stripe"] = Source("Stripe-Signature", flags.stripe_secret, lambda event: stripe(event, flags.serve_uncollected))
    if flags.whmcs_secret:
        sources["/whmcs"] = Source("Whmcs-Signature", flags.whmcs_secret, whmcs)
    try:
        config.load_incluster_config()
    except config.ConfigException:
        config.load_kube_config()
    host, _, port = flags.listen.rpartition(":")
    subscriptions = Subscriptions(client.CustomObjectsApi(), flags.namespace)
    server = ThreadingHTTPServer((host, int(port)), handler(sources, subscriptions))
    # As the first process of a container it would not end otherwise.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    LOG.info("listening on %s, for %s", flags.listen, ", ".join(sources))
    server.serve_forever()


if __name__ == "__main__":
    main()
