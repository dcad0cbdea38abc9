//! `POST /servers/{id}/actions/{command}`.
//!
//! Every action locks the server while it runs; one that is going to fail changes nothing.

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::actions::Action;
use crate::api::{Call, Reply, unknown_ask};
use crate::catalogue;
use crate::error::ApiError;
use crate::images::{self, Image};
use crate::machines::{Order, What};
use crate::request::required;
use crate::server_create::{root_password, until};
use crate::servers::{self, Status};
use crate::{networks, placement_groups};

pub(crate) fn act(call: &mut Call, id: u64, command: &str) -> Result<Reply, ApiError> {
    if servers::find(call, id)?.is_locked(call.now) {
        return Err(ApiError::locked("server"));
    }
    match command {
        "poweron" => power_on(call, id),
        "poweroff" => power_off(call, id),
        "shutdown" => shutdown(call, id),
        "reboot" => restart(call, id, "reboot_server"),
        "reset" => restart(call, id, "reset_server"),
        "rebuild" => rebuild(call, id),
        "change_type" => change_type(call, id),
        "change_protection" => change_protection(call, id),
        "create_image" => create_image(call, id),
        "attach_to_network" => attach_to_network(call, id),
        "detach_from_network" => detach_from_network(call, id),
        "add_to_placement_group" => add_to_placement_group(call, id),
        "remove_from_placement_group" => {
            servers::find_mut(call, id)?.placement_group = None;
            done(call, id, "remove_from_placement_group")
        }
        _ => Err(unknown_ask()),
    }
}

/// Begins an action that locks the server until it is over.
fn begin(call: &mut Call, id: u64, command: &str) -> Result<Action, ApiError> {
    let action = call.begin(command, vec![("server", id)]);
    servers::find_mut(call, id)?.locked_until = action.ends;
    Ok(action)
}

fn answer(call: &Call, action: &Action) -> Reply {
    Reply::created(json!({"action": action.show(call.now)}))
}

fn done(call: &mut Call, id: u64, command: &str) -> Result<Reply, ApiError> {
    let action = begin(call, id, command)?;
    Ok(answer(call, &action))
}

fn plan(call: &mut Call, id: u64, plan: Vec<(Timestamp, Status)>) -> Result<(), ApiError> {
    servers::find_mut(call, id)?.plan = plan;
    Ok(())
}

fn order(call: &mut Call, server: u64, what: What) {
    call.state.orders.push(Order { server, what });
}

fn power_on(call: &mut Call, id: u64) -> Result<Reply, ApiError> {
    let off = servers::find(call, id)?.status(call.now) == Status::Off;
    let action = begin(call, id, "start_server")?;
    if off && action.succeeds() {
        plan(
            call,
            id,
            vec![(call.now, Status::Starting), (action.ends, Status::Running)],
        )?;
        let boot = call.state.boot(std::time::Duration::ZERO);
        order(call, id, What::PowerOn { boot });
    }
    Ok(answer(call, &action))
}

fn power_off(call: &mut Call, id: u64) -> Result<Reply, ApiError> {
    let on = servers::find(call, id)?.status(call.now) != Status::Off;
    let action = begin(call, id, "stop_server")?;
    if on && action.succeeds() {
        plan(
            call,
            id,
            vec![(call.now, Status::Stopping), (action.ends, Status::Off)],
        )?;
        let after = until(call.now, action.ends);
        order(call, id, What::PowerOff { after });
    }
    Ok(answer(call, &action))
}

/// The action is over once the signal is sent; the server goes off a while later, if it listens.
fn shutdown(call: &mut Call, id: u64) -> Result<Reply, ApiError> {
    let action = call.begin_instant("shutdown_server", vec![("server", id)]);
    let server = servers::find(call, id)?;
    let obeys = server.status(call.now) == Status::Running && !server.ignores_acpi;
    if obeys && action.succeeds() {
        let after = call.state.action_time();
        if !call.state.machines_report {
            let off = call.now.checked_add(after).unwrap_or(call.now);
            plan(
                call,
                id,
                vec![(call.now, Status::Running), (off, Status::Off)],
            )?;
        }
        order(call, id, What::Shutdown { after });
    }
    Ok(answer(call, &action))
}

fn restart(call: &mut Call, id: u64, command: &str) -> Result<Reply, ApiError> {
    let server = servers::find(call, id)?;
    let hard = command == "reset_server";
    let obeys = server.status(call.now) != Status::Off && (hard || !server.ignores_acpi);
    let action = begin(call, id, command)?;
    if obeys && action.succeeds() {
        servers::find_mut(call, id)?.ignores_acpi = false;
        let boot = call.state.boot(std::time::Duration::ZERO);
        order(call, id, What::Reboot { hard, boot });
    }
    Ok(answer(call, &action))
}

