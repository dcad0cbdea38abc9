//! The Lease: at most one operator acts (I11), and the one that may not any more knows it without being told.
//!
//! A holder trusts its own clock only: from the moment it *began* its last successful renewal its word is good for `deadline`, while the others
//! wait for `lease`, longer than that, counted from when *they* saw the record change. No wall clocks are compared, and a holder that cannot
//! reach the API server, or that was paused, has lost before another one can win. Each write carries the `resourceVersion` that was looked at.
//!
//! Written here because the published crates either let two win or do not tell a holder that its renewals fail.
//! What a monotonic clock does not see (a machine suspended between check and act) is made harmless by the acts themselves.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::api::{Api, ObjectMeta, PostParams};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use crate::kube_ext::{CallError, call_within, error_chain};

/// How long a Lease is good for, in its three meanings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// How long others wait after they last saw the record change; at least a second.
    pub lease: Duration,
    /// How often the holder renews.
    pub renew: Duration,
    /// How long after the beginning of its last successful renewal the holder stops; what it began by then must end within `lease`.
    pub deadline: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            lease: Duration::from_secs(15),
            renew: Duration::from_secs(2),
            deadline: Duration::from_secs(10),
        }
    }
}

/// Durations with which two could hold the Lease, or nobody could keep it.
#[derive(Debug, thiserror::Error)]
#[error("the lease needs renew < deadline < lease and a lease of at least 1s, not {:?} < {:?} < {:?}", .0.renew, .0.deadline, .0.lease)]
pub struct InvalidTiming(Timing);

/// Tells whether this process holds the Lease; to be asked at each step that changes something.
#[derive(Clone)]
pub struct Leadership {
    until: watch::Receiver<Option<Instant>>,
}

impl Leadership {
    /// That of a process which does not hold the Lease any more.
    #[cfg(test)]
    pub(crate) fn over() -> Self {
        let (_, until) = watch::channel(Some(Instant::now()));
        Self { until }
    }

    /// Whether this process may act now: renewed lately enough, by the monotonic clock.
    pub fn holds(&self) -> bool {
        self.until
            .borrow()
            .is_some_and(|until| Instant::now() < until)
    }

