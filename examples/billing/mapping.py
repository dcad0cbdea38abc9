"""What a billing system says, as a Subscription: the tables of docs/subscriptions.md. Nothing here does I/O or asks for the time.

`stripe` and `whmcs` read one message into a `Change`. `settle` makes of it the object to apply, given the one that is there: messages come twice,
late and in any order, and each is judged by its own time, which is kept in annotations.
"""
from __future__ import annotations

import re
from dataclasses import dataclass, field
from datetime import datetime, timezone

# A domain of your own goes here.
PREFIX = "billing.example.com/"
# Time and ids of the latest messages about the whole, and about payment only.
SAID, PAYMENT = PREFIX + "said", PREFIX + "payment"
# Which of two subscriptions of one agent is the later one.
BEGAN = PREFIX + "began"
# A version that no object ever has: with it, server-side apply makes the object, or is answered 409 when somebody was faster.
NOT_THERE = "1"

NAME = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
FIELDS = ("customerId", "plan", "state", "stateSince", "paidUntil", "cancelAt", "secretName", "externalRef")
RUNS = {"Trialing", "Active"}
OVER = {"Canceled", "IncompleteExpired"}
# What a payment can change; the others are people's words.
HANGS_ON_PAYMENT = {"Incomplete", "Trialing", "Active", "PastDue", "Unpaid"}

STRIPE_STATES = {
    "incomplete": "Incomplete", "incomplete_expired": "IncompleteExpired", "trialing": "Trialing", "active": "Active",
    "past_due": "PastDue", "unpaid": "Unpaid", "paused": "Paused", "canceled": "Canceled",
}
STRIPE_SUBSCRIPTION = {"customer.subscription." + what for what in ("created", "updated", "deleted", "paused", "resumed")}
PAID = {"PastDue": "Active", "Unpaid": "Active", "Incomplete": "Active"}
STRIPE_INVOICE = {"invoice.payment_failed": {"Active": "PastDue", "Trialing": "PastDue"}, "invoice.paid": PAID}

# Each call's state; or, where it hangs on the one before, from which state it leads to which.
WHMCS = {
    "CreateAccount": "Active", "SuspendAccount": "Unpaid", "TerminateAccount": "Canceled",
    "UnsuspendAccount": PAID | {"Paused": "Active"}, "Renew": PAID, "ChangePackage": {},
}
# What WHMCS gives as the reason when it suspends by itself.
OVERDUE = {"", "Overdue on Payment"}


class Dropped(Exception):
    """Nothing is to be written, and that is well."""


class Refused(Exception):
    """It cannot be written, however often it is sent."""


@dataclass(frozen=True)
class Change:
    """What one message says of one agent."""

    agent: str
    id: str
    at: str
    ref: dict
    # The state, or from which it leads to which.
    state: str | dict
    # The rest of the spec; none where the message is about payment only.
    fields: dict = field(default_factory=dict)
    began: int = 0
    # Nothing can have been said of this subscription before.
    is_first: bool = False
    # From a state that is over no message leads back.
    ends_for_good: bool = False
    # The end of the period that was to be paid.
    covers: str = ""


