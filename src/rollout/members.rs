//! The instances of a class as its rollout sees them, from the stores and the inventories.

use std::{
    collections::{BTreeMap, HashMap},
    hash::{DefaultHasher, Hash as _, Hasher as _},
    sync::Arc,
};

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::ResourceExt as _;

use super::{
    UsedUp, revisions,
    turns::{Fit, Gate, Has, Member, Rules, Turn},
    windows,
};
use crate::{
    agent_instance::desired::{Desired, Want},
    api::{
        AgentClass, AgentInstance, AgentInstanceStatus, ConditionType, Disk, HealthState,
        ServerStatus, is_true,
    },
    context::Context,
    health::holds,
    hetzner_project::retype::Retype,
    inventory::{Key, Presence},
    labels,
};

const OUTSIDE: &str = "OutsideWindow";
const QUOTA: &str = "QuotaExceeded";

/// All instances of a class that are not being deleted.
pub struct Members {
    /// As turns are decided by.
    pub all: Vec<Member>,
    /// The objects, in the same order.
    pub objects: Vec<Arc<AgentInstance>>,
}

impl Members {
    /// Gathers them, with the turns that they were given.
    pub fn gather(
        ctx: &Context,
        class: &AgentClass,
        given: Option<&HashMap<String, Turn>>,
        now: Timestamp,
    ) -> Self {
        let name = class.name_any();
        let mut objects = ctx.stores.instances.state();
        objects.retain(|instance| {
            instance.spec.class_name == name && instance.metadata.deletion_timestamp.is_none()
        });
        let member = |instance: &Arc<AgentInstance>| {
            let uid = instance.uid().unwrap_or_default();
            let turn = given.and_then(|given| given.get(&uid));
            match Desired::parse(instance) {
                Desired::Present(_, want) => Member {
                    fits: fits(ctx, class, (instance, &want), now),
                    ..member(ctx, class, (instance, &want), turn)
                },
                Desired::Absent(_) | Desired::Retained(_) => Member::default(),
            }
        };
        Self {
            all: objects.iter().map(member).collect(),
            objects,
        }
    }

    /// The revision that most were Ready with last, but for this one.
    pub fn mostly_good(&self, but: &str) -> Option<String> {
        let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
        for good in self.all.iter().filter_map(|member| member.good.as_ref()) {
            *counts.entry(good).or_default() += 1;
        }
        let others = counts.into_iter().filter(|(good, _)| *good != but);
        others
            .max_by_key(|(_, count)| *count)
            .map(|(good, _)| good.to_owned())
    }

    /// What the class says of rollouts, measured by how many speak.
    pub fn rules(
        &self,
        class: &AgentClass,
        (quota, held): (Option<&UsedUp>, Option<String>),
        now: Timestamp,
    ) -> Rules {
        let rollout = &class.spec.lifecycle.rollout;
        let speak = self.all.iter().filter(|member| member.has != Has::Nothing);
        let of = speak.count();
        let gate = match windows::is_open(&rollout.windows, now) {
            _ if rollout.paused => Gate::Paused,
            Ok(true) => quota.map_or(Gate::Open, |quota| Gate::Closed(QUOTA, quota.words.clone())),
            Ok(false) => Gate::Closed(
                OUTSIDE,
                "none of spec.lifecycle.rollout.windows of the class is open".into(),
            ),
            Err(zone) => Gate::Closed(
                OUTSIDE,
                format!(
                    "the time zone {zone} in spec.lifecycle.rollout.windows of the class is not known here"
                ),
            ),
        };
        // Who asked in vain asks no more.
        let used_up = || quota.map(|quota| (QUOTA, quota.words.clone()));
        Rules {
            max_unavailable: part(&rollout.max_unavailable, of),
            max_surge: part(&rollout.max_surge, of),
            gate,
            held: held.map(|words| ("RecoveryHeld", words)).or_else(used_up),
            on_failure: rollout.on_failure,
            disposable: class.spec.lifecycle.disk == Disk::Disposable,
            replaces: class.spec.lifecycle.replaces(),
            settle: class.spec.health.interval.get(),
        }
    }
}

/// A number, or a part of all rounded down; one at the least.
fn part(written: &IntOrString, of: usize) -> usize {
    let number = match written {
        IntOrString::Int(number) => usize::try_from(*number).unwrap_or_default(),
        IntOrString::String(text) => {
            let percent = text.trim_end_matches('%').parse::<usize>();
            of * percent.unwrap_or_default() / 100
        }
    };
    number.max(1)
}