fn rebuild(call: &mut Call, id: u64) -> Result<Reply, ApiError> {
    let input = call.request.input()?;
    let server = servers::find(call, id)?;
    if server.protected {
        return Err(ApiError::protected("server"));
    }
    let has_keys = !server.ssh_keys.is_empty();
    let wanted = required("image", input.id_or_name("image")?)?;
    let image = images::for_server(call, &wanted, server.server_type.architecture)?.id;
    let user_data = input
        .text("user_data")?
        .map(str::to_owned)
        .or(server.user_data.clone());
    let action = begin(call, id, "rebuild_server")?;
    if action.succeeds() {
        let now = call.now;
        let server = servers::find_mut(call, id)?;
        server.image = Some(image);
        server.user_data.clone_from(&user_data);
        server.ignores_acpi = false;
        server.plan = vec![(now, Status::Rebuilding), (action.ends, Status::Running)];
        let boot = call.state.boot(until(call.now, action.ends));
        let snapshot = servers::find(call, id)?.snapshot(call.project());
        order(
            call,
            id,
            What::Rebuild {
                user_data,
                snapshot,
                boot,
            },
        );
    }
    let password = root_password(call, has_keys);
    let body = json!({"action": action.show(call.now), "root_password": password});
    Ok(Reply::created(body))
}

/// The server must be off before; afterwards it starts by itself.
fn change_type(call: &mut Call, id: u64) -> Result<Reply, ApiError> {
    let input = call.request.input()?;
    let wanted = required("server_type", input.id_or_name("server_type")?)?;
    let grow = required("upgrade_disk", input.flag("upgrade_disk")?)?;
    let new = catalogue::server_type_named(&wanted)
        .ok_or_else(|| ApiError::invalid("server_type", "server type not found"))?;
    let server = servers::find(call, id)?;
    let (place, disk) = (server.location.name, server.disk);
    if server.status(call.now) != Status::Off {
        return Err(ApiError::unprocessable(
            "server_not_stopped",
            "server is not stopped",
        ));
    }
    let refuse = |message: &str| Err(ApiError::unprocessable("invalid_server_type", message));
    if new.id == server.server_type.id {
        return refuse("server is already of this type");
    }
    if new.architecture != server.server_type.architecture || new.disk < disk {
        return refuse("server cannot be changed to this type");
    }
    if !new.locations.contains(&place) || new.is_gone_from(place) {
        return refuse("server type is not supported in this location");
    }
    if !call.state.stock.has(new.name, place) {
        return Err(ApiError::out_of_stock());
    }
    let action = begin(call, id, "change_server_type")?;
    if action.succeeds() {
        call.state.stock.take(new.name, place);
        let now = call.now;
        let server = servers::find_mut(call, id)?;
        server.server_type = new;
        server.disk = if grow { new.disk } else { disk };
        server.plan = vec![(now, Status::Migrating), (action.ends, Status::Running)];
        let boot = call.state.boot(until(call.now, action.ends));
        order(call, id, What::PowerOn { boot });
    }
    Ok(answer(call, &action))
}

fn change_protection(call: &mut Call, id: u64) -> Result<Reply, ApiError> {
    let input = call.request.input()?;
    let (delete, rebuild) = (input.flag("delete")?, input.flag("rebuild")?);
    let server = servers::find_mut(call, id)?;
    let delete = delete.unwrap_or(server.protected);
    if rebuild.unwrap_or(server.protected) != delete {
        return Err(ApiError::invalid(
            "rebuild",
            "must have the same value as delete",
        ));
    }
    server.protected = delete;
    let action = call.begin_instant("change_protection", vec![("server", id)]);
    Ok(answer(call, &action))
}

