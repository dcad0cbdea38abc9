//! Firewalls: their rules, and what they are applied to.
//!
//! A firewall applied directly beats one that reaches the same server through a label selector; a
//! selector is evaluated whenever somebody looks.

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::api::{Ask, Call, Reply, rfc3339, unknown_ask};
use crate::error::ApiError;
use crate::firewall_rules::{Rule, read_rules};
use crate::labels::{Labels, Selector};
use crate::paging::{self, Listed};
use crate::request::{Input, required};
use crate::servers::Server;
use crate::state::Project;

/// Most firewalls on one server.
pub(crate) const MAX_PER_SERVER: usize = 5;

/// What a firewall is applied to.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Target {
    Server(u64),
    LabelSelector(String),
}

/// A firewall.
#[derive(Debug, Clone)]
pub(crate) struct Firewall {
    id: u64,
    name: String,
    labels: Labels,
    created: Timestamp,
    rules: Vec<Rule>,
    applied_to: Vec<Target>,
}

impl Listed for Firewall {
    fn id(&self) -> u64 {
        self.id
    }
    fn name(&self) -> &str {
        &self.name
    }
    fn created(&self) -> Timestamp {
        self.created
    }
    fn labels(&self) -> Option<&Labels> {
        Some(&self.labels)
    }
}

fn read_targets(call: &Call, input: &Input, field: &str) -> Result<Vec<Target>, ApiError> {
    let entries = input.objects(field)?;
    entries
        .iter()
        .map(|entry| read_target(call, entry, field))
        .collect()
}

fn read_target(call: &Call, entry: &Input, field: &str) -> Result<Target, ApiError> {
    match required("type", entry.text("type")?)? {
        "server" => {
            let server = required("server", entry.object("server")?)?;
            let id = required("server", server.id("id")?)?;
            if !call.project().servers.contains_key(&id) {
                let message = format!("server {id} not found");
                return Err(ApiError::new(404, "firewall_resource_not_found", message));
            }
            Ok(Target::Server(id))
        }
        "label_selector" => {
            let selector = required("label_selector", entry.object("label_selector")?)?;
            let selector = required("selector", selector.text("selector")?)?;
            Selector::parse(selector)?;
            Ok(Target::LabelSelector(selector.to_owned()))
        }
        _ => Err(ApiError::invalid(
            field,
            "type must be server or label_selector",
        )),
    }
}

impl Target {
    fn reaches(&self, server: &Server) -> bool {
        match self {
            Self::Server(id) => *id == server.id,
            Self::LabelSelector(selector) => {
                Selector::parse(selector).is_ok_and(|selector| selector.matches(&server.labels))
            }
        }
    }

    fn show(&self, project: &Project) -> Value {
        match self {
            Self::Server(id) => json!({"type": "server", "server": {"id": id}}),
            Self::LabelSelector(selector) => {
                let reached = project
                    .servers
                    .values()
                    .filter(|server| self.reaches(server));
                let reached =
                    reached.map(|server| json!({"type": "server", "server": {"id": server.id}}));
                json!({
                    "type": "label_selector",
                    "label_selector": {"selector": selector},
                    "applied_to_resources": reached.collect::<Vec<_>>(),
                })
            }
        }
    }
}

impl Firewall {
    fn show(&self, project: &Project) -> Value {
        json!({
            "id": self.id,
            "name": self.name,
            "labels": self.labels,
            "created": rfc3339(self.created),
            "rules": self.rules.iter().map(Rule::show).collect::<Vec<_>>(),
            "applied_to": self.applied_to.iter().map(|t| t.show(project)).collect::<Vec<_>>(),
        })
    }

    fn reaches(&self, server: &Server) -> bool {
        self.applied_to.iter().any(|target| target.reaches(server))
    }
}