fn member(
    ctx: &Context,
    class: &AgentClass,
    (instance, want): (&AgentInstance, &Want),
    turn: Option<&Turn>,
) -> Member {
    let none = AgentInstanceStatus::default();
    let status = instance.status.as_ref().unwrap_or(&none);
    let health = status.health.as_ref().map(|health| health.state);
    let given = match turn {
        Some(Turn::Takes { revision, moves }) => Some((revision.clone(), *moves)),
        _ => None,
    };
    let prepared = next_is_under_way(status) && next_exists(ctx, instance, status);
    Member {
        uid: instance.uid().unwrap_or_default(),
        name: format!(
            "{}/{}",
            instance.namespace().unwrap_or_default(),
            instance.name_any()
        ),
        has: has(ctx, class, instance, want),
        boot: status.boot_revision.clone(),
        fits: Fit::Listed,
        keeps_disk: keeps_disk(status),
        ready: ready_since(status),
        health,
        stalled: is_true(&status.conditions, ConditionType::Stalled),
        out_of_reach: health == Some(HealthState::Unknown) || holds::is_missing(ctx, status),
        moving: prepared || given.as_ref().is_some_and(|(_, moves)| *moves),
        prepared,
        granted: given.map(|(revision, _)| revision),
        good: status.good_revision.clone(),
        refused: status.refused_revision.clone(),
    }
}

/// Which revision of its class an instance speaks with, or spoke with while the voice is handed over. Where its status does not say so, as before the first release that wrote it, it is
/// known by what was applied.
pub fn has(ctx: &Context, class: &AgentClass, instance: &AgentInstance, want: &Want) -> Has {
    let Some(status) = &instance.status else {
        return Has::Nothing;
    };
    if want.suspend || status.server.is_none() || status.voice.is_none() {
        return Has::Nothing;
    }
    match (&status.class_revision, &status.config_revision) {
        (Some(revision), _) => Has::Revision(revision.clone()),
        // A new server is given the voice, and has not done anything with it yet.
        (None, None) if status.good_revision.is_some() => {
            born_with(ctx, status).map_or(Has::Nothing, Has::Revision)
        }
        (None, None) => Has::Nothing,
        (None, Some(config)) => {
            let applied = (status.boot_revision.as_ref(), config);
            revisions::recognised(ctx, class, want, applied).map_or(Has::Unknown, Has::Revision)
        }
    }
}

/// The revision that its server was made of.
pub fn born_with(ctx: &Context, status: &AgentInstanceStatus) -> Option<String> {
    let server = status.server.as_ref()?;
    let connection = ctx.connections.get(&server.project)?.ok()?;
    let snapshot = connection.inventory.snapshot();
    let entry = snapshot.get(server.id.into())?;
    entry.server.labels.get(labels::REVISION).cloned()
}

/// Whether the class still lists what its server is made of.
fn fits(
    ctx: &Context,
    class: &AgentClass,
    (instance, want): (&AgentInstance, &Want),
    now: Timestamp,
) -> Fit {
    let status = instance.status.as_ref();
    let Some(server) = status.and_then(|status| status.server.as_ref()) else {
        return Fit::Listed;
    };
    match (listed_types(class, server, want), &server.server_type) {
        (None, _) => Fit::No,
        (Some(types), Some(has)) if !types.contains(has) => {
            by_another_type(ctx, server, types, now)
        }
        _ => Fit::Listed,
    }
}

/// The types that are listed where a server is, if that place is.
fn listed_types<'a>(
    class: &'a AgentClass,
    server: &ServerStatus,
    want: &'a Want,
) -> Option<&'a [String]> {
    let (own, spec) = (&want.overrides, &class.spec);
    let locations = own.locations.as_ref().unwrap_or(&spec.locations);
    let here = server.location.as_ref();
    let listed =
        spec.projects.contains(&server.project) && here.is_none_or(|here| locations.contains(here));
    let types = own.server_types.as_ref().unwrap_or(&spec.server_types);
    listed.then_some(types.as_slice())
}

/// What the inventory says, as it may know of another type first.
fn by_another_type(ctx: &Context, server: &ServerStatus, types: &[String], now: Timestamp) -> Fit {
    let Some(Ok(connection)) = ctx.connections.get(&server.project) else {
        return Fit::Listed;
    };
    let snapshot = connection.inventory.snapshot();
    let Some(entry) = snapshot.get(server.id.into()) else {
        return Fit::Listed;
    };
    let types: Vec<&str> = types.iter().map(String::as_str).collect();
    match connection.retype(&entry.server, &types, now) {
        _ if types.contains(&entry.server.server_type.name.as_str()) => Fit::Listed,
        Retype::Unknown => Fit::Listed,
        Retype::Impossible => Fit::No,
        Retype::To(_) => Fit::ByAnotherType,
    }
}

/// Whether its server was made to be kept.
fn keeps_disk(status: &AgentInstanceStatus) -> bool {
    let server = status.server.as_ref();
    server.is_some_and(|server| server.disk == Some(Disk::Preserve))
}

/// Why no server of a class is replaced for now: it is likelier that the way to them is to blame than they.
pub fn held(ctx: &Context, class: &AgentClass, now: Timestamp) -> Option<String> {
    let told = class.status.as_ref().map(|status| &status.conditions);
    let lasts = holds::of_class(ctx, class, now).lasts(told);
    lasts.then(|| {
        "no server is replaced as long as RecoveryHeld of the class is True: see there".into()
    })
}

