//! What this process remembers of instances between two looks.
//!
//! All of it may be lost at any time: a restart begins with nothing and finds out again what it needs. What must survive is in the write-ahead
//! records of the status.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use jiff::Timestamp;

use super::{
    notices::NoticesMemory,
    timings,
    world::{
        Attempt, Configured, GuestView, LookUp, SecretsView, SendOutcome, SnapshotLook, Trouble,
    },
};
use crate::{
    api::{ProvisioningRecord, TimingStep},
    error::Setback,
    guest::answers::KeptFile,
    redact::KnownSecrets,
};

/// What is remembered of one instance.
#[derive(Debug, Default)]
pub struct Memory {
    /// The requests for the server in the provisioning record.
    pub attempt: Attempt,
    /// The epoch that was written ahead and not used yet.
    pub fresh_epoch: Option<i64>,
    /// When the try to recover was decided that was written ahead and not done yet.
    pub fresh_recovery: Option<Timestamp>,
    /// When the order to start the agent's unit again was heard that was written ahead and not carried out yet.
    pub fresh_restart: Option<Timestamp>,
    /// What was found when a snapshot of a lost server was looked for last.
    pub snapshot: Option<SnapshotLook>,
    /// The guests of its servers, by server id.
    pub guests: BTreeMap<i64, GuestMemory>,
    /// Versions of the object that our own writes have replaced: a view of one of them is out of date.
    pub replaced: Vec<String>,
    /// The Secret as it was measured last, for each of two revisions at most: what it was measured by, and the outcome.
    pub secrets: VecDeque<(String, SecretsView)>,
    /// What its agent may tell of its Secret, and must not be told on.
    pub known_secrets: KnownSecrets,
    /// The events that were told.
    pub notices: NoticesMemory,
    /// The last step of which incarnation the metrics know.
    pub measured: Option<(u32, TimingStep)>,
    trouble: Option<Trouble>,
    basis: String,
}

/// What is remembered of a guest.
#[derive(Clone, Debug, Default)]
pub struct GuestMemory {
    /// What the plan may know.
    pub view: GuestView,
    /// The progress that it told last.
    pub progress: String,
    /// What its agent had changed when the voice was taken from it.
    pub kept: Vec<KeptFile>,
}

impl Memory {
    /// Begins with what a record that is found can mean: a request of an earlier process may still be under way (I1).
    pub fn find_record(&mut self, record: &ProvisioningRecord, settle: Duration) {
        let incarnation = u32::try_from(record.incarnation).unwrap_or_default();
        if self.attempt.incarnation != incarnation {
            let unsettled_until = record.at.0.checked_add(settle).ok();
            self.attempt = Attempt {
                incarnation,
                unsettled_until,
                ..Attempt::default()
            };
        }
    }

    /// A record was written: it permits one request.
    pub fn announced(&mut self, record: &ProvisioningRecord) {
        let incarnation = u32::try_from(record.incarnation).unwrap_or_default();
        if self.attempt.incarnation != incarnation {
            self.attempt = Attempt {
                incarnation,
                ..Attempt::default()
            };
        }
        self.attempt.announced = Some(record.at.0);
        self.attempt.looked_up = None;
    }

    /// The request that a record permitted is sent: from here on it may take effect, whatever is heard of it.
    pub fn sends(&mut self, record: &ProvisioningRecord, now: Timestamp, settle: Duration) {
        timings::reach(&mut self.attempt.timings, TimingStep::Requested, now);
        self.attempt.sent = Some(record.at.0);
        self.attempt.outcome = SendOutcome::Unknown;
        self.attempt.looked_up = None;
        self.attempt.unsettled_until = self
            .attempt
            .unsettled_until
            .max(now.checked_add(settle).ok());
    }

    /// The answer to that request. After a plain refusal nothing can come of it any more; `before` is what earlier requests left open.
    pub fn answered(&mut self, outcome: SendOutcome, before: Option<Timestamp>) {
        if outcome.is_definite_no() {
            self.attempt.unsettled_until = before;
        }
        self.attempt.outcome = outcome;
    }

    /// What a look-up by name, begun at `at`, has found.
    pub fn looked_up(&mut self, at: Timestamp, foreign: Option<i64>) {
        self.attempt.looked_up = Some(LookUp { at, foreign });
    }

    /// The guest of a server.
    pub fn guest(&mut self, server: i64) -> &mut GuestMemory {
        self.guests.entry(server).or_default()
    }

    /// What the agent had changed on the servers that it spoke on before.
    pub fn kept_elsewhere(&self, server: i64) -> Vec<KeptFile> {
        let others = self.guests.iter().filter(|(id, _)| **id != server);
        others.flat_map(|(_, guest)| guest.kept.clone()).collect()
    }

    /// All of that has been brought along.
    pub fn drop_kept(&mut self) {
        self.guests
            .values_mut()
            .for_each(|guest| guest.kept.clear());
    }

    /// The trouble that still matters: a lasting one ends when what it was based on (spec, class, Secret) changes.
    pub fn trouble(&mut self, basis: &str) -> Option<Trouble> {
        if self.basis != basis {
            basis.clone_into(&mut self.basis);
            self.trouble = self.trouble.take().filter(|trouble| !trouble.stalled);
        }
        self.trouble.clone()
    }

    /// A step has failed; the pause grows with each time in a row.
    pub fn failed(&mut self, setback: Setback, now: Timestamp) {
        let times = self.trouble.as_ref().map_or(0, |trouble| trouble.times) + 1;
        let pause = setback.pause(times);
        self.trouble = Some(Trouble {
            reason: setback.reason,
            message: setback.message,
            until: now.checked_add(pause).unwrap_or(now),
            stalled: setback.stalled,
            times,
        });
    }

    /// A person wants what stands still to go on: no pause is waited for any more.
    pub fn goes_on(&mut self, now: Timestamp) {
        self.trouble = None;
        self.attempt.looked_up = None;
        for guest in self.guests.values_mut() {
            if let Some(Configured {
                outcome: Err(failure),
                ..
            }) = &mut guest.view.configured
            {
                failure.again = Some(now);
            }
        }
    }

    /// A step has succeeded.
    pub fn succeeded(&mut self) {
        self.trouble = None;
    }
}

impl GuestMemory {
    /// It is about to be given the voice: what it said before that no longer holds.
    pub fn is_given_voice(&mut self) {
        self.view.released = None;
        if let Some(hello) = &mut self.view.hello {
            hello.ever_armed = true;
        }
    }

    /// Its agent, or the whole server, is being started again, or out of sight: what was said of the unit before is of no use any more.
    pub fn starts_again(&mut self) {
        if let Some(configured) = &mut self.view.configured
            && let Ok(active) = &mut configured.outcome
        {
            *active = false;
        }
    }
}

/// What is remembered of all instances, by UID.
#[derive(Debug, Default)]
pub struct Memories(Mutex<HashMap<String, Memory>>);

impl Memories {
    /// Uses what is remembered of one instance.
    pub fn with<T>(&self, uid: &str, use_it: impl FnOnce(&mut Memory) -> T) -> T {
        use_it(self.lock().entry(uid.to_owned()).or_default())
    }

    /// Forgets an instance that is gone.
    pub fn forget(&self, uid: &str) {
        self.lock().remove(uid);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Memory>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
