//! The command line of agentfleet: parse, put together, call in.

use std::{fs, path::PathBuf, process::ExitCode, time::Duration};

use agentfleet::{
    agent_instance::world::RecoveryFlags,
    api,
    cloud_init::MAX_USER_DATA,
    context::Settings,
    health::canary,
    http::Listener,
    kube_ext::error_chain,
    leader::Timing,
    notification::delivery::Receiver,
    operator::{self, Options},
    render,
    subscription::{
        SubscriptionFlags,
        guard::{Limit, Limits},
    },
    telemetry::{self, LogFormat},
    zombies::{SweepFlags, by_hand},
};
use clap::{Args, Parser, Subcommand};
use secrecy::SecretString;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// Gives memory back to the system after a burst, which the system's own allocator keeps in pieces.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Gives every AI agent a Hetzner Cloud server of its own.
#[derive(Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the operator
    Run(Box<Run>),
    /// Write the custom resource definitions
    Crds {
        /// Directory to write them to
        #[arg(long, default_value = "crds")]
        dir: PathBuf,
    },
    /// Show what carries the fleet's labels and belongs to nothing, with your own access to the cluster and its Secrets
    Sweep(SweepByHand),
    /// Print the user-data that a server of an instance would get; secrets are left out
    Render {
        /// YAML files, or directories of such, with AgentClass and AgentInstance
        #[arg(short, long = "file", required = true)]
        files: Vec<PathBuf>,
        /// Name of the instance; the first one when unset
        #[arg(long)]
        instance: Option<String>,
    },
}

#[derive(Args)]
struct Run {
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
    http_listen: String,
    /// Where servers post their host keys; needed for classes that bootstrap by phone home
    #[arg(long, requires = "phone_home_url")]
    phone_home_listen: Option<String>,
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
    log_format: LogFormat,
    /// Level of the log: error, warn, info, debug, trace, or a list of them by module
    #[arg(long, env = "AGENTFLEET_LOG_LEVEL", default_value = "info")]
    log_level: String,
}

#[derive(Args)]
struct SweepByHand {
    /// Only show, which is all that this command does: the operator sweeps by itself
    #[arg(long)]
    dry_run: bool,
    /// Namespace of the operator
    #[arg(long, env = "POD_NAMESPACE", default_value = "agentfleet-system")]
    namespace: String,
    /// Base URL of the Hetzner Cloud API
    #[arg(
        long,
        env = "HCLOUD_ENDPOINT",
        default_value = "https://api.hetzner.cloud/v1"
    )]
    hcloud_endpoint: String,
    /// Port of SSH on servers
    #[arg(long, default_value_t = 22)]
    guest_port: u16,
    /// What is younger is never swept
    #[arg(long, default_value = "1h", value_parser = duration)]
    zombie_min_age: Duration,
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

fn duration(text: &str) -> Result<Duration, String> {
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

#[tokio::main]
async fn main() -> ExitCode {
    let _already_installed = rustls::crypto::ring::default_provider().install_default();
    let ended = match Cli::parse().command {
        Command::Run(flags) => run(*flags).await,
        Command::Sweep(flags) => Box::pin(show_zombies(flags)).await,
        Command::Crds { dir } => write_crds(&dir),
        Command::Render { files, instance } => print_user_data(&files, instance.as_deref()),
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("agentfleet: {}", error_chain(error.as_ref()));
            ExitCode::FAILURE
        }
    }
}

type Ended = Result<(), Box<dyn std::error::Error>>;

async fn run(flags: Run) -> Ended {
    telemetry::init(flags.log_format, &flags.log_level)?;
    let stop = CancellationToken::new();
    tokio::spawn(stop_on_signal(stop.clone()));
    let phone_home = match &flags.phone_home_listen {
        Some(address) => Some(Listener::bind(address).await?),
        None => None,
    };
    let options = Options {
        http: Some(Listener::bind(&flags.http_listen).await?),
        phone_home,
        fleet: flags.fleet.clone(),
        identity: format!("{}-{:08x}", flags.name, rand::random::<u32>()),
        canaries: flags.canary.clone(),
        recoveries_per_minute: flags.recoveries_per_minute,
        webhook: receiver(&flags),
        lease: timing(flags.lease_duration),
        silence_max: flags.silence_max,
        settings: settings(flags),
    };
    Ok(operator::run(options, stop).await?)
}

/// A holder renews seven times in the life of its Lease, and stops while a third of it is left.
fn timing(lease: Duration) -> Timing {
    Timing {
        lease,
        renew: lease / 7,
        deadline: lease * 2 / 3,
    }
}

fn receiver(flags: &Run) -> Option<Receiver> {
    Some(Receiver {
        url: flags.webhook_url.clone()?,
        keys: flags.webhook_secret_file.clone()?,
        authorities: flags.webhook_ca_file.clone(),
        timeout: flags.webhook_timeout,
    })
}

fn settings(flags: Run) -> Settings {
    Settings {
        endpoint: flags.hcloud_endpoint,
        namespace: flags.namespace,
        guest_port: flags.guest_port,
        request_timeout: flags.request_timeout,
        settle: flags.settle,
        inventory_fast: flags.inventory_fast,
        inventory_slow: flags.inventory_slow,
        project_period: flags.project_period,
        recovery: RecoveryFlags {
            paused: flags.pause_recovery,
            unreachable: flags.unreachable_max,
            window: flags.breaker_window.max(2 * flags.unreachable_max),
        },
        sweep: SweepFlags {
            period: flags.sweep.zombie_sweep_period,
            min_age: flags.sweep.zombie_min_age,
            fuse: flags.sweep.zombie_fuse,
            dry_run: flags.sweep.zombie_dry_run,
        },
        subscriptions: SubscriptionFlags {
            announce_before: flags.announce_before,
            orphan_patience: flags.orphan_patience,
            guard: flags.guard.limits(),
        },
        shutdown_grace: flags.shutdown_grace,
        webhook_patience: flags.webhook_patience,
        phone_home_url: flags.phone_home_url,
    }
}

async fn stop_on_signal(stop: CancellationToken) {
    let (Ok(mut terminate), Ok(mut interrupt)) = (
        signal(SignalKind::terminate()),
        signal(SignalKind::interrupt()),
    ) else {
        return;
    };
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    tracing::info!("stopping");
    stop.cancel();
}

async fn show_zombies(flags: SweepByHand) -> Ended {
    if !flags.dry_run {
        return Err("this command only shows: give --dry-run; the operator itself sweeps, every --zombie-sweep-period".into());
    }
    let look = by_hand::Look {
        namespace: flags.namespace,
        endpoint: flags.hcloud_endpoint,
        guest_port: flags.guest_port,
        min_age: flags.zombie_min_age,
    };
    print!("{}", look.all().await?.table());
    Ok(())
}

fn write_crds(dir: &std::path::Path) -> Ended {
    fs::create_dir_all(dir)?;
    for (file, text) in api::crds()? {
        fs::write(dir.join(file), text)?;
    }
    Ok(())
}

fn print_user_data(files: &[PathBuf], instance: Option<&str>) -> Ended {
    let user_data = render::user_data(&render::objects(files)?, instance)?;
    print!("{}", user_data.shown());
    eprintln!(
        "{} bytes as sent, of {MAX_USER_DATA}",
        user_data.sent_bytes()
    );
    Ok(())
}
