//! Takes the host keys that booting servers post, and answers when the pin is stored.

use std::{sync::Arc, time::Duration};

use kube::{ResourceExt as _, runtime::reflector::ObjectRef};
use tokio::time::sleep;

use crate::{
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
        let pin = || {
            let instance = self
                .0
                .stores
                .instances
                .get(&object)
                .filter(|instance| instance.uid().as_ref() == Some(&uid))?;
            let known = instance
                .status
                .as_ref()?
                .server
                .as_ref()
                .filter(|known| known.id == id)?
                .clone();
            Some(known.host_key)
        };
        if !matches!(pin(), None | Some(None)) {
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
        while pin().flatten().is_none() {
            sleep(POLL).await;
        }
        PinOutcome::Pinned
    }
}
