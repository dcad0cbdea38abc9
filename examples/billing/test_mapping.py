"""Each row of the tables in docs/subscriptions.md, and what comes twice, late or about another subscription."""
from __future__ import annotations

import re
from pathlib import Path

import pytest

import mapping
from mapping import PAYMENT, SAID, Dropped, Refused, settle, stripe, when, whmcs

START, PERIOD_END = 1_760_000_000, 1_762_592_000
DOCS = (Path(__file__).parents[2] / "docs/subscriptions.md").read_text()


def rows(heading: str) -> list[str]:
    """The first cells of a table, as they stand in the docs."""
    table = DOCS.split(f"\n| {heading} |", 1)[1].split("\n\n", 1)[0]
    return [line.split("|")[1] for line in table.splitlines()[2:]]


def words(heading: str) -> set[str]:
    return {word for row in rows(heading) for word in re.findall(r"`([^`]*)`", row)}


def event(kind: str = "updated", at: int = START, **said) -> dict:
    price = {"lookup_key": said.pop("plan", "small")}
    item = {"price": price, "current_period_end": said.pop("period_end", PERIOD_END)}
    subscription = {"id": "sub_1", "customer": "cus_1", "status": "active", "created": START, "metadata": {"agent": "alice"}, "items": {"data": [item]}}
    return {"id": f"evt_{kind}_{at}", "type": f"customer.subscription.{kind}", "created": at, "data": {"object": subscription | said}}


def invoice(kind: str, at: int = START, subscription: str = "sub_1", covers: int = PERIOD_END) -> dict:
    about = {"parent": {"subscription_details": {"subscription": subscription, "metadata": {"agent": "alice"}}}}
    lines = {"lines": {"data": [{"period": {"start": covers - 9, "end": covers}}, {"period": {"start": 0, "end": 9}}]}}
    return {"id": f"evt_{kind}_{at}", "type": f"invoice.{kind}", "created": at, "data": {"object": about | lines}}


def call(name: str, at: int = START, **given) -> dict:
    service = {"serviceid": 42, "userid": 7, "agent": "alice", "plan": "small", "nextduedate": "2026-12-21"}
    return {"call": name, "id": f"{name}-{at}", "at": at} | service | given


def apply(message: dict, present: dict | None = None) -> dict:
    """The object after a message, as the API server would keep it."""
    change = whmcs(message) if "call" in message else stripe(message)
    written = settle(change, present, "agents")
    version = written["metadata"]["resourceVersion"]
    assert version == (present["metadata"]["resourceVersion"] if present else mapping.NOT_THERE)
    written["metadata"]["resourceVersion"] = str(int(version) + 1)
    return written


def in_state(state: str, ref: dict | None = None, at: int = START) -> dict:
    there = apply(event("created", at) if ref is None else call("CreateAccount", at))
    there["spec"]["state"] = state
    return there


def state_after(message: dict, former: str) -> str:
    return apply(message, in_state(former, {} if "call" in message else None))["spec"]["state"]


def test_a_subscription_at_stripe_is_written_whole():
    assert apply(event("created")) == {
        "apiVersion": "agentfleet.dev/v1alpha1", "kind": "Subscription",
        "metadata": {"namespace": "agents", "name": "alice", "resourceVersion": "2", "annotations": {
            mapping.SAID: "2025-10-09T08:53:20Z evt_created_1760000000", mapping.BEGAN: "1760000000"}},
        "spec": {"customerId": "cus_1", "plan": "small", "state": "Active", "stateSince": "2025-10-09T08:53:20Z", "paidUntil": "2025-11-08T08:53:20Z",
                 "secretName": "alice", "externalRef": {"system": "stripe", "id": "sub_1"}},
    }


@pytest.mark.parametrize("said, cancel_at", [
    ({}, None), ({"cancel_at": START + 9}, START + 9), ({"cancel_at_period_end": True}, PERIOD_END),
    ({"cancel_at": START + 9, "cancel_at_period_end": True}, START + 9), ({"cancel_at": None, "cancel_at_period_end": False}, None),
])
def test_a_cancellation_to_come_is_told_and_taken_back(said, cancel_at):
    there = apply(event(at=START, cancel_at=START + 5))
    assert apply(event(at=START + 1, **said), there)["spec"].get("cancelAt") == (cancel_at and when(cancel_at))


STRIPE_STATES = {
    "incomplete": "Incomplete", "incomplete_expired": "IncompleteExpired", "trialing": "Trialing", "active": "Active", "past_due": "PastDue",
    "unpaid": "Unpaid", "paused": "Paused", "canceled": "Canceled",
}


@pytest.mark.parametrize("status, state", STRIPE_STATES.items())
def test_each_status_at_stripe_is_a_state(status, state):
    assert state_after(event(at=START + 1, status=status), "Active") == state
    assert apply(event("created", status=status))["spec"]["state"] == state


