//! The flags of `agentfleet run`, and what the operator makes of them.

use std::{path::PathBuf, time::Duration};

use agentfleet::{
    agent_instance::world::RecoveryFlags,
    api,
    context::Settings,
    health::canary,
    http::Listener,
    leader::Timing,
    notification::delivery::Receiver,
    operator::Options,
    subscription::{
        SubscriptionFlags,
        guard::{Limit, Limits},
    },
    telemetry::LogFormat,
    zombies::SweepFlags,
};
use clap::Args;
use secrecy::SecretString;

/// Flags of the operator.
#[derive(Args)]
pub struct Run {
    /// Namespace of the operator itself
    #[arg(long, env = "POD_NAMESPACE", default_value = "agentfleet-system")]
    namespace: String,
    /// Name of this process among others
    #[arg(long, env = "POD_NAME", default_value = "agentfleet")]
    name: String,
    /// Name of the fleet, at its first start; the UID of the namespace kube-system when unset
    #[arg(long)]
    fleet: Option<String>,
    /// Base URL of the Hetzner Cloud API
    #[arg(
        long,
        env = "HCLOUD_ENDPOINT",
        default_value = "https://api.hetzner.cloud/v1"
    )]
    hcloud_endpoint: String,
    /// Where /healthz, /readyz and /metrics are served
    #[arg(long, default_value = "0.0.0.0:8080")]
    pub http_listen: String,
    /// Where servers post their host keys; needed for classes that bootstrap by phone home
    #[arg(long, requires = "phone_home_url")]
    pub phone_home_listen: Option<String>,
    /// URL under which servers reach that address
    #[arg(long, requires = "phone_home_listen")]
    phone_home_url: Option<String>,
    /// Port of SSH on servers
    #[arg(long, default_value_t = 22)]
    guest_port: u16,
    /// How long a request to Hetzner may take
    #[arg(long, default_value = "30s", value_parser = duration)]
    request_timeout: Duration,
    /// How long after a request ended without an answer it may still take effect
    #[arg(long, default_value = "2m", value_parser = duration)]
    settle: Duration,
    /// Pause between lists of servers while something is in flux
    #[arg(long, default_value = "10s", value_parser = duration)]
    inventory_fast: Duration,
    /// Pause between lists of servers otherwise
    #[arg(long, default_value = "1m", value_parser = duration)]
    inventory_slow: Duration,
    /// Pause between looks at a project and its firewalls
    #[arg(long, default_value = "1m", value_parser = duration)]
    project_period: Duration,
    /// How long a server may be out of reach before it is rebooted: an outage of the way to it is no fault of the server
    #[arg(long, default_value = "5m", value_parser = duration)]
    unreachable_max: Duration,
    /// Over which time agents that fall at once are counted, twice --unreachable-max at the least: when they are many, no server is touched for
    /// them until the canaries have answered for as long
    #[arg(long, default_value = "10m", value_parser = duration)]
    breaker_window: Duration,
    /// HOST:PORT of something that takes TCP connections whatever becomes of the fleet, such as a status page; may be given several times
    #[arg(long, value_parser = canary::address)]
    canary: Vec<String>,
    /// How many servers may be rebooted or replaced in a minute to bring agents back, in the whole fleet
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
    recoveries_per_minute: u32,
    /// Restart, reboot and replace nothing of itself in the whole fleet
    #[arg(long)]
    pause_recovery: bool,
    /// How long the server of a suspended instance has to switch itself off before its plug is pulled
    #[arg(long, default_value = "1m", value_parser = duration)]
    shutdown_grace: Duration,
    /// URL that takes an event for each transition of an instance that people care about
    #[arg(
        long,
        env = "AGENTFLEET_WEBHOOK_URL",
        hide_env_values = true,
        requires = "webhook_secret_file"
    )]
    webhook_url: Option<SecretString>,
    /// File with the key that events are signed with: base64 of 24 to 64 bytes, with or without whsec_ before it; two in lines of their own while
    /// they are exchanged
    #[arg(long, requires = "webhook_url")]
    webhook_secret_file: Option<PathBuf>,
    /// File with certificates of authorities, in PEM, that the receiver may have its own from
    #[arg(long, requires = "webhook_url")]
    webhook_ca_file: Option<PathBuf>,
    /// How long the receiver may take for one event
    #[arg(long, default_value = "10s", value_parser = duration)]
    webhook_timeout: Duration,
    /// How long the object of a deleted instance waits until the receiver has taken its last event
    #[arg(long, default_value = "1m", value_parser = duration)]
    webhook_patience: Duration,
    /// How long before it comes the suspension or termination of a subscription's agent is announced
    #[arg(long, default_value = "24h", value_parser = duration)]
    announce_before: Duration,
    /// How long an agent runs on whose Subscription is missing without having been deleted
    #[arg(long, default_value = "10m", value_parser = duration)]
    orphan_patience: Duration,
    #[command(flatten)]
    guard: Guard,
    #[command(flatten)]
    sweep: Sweep,
    /// How long others wait for a holder of the Lease that is silent
    #[arg(long, default_value = "15s", value_parser = duration)]
    lease_duration: Duration,
    /// How long nothing may be heard of Kubernetes before /healthz turns red
    #[arg(long, default_value = "10m", value_parser = duration)]
    silence_max: Duration,
    /// Form of the log
    #[arg(long, value_enum, default_value_t)]
    pub log_format: LogFormat,
    /// Level of the log: error, warn, info, debug, trace, or a list of them by module
    #[arg(long, env = "AGENTFLEET_LOG_LEVEL", default_value = "info")]
    pub log_level: String,
}