fn create_image(call: &mut Call, id: u64) -> Result<Reply, ApiError> {
    let input = call.request.input()?;
    if input.text("type")?.is_some_and(|kind| kind != "snapshot") {
        return Err(ApiError::invalid(
            "type",
            "backups are not enabled for this server",
        ));
    }
    let server = servers::find(call, id)?.clone();
    let taken = format!("snapshot of {}", server.name);
    let description = input.text("description")?.map_or(taken, str::to_owned);
    let base = images::all(call)
        .find(|image| Some(image.id) == server.image)
        .cloned();
    let base = base.ok_or_else(|| ApiError::not_found("image"))?;
    let image = Image {
        id: call.state.new_id(),
        name: String::new(),
        description,
        kind: "snapshot",
        disk_size: server.disk,
        created: call.now,
        labels: input.labels()?.unwrap_or_default(),
        delete_protected: false,
        created_from: Some((id, server.name)),
        ..base
    };
    let shown: Value = image.show();
    let resources = vec![("server", id), ("image", image.id)];
    order(call, id, What::Snapshot { image: image.id });
    call.project_mut().snapshots.insert(image.id, image);
    let action = call.begin("create_image", resources);
    servers::find_mut(call, id)?.locked_until = action.ends;
    Ok(Reply::created(
        json!({"image": shown, "action": action.show(call.now)}),
    ))
}

fn attach_to_network(call: &mut Call, id: u64) -> Result<Reply, ApiError> {
    let input = call.request.input()?;
    let network = required("network", input.id("network")?)?;
    let ip = input.text("ip")?.map(str::to_owned);
    let alias_ips = input.texts("alias_ips")?;
    networks::attach(call.project_mut(), network, id, ip, alias_ips)?;
    done(call, id, "attach_to_network")
}

fn detach_from_network(call: &mut Call, id: u64) -> Result<Reply, ApiError> {
    let network = required("network", call.request.input()?.id("network")?)?;
    let server = servers::find_mut(call, id)?;
    if !server.private_net.iter().any(|net| net.network == network) {
        return Err(ApiError::invalid(
            "network",
            "server is not attached to this network",
        ));
    }
    server.private_net.retain(|net| net.network != network);
    done(call, id, "detach_from_network")
}