/// The firewalls of a server, as it shows them below `public_net`.
pub(crate) fn of_server(project: &Project, server: &Server) -> Vec<Value> {
    let on = project
        .firewalls
        .values()
        .filter(|firewall| firewall.reaches(server));
    on.map(|firewall| json!({"id": firewall.id, "status": "applied"}))
        .collect()
}

/// The rules that count for a server; nothing where no firewall is applied to it.
pub(crate) fn rules_of(project: &Project, server: &Server) -> Option<Vec<Rule>> {
    let on = project.firewalls.values().filter(|f| f.reaches(server));
    let rules: Vec<&[Rule]> = on.map(|firewall| firewall.rules.as_slice()).collect();
    (!rules.is_empty()).then(|| rules.concat())
}

/// Applies firewalls to a server, as `POST /servers` does.
pub(crate) fn attach(project: &mut Project, firewalls: &[u64], server: u64) {
    for id in firewalls {
        if let Some(firewall) = project.firewalls.get_mut(id) {
            firewall.applied_to.push(Target::Server(server));
        }
    }
}

/// Takes a server that goes away off all firewalls.
pub(crate) fn detach_everywhere(project: &mut Project, server: u64) {
    for firewall in project.firewalls.values_mut() {
        firewall
            .applied_to
            .retain(|target| *target != Target::Server(server));
    }
}

pub(crate) fn answer(call: &mut Call, ask: &Ask) -> Result<Reply, ApiError> {
    match ask {
        Ask::List => {
            let firewalls = paging::select(call.request, call.project().firewalls.values())?;
            let show = |firewall: &Firewall| firewall.show(call.project());
            paging::page(call.request, "firewalls", firewalls, show)
        }
        Ask::Create => create(call),
        Ask::Get(id) => shown(call, *id).map(Reply::ok),
        Ask::Update(id) => update(call, *id),
        Ask::Delete(id) => delete(call, *id),
        Ask::Act(id, "set_rules") => set_rules(call, *id),
        Ask::Act(id, "apply_to_resources") => apply(call, *id),
        Ask::Act(id, "remove_from_resources") => remove(call, *id),
        Ask::Act(..) | Ask::Members(_) => Err(unknown_ask()),
    }
}

fn find<'a>(call: &'a Call, id: u64) -> Result<&'a Firewall, ApiError> {
    call.project()
        .firewalls
        .get(&id)
        .ok_or_else(|| ApiError::not_found("firewall"))
}

fn find_mut<'a>(call: &'a mut Call, id: u64) -> Result<&'a mut Firewall, ApiError> {
    let found = call.project_mut().firewalls.get_mut(&id);
    found.ok_or_else(|| ApiError::not_found("firewall"))
}

fn shown(call: &Call, id: u64) -> Result<Value, ApiError> {
    Ok(json!({"firewall": find(call, id)?.show(call.project())}))
}

fn check_name(call: &Call, name: &str, but: Option<u64>) -> Result<(), ApiError> {
    let mut others = call
        .project()
        .firewalls
        .values()
        .filter(|other| Some(other.id) != but);
    if others.any(|other| other.name == name) {
        return Err(ApiError::not_unique(
            "name",
            "firewall name is already used",
        ));
    }
    Ok(())
}

fn create(call: &mut Call) -> Result<Reply, ApiError> {
    let input = call.request.input()?;
    let name = input.name()?.to_owned();
    let (labels, rules) = (input.labels()?.unwrap_or_default(), read_rules(&input)?);
    let applied_to = read_targets(call, &input, "apply_to")?;
    check_name(call, &name, None)?;
    let targets = applied_to.clone();
    let id = call.state.new_id();
    let firewall = Firewall {
        id,
        name,
        labels,
        created: call.now,
        rules,
        applied_to,
    };
    call.project_mut().firewalls.insert(id, firewall);
    let mut actions = vec![begin(call, "set_firewall_rules", id, None)];
    actions.extend(
        targets
            .iter()
            .map(|target| begin(call, "apply_firewall", id, Some(target))),
    );
    let mut body = shown(call, id)?;
    body["actions"] = json!(actions);
    Ok(Reply::created(body))
}