def test_the_docs_name_the_same_statuses_events_and_calls():
    assert words("status at Stripe") == set(STRIPE_STATES)
    named = {"customer.subscription" + word if word.startswith(".") else word for word in words("event")}
    assert named == mapping.STRIPE_SUBSCRIPTION | set(mapping.STRIPE_INVOICE)
    assert words("call of the module") == set(mapping.WHMCS)


def test_a_collection_that_is_paused_pauses_the_agent_unless_it_is_served_meanwhile():
    paused = event(pause_collection={"behavior": "void"})
    assert apply(paused)["spec"]["state"] == "Paused"
    assert stripe(paused, serve_uncollected=True).state == "Active"
    assert apply(event(pause_collection={"behavior": "void"}, status="past_due"))["spec"]["state"] == "PastDue"


@pytest.mark.parametrize("kind, status, state", [
    ("created", "trialing", "Trialing"), ("updated", "past_due", "PastDue"), ("deleted", "canceled", "Canceled"), ("paused", "paused", "Paused"),
    ("resumed", "active", "Active"),
])
def test_each_event_of_a_subscription_writes_what_it_says(kind, status, state):
    there = None if kind == "created" else in_state("Unpaid")
    written = apply(event(kind, START + 1, status=status, plan="large", period_end=PERIOD_END + 9), there)["spec"]
    assert (written["state"], written["plan"], written["paidUntil"]) == (state, "large", when(PERIOD_END + 9))


@pytest.mark.parametrize("kind, former, state", [
    ("payment_failed", "Active", "PastDue"), ("payment_failed", "Trialing", "PastDue"),
    *[("payment_failed", former, None) for former in ("Incomplete", "IncompleteExpired", "PastDue", "Unpaid", "Paused", "Canceled")],
    ("paid", "PastDue", "Active"), ("paid", "Unpaid", "Active"), ("paid", "Incomplete", "Active"),
    *[("paid", former, None) for former in ("Trialing", "Active", "IncompleteExpired", "Paused", "Canceled")],
])
def test_an_invoice_changes_what_hangs_on_payment_and_nothing_else(kind, former, state):
    there = in_state(former)
    if state is None:
        with pytest.raises(Dropped):
            apply(invoice(kind, START + 1), there)
    else:
        assert apply(invoice(kind, START + 1), there)["spec"] == there["spec"] | {"state": state, "stateSince": when(START + 1)}


def test_an_invoice_writes_nothing_but_what_billing_had_written():
    there = in_state("PastDue")
    there["spec"] |= {"retention": "24h", "gracePeriod": "72h", "environment": {"BY": "an admin"}}
    assert set(apply(invoice("paid", START + 1), there)["spec"]) <= set(mapping.FIELDS)


def test_an_invoice_of_an_earlier_period_pays_nothing_now():
    with pytest.raises(Dropped, match="earlier period"):
        apply(invoice("paid", START + 1, covers=PERIOD_END - 1), in_state("Unpaid"))


def test_an_invoice_of_no_subscription_or_of_another_changes_nothing():
    with pytest.raises(Dropped):
        apply(invoice("paid"))
    with pytest.raises(Dropped):
        apply(invoice("paid", START + 1, subscription="sub_0"), in_state("Unpaid"))
    assert stripe(invoice("paid") | {"data": {"object": {"parent": None}}}) is None


@pytest.mark.parametrize("name, given, former, state", [
    ("CreateAccount", {}, None, "Active"), ("CreateAccount", {}, "Canceled", "Active"),
    ("SuspendAccount", {"suspendreason": "Overdue on Payment"}, "Active", "Unpaid"), ("SuspendAccount", {}, "Active", "Unpaid"),
    ("SuspendAccount", {"suspendreason": "sends spam"}, "Active", "Paused"), ("SuspendAccount", {}, None, "Unpaid"),
    *[("UnsuspendAccount", {}, former, "Active") for former in ("Unpaid", "Paused", "PastDue", "Active")], ("UnsuspendAccount", {}, "Canceled", "Canceled"),
    ("TerminateAccount", {}, "Active", "Canceled"), ("TerminateAccount", {}, "Unpaid", "Canceled"),
    *[("Renew", {}, former, "Active") for former in ("Active", "PastDue", "Unpaid")], ("Renew", {}, "Paused", "Paused"), ("Renew", {}, "Canceled", "Canceled"),
    *[("ChangePackage", {}, former, former) for former in ("Active", "Unpaid", "Canceled")],
])
def test_each_call_of_whmcs_leads_to_a_state(name, given, former, state):
    there = former and in_state(former, {})
    written = apply(call(name, START + 1, plan="large", nextduedate="2027-01-21", **given), there)["spec"]
    assert written == {
        "customerId": "7", "plan": "large", "state": state, "stateSince": when(START if state == former else START + 1), "paidUntil": "2027-01-21T00:00:00Z",
        "secretName": "alice", "externalRef": {"system": "whmcs", "id": "42"},
    }


