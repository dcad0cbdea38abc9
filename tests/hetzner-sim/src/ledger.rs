//! The ground truth of a test: every accepted mutation, every life of a server, every request.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::Serialize;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::api::Reply;
use crate::labels::Labels;
use crate::request::Request;
use crate::servers::Server;

/// One mutation that the API accepted.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Mutation {
    /// Number of this mutation, from 1.
    pub seq: u64,
    /// When it was carried out.
    pub at: Timestamp,
    /// Number of the project, from 0 in the order of the tokens.
    pub project: usize,
    /// HTTP method.
    pub method: String,
    /// Path with numbers replaced by `{id}`.
    pub route: String,
    /// Path below `/v1`.
    pub path: String,
    /// Status of the answer, whether or not the client saw it.
    pub status: u16,
    /// Id of the resource that was changed or made.
    pub id: Option<u64>,
    /// The request's body; `user_data` is replaced by its length and SHA-256.
    pub body: Value,
}

/// Who made a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Origin {
    /// A request to the API.
    Api,
    /// A test, behind the operator's back.
    Control,
}

/// One server from its creation to its end.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Life {
    /// Id of the server.
    pub server: u64,
    /// Number of its project.
    pub project: usize,
    /// Its name when it was made.
    pub name: String,
    /// Its labels when it was made.
    pub labels: BTreeMap<String, String>,
    /// Who made it.
    pub origin: Origin,
    /// When it was made.
    pub created: Timestamp,
    /// When it was deleted; nothing while it lives.
    pub deleted: Option<Timestamp>,
}

impl Life {
    fn seconds(&self, now: Timestamp) -> f64 {
        let end = self.deleted.unwrap_or(now);
        end.duration_since(self.created).as_secs_f64().max(0.0)
    }
}

/// What the servers of a project cost in time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Bill {
    /// Number of the project.
    pub project: usize,
    /// How many servers were made.
    pub servers: u64,
    /// Seconds that they lived, added up.
    pub server_seconds: f64,
    /// Hours begun, which is what is paid for.
    pub started_hours: u64,
}

/// How often a route was asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RequestCount {
    /// Number of the project; nothing for a request without a valid token.
    pub project: Option<usize>,
    /// HTTP method.
    pub method: String,
    /// Path with numbers replaced by `{id}`.
    pub route: String,
    /// Status of the answer; 0 where the connection was reset instead.
    pub status: u16,
    /// How many.
    pub count: u64,
}

type RequestKey = (Option<usize>, String, String, u16);

/// All of it.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    mutations: Vec<Mutation>,
    user_data: BTreeMap<u64, String>,
    lives: Vec<Life>,
    requests: BTreeMap<RequestKey, u64>,
}

impl Ledger {
    /// Writes down a mutation, where the API accepted it.
    pub(crate) fn record(
        &mut self,
        project: usize,
        request: &Request,
        reply: &Reply,
        at: Timestamp,
    ) {
        if !request.is_mutation() || reply.status >= 300 {
            return;
        }
        let seq = self.mutations.len() as u64 + 1;
        let mut body = serde_json::from_slice(&request.body).unwrap_or(Value::Null);
        if let Some(Value::String(text)) = body.get_mut("user_data").map(Value::take) {
            body["user_data"] = json!({"bytes": text.len(), "sha256": sha256(&text)});
            self.user_data.insert(seq, text);
        }
        self.mutations.push(Mutation {
            seq,
            at,
            project,
            method: request.method.clone(),
            route: request.route(),
            path: request.path.clone(),
            status: reply.status,
            id: id_of(request, reply),
            body,
        });
    }

    pub(crate) fn born(&mut self, project: usize, server: &Server, origin: Origin) {
        self.lives.push(Life {
            server: server.id,
            project,
            name: server.name.clone(),
            labels: Labels::clone(&server.labels),
            origin,
            created: server.created,
            deleted: None,
        });
    }

    pub(crate) fn died(&mut self, server: u64, now: Timestamp) {
        let alive = self
            .lives
            .iter_mut()
            .rev()
            .find(|life| life.server == server);
        if let Some(life) = alive {
            life.deleted = Some(now);
        }
    }

    pub(crate) fn count(&mut self, project: Option<usize>, request: &Request, status: u16) {
        let key = (project, request.method.clone(), request.route(), status);
        *self.requests.entry(key).or_default() += 1;
    }

    pub(crate) fn forget_requests(&mut self) {
        self.requests.clear();
    }

    pub(crate) fn mutations_after(&self, seq: u64) -> Vec<Mutation> {
        self.mutations
            .iter()
            .filter(|mutation| mutation.seq > seq)
            .cloned()
            .collect()
    }