fn begin(call: &mut Call, command: &str, id: u64, target: Option<&Target>) -> Value {
    let mut resources = vec![("firewall", id)];
    if let Some(Target::Server(server)) = target {
        resources.push(("server", *server));
    }
    let action = call.begin(command, resources);
    action.show(call.now)
}

fn update(call: &mut Call, id: u64) -> Result<Reply, ApiError> {
    let input = call.request.input()?;
    let (name, labels) = (input.text("name")?, input.labels()?);
    if let Some(name) = name {
        check_name(call, name, Some(id))?;
    }
    let firewall = find_mut(call, id)?;
    firewall.name = name.map_or_else(|| firewall.name.clone(), str::to_owned);
    firewall.labels = labels.unwrap_or_else(|| firewall.labels.clone());
    shown(call, id).map(Reply::ok)
}

fn delete(call: &mut Call, id: u64) -> Result<Reply, ApiError> {
    if !find(call, id)?.applied_to.is_empty() {
        let message = format!("firewall with ID '{id}' is still in use");
        return Err(ApiError::unprocessable("resource_in_use", message));
    }
    call.project_mut().firewalls.remove(&id);
    Ok(Reply::no_content())
}

/// Replaces all rules; answers an action for them and one for each server they reach.
fn set_rules(call: &mut Call, id: u64) -> Result<Reply, ApiError> {
    find(call, id)?;
    let input = call.request.input()?;
    if !input.has("rules") {
        return Err(ApiError::invalid(
            "rules",
            "Missing data for required field.",
        ));
    }
    let rules = read_rules(&input)?;
    let firewall = find_mut(call, id)?;
    firewall.rules = rules;
    let targets = firewall.applied_to.clone();
    let mut actions = vec![begin(call, "set_firewall_rules", id, None)];
    actions.extend(
        targets
            .iter()
            .map(|target| begin(call, "apply_firewall", id, Some(target))),
    );
    Ok(Reply::created(json!({"actions": actions})))
}

fn apply(call: &mut Call, id: u64) -> Result<Reply, ApiError> {
    find(call, id)?;
    let input = call.request.input()?;
    let targets = read_targets(call, &input, "apply_to")?;
    if targets
        .iter()
        .any(|target| find(call, id).is_ok_and(|f| f.applied_to.contains(target)))
    {
        let message = "firewall is already applied to this resource";
        return Err(ApiError::unprocessable("firewall_already_applied", message));
    }
    let full = |target: &Target| match target {
        Target::Server(server) => {
            let server = call.project().servers.get(server);
            server.is_some_and(|server| of_server(call.project(), server).len() >= MAX_PER_SERVER)
        }
        Target::LabelSelector(_) => false,
    };
    if targets.iter().any(full) {
        return Err(ApiError::invalid(
            "apply_to",
            "at most 5 firewalls per server",
        ));
    }
    find_mut(call, id)?
        .applied_to
        .extend(targets.iter().cloned());
    let actions: Vec<Value> = targets
        .iter()
        .map(|target| begin(call, "apply_firewall", id, Some(target)))
        .collect();
    Ok(Reply::created(json!({"actions": actions})))
}

fn remove(call: &mut Call, id: u64) -> Result<Reply, ApiError> {
    find(call, id)?;
    let input = call.request.input()?;
    let targets = read_targets(call, &input, "remove_from")?;
    for target in &targets {
        check_removable(call, id, target)?;
    }
    find_mut(call, id)?
        .applied_to
        .retain(|target| !targets.contains(target));
    let actions: Vec<Value> = targets
        .iter()
        .map(|target| begin(call, "remove_firewall", id, Some(target)))
        .collect();
    Ok(Reply::created(json!({"actions": actions})))
}

