//! Faults that a test asks for: which request is hit, and what happens to it.
//!
//! Each rule counts the requests that it matches; it lets `after` of them pass and then hits `times`.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::request::Request;

/// A fault, and the requests it hits.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct FaultRule {
    /// HTTP method; `*` is any.
    #[serde(default = "any")]
    pub method: String,
    /// Path with numbers replaced by `{id}`, such as `/servers/{id}`; `*` is any, at the end any rest.
    #[serde(default = "any")]
    pub route: String,
    /// Only requests of this project.
    #[serde(default)]
    pub project: Option<usize>,
    /// Only requests whose body holds this text, such as the name of a server.
    #[serde(default)]
    pub body_contains: Option<String>,
    /// How many matching requests pass unharmed before.
    #[serde(default)]
    pub after: u64,
    /// How many are hit; `null` is all.
    #[serde(default = "once")]
    pub times: Option<u64>,
    /// What happens to them.
    pub fault: Fault,
}

impl FaultRule {
    /// A rule that hits the next request of this method and route, once.
    pub fn next(method: &str, route: &str, fault: Fault) -> Self {
        Self {
            method: method.to_owned(),
            route: route.to_owned(),
            project: None,
            body_contains: None,
            after: 0,
            times: once(),
            fault,
        }
    }

    fn matches(&self, project: usize, request: &Request) -> bool {
        let route = request.route();
        let route_fits = match self.route.strip_suffix('*') {
            Some(start) => route.starts_with(start),
            None => route == self.route,
        };
        let body_fits = self.body_contains.as_ref().is_none_or(|text| {
            let wanted = text.as_bytes();
            wanted.is_empty()
                || request
                    .body
                    .windows(wanted.len())
                    .any(|part| part == wanted)
        });
        (self.method == "*" || self.method.eq_ignore_ascii_case(&request.method))
            && route_fits
            && self.project.is_none_or(|wanted| wanted == project)
            && body_fits
    }
}

fn any() -> String {
    "*".to_owned()
}

#[expect(
    clippy::unnecessary_wraps,
    reason = "the type of the field it is the default of"
)]
fn once() -> Option<u64> {
    Some(1)
}

/// What happens to a request.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(
    tag = "kind",
    rename_all = "camelCase",
    rename_all_fields = "camelCase",
    deny_unknown_fields
)]
pub enum Fault {
    /// This status is answered, and the request is carried out or not.
    Status {
        /// HTTP status.
        status: u16,
        /// Code of the error; by default the one that fits the status.
        #[serde(default)]
        code: Option<String>,
        /// Message of the error.
        #[serde(default)]
        message: Option<String>,
        /// Whether the request is carried out all the same.
        #[serde(default)]
        commit: bool,
        /// What the body looks like.
        #[serde(default)]
        body: FaultBody,
    },
    /// The answer takes its time.
    Delay {
        /// Seconds.
        seconds: f64,
        /// Whether it waits after carrying the request out, rather than before.
        #[serde(default)]
        after_commit: bool,
    },
    /// The connection is reset and nothing is carried out.
    ResetBeforeCommit,
    /// The request is carried out and the connection reset.
    ResetAfterCommit,
    /// The connection is reset now, and the request carried out later.
    ResetThenCommit {
        /// Seconds between the two.
        seconds: f64,
    },
    /// The request is carried out twice.
    DeliverTwice {
        /// Which of the two answers the client gets.
        #[serde(default)]
        answer: WhichAnswer,
    },
    /// The request is carried out, and half of the answer arrives.
    TruncatedBody,
    /// Actions that the request begins fail or take their time.
    Action(ActionFault),
}

/// The body of a faulty answer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum FaultBody {
    /// The API's error envelope.
    #[default]
    Json,
    /// A gateway's page.
    Html,
    /// Nothing.
    Empty,
}

/// One of two answers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum WhichAnswer {
    /// The first.
    First,
    /// The second.
    #[default]
    Second,
}

/// What becomes of an action that a request begins.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ActionFault {
    /// Command of the action, such as `start_server`.
    pub command: String,
    /// Seconds that it takes; by default as always.
    #[serde(default)]
    pub seconds: Option<f64>,
    /// Code of the error it ends with; without one it succeeds.
    #[serde(default)]
    pub code: Option<String>,
    /// Message of that error.
    #[serde(default)]
    pub message: Option<String>,
}

impl ActionFault {
    /// An action that fails after its usual time.
    pub fn fails(command: &str, code: &str) -> Self {
        Self {
            command: command.to_owned(),
            seconds: None,
            code: Some(code.to_owned()),
            message: None,
        }
    }

