"""The official client drives every call that the simulator supports, and waits as its users do."""
from itertools import count

import pytest
from hcloud import APIException
from hcloud.actions import ActionFailedException
from hcloud.firewalls import FirewallResource, FirewallResourceLabelSelector, FirewallRule
from hcloud.images import Image
from hcloud.locations import Location
from hcloud.networks import NetworkRoute, NetworkSubnet
from hcloud.placement_groups import PlacementGroup
from hcloud.server_types import ServerType
from hcloud.servers import ServerCreatePublicNetwork
from hcloud.ssh_keys import SSHKey

KEYS = ["ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJdD7y3aLq454yWBdwLWbieU1ebz9/cu7/QEXn9OIeZJ one",
        "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGQ= two"]
NUMBERS = count()


def name(kind: str) -> str:
    return f"{kind}-{next(NUMBERS)}"


def new_server(client, wait=True, **fields):
    wanted = {"name": name("server"), "server_type": ServerType("cx23"), "image": Image(name="debian-13"),
              "location": Location("nbg1")} | fields
    created = client.servers.create(**wanted)
    if wait:
        created.action.wait_until_finished()
        for action in created.next_actions:
            action.wait_until_finished()
    return created


def refused(code: str, status_of):
    with pytest.raises(APIException) as caught:
        status_of()
    assert caught.value.code == code
    assert caught.value.correlation_id
    return caught.value


@pytest.fixture
def server(client):
    server = new_server(client).server
    yield server
    client.servers.delete(server).wait_until_finished()


def test_server_from_creation_to_deletion(client):
    created = new_server(client, wait=False, labels={"a": "b"}, user_data="#cloud-config\n")
    assert created.server.status == "initializing"
    assert created.root_password
    assert created.server.public_net.ipv4.ip.startswith("127.")
    created.action.wait_until_finished()
    [start] = created.next_actions
    start.wait_until_finished()
    server = client.servers.get_by_id(created.server.id)
    assert (server.status, server.locked, server.labels) == ("running", False, {"a": "b"})
    renamed = server.update(name=name("server"), labels={"c": "d"})
    assert renamed.labels == {"c": "d"}
    assert client.servers.get_by_name(renamed.name).id == server.id
    assert [s.id for s in client.servers.get_all(label_selector="c==d")] == [server.id]
    assert server.id in [s.id for s in client.servers.get_all(status=["running"])]
    server.delete().wait_until_finished()
    refused("not_found", lambda: client.servers.get_by_id(server.id))


def test_every_field_of_a_creation(client):
    key = client.ssh_keys.create(name("key"), KEYS[0])
    firewall = client.firewalls.create(name("firewall")).firewall
    group = client.placement_groups.create(name("group"), "spread").placement_group
    subnet = NetworkSubnet(type="cloud", network_zone="eu-central", ip_range="10.1.0.0/24")
    network = client.networks.create(name("network"), "10.1.0.0/16", subnets=[subnet])
    ip = client.primary_ips.create(type="ipv4", name=name("ip"), location=Location("nbg1")).primary_ip
    created = new_server(client, ssh_keys=[SSHKey(name=key.name)], firewalls=[firewall], networks=[network],
                         placement_group=group, start_after_create=False, automount=False, labels={},
                         public_net=ServerCreatePublicNetwork(ipv4=ip, enable_ipv6=False))
    assert created.root_password is None
    assert [action.command for action in created.next_actions] == ["attach_to_network"]
    server = client.servers.get_by_id(created.server.id)
    assert server.status == "off"
    assert server.public_net.primary_ipv4.id == ip.id
    assert server.public_net.ipv6 is None
    assert server.public_net.firewalls[0].firewall.id == firewall.id
    assert server.placement_group.id == group.id
    assert [member.id for member in client.networks.get_member_all(network)] == [server.id]
    server.delete().wait_until_finished()
    assert client.primary_ips.get_by_id(ip.id).assignee_id is None
    for thing in (ip, key, firewall, group, network):
        assert thing.delete() is True


def test_power(client, server):
    for act, status in [(server.power_off, "off"), (server.power_on, "running"), (server.reboot, "running"),
                        (server.reset, "running")]:
        act().wait_until_finished()
        assert client.servers.get_by_id(server.id).status == status
    server.shutdown().wait_until_finished()
    while client.servers.get_by_id(server.id).status != "off":
        pass


