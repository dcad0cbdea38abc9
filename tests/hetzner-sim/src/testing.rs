//! A world for unit tests: the state with a clock that only moves when told.

use std::time::Duration;

use jiff::Timestamp;
use serde_json::Value;

use crate::api::{self, Call, Reply};
use crate::config::{Config, Spread};
use crate::faults::ActionFault;
use crate::request::Request;
use crate::state::State;

pub(crate) const KEY: &str =
    "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJdD7y3aLq454yWBdwLWbieU1ebz9/cu7/QEXn9OIeZJ test";

/// One project in which every action takes two seconds.
pub(crate) struct World {
    pub(crate) state: State,
    pub(crate) now: Timestamp,
    pub(crate) action_faults: Vec<ActionFault>,
}

impl World {
    pub(crate) fn new() -> Self {
        let config = Config {
            time_factor: 1.0,
            action_s: Spread::exactly(2.0),
            boot_ssh_s: Spread::exactly(8.0),
            ..Config::default()
        };
        let now = Timestamp::from_second(1_800_000_000).unwrap();
        Self {
            state: State::new(&config, [127, 99], now),
            now,
            action_faults: Vec::new(),
        }
    }

    pub(crate) fn pass(&mut self, seconds: u64) {
        self.now += Duration::from_secs(seconds);
    }

    pub(crate) fn reply(&mut self, method: &str, url: &str, body: &Value) -> Reply {
        let (path, query) = url.split_once('?').unwrap_or((url, ""));
        let request = Request {
            method: method.to_owned(),
            path: path.to_owned(),
            query: serde_urlencoded::from_str(query).unwrap(),
            body: if body.is_null() {
                Vec::new()
            } else {
                body.to_string().into_bytes()
            },
        };
        let mut call = Call {
            state: &mut self.state,
            project_number: 0,
            now: self.now,
            request: &request,
            action_faults: &self.action_faults,
        };
        let reply = api::answer(&mut call);
        self.state.ledger.record(0, &request, &reply, self.now);
        reply
    }

    /// The body of a call that must succeed.
    pub(crate) fn ok(&mut self, method: &str, url: &str, body: &Value) -> Value {
        let reply = self.reply(method, url, body);
        let text = reply.body.clone().unwrap_or(Value::Null);
        assert!(
            reply.status < 300,
            "{method} {url}: {} {text}",
            reply.status
        );
        text
    }

    pub(crate) fn get(&mut self, url: &str) -> Value {
        self.ok("GET", url, &Value::Null)
    }

    /// Status and code of a call that must be refused.
    pub(crate) fn refusal(&mut self, method: &str, url: &str, body: &Value) -> (u16, String) {
        let reply = self.reply(method, url, body);
        let body = reply.body.unwrap_or(Value::Null);
        let code = body["error"]["code"].as_str();
        (
            reply.status,
            code.unwrap_or_else(|| panic!("{method} {url} gave {body}"))
                .to_owned(),
        )
    }

    /// Creates a server and answers its id.
    pub(crate) fn server(&mut self, name: &str) -> u64 {
        self.server_with(&serde_json::json!({"name": name}))
    }

    /// Creates a server with these fields and, where they are silent, the usual ones.
    pub(crate) fn server_with(&mut self, fields: &Value) -> u64 {
        self.ok("POST", "/servers", &wish(fields))["server"]["id"]
            .as_u64()
            .unwrap()
    }
}

/// A request for a server with these fields and, where they are silent, the usual ones.
pub(crate) fn wish(fields: &Value) -> Value {
    let mut wish = serde_json::json!({
        "name": "a", "server_type": "cx23", "image": "debian-13", "location": "nbg1",
    });
    for (field, value) in fields.as_object().unwrap() {
        wish[field] = value.clone();
    }
    wish
}
