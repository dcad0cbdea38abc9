//! Former revisions of a class, kept as `ControllerRevision`s in the operator's namespace and named after their content.
//!
//! A lost one is no disaster: it is written again while the class still describes it, and an instance that has one which is not kept any more
//! goes on as it is until it gets another.

use std::collections::BTreeSet;

use k8s_openapi::{api::apps::v1::ControllerRevision, apimachinery::pkg::runtime::RawExtension};
use kube::{Resource as _, ResourceExt as _, api::ObjectMeta, runtime::reflector::ObjectRef};
use serde::{Deserialize, Serialize};

use super::turns::Revision;
use crate::{
    agent_instance::desired::{Agent, Desired, Want},
    api::{AgentClass, AgentClassSpec, AgentInstance, AgentSpec, Bootstrap, Health},
    context::Context,
    labels,
};

/// How many are kept beside those that somebody has.
const KEPT: usize = 5;

/// The fields of a class that its revision is made of, and whom its probes came from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Content {
    agent: AgentSpec,
    image: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    network: Option<String>,
    ipv4: bool,
    ipv6: bool,
    bootstrap: Bootstrap,
    /// None in what was kept before probes belonged to it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    health: Option<Health>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    health_from: Vec<String>,
}

impl Content {
    fn of(spec: &AgentClassSpec) -> Self {
        Self {
            agent: spec.agent.clone(),
            image: spec.image.clone(),
            network: spec.network.clone(),
            ipv4: spec.ipv4,
            ipv6: spec.ipv6,
            bootstrap: spec.bootstrap,
            health: Some(spec.health.clone()),
            health_from: spec.firewall.health_from.clone(),
        }
    }

    fn put_into(self, spec: &mut AgentClassSpec) {
        let Self {
            agent,
            image,
            network,
            ipv4,
            ipv6,
            bootstrap,
            health,
            health_from,
        } = self;
        spec.agent = agent;
        spec.image = image;
        spec.network = network;
        spec.ipv4 = ipv4;
        spec.ipv6 = ipv6;
        spec.bootstrap = bootstrap;
        if let Some(health) = health {
            spec.health = health;
        }
        // Who may ask holds at once; but a class that asks in another way now names nobody.
        if spec.firewall.health_from.is_empty() {
            spec.firewall.health_from = health_from;
        }
    }
}

/// The agent of an instance that asks for nothing of its own; none when the class cannot be read that way.
pub fn plain(class: &AgentClass) -> Option<Agent> {
    let plain = AgentInstance::new(
        "",
        serde_json::from_value(serde_json::json!({"className": class.name_any()})).ok()?,
    );
    match Desired::parse(&plain) {
        Desired::Present(_, want) => Agent::of(class, &want).ok(),
        Desired::Absent(_) | Desired::Retained(_) => None,
    }
}

/// The revision that a class describes.
pub fn described(class: &AgentClass) -> Revision {
    plain(class)
        .map(|agent| Revision {
            name: agent.class_revision(),
            boot: agent.boot_revision,
            config: agent.config_revision,
        })
        .unwrap_or_default()
}

/// All revisions of a class that are known: the one that it describes, and those that are kept.
pub fn known(ctx: &Context, class: &AgentClass) -> Vec<Revision> {
    let kept = of_class(ctx, class);
    let former = kept.iter().filter_map(|kept| restored(class, kept));
    std::iter::once(described(class))
        .chain(former.map(|former| described(&former)))
        .collect()
}

/// The class as it was at a revision, in what revisions are made of; none when that is not kept. One that an instance has brought along from another
/// class is found there: it is named after its content alone.
pub fn class_at(ctx: &Context, class: &AgentClass, revision: &str) -> Option<AgentClass> {
    let name = object_name(&class.name_any(), revision);
    let own = ObjectRef::new(&name).within(&ctx.settings.namespace);
    let of_another = || {
        let mut all = ctx.stores.revisions.state().into_iter();
        all.find(|kept| {
            let class = kept.labels().get(labels::CLASS);
            class.is_some_and(|class| kept.name_any() == object_name(class, revision))
        })
    };
    let kept = ctx.stores.revisions.get(&own).or_else(of_another)?;
    restored(class, &kept)
}

fn restored(class: &AgentClass, kept: &ControllerRevision) -> Option<AgentClass> {
    let content: Content = serde_json::from_value(kept.data.as_ref()?.0.clone()).ok()?;
    let mut class = class.clone();
    content.put_into(&mut class.spec);
    Some(class)
}