def test_rebuild_and_types_and_protection(client, server):
    rebuilt = server.rebuild(Image(name="ubuntu-24.04"))
    rebuilt.action.wait_until_finished()
    assert rebuilt.root_password
    assert client.servers.get_by_id(server.id).image.name == "ubuntu-24.04"
    refused("server_not_stopped", lambda: server.change_type(ServerType("cx33"), upgrade_disk=False))
    server.power_off().wait_until_finished()
    server.change_type(ServerType("cx33"), upgrade_disk=False).wait_until_finished()
    assert client.servers.get_by_id(server.id).server_type.name == "cx33"
    server.change_protection(delete=True, rebuild=True).wait_until_finished()
    refused("protected", server.delete)
    refused("protected", lambda: server.rebuild(Image(name="debian-12")))
    server.change_protection(delete=False, rebuild=False).wait_until_finished()


def test_a_locked_server_refuses(client):
    created = new_server(client, wait=False)
    refused("locked", created.server.power_off)
    for action in [created.action, *created.next_actions]:
        action.wait_until_finished()
    created.server.delete().wait_until_finished()


def test_snapshots(client, server):
    made = server.create_image(description="mine", labels={"a": "b"})
    made.action.wait_until_finished()
    image = made.image
    assert (image.name, image.created_from.id) == (None, server.id)
    image.update(description="ours", labels={})
    assert image.id in [i.id for i in client.images.get_all(type=["snapshot"])]
    image.change_protection(delete=True).wait_until_finished()
    refused("protected", image.delete)
    image.change_protection(delete=False).wait_until_finished()
    assert image.get_actions()
    copy = new_server(client, image=image)
    copy.server.delete().wait_until_finished()
    assert image.delete() is True


def test_actions(client, server):
    actions = server.get_actions()
    assert {action.command for action in actions} == {"create_server", "start_server"}
    assert client.actions.get_by_id(actions[0].id).status == "success"
    assert [a.id for a in client.servers.actions.get_all(status=["success"]) if a.id == actions[0].id]
    assert client.servers.actions.get_by_id(actions[0].id).command == actions[0].command
    listed = client._client.request("GET", "/actions", params={"id": [action.id for action in actions]})
    assert len(listed["actions"]) == 2
    client._client.request("GET", f"/servers/{server.id}/actions/{actions[0].id}")
    refused("deprecated_api_endpoint", lambda: client._client.request("GET", "/actions"))


def test_a_half_failed_creation(client, control):
    control("/faults", {"method": "POST", "route": "/servers", "fault": {
        "kind": "action", "command": "start_server", "code": "unknown_error", "message": "Unknown Error"}})
    created = new_server(client, wait=False)
    created.action.wait_until_finished()
    with pytest.raises(ActionFailedException) as caught:
        created.next_actions[0].wait_until_finished()
    assert caught.value.action.error["code"] == "unknown_error"
    assert client.servers.get_by_id(created.server.id).status == "off"
    created.server.delete().wait_until_finished()


def test_ssh_keys(client):
    key = client.ssh_keys.create(name("key"), KEYS[0], labels={"a": "b"})
    assert client.ssh_keys.get_by_fingerprint(key.fingerprint).id == key.id
    assert client.ssh_keys.get_by_id(key.id).public_key == KEYS[0]
    error = refused("uniqueness_error", lambda: client.ssh_keys.create(name("key"), KEYS[0]))
    assert error.details["fields"][0]["name"] == "public_key"
    refused("uniqueness_error", lambda: client.ssh_keys.create(key.name, KEYS[1]))
    assert key.update(name=name("key"), labels={"c": "d"}).labels == {"c": "d"}
    assert client.ssh_keys.get_all(label_selector="c=d")
    assert key.delete() is True


