//! Does one step: one effect, and what it taught goes into the memory of the project.

mod at_hetzner;
mod at_kubernetes;

use std::sync::Arc;

use self::{at_hetzner::Hetzner, at_kubernetes::Kubernetes};
use super::{
    connection::Connection, dependents, desired::Desired, observe::Observed, request::Failure,
    step::Step,
};
use crate::{
    api::HetznerProject,
    context::Context,
    hetzner::Client,
    inventory::{Config, Inventory, KeyLabels, Periods},
    labels,
};

/// Does a step; what a request has told is remembered.
///
/// # Errors
/// See [`Failure`]; nothing is tried again here.
pub async fn perform(
    ctx: &Arc<Context>,
    project: &HetznerProject,
    desired: &Desired,
    observed: &Observed,
    step: &Step,
) -> Result<(), Failure> {
    let kubernetes = Kubernetes {
        ctx,
        project,
        desired,
        observed,
    };
    let done = match step {
        Step::AddFinalizer | Step::HoldSecret | Step::ReleaseSecret | Step::LetGo
            if !ctx.leadership.holds() =>
        {
            Err(Failure::NotLeading)
        }
        Step::AddFinalizer => kubernetes.add_finalizer().await,
        Step::HoldSecret => kubernetes.hold_secret().await,
        Step::ReleaseSecret => kubernetes.release_secret().await,
        Step::LetGo => kubernetes.let_go().await,
        Step::Connect => connect(ctx, desired, observed),
        _ => match &observed.connection {
            Some(connection) => Hetzner { ctx, connection }.perform(step).await,
            None => Ok(()),
        },
    };
    if let (Ok(()), Some(connection)) = (&done, &observed.connection) {
        connection.memory().troubles.succeeded(step.kind());
    }
    done
}

/// A new token opens a new connection; the former one ends with its tasks.
fn connect(ctx: &Context, desired: &Desired, observed: &Observed) -> Result<(), Failure> {
    let Some(token) = &observed.token else {
        return Ok(());
    };
    let client = Client::new(
        &ctx.settings.endpoint,
        token.clone(),
        ctx.settings.request_timeout,
    )?;
    let metrics = ctx.metrics.clone();
    let client = client.telling(move |exchange| metrics.exchanged(exchange));
    let inventory = Inventory::new(Config {
        selector: format!("{}={}", labels::FLEET, ctx.keyring.current().fleet()),
        key_labels: KeyLabels {
            namespace: labels::NAMESPACE.into(),
            name: labels::NAME.into(),
        },
        periods: Periods {
            fast: ctx.settings.inventory_fast,
            slow: ctx.settings.inventory_slow,
            ..Periods::default()
        },
    });
    let connection = Connection::new(&desired.name, client, token.clone(), inventory.clone());
    connection.spawn(dependents::follow(
        ctx.stores.clone(),
        ctx.wake.clone(),
        desired.name.clone(),
        inventory.clone(),
    ));
    let (client, budget) = (connection.client.clone(), connection.budget.clone());
    connection.spawn(async move { match inventory.run(&client, &budget).await {} });
    ctx.connections.put(&desired.name, Ok(Arc::new(connection)));
    Ok(())
}