fn add_to_placement_group(call: &mut Call, id: u64) -> Result<Reply, ApiError> {
    let group = required(
        "placement_group",
        call.request.input()?.id("placement_group")?,
    )?;
    placement_groups::check_room(call.project(), group)?;
    let now = call.now;
    let server = servers::find_mut(call, id)?;
    if server.status(now) != Status::Off {
        return Err(ApiError::unprocessable(
            "server_not_stopped",
            "server is not stopped",
        ));
    }
    if server.placement_group.is_some() {
        let message = "server is already in a placement group";
        return Err(ApiError::unprocessable(
            "already_in_placement_group",
            message,
        ));
    }
    server.placement_group = Some(group);
    done(call, id, "add_to_placement_group")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::faults::ActionFault;
    use crate::testing::World;

    fn status(world: &mut World, id: u64) -> String {
        let server = world.get(&format!("/servers/{id}"));
        server["server"]["status"].as_str().unwrap().to_owned()
    }

    fn act(world: &mut World, id: u64, command: &str, body: &Value) -> Value {
        world.ok("POST", &format!("/servers/{id}/actions/{command}"), body)["action"].clone()
    }

    fn running_server(world: &mut World) -> u64 {
        let id = world.server("a");
        world.pass(4);
        world.state.orders.clear();
        id
    }

    #[test]
    fn an_action_locks_the_server_until_it_is_over() {
        let mut world = World::new();
        let id = running_server(&mut world);
        let action = act(&mut world, id, "poweroff", &Value::Null);
        assert_eq!(
            (&action["status"], &action["progress"]),
            (&json!("running"), &json!(0))
        );
        let refused = world.refusal(
            "POST",
            &format!("/servers/{id}/actions/poweron"),
            &Value::Null,
        );
        assert_eq!(refused, (423, "locked".to_owned()));
        world.pass(1);
        let half = world.get(&format!("/actions/{}", action["id"]));
        assert_eq!(half["action"]["progress"], 50);
        assert_eq!(status(&mut world, id), "stopping");
        world.pass(1);
        let over = world.get(&format!("/actions?id={}", action["id"]));
        assert_eq!(over["actions"][0]["status"], "success");
        assert_eq!(status(&mut world, id), "off");
        act(&mut world, id, "poweron", &Value::Null);
        assert_eq!(status(&mut world, id), "starting");
    }

    #[test]
    fn shutdown_is_over_before_the_server_is_off_and_a_frozen_one_stays_on() {
        let mut world = World::new();
        let id = running_server(&mut world);
        assert_eq!(
            act(&mut world, id, "shutdown", &Value::Null)["status"],
            "success"
        );
        assert_eq!(status(&mut world, id), "running");
        world.pass(2);
        assert_eq!(status(&mut world, id), "off");
        act(&mut world, id, "poweron", &Value::Null);
        world.pass(4);
        world.state.find_server_mut(id).unwrap().ignores_acpi = true;
        act(&mut world, id, "shutdown", &Value::Null);
        world.pass(60);
        assert_eq!(status(&mut world, id), "running");
    }

    #[test]
    fn protection_keeps_a_server_from_deletion_and_rebuild() {
        let mut world = World::new();
        let id = running_server(&mut world);
        act(
            &mut world,
            id,
            "change_protection",
            &json!({"delete": true, "rebuild": true}),
        );
        let delete = world.refusal("DELETE", &format!("/servers/{id}"), &Value::Null);
        assert_eq!(delete, (423, "protected".to_owned()));
        let url = format!("/servers/{id}/actions/rebuild");
        let rebuild = world.refusal("POST", &url, &json!({"image": "debian-13"}));
        assert_eq!(rebuild, (423, "protected".to_owned()));
        act(
            &mut world,
            id,
            "change_protection",
            &json!({"delete": false, "rebuild": false}),
        );
        world.ok("DELETE", &format!("/servers/{id}"), &Value::Null);
    }

    #[test]
    fn a_type_is_changed_only_when_off_and_starts_the_server() {
        let mut world = World::new();
        let id = running_server(&mut world);
        let url = format!("/servers/{id}/actions/change_type");
        let bigger = json!({"server_type": "cx33", "upgrade_disk": false});
        assert_eq!(
            world.refusal("POST", &url, &bigger),
            (422, "server_not_stopped".to_owned())
        );
        act(&mut world, id, "poweroff", &Value::Null);
        world.pass(2);
        let arm = json!({"server_type": "cax21", "upgrade_disk": false});
        assert_eq!(
            world.refusal("POST", &url, &arm),
            (422, "invalid_server_type".to_owned())
        );
        act(&mut world, id, "change_type", &bigger);
        world.pass(2);
        let server = world.get(&format!("/servers/{id}"));
        assert_eq!(server["server"]["server_type"]["name"], "cx33");
        assert_eq!(server["server"]["primary_disk_size"], 40);
        assert_eq!(server["server"]["status"], "running");
    }

    #[test]
    fn rebuild_keeps_id_address_and_user_data_and_orders_a_fresh_disk() {
        let mut world = World::new();
        let id = world.server_with(&json!({"user_data": "#cloud-config\n"}));
        world.pass(4);
        world.state.orders.clear();
        let before = world.get(&format!("/servers/{id}"))["server"]["public_net"].clone();
        act(&mut world, id, "rebuild", &json!({"image": "ubuntu-24.04"}));
        assert_eq!(status(&mut world, id), "rebuilding");
        world.pass(2);
        let server = world.get(&format!("/servers/{id}"))["server"].clone();
        assert_eq!(
            (&server["public_net"], &server["status"]),
            (&before, &json!("running"))
        );
        assert_eq!(server["image"]["name"], "ubuntu-24.04");
        let kept = matches!(&world.state.orders[0].what,
            What::Rebuild { user_data: Some(text), .. } if text == "#cloud-config\n");
        assert!(kept);
    }

    #[test]
    fn a_failed_action_changes_nothing() {
        let mut world = World::new();
        let id = running_server(&mut world);
        world.action_faults = vec![ActionFault::fails("stop_server", "action_failed")];
        let action = act(&mut world, id, "poweroff", &Value::Null);
        world.pass(2);
        let over = world.get(&format!("/actions/{}", action["id"]));
        assert_eq!(over["action"]["error"]["code"], "action_failed");
        assert_eq!(status(&mut world, id), "running");
        assert!(world.state.orders.is_empty());
    }

    #[test]
    fn actions_are_listed_by_id_only_and_by_server() {
        let mut world = World::new();
        let id = running_server(&mut world);
        assert_eq!(world.refusal("GET", "/actions", &Value::Null).0, 410);
        let of_server = world.get(&format!("/servers/{id}/actions"));
        assert_eq!(of_server["meta"]["pagination"]["total_entries"], 2);
        assert_eq!(
            world.get("/servers/actions?status=running")["actions"],
            json!([])
        );
    }

    #[test]
    fn a_snapshot_has_no_name_and_boots_by_its_id() {
        let mut world = World::new();
        let id = running_server(&mut world);
        let made = world.ok(
            "POST",
            &format!("/servers/{id}/actions/create_image"),
            &json!({}),
        );
        assert_eq!(made["image"]["name"], Value::Null);
        let image = made["image"]["id"].clone();
        world.server_with(&json!({"name": "b", "image": image}));
        let listed = world.get("/images?type=snapshot");
        assert_eq!(listed["images"][0]["created_from"]["id"], id);
    }
}