def test_firewalls(client, server):
    rule = FirewallRule(direction="in", protocol="tcp", port="22", source_ips=["10.0.0.0/8"])
    ping = FirewallRule(direction="in", protocol="icmp", source_ips=["0.0.0.0/0", "::/0"])
    selector = FirewallResource(type="label_selector",
                                label_selector=FirewallResourceLabelSelector(selector="reach=me"))
    created = client.firewalls.create(name("firewall"), rules=[rule], labels={"a": "b"}, resources=[selector])
    for action in created.actions:
        action.wait_until_finished()
    firewall = created.firewall
    server.update(labels={"reach": "me"})
    reached = client.firewalls.get_by_id(firewall.id).applied_to[0].applied_to_resources
    assert [resource.server.id for resource in reached] == [server.id]
    for action in firewall.set_rules([rule, ping]):
        action.wait_until_finished()
    assert len(client.firewalls.get_by_name(firewall.name).rules) == 2
    direct = FirewallResource(type="server", server=server)
    for action in firewall.apply_to_resources([direct]):
        action.wait_until_finished()
    refused("firewall_already_applied", lambda: firewall.apply_to_resources([direct]))
    refused("resource_in_use", firewall.delete)
    for action in firewall.remove_from_resources([direct, selector]):
        action.wait_until_finished()
    assert firewall.update(name=name("firewall"), labels={}).labels == {}
    assert firewall.get_actions()
    assert firewall.id in [f.id for f in client.firewalls.get_all()]
    assert client.firewalls.actions.get_all()
    assert firewall.delete() is True


def test_networks(client, server):
    network = client.networks.create(name("network"), "10.2.0.0/16")
    refused("no_subnet_available", lambda: server.attach_to_network(network))
    subnet = NetworkSubnet(type="cloud", network_zone="eu-central", ip_range="10.2.1.0/24")
    network.add_subnet(subnet).wait_until_finished()
    server.attach_to_network(network, ip="10.2.1.7").wait_until_finished()
    [member] = client.networks.get_member_all(network)
    assert (member.ip, member.subnet) == ("10.2.1.7", "10.2.1.0/24")
    route = NetworkRoute(destination="10.100.1.0/24", gateway="10.2.1.1")
    network.add_route(route).wait_until_finished()
    assert client.networks.get_by_id(network.id).routes[0].gateway == "10.2.1.1"
    network.delete_route(route).wait_until_finished()
    server.detach_from_network(network).wait_until_finished()
    network.delete_subnet(subnet).wait_until_finished()
    network.change_ip_range("10.0.0.0/8").wait_until_finished()
    network.change_protection(delete=True).wait_until_finished()
    refused("protected", network.delete)
    network.change_protection(delete=False).wait_until_finished()
    assert network.update(name=name("network"), labels={"a": "b"}).labels == {"a": "b"}
    assert client.networks.get_by_name(network.name) is None
    assert network.id in [n.id for n in client.networks.get_all(label_selector="a")]
    assert network.get_actions()
    assert network.delete() is True


def test_placement_groups(client, server):
    group = client.placement_groups.create(name("group"), "spread", labels={"a": "b"}).placement_group
    refused("server_not_stopped", lambda: server.add_to_placement_group(PlacementGroup(id=group.id)))
    server.power_off().wait_until_finished()
    server.add_to_placement_group(group).wait_until_finished()
    assert client.placement_groups.get_by_id(group.id).servers == [server.id]
    server.remove_from_placement_group().wait_until_finished()
    assert group.update(labels={"c": "d"}, name=name("group")).labels == {"c": "d"}
    assert client.placement_groups.get_all()
    assert group.delete() is True


def test_primary_ips(client, server):
    location = Location("nbg1")
    ip = client.primary_ips.create(type="ipv4", name=name("ip"), location=location).primary_ip
    assert ip.assignee_id is None
    own = client.primary_ips.get_by_id(server.public_net.primary_ipv4.id)
    refused("must_be_unassigned", own.delete)
    refused("server_not_stopped", lambda: ip.assign(server.id, "server"))
    server.power_off().wait_until_finished()
    refused("server_has_ipv4", lambda: ip.assign(server.id, "server"))
    own.unassign().wait_until_finished()
    ip.assign(server.id, "server").wait_until_finished()
    assert client.servers.get_by_id(server.id).public_net.ipv4.ip == ip.ip
    ip.unassign().wait_until_finished()
    own.assign(server.id, "server").wait_until_finished()
    ip.change_dns_ptr(ip.ip, "example.com").wait_until_finished()
    assert client.primary_ips.get_by_id(ip.id).dns_ptr[0]["dns_ptr"] == "example.com"
    ip.change_protection(delete=True).wait_until_finished()
    refused("protected", ip.delete)
    ip.change_protection(delete=False).wait_until_finished()
    assert ip.update(name=name("ip"), labels={"a": "b"}, auto_delete=True).labels == {"a": "b"}
    assert client.primary_ips.get_all(label_selector="a=b")[0].id == ip.id
    assert ip.get_actions()
    v6 = client.primary_ips.create(type="ipv6", name=name("ip"), location=location).primary_ip
    assert v6.ip.endswith("/64")
    assert ip.delete() is True and v6.delete() is True


