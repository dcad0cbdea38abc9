//! Takes the host keys that booting servers post, and answers when the pin is stored.

use std::{sync::Arc, time::Duration};

use kube::{ResourceExt as _, runtime::reflector::ObjectRef};
use tokio::time::sleep;

use crate::{
    api::AgentInstance,
    bootstrap::{PhoneHome, PhoneHomeSink, PinOutcome},
    context::Context,
    hetzner::Server,
    keys::PhoneHomeToken,
    labels,
};

/// How often the store is looked at for the pin.
const POLL: Duration = Duration::from_millis(50);

/// Pins host keys by way of the instances' reconciler; the caller bounds the wait.
pub struct Pins(pub Arc<Context>);

impl PhoneHomeSink for Pins {
    async fn pin(&self, token: PhoneHomeToken, call: PhoneHome) -> PinOutcome {
        let ctx = &self.0;
        if !ctx.keyring.accepts(&token) {
            return PinOutcome::UnknownToken;
        }
        if !ctx.leadership.holds() {
            return PinOutcome::NotLeading;
        }
        // A server that is not listed yet is on its way into the inventory: it is to call again.
        let Some(server) = self.booting(token.server()) else {
            return PinOutcome::NotStored;
        };
        if server.id.to_string() != call.instance_id {
            return PinOutcome::UnknownToken;
        }
        self.store(&server, &call.host_key.to_string()).await
    }
}

impl Pins {
    fn booting(&self, name: &str) -> Option<Arc<Server>> {
        let connections = self.0.connections.all();
        let snapshots = connections
            .iter()
            .map(|connection| connection.inventory.snapshot());
        snapshots
            .flat_map(|snapshot| {
                snapshot
                    .servers()
                    .map(|entry| entry.server.clone())
                    .collect::<Vec<_>>()
            })
            .find(|server| server.name == name)
    }

    async fn store(&self, server: &Server, host_key: &str) -> PinOutcome {
        let (namespace, name) = (
            labels::text(&server.labels, labels::NAMESPACE),
            labels::text(&server.labels, labels::NAME),
        );
        let uid = labels::text(&server.labels, labels::UID);
        let id = server.id.number();
        let object = ObjectRef::new(&name).within(&namespace);
        let instance = || {
            let instance = self.0.stores.instances.get(&object);
            instance.filter(|instance| instance.uid().as_ref() == Some(&uid))
        };
        if !instance().is_some_and(|instance| expects(&instance, server)) {
            return PinOutcome::UnknownToken;
        }
        let taken = self.0.memories.with(&uid, |memory| {
            let proven = &mut memory.guest(id).view.proven;
            proven.get_or_insert_with(|| host_key.to_owned()) != host_key
        });
        if taken {
            return PinOutcome::UnknownToken;
        }
        self.0.wake.instance(&namespace, &name);
        while instance().is_none_or(|instance| pin(&instance, server).is_none()) {
            sleep(POLL).await;
        }
        PinOutcome::Pinned
    }
}

/// Whether the token still counts: for the server of the record in hand, until its key is pinned. The token stays in user-data, where anybody on
/// the server finds it; with the record lost it must not pin another key.
fn expects(instance: &AgentInstance, server: &Server) -> bool {
    let Some(status) = &instance.status else {
        return false;
    };
    let recorded = status
        .provisioning
        .as_ref()
        .is_some_and(|record| record.server_name == server.name);
    let holder = status.voice.as_ref().and_then(|voice| voice.incarnation);
    let spoken = holder.is_some_and(|incarnation| {
        labels::text(&server.labels, labels::INCARNATION) == incarnation.to_string()
    });
    recorded && !spoken && pin(instance, server).is_none()
}

/// The key that is pinned for a server.
fn pin(instance: &AgentInstance, server: &Server) -> Option<String> {
    let known = instance.status.as_ref()?.server.as_ref();
    known
        .filter(|known| known.id == server.id.number())?
        .host_key
        .clone()
}
