//! What a test may do to single servers and their machines.

use std::collections::BTreeMap;
use std::net::SocketAddrV4;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use serde_json::Value;

use crate::api::Call;
use crate::control::{Control, ControlError, unknown};
use crate::labels::{self, Labels};
use crate::ledger::Origin;
use crate::machines::fleet::{Fleet, MachineError, MachineFaults, MachineView};
use crate::machines::nspawn::{Machine, NspawnFleet, Shell, ShellAnswer};
use crate::machines::voice::VoiceChange;
use crate::machines::{Order, What};
use crate::primary_ips::{Family, PrimaryIp};
use crate::request::Request;
use crate::server_create;
use crate::servers::{self, Status};

fn on_machine(server: u64, error: MachineError) -> ControlError {
    match error {
        MachineError::Unknown => unknown("machine", server),
        other => ControlError::Refused(other.to_string()),
    }
}

impl Control {
    /// Creates a server that is not the operator's doing; `body` is that of `POST /servers`.
    ///
    /// # Errors
    /// When the API would refuse it.
    pub fn create_server(&self, project: usize, body: &Value) -> Result<u64, ControlError> {
        let now = Timestamp::now();
        let mut state = self.cloud.lock();
        if project >= state.projects.len() {
            return Err(unknown("project", project as u64));
        }
        let request = Request {
            method: "POST".to_owned(),
            path: "/servers".to_owned(),
            query: Vec::new(),
            body: body.to_string().into_bytes(),
        };
        let state = &mut *state;
        let mut call = Call {
            state,
            project_number: project,
            now,
            request: &request,
            action_faults: &[],
        };
        let id = server_create::place(&mut call, Origin::Control)
            .map_err(|error| ControlError::Refused(error.to_string()))?
            .id;
        self.cloud.tell_machines(state);
        Ok(id)
    }

    /// Makes a server vanish, protected or not.
    ///
    /// # Errors
    /// When there is no such server.
    pub fn vanish(&self, server: u64) -> Result<(), ControlError> {
        let mut state = self.cloud.lock();
        let project = state
            .find_server(server)
            .ok_or(unknown("server", server))?
            .0;
        servers::remove(&mut state, project, server, Timestamp::now());
        self.cloud.tell_machines(&mut state);
        Ok(())
    }

    /// Replaces the labels of a server.
    ///
    /// # Errors
    /// When there is no such server, or the labels are none.
    pub fn set_labels(
        &self,
        server: u64,
        new: &BTreeMap<String, String>,
    ) -> Result<(), ControlError> {
        labels::check(new).map_err(|error| ControlError::Refused(error.to_string()))?;
        self.with_server(server, |server| server.labels = Labels::clone(new))?;
        // Firewalls may reach it by its labels.
        self.cloud.tell_machines(&mut self.cloud.lock());
        Ok(())
    }

    /// Blocks or unblocks the IPv4 address of a server, as Hetzner does after abuse.
    ///
    /// # Errors
    /// When there is no such server.
    pub fn block_ipv4(&self, server: u64, blocked: bool) -> Result<(), ControlError> {
        let address = self.with_server(server, |server| server.ipv4)?;
        let mut state = self.cloud.lock();
        let held = state
            .projects
            .iter_mut()
            .flat_map(|project| project.primary_ips.values_mut());
        for ip in held.filter(|ip| Some(ip.id) == address) {
            ip.blocked = blocked;
        }
        Ok(())
    }

    /// Gives a server another IPv4 address, or none any more, without any request; its machine answers there and nowhere else.
    ///
    /// # Errors
    /// When there is no such server, or its machine cannot move.
    pub fn change_ipv4(&self, server: u64, keep: bool) -> Result<(), ControlError> {
        let now = Timestamp::now();
        let mut state = self.cloud.lock();
        let (project, found) = state.find_server(server).ok_or(unknown("server", server))?;
        let location = found.location;
        let new = keep.then(|| {
            let mut new = PrimaryIp::of_server(&mut state, Family::V4, location, now);
            new.assignee = Some(server);
            new
        });
        let project = &mut state.projects[project];
        let address = new.as_ref().and_then(|new| new.ip.parse().ok());
        if let Some(found) = project.servers.get_mut(&server)
            && let Some(former) = std::mem::replace(&mut found.ipv4, new.as_ref().map(|new| new.id))
        {
            project.primary_ips.remove(&former);
        }
        project.primary_ips.extend(new.map(|new| (new.id, new)));
        match &self.cloud.fleet {
            Some(fleet) => fleet.move_to(server, address),
            None => Ok(()),
        }
        .map_err(|error| on_machine(server, error))
    }

    /// Lets no list show a server, as if each of them were shifted by a deletion between two of its pages; by id and name it is found.
    ///
    /// # Errors
    /// When there is no such server.
    pub fn hide(&self, server: u64, hidden: bool) -> Result<(), ControlError> {
        self.with_server(server, |found| found.hidden = hidden)
    }

