//! What a test may do to the cloud behind the back of whoever uses its API.
//!
//! The endpoints under `/_sim` and the library's users go through the same methods.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use serde::Serialize;
use serde_json::{Value, json};

use crate::cloud::Cloud;
use crate::faults::{FaultRule, FaultState};
use crate::ledger::{Bill, Life, Mutation, RequestCount};
use crate::servers::Server;
use crate::state::{Access, State};

/// Why a control could not be carried out.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// There is no such server, project, fault, or mutation.
    #[error("no {what} {number}")]
    Unknown {
        /// What was looked for.
        what: &'static str,
        /// Its number.
        number: u64,
    },
    /// The API itself would not take this.
    #[error("{0}")]
    Refused(String),
    /// Only real machines can do this.
    #[error("this simulator has no real machines")]
    NotReal,
    /// This simulator runs without machines.
    #[error("this simulator has no machines")]
    NoMachines,
}

pub(crate) fn unknown(what: &'static str, number: u64) -> ControlError {
    ControlError::Unknown { what, number }
}

/// One project, as a test sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ProjectView {
    /// Number of the project, in the order of the tokens.
    pub project: usize,
    /// Servers that live.
    pub servers: usize,
    /// Firewalls that exist.
    pub firewalls: usize,
    /// SSH keys that exist.
    pub ssh_keys: usize,
    /// Primary IPs that exist.
    pub primary_ips: usize,
    /// Requests per hour.
    pub rate_limit: u32,
    /// Requests left.
    pub rate_remaining: u32,
    /// Root passwords handed out because no SSH key was given.
    pub root_passwords: u64,
}

/// Control over a running simulator.
#[derive(Clone)]
pub struct Control {
    pub(crate) cloud: Arc<Cloud>,
}

impl Control {
    pub(crate) fn new(cloud: Arc<Cloud>) -> Self {
        Self { cloud }
    }

    /// Adds a fault; answers its number.
    pub fn add_fault(&self, rule: FaultRule) -> u64 {
        self.cloud.lock().faults.add(rule)
    }

    /// All faults and how often they hit.
    pub fn faults(&self) -> Vec<FaultState> {
        self.cloud.lock().faults.list()
    }

    /// Takes a fault back.
    ///
    /// # Errors
    /// When there is none of that number.
    pub fn remove_fault(&self, id: u64) -> Result<(), ControlError> {
        let removed = self.cloud.lock().faults.remove(id);
        removed.then_some(()).ok_or(unknown("fault", id))
    }

    /// Takes all faults back.
    pub fn clear_faults(&self) {
        self.cloud.lock().faults.clear();
    }

    fn with_project<T>(
        &self,
        project: usize,
        act: impl FnOnce(&mut State) -> T,
    ) -> Result<T, ControlError> {
        let mut state = self.cloud.lock();
        if project >= state.projects.len() {
            return Err(unknown("project", project as u64));
        }
        Ok(act(&mut state))
    }

    /// Leaves a project so many requests, as if a neighbour had used up the rest.
    ///
    /// # Errors
    /// When there is no such project.
    pub fn drain(&self, project: usize, left: u32) -> Result<(), ControlError> {
        let now = Timestamp::now();
        self.with_project(project, |state| {
            state.projects[project].bucket.drain_to(left, now);
        })
    }

    /// Sets the requests per hour of a project.
    ///
    /// # Errors
    /// When there is no such project.
    pub fn set_rate_limit(&self, project: usize, limit: u32) -> Result<(), ControlError> {
        let now = Timestamp::now();
        self.with_project(project, |state| {
            state.projects[project].bucket.set_limit(limit, now);
        })
    }

    /// Sets how many servers a project may have; `None` is no limit.
    ///
    /// # Errors
    /// When there is no such project.
    pub fn set_quota(&self, project: usize, max: Option<usize>) -> Result<(), ControlError> {
        self.with_project(project, |state| state.projects[project].max_servers = max)
    }

