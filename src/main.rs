//! The command line of agentfleet: parse, put together, call in.

mod flags;

use std::{fs, path::PathBuf, process::ExitCode, time::Duration};

use agentfleet::{
    api, cloud_init::MAX_USER_DATA, http::Listener, kube_ext::error_chain, operator, render,
    telemetry, zombies::by_hand,
};
use clap::{Args, Parser, Subcommand};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use flags::{Run, duration};

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
    let http = Listener::bind(&flags.http_listen).await?;
    Ok(operator::run(flags.options(http, phone_home), stop).await?)
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
