//! The endpoints under `/_sim`; the README lists them.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::extract::{FromRequestParts, Path, Query};
use axum::http::StatusCode;
use axum::http::request::Parts;
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post};
use axum::{Json, Router};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::cloud::Cloud;
use crate::control::{Control, ControlError};
use crate::faults::FaultRule;
use crate::machines::fleet::MachineFaults;
use crate::machines::nspawn::Shell;

impl IntoResponse for ControlError {
    fn into_response(self) -> Response {
        let status = match self {
            Self::Unknown { .. } => StatusCode::NOT_FOUND,
            Self::Refused(_) => StatusCode::UNPROCESSABLE_ENTITY,
            Self::NoMachines | Self::NotReal => StatusCode::CONFLICT,
        };
        (status, Json(json!({"error": self.to_string()}))).into_response()
    }
}

type Answer = Result<Json<Value>, ControlError>;

fn done(result: Result<(), ControlError>) -> Answer {
    result.map(|()| Json(json!({})))
}

pub(crate) fn router() -> Router<Arc<Cloud>> {
    Router::new()
        .merge(faults())
        .merge(projects())
        .merge(server_routes())
        .merge(ledger())
}

fn faults() -> Router<Arc<Cloud>> {
    Router::new()
        .route(
            "/_sim/faults",
            post(|control: Control, Json(rule): Json<FaultRule>| async move {
                Json(json!({"id": control.add_fault(rule)}))
            })
            .get(|control: Control| async move { Json(json!({"faults": control.faults()})) })
            .delete(|control: Control| async move {
                control.clear_faults();
                Json(json!({}))
            }),
        )
        .route(
            "/_sim/faults/{id}",
            delete(|control: Control, Path(id): Path<u64>| async move {
                done(control.remove_fault(id))
            }),
        )
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Drain {
    #[serde(default)]
    left: u32,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct RateLimit {
    limit: u32,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Quota {
    max_servers: Option<usize>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct NewToken {
    token: String,
    #[serde(default)]
    project: usize,
    #[serde(default)]
    read_only: bool,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct StockOf {
    server_type: String,
    location: String,
    left: Option<u64>,
}

fn projects() -> Router<Arc<Cloud>> {
    Router::new()
        .route(
            "/_sim/projects",
            get(|control: Control| async move { Json(json!({"projects": control.projects()})) }),
        )
        .route(
            "/_sim/projects/{project}/drain",
            post(|control: Control, Path(project): Path<usize>, Json(drain): Json<Drain>| async move {
                done(control.drain(project, drain.left))
            }),
        )
        .route(
            "/_sim/projects/{project}/rate_limit",
            post(|control: Control, Path(project): Path<usize>, Json(rate): Json<RateLimit>| async move {
                done(control.set_rate_limit(project, rate.limit))
            }),
        )
        .route(
            "/_sim/projects/{project}/quota",
            post(|control: Control, Path(project): Path<usize>, Json(quota): Json<Quota>| async move {
                done(control.set_quota(project, quota.max_servers))
            }),
        )
        .route(
            "/_sim/tokens",
            post(|control: Control, Json(token): Json<NewToken>| async move {
                done(control.allow_token(&token.token, token.project, token.read_only))
            })
            .delete(|control: Control, Json(token): Json<NewToken>| async move {
                control.revoke_token(&token.token);
                Json(json!({}))
            }),
        )
        .route(
            "/_sim/stock",
            post(|control: Control, Json(stock): Json<StockOf>| async move {
                control.set_stock(&stock.server_type, &stock.location, stock.left);
                Json(json!({}))
            }),
        )
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NewServer {
    #[serde(default)]
    project: usize,
    server: Value,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NewLabels {
    labels: BTreeMap<String, String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Blocked {
    blocked: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Kept {
    keep: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Hidden {
    hidden: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Power {
    on: bool,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct HostKey {
    #[serde(default = "yes")]
    on_disk: bool,
}

fn yes() -> bool {
    true
}

fn server_routes() -> Router<Arc<Cloud>> {
    Router::new()
        .route(
            "/_sim/servers",
            get(|control: Control| async move { Json(json!({"servers": control.servers()})) })
                .post(|control: Control, Json(new): Json<NewServer>| async move {
                    let id = control.create_server(new.project, &new.server);
                    id.map(|id| Json(json!({"id": id})))
                }),
        )
        .route(
            "/_sim/servers/{id}",
            delete(|control: Control, Path(id): Path<u64>| async move { done(control.vanish(id)) }),
        )
        .route(
            "/_sim/servers/{id}/labels",
            post(
                |control: Control, Path(id): Path<u64>, Json(new): Json<NewLabels>| async move {
                    done(control.set_labels(id, &new.labels))
                },
            ),
        )
        .route(
            "/_sim/servers/{id}/block_ipv4",
            post(
                |control: Control, Path(id): Path<u64>, Json(wanted): Json<Blocked>| async move {
                    done(control.block_ipv4(id, wanted.blocked))
                },
            ),
        )
        .route(
            "/_sim/servers/{id}/change_ipv4",
            post(
                |control: Control, Path(id): Path<u64>, Json(wanted): Json<Kept>| async move {
                    done(control.change_ipv4(id, wanted.keep))
                },
            ),
        )
        .route(
            "/_sim/servers/{id}/hide",
            post(
                |control: Control, Path(id): Path<u64>, Json(wanted): Json<Hidden>| async move {
                    done(control.hide(id, wanted.hidden))
                },
            ),
        )
        .route(
            "/_sim/servers/{id}/power",
            post(
                |control: Control, Path(id): Path<u64>, Json(power): Json<Power>| async move {
                    done(control.power(id, power.on))
                },
            ),
        )
        .route(
            "/_sim/servers/{id}/kill",
            post(|control: Control, Path(id): Path<u64>| async move { done(control.kill(id)) }),
        )
        .route(
            "/_sim/servers/{id}/console",
            get(|control: Control, Path(id): Path<u64>| async move {
                control
                    .console(id)
                    .map(|output| Json(json!({"output": output})))
            }),
        )
        .route(
            "/_sim/servers/{id}/shell",
            post(
                |control: Control, Path(id): Path<u64>, Json(shell): Json<Shell>| async move {
                    control.shell(id, &shell).await.map(|ran| Json(json!(ran)))
                },
            ),
        )
        .route(
            "/_sim/servers/{id}/user_data",
            get(|control: Control, Path(id): Path<u64>| async move {
                control
                    .user_data(id)
                    .map(|text| Json(json!({"userData": text})))
            }),
        )
        .merge(machine_routes())
}

fn machine_routes() -> Router<Arc<Cloud>> {
    Router::new()
        .route(
            "/_sim/machines",
            get(|control: Control| async move { Json(json!({"machines": control.machines()})) }),
        )
        .route(
            "/_sim/voices",
            get(|control: Control| async move { Json(json!({"changes": control.voices()})) }),
        )
        .route(
            "/_sim/machines/{id}",
            get(|control: Control, Path(id): Path<u64>| async move {
                control.machine(id).map(|machine| Json(json!({"machine": machine})))
            }),
        )
        .route(
            "/_sim/machines/{id}/faults",
            post(|control: Control, Path(id): Path<u64>, Json(faults): Json<MachineFaults>| async move {
                done(control.set_machine_faults(id, faults))
            }),
        )
        .route(
            "/_sim/machines/{id}/host_key",
            post(|control: Control, Path(id): Path<u64>, Json(key): Json<HostKey>| async move {
                done(control.change_host_key(id, key.on_disk))
            }),
        )
}

#[derive(Deserialize)]
struct After {
    #[serde(default)]
    after: u64,
}

#[derive(Deserialize)]
struct By {
    /// Label keys, joined by commas.
    by: String,
}

fn ledger() -> Router<Arc<Cloud>> {
    Router::new()
        .route(
            "/_sim/mutations",
            get(|control: Control, Query(from): Query<After>| async move {
                Json(json!({"mutations": control.mutations(from.after)}))
            }),
        )
        .route(
            "/_sim/mutations/{seq}/user_data",
            get(|control: Control, Path(seq): Path<u64>| async move {
                control
                    .user_data_of_mutation(seq)
                    .map(|text| Json(json!({"userData": text})))
            }),
        )
        .route(
            "/_sim/lives",
            get(|control: Control| async move { Json(json!({"lives": control.lives()})) }),
        )
        .route(
            "/_sim/most_alive",
            get(|control: Control, Query(query): Query<By>| async move {
                let keys: Vec<&str> = query.by.split(',').collect();
                let groups = control.most_alive(&keys).into_iter();
                let groups = groups.map(|(values, most)| json!({"values": values, "most": most}));
                Json(json!({"groups": groups.collect::<Vec<_>>()}))
            }),
        )
        .route(
            "/_sim/requests",
            get(|control: Control| async move {
                let routes = control.requests();
                let total: u64 = routes.iter().map(|route| route.count).sum();
                Json(json!({"total": total, "routes": routes}))
            })
            .delete(|control: Control| async move {
                control.forget_requests();
                Json(json!({}))
            }),
        )
        .route(
            "/_sim/billing",
            get(|control: Control| async move { Json(json!({"projects": control.billing()})) }),
        )
}

impl FromRequestParts<Arc<Cloud>> for Control {
    type Rejection = std::convert::Infallible;

    async fn from_request_parts(
        _parts: &mut Parts,
        cloud: &Arc<Cloud>,
    ) -> Result<Self, Self::Rejection> {
        Ok(Self::new(Arc::clone(cloud)))
    }
}