impl Run {
    /// What the operator is started with.
    pub fn options(self, http: Listener, phone_home: Option<Listener>) -> Options {
        Options {
            http: Some(http),
            phone_home,
            fleet: self.fleet.clone(),
            identity: format!("{}-{:08x}", self.name, rand::random::<u32>()),
            canaries: self.canary.clone(),
            recoveries_per_minute: self.recoveries_per_minute,
            webhook: self.receiver(),
            lease: timing(self.lease_duration),
            silence_max: self.silence_max,
            settings: self.settings(),
        }
    }

    fn receiver(&self) -> Option<Receiver> {
        Some(Receiver {
            url: self.webhook_url.clone()?,
            keys: self.webhook_secret_file.clone()?,
            authorities: self.webhook_ca_file.clone(),
            timeout: self.webhook_timeout,
        })
    }

    fn settings(self) -> Settings {
        Settings {
            endpoint: self.hcloud_endpoint,
            namespace: self.namespace,
            guest_port: self.guest_port,
            request_timeout: self.request_timeout,
            settle: self.settle,
            inventory_fast: self.inventory_fast,
            inventory_slow: self.inventory_slow,
            project_period: self.project_period,
            recovery: RecoveryFlags {
                paused: self.pause_recovery,
                unreachable: self.unreachable_max,
                window: self.breaker_window.max(2 * self.unreachable_max),
            },
            sweep: SweepFlags {
                period: self.sweep.zombie_sweep_period,
                min_age: self.sweep.zombie_min_age,
                fuse: self.sweep.zombie_fuse,
                dry_run: self.sweep.zombie_dry_run,
            },
            subscriptions: SubscriptionFlags {
                announce_before: self.announce_before,
                orphan_patience: self.orphan_patience,
                guard: self.guard.limits(),
            },
            shutdown_grace: self.shutdown_grace,
            webhook_patience: self.webhook_patience,
            phone_home_url: self.phone_home_url,
        }
    }
}

