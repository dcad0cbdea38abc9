//! Start and end of a simulator.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;

use axum::Router;
use axum::routing::any;
use jiff::Timestamp;
use serde_json::json;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use crate::cloud::Cloud;
use crate::config::{Config, MachineKind};
use crate::connection::{Reset, ResettableListener};
use crate::control::Control;
use crate::machines::fleet::{Fleet, FleetError};
use crate::machines::nspawn::{NspawnFleet, SSH_PORT, metadata};
use crate::state::State;
use crate::{control_http, http};

/// Why a simulator could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// There is no project without a token.
    #[error("no token given: each --token makes a project")]
    NoToken,
    /// The API's address cannot be had.
    #[error("cannot listen on {address}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// No network for the machines is free.
    #[error("no machine network 127.N.0.0/16 is free on port {port}")]
    NoNetwork {
        /// The port of SSH.
        port: u16,
    },
    /// This is not a network for machines.
    #[error(
        "'{0}' is not a machine network: 127.N.0.0/16, or 10.N.0.0/16 for real machines, N from 1 to 254"
    )]
    BadNetwork(String),
    /// The machines cannot be prepared.
    #[error("cannot prepare the machines")]
    Machines(#[from] FleetError),
    /// The ready file cannot be written.
    #[error("cannot write {path}")]
    ReadyFile {
        /// The file.
        path: PathBuf,
        /// What the system says.
        #[source]
        source: io::Error,
    },
}

/// A running simulator. When it is dropped, API and machines are gone.
pub struct Simulator {
    cloud: Arc<Cloud>,
    address: SocketAddr,
    network: [u8; 2],
    ssh_port: u16,
    api: Option<JoinHandle<io::Result<()>>>,
    /// Held so that no other simulator takes the same network.
    _claim: Option<TcpListener>,
}

impl Simulator {
    /// Starts a simulator on the current runtime.
    ///
    /// # Errors
    /// When an address cannot be had, or the machines cannot be prepared.
    pub async fn start(config: Config) -> Result<Self, StartError> {
        if config.tokens.is_empty() {
            return Err(StartError::NoToken);
        }
        let address = config.listen;
        let listen = |source| StartError::Listen { address, source };
        let listener = TcpListener::bind(address).await.map_err(listen)?;
        let address = listener.local_addr().map_err(listen)?;
        let wanted = wanted_network(&config)?;
        let fleet = Fleet::start(&config, wanted).await?;
        let (network, ssh_port, claim) = if let Some(real) = fleet.as_ref().and_then(Fleet::real) {
            (real.network(), SSH_PORT, None)
        } else {
            let (number, claim) = claim_network(wanted, config.ssh_port).await?;
            ([127, number], config.ssh_port, Some(claim))
        };
        let state = State::new(&config, network, Timestamp::now());
        let cloud = Arc::new(Cloud::new(state, fleet));
        let api = Some(tokio::spawn(serve(Arc::clone(&cloud), listener)));
        attend_real_machines(&cloud);
        let simulator = Self {
            cloud,
            address,
            network,
            ssh_port,
            api,
            _claim: claim,
        };
        simulator.tell_ready(&config)?;
        Ok(simulator)
    }

    /// Base URL of the API, as clients take it: `http://127.0.0.1:PORT/v1`.
    pub fn endpoint(&self) -> String {
        format!("http://{}/v1", self.address)
    }

    /// Base URL of the control endpoints: `http://127.0.0.1:PORT/_sim`.
    pub fn control_endpoint(&self) -> String {
        format!("http://{}/_sim", self.address)
    }

    /// Network of the servers' addresses.
    pub fn machine_net(&self) -> String {
        format!("{}.{}.0.0/16", self.network[0], self.network[1])
    }

    /// Address of this host as machines reach it, for what they are to find here.
    pub fn host(&self) -> Ipv4Addr {
        let real = self.cloud.fleet.as_ref().and_then(Fleet::real);
        real.map_or(Ipv4Addr::LOCALHOST, NspawnFleet::host)
    }

