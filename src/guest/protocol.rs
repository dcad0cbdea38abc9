//! What the operator asks of a guest, and what a guest may answer.
//!
//! Requests are plain JSON documents. Answers are untrusted input: read strictly (a missing or
//! mistyped field is an error), tolerant of fields that a newer guest adds, and bounded
//! throughout by the types of [`untrusted`](super::untrusted).

use std::io;
use std::time::Duration;

use secrecy::SecretSlice;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize};

use super::answers::{Greeting, Logs, Probed, Released, Restarted, Status};
use super::untrusted::{Last, Text};

/// The version of the protocol spoken here.
pub const PROTOCOL: u32 = 1;
/// The largest answer that is read, in bytes.
pub const MAX_ANSWER: usize = 256 * 1024;
/// The longest that `hello` waits for progress.
pub const MAX_WAIT: Duration = Duration::from_secs(25);

/// The commands of the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[expect(
    missing_docs,
    reason = "the guest's own words, described in the design"
)]
pub enum Verb {
    Hello,
    Configure,
    Status,
    Restart,
    Logs,
    Probe,
    Release,
    Upgrade,
}

impl Verb {
    /// The word on the command line.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Hello => "hello",
            Self::Configure => "configure",
            Self::Status => "status",
            Self::Restart => "restart",
            Self::Logs => "logs",
            Self::Probe => "probe",
            Self::Release => "release",
            Self::Upgrade => "upgrade",
        }
    }
}

/// One act of the guest: a verb, what goes to its standard input, and what it answers.
pub trait Command {
    /// What a guest that did as asked tells.
    type Answer: DeserializeOwned;
    /// The verb.
    const VERB: Verb;

    /// The bytes for standard input; they may hold secrets.
    ///
    /// # Errors
    /// When they cannot be put into their form.
    fn stdin(&self) -> io::Result<SecretSlice<u8>>;
}

/// Asks for progress; the proof of the host key comes with it.
#[derive(Clone, Debug, Serialize)]
pub struct Hello {
    nonce: String,
    wait: u64,
    seen: String,
}

impl Hello {
    /// Asks with a fresh nonce.
    ///
    /// The guest answers at once if its progress token is not `seen`, else after `wait` at the
    /// latest (whole seconds, at most [`MAX_WAIT`]).
    pub fn new(wait: Duration, seen: &str) -> Self {
        Self {
            nonce: hex::encode(rand::random::<[u8; 32]>()),
            wait: wait.min(MAX_WAIT).as_secs(),
            seen: seen.to_owned(),
        }
    }

    /// The nonce as it is sent: 64 hex digits.
    pub fn nonce(&self) -> &str {
        &self.nonce
    }
}

/// Asks for the state of unit and disk.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct AskStatus {
    /// The instance's epoch.
    pub epoch: u64,
}

/// Restarts the unit.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Restart {
    /// The instance's epoch.
    pub epoch: u64,
}

/// Reads the unit's journal.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct AskLogs {
    /// The instance's epoch.
    pub epoch: u64,
    /// How many of the last lines.
    pub lines: u16,
}

/// Runs the `exec` probe as the agent's user.
#[derive(Clone, Debug, Serialize)]
pub struct Probe {
    /// The instance's epoch.
    pub epoch: u64,
    /// The class's command, for a shell.
    pub command: String,
    /// Seconds until it is killed.
    pub timeout: u64,
}

/// Takes the voice away.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Release {
    /// The epoch that outdates whatever is still on its way.
    pub epoch: u64,
}

macro_rules! json_command {
    ($request:ty, $verb:ident, $answer:ty) => {
        impl Command for $request {
            type Answer = $answer;
            const VERB: Verb = Verb::$verb;

            fn stdin(&self) -> io::Result<SecretSlice<u8>> {
                Ok(serde_json::to_vec(self)?.into())
            }
        }
    };
}

json_command!(Hello, Hello, Greeting);
json_command!(AskStatus, Status, Status);
json_command!(Restart, Restart, Restarted);
json_command!(AskLogs, Logs, Logs);
json_command!(Probe, Probe, Probed);
json_command!(Release, Release, Released);

/// Why a guest did not do as asked.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[expect(
    missing_docs,
    reason = "the guest's own words, described in the design"
)]
pub enum RefusalCode {
    BadCommand,
    BadRequest,
    StaleEpoch,
    WrongInstance,
    Busy,
    NotInstalled,
    UserMissing,
    WriteFailed,
    DiskFull,
    SourceFailed,
    CommandFailed,
    PackageFailed,
    UnitFailed,
    UnitMasked,
    StillRunning,
    UpgradeRefused,
    Internal,
    /// A code of a newer guest.
    Other(Text),
}

