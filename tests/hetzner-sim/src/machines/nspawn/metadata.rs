//! What a server finds at 169.254.169.254, as Hetzner documents it.
//!
//! Who asks is told by the address that the question comes from.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use axum::Router;
use axum::extract::{ConnectInfo, Path, State};
use axum::http::StatusCode;
use axum::routing::get;
use serde::Serialize;
use serde_json::{Value, json};

use crate::cloud::Cloud;
use crate::servers::Server;
use crate::state::Project;

type Answer = Result<String, StatusCode>;

pub(crate) fn router() -> Router<Arc<Cloud>> {
    Router::new()
        .route("/hetzner/v1/metadata", get(whole))
        .route("/hetzner/v1/metadata/{field}", get(field))
        .route("/hetzner/v1/userdata", get(user_data))
}

async fn whole(
    State(cloud): State<Arc<Cloud>>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
) -> Answer {
    asked_by(&cloud, peer, |server, project| {
        yaml(&facts(server, project))
    })
}

async fn field(
    State(cloud): State<Arc<Cloud>>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    Path(field): Path<String>,
) -> Answer {
    asked_by(&cloud, peer, |server, project| {
        match facts(server, project).get(&field) {
            Some(Value::String(text)) => Ok(text.clone()),
            Some(other) => list(other),
            None if field == "private-networks" => list(&networks(server, project)),
            None => Err(StatusCode::NOT_FOUND),
        }
    })
}

async fn user_data(
    State(cloud): State<Arc<Cloud>>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
) -> Answer {
    asked_by(&cloud, peer, |server, _| {
        Ok(server.user_data.clone().unwrap_or_default())
    })
}

fn asked_by(
    cloud: &Cloud,
    peer: SocketAddr,
    answer: impl FnOnce(&Server, &Project) -> Answer,
) -> Answer {
    let state = cloud.lock();
    let mut servers = state.projects.iter().flat_map(|project| {
        project
            .servers
            .values()
            .map(move |server| (server, project))
    });
    let asking = servers
        .find(|(server, project)| server.address(project).map(IpAddr::V4) == Some(peer.ip()));
    let (server, project) = asking.ok_or(StatusCode::NOT_FOUND)?;
    answer(server, project)
}

fn facts(server: &Server, project: &Project) -> Value {
    let address = server.address(project).map(|address| address.to_string());
    json!({
        "availability-zone": server.location.data_centre(),
        "hostname": server.name,
        "instance-id": server.id,
        "public-ipv4": address,
        "public-keys": server.ssh_keys,
        "region": server.location.network_zone,
    })
}

fn networks(server: &Server, project: &Project) -> Value {
    let numbered = server.private_net.iter().enumerate();
    let shown = numbered.map(|(index, net)| {
        let shown = net.show(server.id);
        json!({
            "ip": net.ip,
            "alias_ips": net.alias_ips,
            "interface_num": index + 1,
            "mac_address": shown["mac_address"],
            "network_id": net.network,
            "network_name": project.networks.get(&net.network).map(|network| &network.name),
        })
    });
    shown.collect()
}

/// A list as Hetzner shows it; an empty one is nothing at all.
fn list(value: &Value) -> Answer {
    match value {
        Value::Array(items) if items.is_empty() => Ok(String::new()),
        value => yaml(value),
    }
}

fn yaml(value: &impl Serialize) -> Answer {
    serde_saphyr::to_string(value).map_err(|_| StatusCode::INTERNAL_SERVER_ERROR)
}