    /// Switches a server on or off without any request.
    ///
    /// # Errors
    /// When there is no such server.
    pub fn power(&self, server: u64, on: bool) -> Result<(), ControlError> {
        let now = Timestamp::now();
        let mut state = self.cloud.lock();
        let found = state
            .find_server_mut(server)
            .ok_or(unknown("server", server))?;
        let status = if on { Status::Running } else { Status::Off };
        found.plan = vec![(now, status)];
        found.locked_until = now;
        let boot = state.boot(Duration::ZERO);
        let off = What::PowerOff {
            after: Duration::ZERO,
        };
        let what = if on { What::PowerOn { boot } } else { off };
        state.orders.push(Order { server, what });
        self.cloud.tell_machines(&mut state);
        Ok(())
    }

    /// A machine dies while its server goes on being shown as running.
    ///
    /// # Errors
    /// When there is no such server.
    pub fn kill(&self, server: u64) -> Result<(), ControlError> {
        let mut state = self.cloud.lock();
        let found = state
            .find_server_mut(server)
            .ok_or(unknown("server", server))?;
        found.ignores_acpi = true;
        state.orders.push(Order {
            server,
            what: What::PowerOff {
                after: Duration::ZERO,
            },
        });
        self.cloud.tell_machines(&mut state);
        Ok(())
    }

    /// Sets what goes wrong on a machine; a frozen one no longer reacts to a shutdown request.
    ///
    /// # Errors
    /// When there is no such machine.
    pub fn set_machine_faults(
        &self,
        server: u64,
        faults: MachineFaults,
    ) -> Result<(), ControlError> {
        let fleet = self.cloud.fleet.as_ref().ok_or(ControlError::NoMachines)?;
        fleet
            .set_faults(server, faults)
            .map_err(|error| on_machine(server, error))?;
        self.with_server(server, |found| found.ignores_acpi = faults.frozen)
    }

    /// Gives a machine another host key; `on_disk` tells whether the machine itself knows of it.
    ///
    /// # Errors
    /// When there is no such machine.
    pub fn change_host_key(&self, server: u64, on_disk: bool) -> Result<(), ControlError> {
        let fleet = self.cloud.fleet.as_ref().ok_or(ControlError::NoMachines)?;
        fleet
            .change_host_key(server, on_disk)
            .map_err(|error| on_machine(server, error))
    }

    /// One machine: address, host key, what it is doing.
    ///
    /// # Errors
    /// When there is no such machine.
    pub fn machine(&self, server: u64) -> Result<MachineView, ControlError> {
        let fleet = self.cloud.fleet.as_ref().ok_or(ControlError::NoMachines)?;
        fleet.view(server).ok_or(unknown("machine", server))
    }

    /// When the agents on all machines, also on those that are gone, began and ceased to run.
    ///
    /// A machine that is being deleted may be missing until its disk was removed.
    pub fn voices(&self) -> Vec<VoiceChange> {
        self.cloud
            .fleet
            .as_ref()
            .map(Fleet::voices)
            .unwrap_or_default()
    }

    /// What cloud-init found wrong in any boot of a real machine, also of those that are gone.
    pub fn complaints(&self) -> Vec<String> {
        let fleet = self.cloud.fleet.as_ref();
        fleet
            .and_then(Fleet::real)
            .map(NspawnFleet::complaints)
            .unwrap_or_default()
    }

    /// The console output of a real machine, over all its boots.
    ///
    /// # Errors
    /// When there is no such real machine.
    pub fn console(&self, server: u64) -> Result<String, ControlError> {
        self.real_machine(server)?
            .console_output()
            .map_err(|error| on_machine(server, error))
    }

    /// Runs a command in a real machine and waits for its end.
    ///
    /// # Errors
    /// When there is no such real machine, or it is not up.
    pub async fn shell(&self, server: u64, shell: &Shell) -> Result<ShellAnswer, ControlError> {
        let machine = self.real_machine(server)?;
        let answer = machine.shell(shell).await;
        answer.map_err(|error| on_machine(server, error))
    }

    /// What is put before a command for it to run on the router between host and real machines, as
    /// somebody in the middle would: it may hold any address (`ip address add … dev lo`), also one of a
    /// machine, whose packets then end there.
    ///
    /// # Errors
    /// When the machines are not real.
    pub fn on_router(&self) -> Result<Vec<String>, ControlError> {
        Ok(self.real()?.on_router())
    }

    /// Lets new connections to a real machine's SSH end elsewhere, until it is told `None`.
    ///
    /// # Errors
    /// When there is no such real machine.
    pub async fn divert_ssh(
        &self,
        server: u64,
        to: Option<SocketAddrV4>,
    ) -> Result<(), ControlError> {
        self.real()?
            .divert(server, to)
            .await
            .map_err(|error| on_machine(server, error))
    }

    fn real(&self) -> Result<&NspawnFleet, ControlError> {
        let real = self.cloud.fleet.as_ref().and_then(Fleet::real);
        real.ok_or(ControlError::NotReal)
    }

    fn real_machine(&self, server: u64) -> Result<Arc<Machine>, ControlError> {
        let machine = self.real()?.machine(server);
        machine.ok_or(unknown("machine", server))
    }

    /// All machines.
    pub fn machines(&self) -> Vec<MachineView> {
        self.cloud
            .fleet
            .as_ref()
            .map(Fleet::views)
            .unwrap_or_default()
    }
}