fn ready_since(status: &AgentInstanceStatus) -> Option<Timestamp> {
    let ready = status
        .conditions
        .iter()
        .find(|told| told.type_ == ConditionType::Ready.as_str() && told.status == "True");
    ready.map(|ready| ready.last_transition_time.0)
}

/// A hash of what the class of an instance decides by.
pub fn news(instance: &AgentInstance) -> u64 {
    let status = instance.status.as_ref();
    let told = status.map(|status| {
        let holds = |kind| is_true(&status.conditions, kind);
        let revisions = (
            &status.class_revision,
            &status.good_revision,
            &status.refused_revision,
            &status.boot_revision,
        );
        let health = status.health.as_ref();
        let fails = health.is_some_and(|health| health.state == HealthState::Failed);
        let silent = health.is_some_and(|health| health.state == HealthState::Unknown);
        let holds = (holds(ConditionType::Ready), holds(ConditionType::Stalled));
        let last = (next_is_under_way(status), keeps_disk(status));
        (revisions, holds, fails, silent, last)
    });
    let mut hasher = DefaultHasher::new();
    (&instance.spec.class_name, instance.spec.suspend, told).hash(&mut hasher);
    hasher.finish()
}

/// Whether a server was asked for that is to take over.
fn next_is_under_way(status: &AgentInstanceStatus) -> bool {
    let speaks = status.voice.as_ref().and_then(|voice| voice.incarnation);
    let asked = status
        .provisioning
        .as_ref()
        .map(|record| record.incarnation);
    speaks
        .zip(asked)
        .is_some_and(|(speaks, asked)| asked > speaks)
}

/// Whether that server exists and is not going: one that was asked for once may long be gone.
fn next_exists(ctx: &Context, instance: &AgentInstance, status: &AgentInstanceStatus) -> bool {
    let Some(record) = &status.provisioning else {
        return false;
    };
    let Some(Ok(connection)) = ctx.connections.get(&record.project) else {
        return false;
    };
    let key = Key {
        namespace: instance.namespace().unwrap_or_default(),
        name: instance.name_any(),
    };
    let mut all = connection.inventory.of(&key).into_iter();
    all.any(|entry| {
        let lives = !matches!(entry.presence, Presence::Gone | Presence::Deleting);
        lives && entry.server.name == record.server_name
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_is_rounded_down_and_never_none() {
        let percent = |text: &str, of| part(&IntOrString::String(text.into()), of);
        assert_eq!(percent("10%", 20), 2);
        assert_eq!(
            (percent("10%", 19), percent("10%", 3), percent("10%", 0)),
            (1, 1, 1)
        );
        assert_eq!((percent("100%", 7), part(&IntOrString::Int(3), 1)), (7, 3));
    }

    #[test]
    fn a_server_fits_while_its_place_is_offered_to_its_instance() {
        let class: AgentClass = serde_json::from_value(serde_json::json!({
            "apiVersion": "agentfleet.dev/v1alpha1", "kind": "AgentClass", "metadata": {"name": "small"},
            "spec": {
                "projects": ["one"], "serverTypes": ["cx23"], "locations": ["nbg1", "fsn1"], "image": "debian-13",
                "firewall": {"sshFrom": ["10.0.0.0/8"]}, "agent": {"service": {"execStart": ["/bin/agent"]}}
            }
        }))
        .unwrap();
        let fits_in = |project: &str, server_type: &str, location: &str, own: serde_json::Value| {
            let status = serde_json::from_value(serde_json::json!({"server": {
                "project": project, "id": 1, "name": "x", "incarnation": 1, "type": server_type, "location": location,
            }}));
            let spec =
                serde_json::from_value(serde_json::json!({"className": "small", "overrides": own}));
            let status: AgentInstanceStatus = status.unwrap();
            let Desired::Present(_, want) = Desired::parse(&AgentInstance::new("a", spec.unwrap()))
            else {
                unreachable!("no deletion timestamp");
            };
            let server = status.server.as_ref().unwrap();
            let types = listed_types(&class, server, &want).unwrap_or_default();
            types.contains(server.server_type.as_ref().unwrap())
        };
        let none = serde_json::json!({});
        assert!(fits_in("one", "cx23", "fsn1", none.clone()));
        assert!(!fits_in("two", "cx23", "fsn1", none.clone()));
        assert!(!fits_in("one", "cx33", "fsn1", none.clone()));
        assert!(!fits_in("one", "cx23", "hel1", none));
        assert!(fits_in(
            "one",
            "cx33",
            "fsn1",
            serde_json::json!({"serverTypes": ["cx33"]})
        ));
        assert!(!fits_in(
            "one",
            "cx23",
            "fsn1",
            serde_json::json!({"locations": ["nbg1"]})
        ));
    }
}