impl RefusalCode {
    const KNOWN: [(&'static str, Self); 17] = [
        ("BadCommand", Self::BadCommand),
        ("BadRequest", Self::BadRequest),
        ("StaleEpoch", Self::StaleEpoch),
        ("WrongInstance", Self::WrongInstance),
        ("Busy", Self::Busy),
        ("NotInstalled", Self::NotInstalled),
        ("UserMissing", Self::UserMissing),
        ("WriteFailed", Self::WriteFailed),
        ("DiskFull", Self::DiskFull),
        ("SourceFailed", Self::SourceFailed),
        ("CommandFailed", Self::CommandFailed),
        ("PackageFailed", Self::PackageFailed),
        ("UnitFailed", Self::UnitFailed),
        ("UnitMasked", Self::UnitMasked),
        ("StillRunning", Self::StillRunning),
        ("UpgradeRefused", Self::UpgradeRefused),
        ("Internal", Self::Internal),
    ];

    /// The code as the guest wrote it.
    pub fn as_str(&self) -> &str {
        match self {
            Self::Other(code) => code.as_str(),
            known => Self::KNOWN
                .iter()
                .find(|(_, code)| code == known)
                .map_or("", |(name, _)| name),
        }
    }
}

impl From<Text> for RefusalCode {
    fn from(code: Text) -> Self {
        Self::KNOWN
            .into_iter()
            .find(|(name, _)| code == *name)
            .map_or(Self::Other(code), |(_, known)| known)
    }
}

impl<'de> Deserialize<'de> for RefusalCode {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        Text::deserialize(from).map(Self::from)
    }
}

/// A guest's reason for not doing as asked.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, thiserror::Error)]
#[error("the guest refused ({}): {message}", .code.as_str())]
pub struct Refusal {
    /// What kind of reason.
    pub code: RefusalCode,
    /// The reason in words.
    pub message: Text,
    /// The last lines of whatever failed.
    #[serde(default)]
    pub tail: Last<Text, 40>,
    /// With `StaleEpoch`: the epoch that the guest has stored.
    #[serde(default)]
    pub epoch: Option<u64>,
    /// Where the agent was started on something new and did not stay up: whether it is up again on what it had before.
    #[serde(default)]
    pub restored: Option<bool>,
}

impl Refusal {
    /// Whether the agent goes on with what it had.
    pub fn is_without_effect(&self) -> bool {
        self.restored
            .unwrap_or(self.code != RefusalCode::UnitFailed)
    }
}

/// Why an answer is none.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum AnswerError {
    /// The guest said no.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The guest speaks another version of the protocol.
    #[error("the guest speaks protocol {0}, this operator speaks {PROTOCOL}")]
    Protocol(u32),
    /// The answer does not have the form of one. Its text is not repeated: it may hold secrets.
    #[error("the guest's answer is malformed at line {line}, column {column}")]
    Malformed {
        /// Line of the first fault, from one.
        line: usize,
        /// Column of the first fault.
        column: usize,
    },
}

impl From<serde_json::Error> for AnswerError {
    fn from(error: serde_json::Error) -> Self {
        Self::Malformed {
            line: error.line(),
            column: error.column(),
        }
    }
}

/// What every answer begins with.
#[derive(Deserialize)]
struct Envelope {
    protocol: u32,
    guest: Text,
    ok: bool,
    error: Option<Refusal>,
    epoch: Option<u64>,
    restored: Option<bool>,
}

/// An answer together with the version of the guest that gave it.
#[derive(Clone, Debug)]
pub struct Answered<T> {
    /// The guest's version.
    pub guest: Text,
    /// What it said.
    pub answer: T,
}

/// Reads an answer.
///
/// # Errors
/// When the guest refused, speaks another protocol, or the bytes are no answer.
pub fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<Answered<T>, AnswerError> {
    let envelope: Envelope = serde_json::from_slice(bytes)?;
    if envelope.protocol != PROTOCOL {
        return Err(AnswerError::Protocol(envelope.protocol));
    }
    if !envelope.ok {
        let refusal = envelope
            .error
            .ok_or(AnswerError::Malformed { line: 1, column: 0 })?;
        let told = Refusal {
            epoch: refusal.epoch.or(envelope.epoch),
            restored: refusal.restored.or(envelope.restored),
            ..refusal
        };
        return Err(told.into());
    }
    Ok(Answered {
        guest: envelope.guest,
        answer: serde_json::from_slice(bytes)?,
    })
}

#[cfg(test)]
mod tests {
    use super::super::answers::{Configured, Phase, StepState};
    use super::*;
    use secrecy::ExposeSecret;
    use serde_json::json;

    fn read<T: DeserializeOwned>(value: &serde_json::Value) -> Result<Answered<T>, AnswerError> {
        parse(value.to_string().as_bytes())
    }

    fn greeting() -> serde_json::Value {
        json!({
            "protocol": 1, "guest": "0.1.0", "ok": true, "server": "a-1",
            "macs": {"boot": "ab".repeat(32)}, "progress": "7", "phase": "Installing",
            "steps": [{"name": "packages", "state": "Running", "seconds": 1.5, "tail": ["x"]}],
            "armed": null, "everArmed": false, "epoch": 0, "applied": null, "unit": null,
            "fromTheFuture": {"deep": [1]},
        })
    }