    /// Waits until this process holds the Lease.
    pub async fn acquired(&self) {
        let mut until = self.until.clone();
        while !self.holds() {
            if until.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// Waits until this process does not hold the Lease; tells in time even when the API server cannot be reached.
    pub async fn lost(&self) {
        let mut renewed = self.until.clone();
        loop {
            let Some(until) = *renewed.borrow_and_update() else {
                return;
            };
            tokio::select! {
                () = sleep_until(until) => if !self.holds() { return },
                Ok(()) = renewed.changed() => {}
            }
        }
    }
}

/// A process that wants the Lease.
pub struct Candidate {
    leases: Api<Lease>,
    name: String,
    identity: String,
    timing: Timing,
    until: watch::Sender<Option<Instant>>,
    seen: Option<(LeaseSpec, Instant)>,
    /// The record as our last write left it, which can be renewed without another look.
    held: Option<Lease>,
}

/// What to do about the record as it was found.
#[derive(Debug, PartialEq)]
enum Move {
    Create,
    Renew,
    TakeOver,
    WaitUntil(Instant),
}

impl Candidate {
    /// Makes a candidate for the Lease `name`; `identity` must be unique to the process, so a pod's name alone is not enough.
    ///
    /// # Errors
    /// Fails on durations with which two could hold the Lease.
    pub fn new(
        leases: Api<Lease>,
        name: &str,
        identity: &str,
        timing: Timing,
    ) -> Result<(Leadership, Self), InvalidTiming> {
        if timing.renew >= timing.deadline
            || timing.deadline >= timing.lease
            || timing.lease < Duration::from_secs(1)
        {
            return Err(InvalidTiming(timing));
        }
        let (sender, until) = watch::channel(None);
        let candidate = Self {
            leases,
            name: name.into(),
            identity: identity.into(),
            timing,
            until: sender,
            seen: None,
            held: None,
        };
        Ok((Leadership { until }, candidate))
    }

    /// Tries to get and keep the Lease until `stop`, then gives it back, so that the next one need not wait.
    ///
    /// Whoever acts under the Lease must have ended before `stop`.
    pub async fn run(mut self, stop: impl Future<Output = ()>) {
        let mut stop = std::pin::pin!(stop);
        loop {
            tokio::select! {
                () = &mut stop => break,
                () = self.turn() => {}
            }
        }
        self.until.send_replace(None);
        if let Err(error) = self.release().await {
            tracing::warn!(
                error = error_chain(&error),
                "lease not released, the next holder has to wait for its end"
            );
        }
    }

    /// One look at the record, the write that follows from it, and the pause until the next.
    async fn turn(&mut self) {
        let begun = Instant::now();
        let next = match self.attempt().await {
            Ok(Move::WaitUntil(expiry)) => {
                self.set(None);
                expiry.min(begun + self.retry_pause())
            }
            Ok(_) => {
                self.set(Some(begun + self.timing.deadline));
                begun + self.timing.renew
            }
            // Somebody wrote in between, or a late renewal of our own arrived: the next look, at once, tells which.
            Err(CallError::Stale { .. }) => begun,
            Err(error) => {
                tracing::warn!(
                    error = error_chain(&error),
                    "lease not looked at or not renewed"
                );
                begun + self.retry_pause()
            }
        };
        sleep_until(next).await;
    }

    /// Renews what was written last, as long as nobody else wrote: one request. Anything else needs a look first.
    async fn attempt(&mut self) -> Result<Move, CallError> {
        let Some(held) = &self.held else {
            return self.look_and_write().await;
        };
        let spec = Some(self.record(held.spec.as_ref(), &Move::Renew));
        let lease = held.clone();
        match self.replace(&Lease { spec, ..lease }).await {
            Ok(renewed) => self.held = Some(renewed),
            // If it was written all the same, the next attempt is told that it is stale.
            Err(error @ (CallError::TimedOut { .. } | CallError::Transient { .. })) => {
                return Err(error);
            }
            Err(error) => {
                self.held = None;
                return Err(error);
            }
        }
        Ok(Move::Renew)
    }

    async fn look_and_write(&mut self) -> Result<Move, CallError> {
        let found = self
            .call("GET leases", self.leases.get_opt(&self.name))
            .await?;
        let step = self.decide(found.as_ref(), Instant::now());
        let spec = self.record(found.as_ref().and_then(|lease| lease.spec.as_ref()), &step);
        match (&step, found) {
            (Move::WaitUntil(_), _) => {}
            (_, Some(lease)) => {
                let spec = Some(spec);
                self.held = Some(self.replace(&Lease { spec, ..lease }).await?);
            }
            (_, None) => {
                let metadata = ObjectMeta {
                    name: Some(self.name.clone()),
                    ..ObjectMeta::default()
                };
                let lease = Lease {
                    metadata,
                    spec: Some(spec),
                };
                let params = PostParams::default();
                let created = self.leases.create(&params, &lease);
                self.held = Some(self.call("POST leases", created).await?);
            }
        }
        Ok(step)
    }

    /// Decides from the record and from how long it has been seen unchanged.
    fn decide(&mut self, found: Option<&Lease>, now: Instant) -> Move {
        let Some(lease) = found else {
            return Move::Create;
        };
        let spec = lease.spec.clone().unwrap_or_default();
        match spec.holder_identity.as_deref() {
            None | Some("") => return Move::TakeOver,
            Some(holder) if holder == self.identity => return Move::Renew,
            Some(_) => {}
        }
        let promised = Duration::from_secs(
            spec.lease_duration_seconds
                .unwrap_or_default()
                .try_into()
                .unwrap_or_default(),
        );
        let since = match &self.seen {
            Some((seen, since)) if *seen == spec => *since,
            _ => {
                self.seen = Some((spec, now));
                now
            }
        };
        let expiry = since + self.timing.lease.max(promised);
        if now < expiry {
            Move::WaitUntil(expiry)
        } else {
            Move::TakeOver
        }
    }

    fn record(&self, previous: Option<&LeaseSpec>, step: &Move) -> LeaseSpec {
        let now = MicroTime(Timestamp::now());
        let mut spec = previous.cloned().unwrap_or_default();
        if *step != Move::Renew {
            spec.acquire_time = Some(now.clone());
            spec.lease_transitions = Some(
                spec.lease_transitions
                    .map_or(0, |transitions| transitions.saturating_add(1)),
            );
        }
        spec.holder_identity = Some(self.identity.clone());
        spec.lease_duration_seconds = Some(
            self.timing
                .lease
                .as_millis()
                .div_ceil(1000)
                .try_into()
                .unwrap_or(i32::MAX),
        );
        spec.renew_time = Some(now);
        spec
    }

    /// Gives the Lease back, if it is ours; a renewal that was under way when the stop came may change it once more meanwhile.
    async fn release(&self) -> Result<(), CallError> {
        loop {
            let Some(mut lease) = self
                .call("GET leases", self.leases.get_opt(&self.name))
                .await?
            else {
                return Ok(());
            };
            let Some(spec) = lease
                .spec
                .as_mut()
                .filter(|spec| spec.holder_identity.as_ref() == Some(&self.identity))
            else {
                return Ok(());
            };
            spec.holder_identity = Some(String::new());
            match self.replace(&lease).await {
                Err(CallError::Stale { .. }) => {}
                outcome => return outcome.map(drop),
            }
        }
    }

    async fn replace(&self, lease: &Lease) -> Result<Lease, CallError> {
        let params = PostParams::default();
        let replaced = self.leases.replace(&self.name, &params, lease);
        self.call("PUT leases", replaced).await
    }

    /// Bounds each request so that two fit between a renewal that fails and the deadline.
    async fn call<T>(
        &self,
        label: &str,
        request: impl Future<Output = kube::Result<T>>,
    ) -> Result<T, CallError> {
        call_within(
            self.timing.deadline.saturating_sub(self.timing.renew) / 2,
            label,
            request,
        )
        .await
    }

    fn retry_pause(&self) -> Duration {
        self.timing.renew / 3
    }

    fn set(&self, until: Option<Instant>) {
        let held = self
            .until
            .send_replace(until)
            .is_some_and(|until| Instant::now() < until);
        match (held, until.is_some()) {
            (false, true) => tracing::info!(identity = self.identity, "lease acquired"),
            (true, false) => {
                tracing::warn!(identity = self.identity, "lease lost to another holder");
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use kube::{Client, Config};

    use super::*;

    /// A candidate that is only asked to decide; nothing listens at its address.
    fn candidate() -> (Leadership, Candidate) {
        let client = Client::try_from(Config::new("http://127.0.0.1:1".parse().unwrap())).unwrap();
        Candidate::new(
            Api::default_namespaced(client),
            "agentfleet",
            "me",
            Timing::default(),
        )
        .unwrap()
    }

    fn held_by(holder: &str, seconds: i32) -> Lease {
        let spec = LeaseSpec {
            holder_identity: Some(holder.into()),
            lease_duration_seconds: Some(seconds),
            // Long ago by the wall clock: it must not count.
            renew_time: Some(MicroTime(Timestamp::UNIX_EPOCH)),
            ..LeaseSpec::default()
        };
        Lease {
            metadata: ObjectMeta::default(),
            spec: Some(spec),
        }
    }

    #[tokio::test]
    async fn missing_own_and_released_leases_are_taken_at_once() {
        let (_, mut me) = candidate();
        let now = Instant::now();

        assert_eq!(me.decide(None, now), Move::Create);
        assert_eq!(me.decide(Some(&held_by("me", 15)), now), Move::Renew);
        assert_eq!(me.decide(Some(&held_by("", 15)), now), Move::TakeOver);
        assert_eq!(me.decide(Some(&Lease::default()), now), Move::TakeOver);
    }

    #[tokio::test]
    async fn lease_of_another_is_taken_only_after_it_was_seen_unchanged_for_its_duration() {
        let (_, mut me) = candidate();
        let (start, lease) = (Instant::now(), Duration::from_secs(15));
        let record = held_by("other", 15);

        assert_eq!(
            me.decide(Some(&record), start),
            Move::WaitUntil(start + lease)
        );
        assert_eq!(
            me.decide(Some(&record), start + lease / 2),
            Move::WaitUntil(start + lease)
        );
        assert_eq!(me.decide(Some(&record), start + lease), Move::TakeOver);
    }

    #[tokio::test]
    async fn renewal_by_another_starts_the_wait_anew() {
        let (_, mut me) = candidate();
        let (start, lease) = (Instant::now(), Duration::from_secs(15));
        me.decide(Some(&held_by("other", 15)), start);
        let mut renewed = held_by("other", 15);
        renewed.spec.as_mut().unwrap().renew_time =
            Some(MicroTime(Timestamp::UNIX_EPOCH + Duration::from_secs(5)));

        assert_eq!(
            me.decide(Some(&renewed), start + lease),
            Move::WaitUntil(start + lease * 2)
        );
    }

    #[tokio::test]
    async fn longer_duration_promised_to_another_is_kept() {
        let (_, mut me) = candidate();
        let start = Instant::now();

        assert_eq!(
            me.decide(Some(&held_by("other", 60)), start),
            Move::WaitUntil(start + Duration::from_mins(1))
        );
    }

    #[tokio::test]
    async fn transitions_are_counted_and_renewals_keep_the_time_of_acquisition() {
        let (_, me) = candidate();

        let first = me.record(None, &Move::Create);
        let renewed = me.record(Some(&first), &Move::Renew);
        let taken = me.record(Some(&renewed), &Move::TakeOver);

        assert_eq!(
            (
                first.lease_transitions,
                renewed.lease_transitions,
                taken.lease_transitions
            ),
            (Some(0), Some(0), Some(1))
        );
        assert_eq!(renewed.acquire_time, first.acquire_time);
        assert_eq!(taken.lease_duration_seconds, Some(15));
    }

    #[tokio::test]
    async fn leadership_ends_by_itself_when_nothing_renews_it() {
        let (leadership, me) = candidate();
        me.set(Some(Instant::now() + Duration::from_millis(20)));
        assert!(leadership.holds());

        tokio::time::timeout(Duration::from_secs(5), leadership.lost())
            .await
            .unwrap();

        assert!(!leadership.holds());
    }

    #[tokio::test]
    async fn durations_with_which_two_could_hold_the_lease_are_refused() {
        let (_, me) = candidate();
        let seconds = Duration::from_secs;
        for (renew, deadline, lease) in [(5, 15, 15), (10, 10, 15), (0, 0, 0)] {
            let timing = Timing {
                lease: seconds(lease),
                renew: seconds(renew),
                deadline: seconds(deadline),
            };
            assert!(
                Candidate::new(me.leases.clone(), "agentfleet", "me", timing).is_err(),
                "{timing:?}"
            );
        }
    }
}