/// Flags of the guard over what subscriptions take away, and buy.
#[derive(Args)]
#[expect(
    clippy::struct_field_names,
    reason = "each is the name of a flag among those of other things"
)]
struct Guard {
    /// When more than a part of all agents lose their entitlement, or are deleted, in this time, none of them goes before an admin confirms it
    #[arg(long, default_value = "10m", value_parser = duration)]
    guard_window: Duration,
    /// That part, in percent
    #[arg(long, default_value_t = 20)]
    guard_percent: usize,
    /// The same for a longer time
    #[arg(long, default_value = "24h", value_parser = duration)]
    guard_long_window: Duration,
    /// And its part, in percent
    #[arg(long, default_value_t = 30)]
    guard_long_percent: usize,
    /// Fewer than this are never too many
    #[arg(long, default_value_t = 5)]
    guard_least: usize,
    /// How many agents Subscriptions may create in a day
    #[arg(long = "creations-per-day", default_value_t = 100)]
    guard_creations: usize,
    /// How long an agent that is deleted, or that nobody pays for any more, is kept at least, so that others that go with it are counted; not
    /// waited where there are fewer agents than --guard-least
    #[arg(long, default_value = "15s", value_parser = duration)]
    guard_patience: Duration,
}

impl Guard {
    fn limits(&self) -> Limits {
        Limits {
            soon: Limit {
                window: self.guard_window,
                percent: self.guard_percent,
            },
            daily: Limit {
                window: self.guard_long_window,
                percent: self.guard_long_percent,
            },
            least: self.guard_least,
            creations: self.guard_creations,
            patience: self.guard_patience,
        }
    }
}

/// Flags of the sweep that the operator makes of itself.
#[derive(Args)]
#[expect(
    clippy::struct_field_names,
    reason = "each is the name of a flag among those of other things"
)]
struct Sweep {
    /// Pause between sweeps of servers and firewalls that belong to nothing; 0s turns them off
    #[arg(long, default_value = "10m", value_parser = duration)]
    zombie_sweep_period: Duration,
    /// What is younger is never swept
    #[arg(long, default_value = "1h", value_parser = duration)]
    zombie_min_age: Duration,
    /// How much one sweep may delete
    #[arg(long, default_value_t = 5)]
    zombie_fuse: usize,
    /// Tell what would be swept, and delete nothing
    #[arg(long)]
    zombie_dry_run: bool,
}

/// Reads a duration such as `500ms`, `90s` or `5m`.
///
/// # Errors
/// That it is none.
pub fn duration(text: &str) -> Result<Duration, String> {
    if let Some(milliseconds) = text.strip_suffix("ms") {
        return milliseconds
            .parse()
            .map(Duration::from_millis)
            .map_err(|_| {
                format!("{text:?} is not a duration; write one such as 500ms, 90s or 5m")
            });
    }
    text.parse()
        .map(api::Duration::get)
        .map_err(|invalid: api::InvalidDuration| invalid.to_string())
}

/// A holder renews seven times in the life of its Lease, and stops while a third of it is left.
fn timing(lease: Duration) -> Timing {
    Timing {
        lease,
        renew: lease / 7,
        deadline: lease * 2 / 3,
    }
}

#[cfg(test)]
mod tests {
    use clap::{Args as _, Command, FromArgMatches as _};

    use super::*;

    #[test]
    fn the_guard_and_what_is_announced_are_by_default_as_the_documents_say() {
        let matches = Run::augment_args(Command::new("run")).get_matches_from(["run"]);
        let run = Run::from_arg_matches(&matches).unwrap();
        let SubscriptionFlags {
            announce_before,
            orphan_patience,
            guard,
        } = run.settings().subscriptions;
        assert_eq!(announce_before, Duration::from_hours(24));
        assert_eq!(orphan_patience, Duration::from_mins(10));
        let limits = Limits {
            soon: Limit {
                window: Duration::from_mins(10),
                percent: 20,
            },
            daily: Limit {
                window: Duration::from_hours(24),
                percent: 30,
            },
            least: 5,
            creations: 100,
            patience: Duration::from_secs(15),
        };
        assert_eq!(guard, limits);
    }
}