def test_catalogue(client):
    types = client.server_types.get_all()
    assert {"cx23", "cx33", "cx43", "cax11", "cax21", "cpx22", "ccx13"} <= {kind.name for kind in types}
    kind = client.server_types.get_by_name("cx22")
    assert all(place.deprecation for place in kind.locations)
    assert client.server_types.get_by_id(kind.id).name == "cx22"
    locations = client.locations.get_all()
    assert [place.name for place in locations] == ["fsn1", "nbg1", "hel1", "ash", "hil", "sin"]
    assert client.locations.get_by_id(locations[0].id).name == client.locations.get_by_name("fsn1").name
    # Not by status: the client sends the size of the page in its place.
    images = client.images.get_all(name="debian-13", architecture=["x86"])
    assert len(images) == 1
    assert client.images.get_by_id(images[0].id).rapid_deploy
    arm = client.images.get_by_name_and_architecture("ubuntu-24.04", "arm")
    assert arm.architecture == "arm"
    assert client._client.request("GET", "/pricing")["pricing"]["currency"] == "EUR"
    refused("deprecated_api_endpoint", lambda: client._client.request("GET", "/datacenters"))


def test_refusals(client, control):
    wanted = {"server_type": ServerType("cx23"), "image": Image(name="debian-13"), "location": Location("hel1")}
    error = refused("invalid_input", lambda: client.servers.create(name="under_score", **wanted))
    assert error.details["fields"][0]["name"] == "name"
    error = refused("invalid_input", lambda: client.servers.create(name("s"), ServerType("cx99"), wanted["image"]))
    assert error.details["fields"][0]["name"] == "server_type"
    control("/stock", {"serverType": "cx23", "location": "hel1", "left": 0})
    refused("resource_unavailable", lambda: client.servers.create(name=name("s"), **wanted))
    control("/stock", {"serverType": "cx23", "location": "hel1", "left": None})
    control("/projects/0/quota", {"maxServers": 0})
    error = refused("resource_limit_exceeded", lambda: client.servers.create(name=name("s"), **wanted))
    assert error.details["limits"][0]["name"] == "server_limit"
    control("/projects/0/quota", {"maxServers": None})
    refused("method_not_allowed", lambda: client._client.request("POST", "/locations"))


def test_pages(client):
    servers = [new_server(client, labels={"paged": ""}).server for _ in range(5)]
    first = client.servers.get_list(label_selector="paged", per_page=2, page=1)
    assert (first.meta.pagination.total_entries, first.meta.pagination.last_page) == (5, 3)
    assert [s.id for s in client.servers.get_all(label_selector="paged")] == [s.id for s in servers]
    for server in servers:
        server.delete()


def test_the_client_rides_out_a_drained_bucket(client, control, checker):
    control("/projects/0/drain", {"left": 0})
    assert client.locations.get_all()


def test_zz_every_operation_was_driven(client, checker):
    """Runs last: what no test has driven is either not supported or not tested."""
    for kind in ("firewalls", "images", "networks", "primary_ips"):
        listed = client._client.request("GET", f"/{kind}/actions")["actions"]
        action = listed[0]
        client._client.request("GET", f"/{kind}/actions/{action['id']}")
        [owner] = [resource["id"] for resource in action["resources"] if resource["type"] == kind[:-1]]
        client._client.request("GET", f"/{kind}/{owner}/actions/{action['id']}")
    missing = set(checker.operations) - checker.seen
    assert not missing, sorted(missing)
    print(f"{checker.bodies} answers validated against {len(checker.operations)} operations")