fn check_removable(call: &Call, id: u64, target: &Target) -> Result<(), ApiError> {
    let firewall = find(call, id)?;
    if firewall.applied_to.contains(target) {
        return Ok(());
    }
    let by_selector = match target {
        Target::Server(server) => call
            .project()
            .servers
            .get(server)
            .is_some_and(|s| firewall.reaches(s)),
        Target::LabelSelector(_) => false,
    };
    if by_selector {
        let message = "firewall is applied through a label selector";
        return Err(ApiError::unprocessable(
            "firewall_managed_by_label_selector",
            message,
        ));
    }
    let message = "firewall is not applied to this resource";
    Err(ApiError::new(404, "firewall_resource_not_found", message))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::World;

    fn rule(sources: &[&str]) -> Value {
        json!({"direction": "in", "protocol": "tcp", "port": "22", "source_ips": sources})
    }

    #[test]
    fn a_label_selector_reaches_servers_that_come_later() {
        let mut world = World::new();
        let selector =
            json!({"type": "label_selector", "label_selector": {"selector": "class=web"}});
        let made = json!({"name": "f", "rules": [rule(&["0.0.0.0/0"])], "apply_to": [selector]});
        let firewall = world.ok("POST", "/firewalls", &made)["firewall"]["id"].clone();
        let id = world.server_with(&json!({"labels": {"class": "web"}}));
        world.server("b");
        let shown = world.get(&format!("/firewalls/{firewall}"));
        let reached = &shown["firewall"]["applied_to"][0]["applied_to_resources"];
        assert_eq!(*reached, json!([{"type": "server", "server": {"id": id}}]));
        let server = world.get(&format!("/servers/{id}"));
        assert_eq!(
            server["server"]["public_net"]["firewalls"][0]["status"],
            "applied"
        );
        let remove = json!({"remove_from": [{"type": "server", "server": {"id": id}}]});
        let url = format!("/firewalls/{firewall}/actions/remove_from_resources");
        let managed = world.refusal("POST", &url, &remove);
        assert_eq!(
            managed,
            (422, "firewall_managed_by_label_selector".to_owned())
        );
    }

    #[test]
    fn rules_are_replaced_as_a_whole_and_counted() {
        let mut world = World::new();
        let firewall =
            world.ok("POST", "/firewalls", &json!({"name": "f"}))["firewall"]["id"].clone();
        let url = format!("/firewalls/{firewall}/actions/set_rules");
        world.ok(
            "POST",
            &url,
            &json!({"rules": [rule(&["10.0.0.0/8"]), rule(&["::/0"])]}),
        );
        world.ok("POST", &url, &json!({"rules": [rule(&["10.0.0.0/8"])]}));
        let shown = world.get(&format!("/firewalls/{firewall}"));
        assert_eq!(shown["firewall"]["rules"].as_array().unwrap().len(), 1);
        let many: Vec<Value> = (0..51).map(|_| rule(&["10.0.0.0/8"])).collect();
        assert_eq!(world.refusal("POST", &url, &json!({"rules": many})).0, 422);
        let wide = vec!["10.0.0.0/8"; 101];
        assert_eq!(
            world
                .refusal("POST", &url, &json!({"rules": [rule(&wide)]}))
                .0,
            422
        );
    }

    #[test]
    fn a_firewall_is_applied_once_to_a_server() {
        let mut world = World::new();
        let firewall =
            world.ok("POST", "/firewalls", &json!({"name": "f"}))["firewall"]["id"].clone();
        let id = world.server("a");
        let url = format!("/firewalls/{firewall}/actions/apply_to_resources");
        let apply = json!({"apply_to": [{"type": "server", "server": {"id": id}}]});
        world.ok("POST", &url, &apply);
        let again = world.refusal("POST", &url, &apply);
        assert_eq!(again, (422, "firewall_already_applied".to_owned()));
        let nobody = json!({"apply_to": [{"type": "server", "server": {"id": 7}}]});
        assert_eq!(world.refusal("POST", &url, &nobody).0, 404);
    }
}
