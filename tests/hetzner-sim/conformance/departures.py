"""Where the simulator departs from Hetzner's OpenAPI file on purpose, each with its reason.

The file is of May 2026; the API has moved on since. Each departure changes the schemas before anything is
validated, and fails when it no longer applies, so that this list cannot outlive its reasons.
"""
from typing import Any, Callable


def drop_required(name: str, schemas: Any) -> int:
    """Forbids a member that the file still requires."""
    if isinstance(schemas, list):
        return sum(drop_required(name, child) for child in schemas)
    if not isinstance(schemas, dict):
        return 0
    changed = 0
    if name in schemas.get("properties", {}) and isinstance(schemas["properties"], dict):
        del schemas["properties"][name]
        schemas["required"] = [other for other in schemas["required"] if other != name]
        changed = 1
    return changed + sum(drop_required(name, child) for child in schemas.values())


def without_datacenter(schemas: dict) -> int:
    """`datacenter` was removed from servers and primary IPs in July 2026."""
    return drop_required("datacenter", schemas)


def unassigned_primary_ips(schemas: Any) -> int:
    """Since 2026-08-01 the `assignee_type` of a primary IP that nobody has is `unassigned`."""
    if isinstance(schemas, list):
        return sum(unassigned_primary_ips(child) for child in schemas)
    if not isinstance(schemas, dict):
        return 0
    changed = sum(unassigned_primary_ips(child) for child in schemas.values())
    kind = schemas.get("assignee_type")
    if isinstance(kind, dict) and kind.get("enum") == ["server"]:
        kind["enum"] = ["server", "unassigned"]
        changed += 1
    return changed


def network_members(schemas: dict) -> int:
    """`GET /networks/{id}/members` is newer than the file; its members are those of the Python client."""
    text, member = {"type": "string"}, {"id": {"type": "integer"}}
    member |= {name: text for name in ("type", "ip", "subnet", "status")}
    member["alias_ips"] = {"type": "array", "items": text}
    meta = schemas["operations"]["GET /networks"]["schema"]["properties"]["meta"]
    item = {"type": "object", "properties": member, "required": sorted(member), "additionalProperties": False}
    schemas["operations"]["GET /networks/{id}/members"] = {"status": 200, "schema": {
        "type": "object", "required": ["members", "meta"], "additionalProperties": False,
        "properties": {"members": {"type": "array", "items": item}, "meta": meta}}}
    return 1


DEPARTURES: list[Callable[[dict], int]] = [without_datacenter, unassigned_primary_ips, network_members]


def apply(schemas: dict) -> dict:
    for departure in DEPARTURES:
        assert departure(schemas), f"{departure.__name__} no longer applies"
    return schemas
