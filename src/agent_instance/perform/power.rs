//! Steps that switch a server on or off, or start it again.

use std::time::Instant;

use super::{
    super::{observe::Moment, talk::GuestKey},
    Performer,
};
use crate::{
    crash_point,
    error::Setback,
    hetzner::{self, Class, Lane, Place},
};

impl Performer<'_> {
    pub(super) async fn power_on(&self, project: &str, id: i64) -> Result<(), Setback> {
        let connection = self.connection(project)?;
        let permit = self.permit(&connection, Lane::Other)?;
        let route = "POST /servers/{id}/actions/poweron";
        crash_point::around(
            "hetzner",
            route,
            connection.client.power_on(permit, id.into()),
        )
        .await?;
        connection.inventory.poke();
        self.comes_on(id);
        Ok(())
    }

    /// What a server said before it was switched off is old.
    fn comes_on(&self, id: i64) {
        let now = Moment::now().wall;
        self.remember(|memory| {
            let guest = memory.guest(id);
            guest.starts_again();
            guest.view.powered = Some(now);
            (guest.view.hello, guest.view.contact) = (None, None);
        });
    }

    pub(super) async fn change_type(
        &self,
        project: &str,
        id: i64,
        server_type: &str,
    ) -> Result<(), Setback> {
        let connection = self.connection(project)?;
        let permit = self.permit(&connection, Lane::Rollout)?;
        // Whatever comes of the request, the next one waits for its time.
        self.comes_on(id);
        let route = "POST /servers/{id}/actions/change_type";
        let change = connection
            .client
            .change_type(permit, id.into(), server_type);
        let answer = crash_point::around("hetzner", route, change).await;
        connection.inventory.poke();
        match answer.as_ref().map_err(hetzner::Error::class) {
            Err(Class::OutOfStock) => {
                let snapshot = connection.inventory.snapshot();
                if let Some(entry) = snapshot.get(id.into()) {
                    let place = Place {
                        server_type: server_type.to_owned(),
                        location: entry.server.location.name.clone(),
                    };
                    connection.stock.out_of_stock(&place, Instant::now());
                }
            }
            Err(Class::BlockedUntilPerson) => {
                self.remember(|memory| memory.guest(id).view.retype_refused = true);
            }
            _ => {}
        }
        answer.map(drop).map_err(Setback::from)
    }

    pub(super) async fn shutdown(&self, project: &str, id: i64) -> Result<(), Setback> {
        let connection = self.connection(project)?;
        let permit = self.permit(&connection, Lane::Other)?;
        self.goes_dark(id);
        let route = "POST /servers/{id}/actions/shutdown";
        let shutdown = connection.client.shutdown(permit, id.into());
        crash_point::around("hetzner", route, shutdown).await?;
        connection.inventory.poke();
        Ok(())
    }

    pub(super) async fn power_off(&self, project: &str, id: i64) -> Result<(), Setback> {
        let connection = self.connection(project)?;
        let permit = self.permit(&connection, Lane::Other)?;
        self.goes_dark(id);
        let route = "POST /servers/{id}/actions/poweroff";
        let power_off = connection.client.power_off(permit, id.into());
        crash_point::around("hetzner", route, power_off).await?;
        connection.inventory.poke();
        Ok(())
    }

    /// Whatever comes of the request, the next one waits for its time.
    fn goes_dark(&self, id: i64) {
        let now = Moment::now().wall;
        self.remember(|memory| memory.guest(id).view.shut_down = Some(now));
        let key = GuestKey::new(self.identity(), id);
        self.ctx.talks.probes.forget(&key);
    }

    /// Asked for once for each time that it was written down, whatever comes of the request.
    pub(super) async fn reboot(&self, project: &str, id: i64, hard: bool) -> Result<(), Setback> {
        let connection = self.connection(project)?;
        let permit = self.permit(&connection, Lane::Other)?;
        self.remember(|memory| {
            memory.fresh_recovery = None;
            memory.guest(id).starts_again();
        });
        let key = GuestKey::new(self.identity(), id);
        self.ctx.talks.probes.forget(&key);
        let client = &connection.client;
        if hard {
            let route = "POST /servers/{id}/actions/reset";
            crash_point::around("hetzner", route, client.reset(permit, id.into())).await?;
        } else {
            let route = "POST /servers/{id}/actions/reboot";
            crash_point::around("hetzner", route, client.reboot(permit, id.into())).await?;
        }
        connection.inventory.poke();
        Ok(())
    }
}