    #[test]
    fn a_greeting_is_read_and_unknown_fields_are_passed_over() {
        let said = read::<Greeting>(&greeting()).unwrap();
        assert_eq!(said.guest, "0.1.0");
        assert_eq!(said.answer.macs.boot, Some([0xab; 32]));
        assert_eq!(said.answer.macs.resume, None);
        assert_eq!(said.answer.phase, Phase::Installing);
        assert_eq!(said.answer.steps[0].state, StepState::Running);
    }

    #[test]
    fn a_missing_mistyped_or_impossible_field_is_malformed() {
        for (field, value) in [
            ("phase", json!("Confused")),
            ("epoch", json!(-1)),
            ("epoch", json!("1")),
            ("macs", json!({"boot": "ab"})),
            ("everArmed", json!(null)),
            ("steps", json!("none")),
        ] {
            let mut broken = greeting();
            broken[field] = value;
            let result = read::<Greeting>(&broken);
            assert!(
                matches!(result, Err(AnswerError::Malformed { .. })),
                "{field}"
            );
        }
        let mut missing = greeting();
        missing.as_object_mut().unwrap().remove("progress");
        assert!(read::<Greeting>(&missing).is_err());
        assert!(parse::<Greeting>(b"").is_err());
        assert!(parse::<Greeting>(b"\xff\xfe").is_err());
        assert!(parse::<Greeting>("[".repeat(100_000).as_bytes()).is_err());
    }

    #[test]
    fn a_malformed_answer_is_not_repeated_in_the_error() {
        let answer = json!({
            "protocol": 1, "guest": "1", "ok": true, "released": "canary-value", "kept": [],
        });
        let error = read::<Released>(&answer).unwrap_err();
        assert!(!format!("{error} {error:?}").contains("canary"));
    }

    #[test]
    fn a_refusal_tells_code_reason_tail_and_epoch() {
        let answer = json!({
            "protocol": 1, "guest": "1", "ok": false, "epoch": 9,
            "error": {"code": "StaleEpoch", "message": "older\u{1b}[2J", "tail": ["a", "b"]},
        });
        let AnswerError::Refused(refusal) = read::<Configured>(&answer).unwrap_err() else {
            panic!("no refusal");
        };
        assert_eq!(refusal.code, RefusalCode::StaleEpoch);
        assert_eq!(refusal.epoch, Some(9));
        assert_eq!(refusal.message, "older[2J");
        assert_eq!(
            refusal.to_string(),
            "the guest refused (StaleEpoch): older[2J"
        );
    }

    #[test]
    fn the_agent_goes_on_unless_its_unit_failed_and_what_it_had_was_not_put_back() {
        let refusal = |code: &str, restored: serde_json::Value| {
            let error = json!({"code": code, "message": "m"});
            let answer = json!({
                "protocol": 1, "guest": "1", "ok": false, "error": error, "restored": restored,
            });
            match read::<Configured>(&answer) {
                Err(AnswerError::Refused(refusal)) => refusal.is_without_effect(),
                answer => panic!("{answer:?}"),
            }
        };
        assert!(refusal("DiskFull", json!(null)));
        assert!(!refusal("UnitFailed", json!(null)));
        assert!(refusal("UnitFailed", json!(true)));
        assert!(!refusal("StillRunning", json!(false)));
    }

    #[test]
    fn every_code_is_read_back_as_itself() {
        for (name, code) in RefusalCode::KNOWN {
            assert_eq!(RefusalCode::from(Text::new(name)), code);
            assert_eq!(code.as_str(), name);
        }
        let newer = RefusalCode::from(Text::new("MoonPhase"));
        assert_eq!(newer.as_str(), "MoonPhase");
    }

    #[test]
    fn another_protocol_is_named() {
        let mut other = greeting();
        other["protocol"] = json!(2);
        assert_eq!(
            read::<Greeting>(&other).unwrap_err(),
            AnswerError::Protocol(2)
        );
    }

    #[test]
    fn a_hello_asks_with_a_fresh_nonce_and_a_bounded_wait() {
        let (one, other) = (
            Hello::new(Duration::from_mins(15), "7"),
            Hello::new(Duration::ZERO, ""),
        );
        assert_ne!(one.nonce(), other.nonce());
        let stdin: serde_json::Value =
            serde_json::from_slice(one.stdin().unwrap().expose_secret()).unwrap();
        assert_eq!(
            stdin,
            json!({"nonce": one.nonce(), "wait": 25, "seen": "7"})
        );
        assert_eq!(one.nonce().len(), 64);
    }

    #[test]
    fn a_kept_file_travels_unread() {
        let answer = json!({
            "protocol": 1, "guest": "1", "ok": true, "released": true,
            "kept": [{"path": "/h/.c", "mode": "0600", "owner": "agent", "declaredTag": "t",
                      "content": "Y2FuYXJ5"}],
        });
        let kept = read::<Released>(&answer).unwrap().answer.kept;
        assert!(!format!("{kept:?}").contains("Y2FuYXJ5"));
        let sent = serde_json::to_value(&kept[0]).unwrap();
        assert_eq!(sent, answer["kept"][0]);
    }
}
