#!/usr/bin/env python3
"""Reduces Hetzner's OpenAPI file to the schemas of the answers that the simulator gives.

    reduce_spec.py hetzner-cloud.spec.json > schemas.json

Kept: for each supported operation the status and schema of its success, and the error envelope once.
Written as plain JSON Schema: `nullable` becomes a type or an enum member, an object takes no members that
the file does not name, and what occurs more than once stands in `$defs`. Prose and examples go.
"""
import hashlib
import json
import sys
from collections import Counter

RESOURCES = ("actions", "firewalls", "images", "locations", "networks", "placement_groups", "pricing",
             "primary_ips", "server_types", "servers", "ssh_keys")
SERVER_COMMANDS = ("add_to_placement_group", "attach_to_network", "change_protection", "change_type",
                   "create_image", "detach_from_network", "poweroff", "poweron", "reboot", "rebuild",
                   "remove_from_placement_group", "reset", "shutdown")
KEPT = ("type", "enum", "pattern", "minimum", "maximum", "maxItems", "maxLength", "required")
WORTH_SHARING = 160  # characters


def is_supported(path: str) -> bool:
    parts = path.strip("/").split("/")
    if parts[0] not in RESOURCES or path.endswith("/metrics"):
        return False
    return parts[0] != "servers" or len(parts) < 4 or parts[3] in SERVER_COMMANDS or parts[3] == "{action_id}"


def plain(schema: dict) -> dict:
    """An OpenAPI 3.0 schema as JSON Schema."""
    out = {key: schema[key] for key in KEPT if key in schema}
    if schema.get("properties"):
        out["properties"] = {name: plain(member) for name, member in schema["properties"].items()}
        out["additionalProperties"] = False
    if "additionalProperties" in schema:
        out["additionalProperties"] = plain(schema["additionalProperties"])
    if "items" in schema:
        out["items"] = plain(schema["items"])
    for many in ("oneOf", "anyOf", "allOf"):
        if many in schema:
            out[many] = [plain(member) for member in schema[many]]
    if schema.get("nullable"):
        out["type"] = [out["type"], "null"]
        if "enum" in out:
            out["enum"] = [*out["enum"], None]
    return out


def fingerprint(schema: dict) -> str:
    return hashlib.sha256(json.dumps(schema, sort_keys=True).encode()).hexdigest()[:8]


def count(node: object, seen: Counter) -> None:
    if isinstance(node, dict):
        if isinstance(node.get("type"), (str, list)) and len(json.dumps(node)) >= WORTH_SHARING:
            seen[fingerprint(node)] += 1
        for child in node.values():
            count(child, seen)
    elif isinstance(node, list):
        for child in node:
            count(child, seen)


def share(node: object, seen: Counter, defs: dict) -> object:
    if isinstance(node, list):
        return [share(child, seen, defs) for child in node]
    if not isinstance(node, dict):
        return node
    mark = fingerprint(node)
    small = {key: share(child, seen, defs) for key, child in node.items()}
    if seen[mark] > 1:
        defs[mark] = small
        return {"$ref": f"#/$defs/{mark}"}
    return small


def main() -> None:
    with open(sys.argv[1]) as file:
        spec = json.load(file)
    operations, error = {}, None
    for path, item in sorted(spec["paths"].items()):
        for method, operation in item.items():
            if method not in ("get", "post", "put", "delete") or not is_supported(path):
                continue
            for status, response in operation["responses"].items():
                schema = response.get("content", {}).get("application/json", {}).get("schema")
                if status.startswith("2"):
                    operations[f"{method.upper()} {path}"] = {
                        "status": int(status), "schema": plain(schema) if schema else None}
                elif error is None:
                    error = plain(schema)
    seen: Counter = Counter()
    count(operations, seen)
    defs: dict = {}
    operations = share(operations, seen, defs)
    parts = {"operations": operations, "$defs": defs}
    print("{")
    for name, part in parts.items():
        lines = (f"  {json.dumps(key)}: {json.dumps(part[key], sort_keys=True)}" for key in sorted(part))
        print(f' "{name}": {{\n' + ",\n".join(lines) + "\n },")
    print(f' "error": {json.dumps(error, sort_keys=True)}\n}}')


if __name__ == "__main__":
    main()
