//! The state behind its lock, together with the machines and the signal to stop.

use std::sync::{Mutex, MutexGuard, PoisonError};

use jiff::Timestamp;
use tokio::sync::watch;

use crate::api::{self, Call, Reply};
use crate::error::ApiError;
use crate::faults::{ActionFault, Chosen};
use crate::machines::fleet::Fleet;
use crate::rate_limit::Allowance;
use crate::request::Request;
use crate::servers::Status;
use crate::state::{Access, State};

/// The running cloud; shared by the API, the control endpoints and the library's user.
pub(crate) struct Cloud {
    state: Mutex<State>,
    pub(crate) fleet: Option<Fleet>,
    stop: watch::Sender<bool>,
}

/// A request that was let in.
pub(crate) struct Admitted {
    pub(crate) project: usize,
    pub(crate) allowance: Allowance,
    pub(crate) faults: Chosen,
}

/// A request that was turned away at the door.
pub(crate) struct Rejected {
    pub(crate) project: Option<usize>,
    pub(crate) allowance: Allowance,
    pub(crate) error: ApiError,
}

impl Cloud {
    pub(crate) fn new(state: State, fleet: Option<Fleet>) -> Self {
        Self {
            state: Mutex::new(state),
            fleet,
            stop: watch::Sender::new(false),
        }
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Checks allowance and token, and finds the faults that the request is to meet.
    pub(crate) fn admit(&self, token: &str, request: &Request) -> Result<Admitted, Rejected> {
        let now = Timestamp::now();
        let mut state = self.lock();
        let access = state.tokens.get(token).copied();
        let bucket = match access {
            Some(access) => &mut state.projects[access.project].bucket,
            None => &mut state.strangers,
        };
        let granted = bucket.take(now);
        let allowance = bucket.allowance(now);
        let project = access.map(|access| access.project);
        let reject = |error| {
            Err(Rejected {
                project,
                allowance,
                error,
            })
        };
        match access {
            _ if !granted => reject(ApiError::rate_limit_exceeded(allowance.limit, token)),
            None => reject(ApiError::unauthorized()),
            Some(Access {
                read_only: true, ..
            }) if request.is_mutation() => reject(ApiError::token_readonly()),
            Some(Access { project, .. }) => {
                let faults = state.faults.meet(project, request);
                Ok(Admitted {
                    project,
                    allowance,
                    faults,
                })
            }
        }
    }

    /// Carries a request out, writes it down, and tells the machines.
    pub(crate) fn execute(
        &self,
        project_number: usize,
        request: &Request,
        action_faults: &[ActionFault],
    ) -> Reply {
        let now = Timestamp::now();
        let mut state = self.lock();
        let state = &mut *state;
        let reply = api::answer(&mut Call {
            state,
            project_number,
            now,
            request,
            action_faults,
        });
        state.ledger.record(project_number, request, &reply, now);
        self.tell_machines(state);
        reply
    }

    /// Passes orders on, in the order they were given, after what their firewalls let pass.
    pub(crate) fn tell_machines(&self, state: &mut State) {
        if let Some(real) = self.fleet.as_ref().and_then(Fleet::real) {
            real.enforce(state.walls());
        }
        for order in state.orders.drain(..) {
            if let Some(fleet) = &self.fleet {
                fleet.give(order);
            }
        }
    }

    /// A machine went off by itself; its server is shown so where it was to be running.
    pub(crate) fn went_off(&self, server: u64) {
        let mut state = self.lock();
        if let Some(server) = state.find_server_mut(server)
            && matches!(server.plan.last(), Some((_, Status::Running)))
        {
            server.plan = vec![(Timestamp::now(), Status::Off)];
        }
    }

    /// Ends everything: the API, pending faults, the machines.
    pub(crate) fn stop(&self) {
        self.stop.send_replace(true);
        if let Some(fleet) = &self.fleet {
            fleet.stop();
        }
    }

    /// Returns once the cloud is to end.
    pub(crate) async fn stopped(&self) {
        let mut stop = self.stop.subscribe();
        // An error means that the sender is gone, and with it the cloud.
        let _ = stop.wait_for(|stop| *stop).await;
    }
}
