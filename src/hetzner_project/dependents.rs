//! Who has to look again when something changes in a project.

use kube::{ResourceExt as _, runtime::reflector::ObjectRef};
use tokio::sync::broadcast::{Receiver, error::RecvError};

use crate::{
    api::{AgentInstance, ConditionType, is_true},
    context::{Stores, Wake},
    inventory::{Change, Inventory},
};

/// Whether an instance has a server in a project, or is asking for one.
pub fn lives_in(instance: &AgentInstance, project: &str) -> bool {
    let Some(status) = &instance.status else {
        return false;
    };
    status
        .server
        .as_ref()
        .is_some_and(|server| server.project == project)
        || status
            .provisioning
            .as_ref()
            .is_some_and(|record| record.project == project)
}

/// Wakes the classes that name a project, and those of its instances that `which` wants.
pub fn wake(stores: &Stores, wake: &Wake, project: &str, which: impl Fn(&AgentInstance) -> bool) {
    let classes: Vec<String> = stores
        .classes
        .state()
        .iter()
        .filter(|class| class.spec.projects.iter().any(|named| named == project))
        .map(|class| class.name_any())
        .collect();
    for instance in stores.instances.state() {
        let concerned = lives_in(&instance, project) || classes.contains(&instance.spec.class_name);
        if concerned && which(&instance) {
            wake.instance(
                &instance.namespace().unwrap_or_default(),
                &instance.name_any(),
            );
        }
    }
    for class in classes {
        wake.class(&class);
    }
}

/// Turns the changes of a project's inventory into looks at what they concern, until the inventory is gone.
///
/// After the first full list everybody looks; after later ones only those who may wait for a list: a calm instance costs nothing.
pub async fn follow(stores: Stores, wake_all: Wake, project: String, inventory: Inventory) {
    let mut changes: Receiver<Change> = inventory.subscribe();
    let mut first = true;
    loop {
        match changes.recv().await {
            Ok(Change::Servers(owners)) => {
                for owner in owners.iter() {
                    wake_all.instance(&owner.namespace, &owner.name);
                }
            }
            Ok(Change::Synced) => {
                wake(&stores, &wake_all, &project, |instance| {
                    first || unsettled(instance)
                });
                if first
                    || told_servers(&stores, &project)
                        != i64::try_from(inventory.snapshot().servers().count()).ok()
                {
                    wake_all.project(&project);
                }
                first = false;
            }
            Err(RecvError::Lagged(_)) => wake(&stores, &wake_all, &project, |_| true),
            Err(RecvError::Closed) => return,
        }
    }
}

fn unsettled(instance: &AgentInstance) -> bool {
    let ready = instance
        .status
        .as_ref()
        .is_some_and(|status| is_true(&status.conditions, ConditionType::Ready));
    !ready || instance.metadata.deletion_timestamp.is_some()
}

/// How many servers the status of a project says it has.
fn told_servers(stores: &Stores, project: &str) -> Option<i64> {
    stores
        .projects
        .get(&ObjectRef::new(project))?
        .status
        .as_ref()?
        .servers
}