def when(seconds: int) -> str:
    """A time as Kubernetes writes it; these compare as text."""
    return datetime.fromtimestamp(seconds, timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def stripe(event: dict, serve_uncollected: bool = False) -> Change | None:
    """An event of Stripe; none where it is about nothing that runs an agent."""
    kind, about = event["type"], event["data"]["object"]
    if kind in STRIPE_SUBSCRIPTION:
        return stripe_subscription(event, about, serve_uncollected)
    if kind in STRIPE_INVOICE:
        return stripe_invoice(event, about)
    return None


def stripe_subscription(event: dict, said: dict, serve_uncollected: bool) -> Change | None:
    agent = said["metadata"].get("agent")
    if not agent:
        return None
    item = said["items"]["data"][0]
    if not item["price"].get("lookup_key"):
        raise Refused(f"the price of {said['id']} has no lookup_key, so that no plan is known")
    state = STRIPE_STATES[said["status"]]
    if state == "Active" and said.get("pause_collection") and not serve_uncollected:
        state = "Paused"
    period_end = item["current_period_end"]
    ref = {"system": "stripe", "id": said["id"]}
    fields = {"customerId": said["customer"], "plan": item["price"]["lookup_key"], "paidUntil": when(period_end), "secretName": agent, "externalRef": ref}
    cancel_at = said.get("cancel_at") or (period_end if said.get("cancel_at_period_end") else None)
    if cancel_at:
        fields["cancelAt"] = when(cancel_at)
    return Change(agent, event["id"], when(event["created"]), ref, state, fields, began=said["created"],
                  is_first=event["type"].endswith(".created"), ends_for_good=True)


def stripe_invoice(event: dict, invoice: dict) -> Change | None:
    about = (invoice.get("parent") or {}).get("subscription_details") or {}
    agent = (about.get("metadata") or {}).get("agent")
    if not agent:
        return None
    ends = [line["period"]["end"] for line in invoice["lines"]["data"]]
    return Change(agent, event["id"], when(event["created"]), {"system": "stripe", "id": about["subscription"]},
                  STRIPE_INVOICE[event["type"]], covers=when(max(ends)) if ends else "")


def whmcs(call: dict) -> Change | None:
    """A call of the WHMCS module; none where it is about nothing that is mapped."""
    if call["call"] not in WHMCS:
        return None
    state = WHMCS[call["call"]]
    if call["call"] == "SuspendAccount" and call.get("suspendreason", "") not in OVERDUE:
        state = "Paused"
    ref = {"system": "whmcs", "id": str(call["serviceid"])}
    fields = {"customerId": str(call["userid"]), "plan": call["plan"], "secretName": call["agent"], "externalRef": ref}
    # WHMCS writes this for what is paid once, or not at all.
    if call["nextduedate"] != "0000-00-00":
        fields["paidUntil"] = datetime.strptime(call["nextduedate"], "%Y-%m-%d").strftime("%Y-%m-%dT00:00:00Z")
    return Change(call["agent"], str(call["id"]), when(call["at"]), ref, state, fields, began=int(call["serviceid"]))


def settle(change: Change, present: dict | None, namespace: str) -> dict:
    """The object to apply, on the version that was read; raises `Dropped` or `Refused`."""
    if not NAME.fullmatch(change.agent):
        raise Refused("the agent's name is none that Kubernetes takes")
    metadata = (present or {}).get("metadata", {})
    former, notes = (present or {}).get("spec", {}), metadata.get("annotations", {})
    notes = {key: notes[key] for key in (SAID, PAYMENT, BEGAN) if key in notes}
    if former and former.get("externalRef") != change.ref:
        take_over(change, former, notes)
        notes = {}
    elif former:
        in_order(change, former, notes)
    state = next_state(change, former.get("state"), notes)
    spec = change.fields or {key: former[key] for key in FIELDS if key in former}
    since = former.get("stateSince", change.at) if state == former.get("state") else change.at
    key = SAID if change.fields else PAYMENT
    notes[key] = noted(change, notes.get(key, ""))
    if change.fields:
        notes[BEGAN] = str(change.began)
    return {
        "apiVersion": "agentfleet.dev/v1alpha1", "kind": "Subscription",
        "metadata": {"namespace": namespace, "name": change.agent, "annotations": notes,
                     "resourceVersion": metadata.get("resourceVersion", NOT_THERE)},
        "spec": spec | {"state": state, "stateSince": since},
    }


def take_over(change: Change, former: dict, notes: dict) -> None:
    """Drops what is said of another subscription than the one that stands, unless it is a later one that is paid, or comes after its end."""
    if not isinstance(change.state, str) or change.began < int(notes.get(BEGAN, "0")):
        raise Dropped("it is about another subscription than the one that stands")
    if change.state not in RUNS and former["state"] not in OVER:
        raise Dropped("the subscription that stands is not over, and this one does not run")


def in_order(change: Change, former: dict, notes: dict) -> None:
    """Drops what is older than what was written, and what was written already."""
    said, payment = notes.get(SAID, ""), notes.get(PAYMENT, "")
    if change.is_first:
        raise Dropped("more was said of it already")
    if change.ends_for_good and former["state"] in OVER and change.state not in OVER:
        raise Dropped("it is over, which nothing takes back")
    for former_note in (said,) if change.fields else (said, payment):
        at, _, ids = former_note.partition(" ")
        if change.at < at:
            raise Dropped(f"it is of {change.at}, and {at} was written")
        if change.id in ids.split(" "):
            raise Dropped("it was written already")
    if change.covers and change.covers < former.get("paidUntil", ""):
        raise Dropped("it is about an earlier period")


def next_state(change: Change, former: str | None, notes: dict) -> str:
    if isinstance(change.state, dict):
        if former is None and change.fields:
            raise Refused("there is no Subscription of that name")
        if former is None or not change.fields and former not in change.state:
            raise Dropped(f"it changes nothing for one that is {former}")
        return change.state.get(former, former)
    # Of two words on payment the later one stands.
    later = change.at < notes.get(PAYMENT, "").partition(" ")[0]
    return former if later and {change.state, former} <= HANGS_ON_PAYMENT else change.state


def noted(change: Change, former: str) -> str:
    """Time and id; several ids where messages are of the same second, as finer Stripe does not tell."""
    at, _, ids = former.partition(" ")
    return f"{change.at} {ids} {change.id}" if at == change.at else f"{change.at} {change.id}"