    /// Makes a token valid for a project.
    ///
    /// # Errors
    /// When there is no such project.
    pub fn allow_token(
        &self,
        token: &str,
        project: usize,
        read_only: bool,
    ) -> Result<(), ControlError> {
        self.with_project(project, |state| {
            state
                .tokens
                .insert(token.to_owned(), Access { project, read_only });
        })
    }

    /// Makes a token invalid.
    pub fn revoke_token(&self, token: &str) {
        self.cloud.lock().tokens.remove(token);
    }

    /// Sets how many servers of a type a location can still place; `None` is no limit.
    pub fn set_stock(&self, server_type: &str, location: &str, left: Option<u64>) {
        self.cloud.lock().stock.set(server_type, location, left);
    }

    /// All projects.
    pub fn projects(&self) -> Vec<ProjectView> {
        let now = Timestamp::now();
        let mut state = self.cloud.lock();
        let numbered = state.projects.iter_mut().enumerate();
        let views = numbered.map(|(number, project)| {
            let allowance = project.bucket.allowance(now);
            ProjectView {
                project: number,
                servers: project.servers.len(),
                firewalls: project.firewalls.len(),
                ssh_keys: project.ssh_keys.len(),
                primary_ips: project.primary_ips.len(),
                rate_limit: allowance.limit,
                rate_remaining: allowance.remaining,
                root_passwords: project.root_passwords,
            }
        });
        views.collect()
    }

    pub(crate) fn with_server<T>(
        &self,
        server: u64,
        act: impl FnOnce(&mut Server) -> T,
    ) -> Result<T, ControlError> {
        let mut state = self.cloud.lock();
        state
            .find_server_mut(server)
            .map(act)
            .ok_or(unknown("server", server))
    }

    /// All servers of all projects, as the API shows them, each with its project's number.
    pub fn servers(&self) -> Vec<Value> {
        let now = Timestamp::now();
        let state = self.cloud.lock();
        let numbered = state.projects.iter().enumerate();
        let all = numbered.flat_map(|(number, project)| {
            let state = &state;
            project.servers.values().map(move |server| {
                let mut shown = server.show(state, project, now);
                shown["project"] = json!(number);
                shown
            })
        });
        all.collect()
    }

    /// The user-data of a server, as it was sent.
    ///
    /// # Errors
    /// When there is no such server.
    pub fn user_data(&self, server: u64) -> Result<Option<String>, ControlError> {
        self.with_server(server, |server| server.user_data.clone())
    }

    /// The user-data that came with a mutation, also of a server that is gone.
    ///
    /// # Errors
    /// When that mutation brought none.
    pub fn user_data_of_mutation(&self, seq: u64) -> Result<String, ControlError> {
        self.cloud
            .lock()
            .ledger
            .user_data(seq)
            .ok_or(unknown("user-data of mutation", seq))
    }

    /// Accepted mutations after the one of that number; 0 gives all.
    pub fn mutations(&self, after: u64) -> Vec<Mutation> {
        self.cloud.lock().ledger.mutations_after(after)
    }

    /// All servers that ever lived.
    pub fn lives(&self) -> Vec<Life> {
        self.cloud.lock().ledger.lives()
    }

    /// By the values of these labels: how many servers lived at once, at most.
    pub fn most_alive(&self, label_keys: &[&str]) -> BTreeMap<Vec<String>, usize> {
        self.cloud.lock().ledger.most_alive(label_keys)
    }

    /// How often each route was asked.
    pub fn requests(&self) -> Vec<RequestCount> {
        self.cloud.lock().ledger.requests()
    }

    /// Begins to count requests anew.
    pub fn forget_requests(&self) {
        self.cloud.lock().ledger.forget_requests();
    }

    /// What each project's servers cost so far.
    pub fn billing(&self) -> Vec<Bill> {
        let now = Timestamp::now();
        let state = self.cloud.lock();
        (0..state.projects.len())
            .map(|project| state.ledger.bill(project, now))
            .collect()
    }
}