/// Which revision the agent of an instance has that was configured with these: of a class in one of its revisions.
pub fn recognised(
    ctx: &Context,
    class: &AgentClass,
    want: &Want,
    (boot, config): (Option<&String>, &String),
) -> Option<String> {
    let kept = of_class(ctx, class);
    let former = kept.iter().filter_map(|kept| restored(class, kept));
    std::iter::once(class.clone())
        .chain(former)
        .find_map(|class| {
            let agent = Agent::of(&class, want).ok()?;
            let same = agent.config_revision == *config
                && boot.is_none_or(|boot| agent.boot_revision == *boot);
            same.then(|| described(&class).name)
        })
}

/// The class as it was at each former revision that somebody has, or may go back to.
pub fn in_use(ctx: &Context, class: &AgentClass) -> Vec<AgentClass> {
    let name = class.name_any();
    let instances = ctx.stores.instances.state();
    let of_class = instances
        .iter()
        .filter(|instance| instance.spec.class_name == name);
    let told = of_class.filter_map(|instance| instance.status.as_ref());
    let told = told.flat_map(|status| [&status.class_revision, &status.good_revision]);
    let good = class.status.as_ref().map(|status| &status.good_revision);
    let revisions: BTreeSet<&String> = told.chain(good).flatten().collect();
    let former = revisions.into_iter();
    former
        .filter_map(|revision| class_at(ctx, class, revision))
        .collect()
}

fn object_name(class: &str, revision: &str) -> String {
    format!("{class}-{revision}")
}

fn of_class(ctx: &Context, class: &AgentClass) -> Vec<std::sync::Arc<ControllerRevision>> {
    let name = class.name_any();
    let mut kept = ctx.stores.revisions.state();
    kept.retain(|kept| kept.labels().get(labels::CLASS) == Some(&name));
    kept
}

/// What is kept of a class: the name of each object, the oldest first.
pub fn kept(ctx: &Context, class: &AgentClass) -> Vec<String> {
    let mut kept = of_class(ctx, class);
    kept.sort_by_key(|kept| kept.revision);
    kept.iter().map(|kept| kept.name_any()).collect()
}

/// The object that keeps a revision of a class.
pub fn object(
    class: &AgentClass,
    revision: &str,
    namespace: &str,
    after: i64,
) -> ControllerRevision {
    let owner = class.owner_ref(&()).map(|owner| vec![owner]);
    ControllerRevision {
        metadata: ObjectMeta {
            name: Some(object_name(&class.name_any(), revision)),
            namespace: Some(namespace.to_owned()),
            labels: Some([(labels::CLASS.to_owned(), class.name_any())].into()),
            owner_references: owner,
            ..ObjectMeta::default()
        },
        data: Some(RawExtension(serde_json::json!(Content::of(&class.spec)))),
        revision: after + 1,
    }
}

/// The number of the newest that is kept of a class.
pub fn newest(ctx: &Context, class: &AgentClass) -> i64 {
    let kept = of_class(ctx, class);
    kept.iter()
        .map(|kept| kept.revision)
        .max()
        .unwrap_or_default()
}

/// What is to be written, and what is kept for nobody.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Housekeeping {
    /// The revision to be written.
    pub write: Option<String>,
    /// Names of objects to be deleted.
    pub drop: Vec<String>,
}