@pytest.mark.parametrize("name", ["UnsuspendAccount", "Renew", "ChangePackage"])
def test_a_call_about_what_was_never_created_is_refused(name):
    with pytest.raises(Refused):
        apply(call(name))


def test_what_is_paid_once_has_no_end():
    assert "paidUntil" not in apply(call("CreateAccount", nextduedate="0000-00-00"))["spec"]


@pytest.mark.parametrize("message", [event("trial_will_end"), event() | {"type": "charge.succeeded"}, event(metadata={}), event(metadata={}, items={"data": []}), call("TestConnection")])
def test_what_is_about_no_agent_is_nothing(message):
    assert (whmcs if "call" in message else stripe)(message) is None


@pytest.mark.parametrize("message", [event(plan=None), event(metadata={"agent": "../x"}), event(metadata={"agent": "x" * 64})])
def test_what_can_never_be_written_is_refused(message):
    with pytest.raises(Refused):
        apply(message)


def test_a_message_that_comes_again_is_dropped_also_behind_others_of_its_second():
    first, second, third = event(at=START + 1), event("paused", START + 1, status="paused"), invoice("payment_failed", START + 2)
    there = apply(second, apply(first, apply(event("created"))))
    for again in (first, second, event("created"), event("created", START + 1)):
        with pytest.raises(Dropped):
            apply(again, there)
    there = apply(third, in_state("Active"))
    there["spec"]["state"] = "Active"
    with pytest.raises(Dropped, match="written already"):
        apply(third, there)


def test_an_older_message_is_dropped_and_one_of_the_same_second_is_not():
    there = apply(event(at=START + 5, status="unpaid"))
    for older in (event(at=START + 4), invoice("paid", START + 4)):
        with pytest.raises(Dropped, match="was written"):
            apply(older, there)
    assert apply(invoice("paid", START + 5), there)["spec"]["state"] == "Active"


def test_a_subscription_at_stripe_that_is_over_stays_so():
    there = apply(event("deleted", START + 5, status="canceled"))
    for late in (event(at=START + 5), event(at=START + 6), invoice("paid", START + 6)):
        with pytest.raises(Dropped):
            apply(late, there)
    assert apply(event(at=START + 6, status="canceled", period_end=PERIOD_END + 1), there)["spec"]["paidUntil"] == when(PERIOD_END + 1)


@pytest.mark.parametrize("status, state", [("past_due", "Active"), ("unpaid", "Active"), ("paused", "Paused"), ("canceled", "Canceled")])
def test_a_later_word_on_payment_stands_against_an_earlier_one_about_the_whole(status, state):
    there = apply(invoice("paid", START + 9), in_state("PastDue"))
    written = apply(event(at=START + 5, status=status, plan="large"), there)
    assert (written["spec"]["state"], written["spec"]["plan"]) == (state, "large")
    assert written["metadata"]["annotations"][PAYMENT].startswith(when(START + 9)) and written["metadata"]["annotations"][SAID].startswith(when(START + 5))


def later(at: int, status: str) -> dict:
    return event(at=at, status=status, id="sub_2", created=START + 100)


def test_a_customer_who_comes_back_takes_his_agent_over_and_the_old_subscription_says_nothing_any_more():
    there = apply(later(START + 100, "active"), in_state("Active"))
    assert there["spec"]["externalRef"]["id"] == "sub_2"
    for late in (event("deleted", START + 200, status="canceled"), event(at=START + 200), invoice("paid", START + 200)):
        with pytest.raises(Dropped, match="another subscription"):
            apply(late, there)
    # Messages of the old one were later than the first of the new one.
    assert apply(later(START + 100, "trialing"), apply(event("deleted", START + 200, status="canceled")))["spec"]["state"] == "Trialing"


def test_a_second_subscription_that_was_not_paid_takes_nothing_over_before_the_first_is_over():
    with pytest.raises(Dropped, match="is not over"):
        apply(later(START + 100, "incomplete"), in_state("Active"))
    assert apply(later(START + 100, "incomplete"), in_state("Canceled"))["spec"]["state"] == "Incomplete"


def test_a_service_of_whmcs_is_taken_over_by_a_later_one_that_was_created_and_by_no_other_call():
    there = in_state("Canceled", {})
    with pytest.raises(Dropped):
        apply(call("Renew", START + 1, serviceid=43), there)
    with pytest.raises(Dropped):
        apply(call("CreateAccount", START + 1, serviceid=41), there)
    assert apply(call("CreateAccount", START + 1, serviceid=43), there)["spec"]["externalRef"]["id"] == "43"