    pub(crate) fn takes(&self) -> Option<Duration> {
        self.seconds.map(seconds)
    }

    pub(crate) fn error(&self) -> Option<(String, String)> {
        let code = self.code.clone()?;
        let message = self
            .message
            .clone()
            .unwrap_or_else(|| "Action failed".to_owned());
        Some((code, message))
    }
}

/// A duration from a test's number of seconds; nonsense counts as none.
pub(crate) fn seconds(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds).unwrap_or_default()
}

/// A rule and what became of it.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct FaultState {
    /// Number of the rule.
    pub id: u64,
    /// Requests that it matched.
    pub seen: u64,
    /// Requests that it hit.
    pub hits: u64,
    /// The rule itself.
    pub rule: FaultRule,
}

/// All rules in force.
#[derive(Debug, Default)]
pub(crate) struct Faults {
    rules: Vec<FaultState>,
    last_id: u64,
}

/// The faults that one request meets.
#[derive(Debug, Default)]
pub(crate) struct Chosen {
    pub(crate) transport: Option<Fault>,
    pub(crate) actions: Vec<ActionFault>,
}

impl Faults {
    pub(crate) fn add(&mut self, rule: FaultRule) -> u64 {
        self.last_id += 1;
        self.rules.push(FaultState {
            id: self.last_id,
            seen: 0,
            hits: 0,
            rule,
        });
        self.last_id
    }

    pub(crate) fn remove(&mut self, id: u64) -> bool {
        let before = self.rules.len();
        self.rules.retain(|state| state.id != id);
        before != self.rules.len()
    }

    pub(crate) fn clear(&mut self) {
        self.rules.clear();
    }

    pub(crate) fn list(&self) -> Vec<FaultState> {
        self.rules.clone()
    }

    /// Counts the request with every rule it matches and tells what it meets: all faults of its
    /// actions, and the first of its transport.
    pub(crate) fn meet(&mut self, project: usize, request: &Request) -> Chosen {
        let mut chosen = Chosen::default();
        for state in &mut self.rules {
            if !state.rule.matches(project, request) {
                continue;
            }
            state.seen += 1;
            let used_up = state.rule.times.is_some_and(|times| state.hits >= times);
            if state.seen <= state.rule.after || used_up {
                continue;
            }
            match &state.rule.fault {
                Fault::Action(fault) => chosen.actions.push(fault.clone()),
                _ if chosen.transport.is_some() => continue,
                fault => chosen.transport = Some(fault.clone()),
            }
            state.hits += 1;
        }
        chosen
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn post(name: &str) -> Request {
        Request {
            method: "POST".to_owned(),
            path: "/servers".to_owned(),
            query: Vec::new(),
            body: format!(r#"{{"name":"{name}"}}"#).into_bytes(),
        }
    }

    #[test]
    fn a_rule_hits_the_occurrence_it_names_and_no_other() {
        let mut faults = Faults::default();
        let mut rule = FaultRule::next("POST", "/servers", Fault::ResetAfterCommit);
        (rule.after, rule.times) = (1, Some(2));
        faults.add(rule);
        let hit: Vec<bool> = (0..5)
            .map(|_| faults.meet(0, &post("a")).transport.is_some())
            .collect();
        assert_eq!(hit, [false, true, true, false, false]);
    }

    #[test]
    fn routes_projects_and_bodies_narrow_a_rule() {
        let mut rule = FaultRule::next("*", "/servers*", Fault::TruncatedBody);
        (rule.project, rule.body_contains) = (Some(1), Some("\"agent-7\"".to_owned()));
        assert!(rule.matches(1, &post("agent-7")));
        assert!(!rule.matches(0, &post("agent-7")));
        assert!(!rule.matches(1, &post("agent-77")));
        rule.route = "/servers/{id}".to_owned();
        assert!(!rule.matches(1, &post("agent-7")));
    }

    #[test]
    fn rules_are_read_from_json_with_defaults() {
        let rule: FaultRule = serde_json::from_str(
            r#"{"method":"POST","route":"/servers","times":null,
                "fault":{"kind":"resetThenCommit","seconds":3}}"#,
        )
        .unwrap();
        assert_eq!(rule.times, None);
        assert_eq!(rule.fault, Fault::ResetThenCommit { seconds: 3.0 });
        let action: Fault = serde_json::from_str(
            r#"{"kind":"action","command":"start_server","code":"unknown_error"}"#,
        )
        .unwrap();
        assert_eq!(
            action,
            Fault::Action(ActionFault::fails("start_server", "unknown_error"))
        );
        let unknown = r#"{"fault":{"kind":"explode"}}"#;
        assert!(serde_json::from_str::<FaultRule>(unknown).is_err());
    }
}