    /// Port on which machines answer SSH.
    pub fn ssh_port(&self) -> u16 {
        self.ssh_port
    }

    /// Control over what goes wrong, and the ground truth of what happened.
    pub fn control(&self) -> Control {
        Control::new(Arc::clone(&self.cloud))
    }

    /// Ends the simulator and waits until all of it is gone.
    pub async fn shutdown(mut self) {
        self.cloud.stop();
        if let Some(api) = self.api.take() {
            // It can only fail by a panic, which the runtime has reported.
            let _ = api.await;
        }
        if let Some(fleet) = &self.cloud.fleet {
            fleet.gone().await;
        }
    }

    fn tell_ready(&self, config: &Config) -> Result<(), StartError> {
        let Some(path) = &config.ready_file else {
            return Ok(());
        };
        let text = json!({
            "endpoint": self.endpoint(),
            "control": self.control_endpoint(),
            "machineNet": self.machine_net(),
            "host": self.host(),
            "sshPort": self.ssh_port,
        });
        let partial = path.with_extension("partial");
        let written = std::fs::write(&partial, text.to_string());
        let written = written.and_then(|()| std::fs::rename(&partial, path));
        written.map_err(|source| StartError::ReadyFile {
            path: path.clone(),
            source,
        })
    }
}

impl Drop for Simulator {
    fn drop(&mut self) {
        self.cloud.stop();
    }
}

async fn serve(cloud: Arc<Cloud>, listener: TcpListener) -> io::Result<()> {
    let stopped = Arc::clone(&cloud);
    let router = Router::new()
        .route("/v1", any(http::v1))
        .route("/v1/{*path}", any(http::v1))
        .merge(control_http::router())
        .with_state(cloud);
    axum::serve(
        ResettableListener(listener),
        router.into_make_service_with_connect_info::<Reset>(),
    )
    .with_graceful_shutdown(async move { stopped.stopped().await })
    .await
}

/// What real machines need of the cloud: metadata, and somebody to tell when they go off.
fn attend_real_machines(cloud: &Arc<Cloud>) {
    let Some(real) = cloud.fleet.as_ref().and_then(Fleet::real) else {
        return;
    };
    if let Some(listener) = real.metadata() {
        let (router, stopped) = (metadata::router(), Arc::clone(cloud));
        let service = router
            .with_state(Arc::clone(cloud))
            .into_make_service_with_connect_info::<SocketAddr>();
        tokio::spawn(async move {
            let serving = axum::serve(listener, service);
            tokio::select! {
                ended = serving => ended,
                () = stopped.stopped() => Ok(()),
            }
        });
    }
    if let Some(mut off) = real.went_off() {
        let cloud = Arc::clone(cloud);
        tokio::spawn(async move {
            let telling = async {
                while let Some(server) = off.recv().await {
                    cloud.went_off(server);
                }
            };
            tokio::select! {
                () = telling => {}
                () = cloud.stopped() => {}
            }
        });
    }
}

/// Takes the wanted network, or the first free one, by holding its first address.
async fn claim_network(wanted: Option<u8>, port: u16) -> Result<(u8, TcpListener), StartError> {
    let candidates = wanted.map_or(32..=250, |number| number..=number);
    for number in candidates {
        let first = SocketAddr::from((Ipv4Addr::new(127, number, 0, 1), port));
        if let Ok(claim) = TcpListener::bind(first).await {
            return Ok((number, claim));
        }
    }
    Err(StartError::NoNetwork { port })
}

/// The number of the network that was asked for.
fn wanted_network(config: &Config) -> Result<Option<u8>, StartError> {
    let Some(text) = &config.machine_net else {
        return Ok(None);
    };
    let real = config.machines == MachineKind::Nspawn;
    let number = text
        .strip_prefix(if real { "10." } else { "127." })
        .and_then(|rest| rest.strip_suffix(".0.0/16"));
    let number = number.and_then(|number| number.parse().ok());
    let usable = number.filter(|number| (1..=254).contains(number));
    usable
        .map(Some)
        .ok_or_else(|| StartError::BadNetwork(text.clone()))
}