    pub(crate) fn user_data(&self, seq: u64) -> Option<String> {
        self.user_data.get(&seq).cloned()
    }

    pub(crate) fn lives(&self) -> Vec<Life> {
        self.lives.clone()
    }

    pub(crate) fn requests(&self) -> Vec<RequestCount> {
        let counts = self.requests.iter();
        let counts = counts.map(|((project, method, route, status), count)| RequestCount {
            project: *project,
            method: method.clone(),
            route: route.clone(),
            status: *status,
            count: *count,
        });
        counts.collect()
    }

    pub(crate) fn bill(&self, project: usize, now: Timestamp) -> Bill {
        let mut bill = Bill {
            project,
            ..Bill::default()
        };
        for life in self.lives.iter().filter(|life| life.project == project) {
            let seconds = life.seconds(now);
            bill.servers += 1;
            bill.server_seconds += seconds;
            bill.started_hours += started_hours(seconds);
        }
        bill
    }

    /// For each group of servers with the same values of these labels, how many lived at once at
    /// most. Servers that lack one of the labels are left out.
    pub(crate) fn most_alive(&self, keys: &[&str]) -> BTreeMap<Vec<String>, usize> {
        let group = |life: &Life| {
            keys.iter()
                .map(|key| life.labels.get(*key).cloned())
                .collect()
        };
        let mut groups: BTreeMap<Vec<String>, Vec<&Life>> = BTreeMap::new();
        for life in &self.lives {
            let values: Option<Vec<String>> = group(life);
            if let Some(values) = values {
                groups.entry(values).or_default().push(life);
            }
        }
        groups
            .into_iter()
            .map(|(values, lives)| (values, most_at_once(&lives)))
            .collect()
    }
}

/// The greatest number of lives that overlap; it is reached when one of them begins.
fn most_at_once(lives: &[&Life]) -> usize {
    let alive_at = |now: Timestamp| {
        let alive = |life: &&&Life| life.created <= now && life.deleted.is_none_or(|end| end > now);
        lives.iter().filter(alive).count()
    };
    lives
        .iter()
        .map(|life| alive_at(life.created))
        .max()
        .unwrap_or(0)
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "the life of a test's server is a small positive number of hours"
)]
fn started_hours(seconds: f64) -> u64 {
    ((seconds / 3600.0).ceil() as u64).max(1)
}

fn sha256(text: &str) -> String {
    let octets = Sha256::digest(text.as_bytes());
    octets
        .iter()
        .fold(String::new(), |hex, octet| format!("{hex}{octet:02x}"))
}

/// The id in the path, or that of what was made.
fn id_of(request: &Request, reply: &Reply) -> Option<u64> {
    let segments = request.segments();
    let in_path = segments.iter().find_map(|part| part.parse().ok());
    in_path.or_else(|| {
        let made = segments.first()?.trim_end_matches('s');
        reply.body.as_ref()?.get(made)?.get("id")?.as_u64()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + second).unwrap()
    }

    fn life(server: u64, label: &str, created: i64, deleted: Option<i64>) -> Life {
        Life {
            server,
            project: 0,
            name: format!("server-{server}"),
            labels: BTreeMap::from([("uid".to_owned(), label.to_owned())]),
            origin: Origin::Api,
            created: at(created),
            deleted: deleted.map(at),
        }
    }

    #[test]
    fn every_started_hour_is_billed() {
        let lives = vec![
            life(1, "a", 0, Some(1)),
            life(2, "b", 0, Some(3601)),
            life(3, "c", 0, None),
        ];
        let ledger = Ledger {
            lives,
            ..Ledger::default()
        };
        let bill = ledger.bill(0, at(7200));
        assert_eq!(bill.servers, 3);
        assert_eq!(bill.started_hours, 1 + 2 + 2);
        assert!((bill.server_seconds - f64::from(1 + 3601 + 7200)).abs() < 1e-6);
    }

    #[test]
    fn two_servers_of_one_instance_at_once_are_seen_even_after_both_are_gone() {
        let lives = vec![
            life(1, "a", 0, Some(10)),
            life(2, "a", 9, Some(20)),
            life(3, "b", 0, Some(10)),
            life(4, "b", 10, None),
        ];
        let most = Ledger {
            lives,
            ..Ledger::default()
        }
        .most_alive(&["uid"]);
        assert_eq!(most[&vec!["a".to_owned()]], 2);
        assert_eq!(most[&vec!["b".to_owned()]], 1);
    }
}