impl Housekeeping {
    /// Compares what is kept, the oldest first, with what somebody has; as long as that is not known, none is dropped.
    pub fn of(class: &str, target: &str, kept: &[String], used: Option<&BTreeSet<String>>) -> Self {
        let used = used.map(|used| used.iter().map(|name| object_name(class, name)));
        let used: Option<BTreeSet<String>> = used.map(Iterator::collect);
        let is_used = |name: &String| used.as_ref().is_none_or(|used| used.contains(name));
        let target_name = object_name(class, target);
        let is_kept = kept.contains(&target_name);
        let spare = kept.len().saturating_sub(KEPT);
        let old = kept.iter().take(spare);
        Self {
            write: (!is_kept && !target.is_empty()).then(|| target.to_owned()),
            drop: old
                .filter(|name| !is_used(name) && **name != target_name)
                .cloned()
                .collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn class(colour: &str) -> AgentClass {
        serde_json::from_value(serde_json::json!({
            "apiVersion": "agentfleet.dev/v1alpha1", "kind": "AgentClass",
            "metadata": {"name": "small", "uid": "uid-1"},
            "spec": {
                "projects": ["one"], "serverTypes": ["cx23"], "locations": ["nbg1"], "image": "debian-13",
                "firewall": {"sshFrom": ["10.0.0.0/8"]},
                "agent": {"service": {"execStart": ["/bin/agent"]}, "environment": {"COLOUR": colour}}
            }
        }))
        .unwrap()
    }

    #[test]
    fn what_was_kept_makes_the_same_revision_of_a_class_that_has_changed() {
        let (red, mut green) = (class("red"), class("green"));
        green.spec.image = "debian-14".into();
        green.spec.network = Some("inner".into());
        green.spec.health = serde_json::from_value(serde_json::json!({"interval": "5s"})).unwrap();
        assert_ne!(described(&red), described(&green));
        for (kept, other) in [(&red, &green), (&green, &red)] {
            let object = object(kept, "r", "system", 4);
            assert_eq!(
                (object.name_any().as_str(), object.revision),
                ("small-r", 5)
            );
            let again = restored(other, &object).unwrap();
            assert_eq!(described(&again), described(kept));
        }
    }

    #[test]
    fn another_probe_another_pause_and_another_timeout_are_another_revision() {
        let plain = class("red");
        for health in [
            serde_json::json!({"exec": {"command": "true"}}),
            serde_json::json!({"interval": "5s"}),
            serde_json::json!({"timeout": "6s"}),
            serde_json::json!({"failureThreshold": 4}),
            serde_json::json!({"initialDelay": "1s"}),
        ] {
            let mut probed = class("red");
            probed.spec.health = serde_json::from_value(health).unwrap();
            let (was, is) = (described(&plain), described(&probed));
            assert_ne!(was.name, is.name, "{:?}", probed.spec.health);
            assert_eq!(was.boot, is.boot);
        }
    }

    #[test]
    fn who_was_let_in_to_ask_counts_where_the_class_names_nobody_any_more() {
        let mut http = class("red");
        http.spec.health =
            serde_json::from_value(serde_json::json!({"http": {"port": 8080}})).unwrap();
        http.spec.firewall.health_from = vec!["10.1.0.0/16".into()];
        let kept = object(&http, "r", "system", 0);
        let mut now = class("red");
        let again = restored(&now, &kept).unwrap();
        assert_eq!(again.spec.health.http.unwrap().port, 8080);
        assert_eq!(again.spec.firewall.health_from, ["10.1.0.0/16"]);
        now.spec.firewall.health_from = vec!["10.2.0.0/16".into()];
        let again = restored(&now, &kept).unwrap();
        assert_eq!(again.spec.firewall.health_from, ["10.2.0.0/16"]);
    }

    #[test]
    fn what_was_kept_before_probes_belonged_to_it_is_probed_as_the_class_says_now() {
        let mut kept = object(&class("red"), "r", "system", 0);
        let data = &mut kept.data.as_mut().unwrap().0;
        data.as_object_mut().unwrap().remove("health");
        let mut now = class("green");
        now.spec.health = serde_json::from_value(serde_json::json!({"interval": "5s"})).unwrap();
        let again = restored(&now, &kept).unwrap();
        assert_eq!(again.spec.health, now.spec.health);
    }

    #[test]
    fn what_is_in_no_revision_stays_as_the_class_has_it_now() {
        let (mut red, green) = (class("red"), class("green"));
        let kept = object(&red, "r", "system", 0);
        red.spec.lifecycle.rollout.paused = true;
        red.spec.server_types = vec!["cx33".into()];
        assert_eq!(described(&red), described(&class("red")));
        let again = restored(&green, &kept).unwrap();
        assert_eq!(again.spec.server_types, ["cx23"]);
        assert!(!again.spec.lifecycle.rollout.paused);
    }

    #[test]
    fn five_are_kept_and_those_that_somebody_has() {
        let kept: Vec<String> = (1..=8).map(|nth| format!("small-r{nth}")).collect();
        let used = BTreeSet::from(["r2".to_owned()]);
        let done = |target| Housekeeping::of("small", target, &kept, Some(&used));
        assert_eq!(done("r8").drop, ["small-r1", "small-r3"]);
        assert_eq!(
            (done("r8").write, done("r1").drop),
            (None, vec!["small-r3".to_owned()])
        );
        assert_eq!(done("r9").write.as_deref(), Some("r9"));
        assert_eq!(
            Housekeeping::of("small", "", &[], Some(&used)),
            Housekeeping::default()
        );
        let unknown = Housekeeping::of("small", "r8", &kept, None);
        assert_eq!(unknown, Housekeeping::default());
    }
}
