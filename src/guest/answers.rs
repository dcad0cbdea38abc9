//! What a guest may answer, verb by verb.
//!
//! A missing or mistyped field makes the whole answer malformed; an unknown one is passed over.

use std::collections::BTreeMap;

use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::untrusted::{Last, Text, hex32, text_map};

/// How far boot and installation are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[expect(missing_docs, reason = "each says what its name says")]
pub enum Phase {
    Pending,
    Installing,
    Installed,
    Failed,
}

/// State of one step of the installation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[expect(missing_docs, reason = "each says what its name says")]
pub enum StepState {
    Pending,
    Running,
    Done,
    Failed,
}

/// One step of the installation.
#[derive(Clone, Debug, Deserialize)]
pub struct Step {
    /// What it does, as `packages` or `source`.
    pub name: Text,
    /// Where it stands.
    pub state: StepState,
    /// How long it took or has taken.
    #[serde(default)]
    pub seconds: f64,
    /// The last lines of its log.
    #[serde(default)]
    pub tail: Last<Text, 40>,
}

/// The proofs that came with a greeting.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct Macs {
    /// By the boot proof key, until it is deleted.
    #[serde(default, deserialize_with = "hex32")]
    pub boot: Option<[u8; 32]>,
    /// By the resume proof key, since the first `configure`.
    #[serde(default, deserialize_with = "hex32")]
    pub resume: Option<[u8; 32]>,
}

/// Whose voice a server holds.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Armed {
    /// UID of the instance.
    pub instance: Text,
    /// The incarnation this server was armed as.
    pub incarnation: u32,
}

/// What a server has applied.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Applied {
    /// The config revision.
    pub config_revision: Text,
    /// The tag over all secret files.
    pub secrets_tag: Text,
    /// Path and tag of each secret file.
    #[serde(default, deserialize_with = "text_map")]
    pub files: BTreeMap<Text, Text>,
}

/// What systemd says of the agent's unit.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct Unit {
    /// `LoadState`, as `loaded` or `masked`.
    pub load: Text,
    /// `ActiveState`, as `active` or `failed`.
    pub active: Text,
    /// `SubState`, as `running`.
    pub sub: Text,
    /// `Result`, as `success` or `exit-code`.
    #[serde(default)]
    pub result: Text,
    /// `NRestarts`.
    #[serde(default)]
    pub restarts: u64,
    /// When the unit reached this state.
    #[serde(default)]
    pub since: Option<Text>,
}

impl Unit {
    /// Says whether the unit is up.
    pub fn is_active(&self) -> bool {
        self.active == "active"
    }
}

/// Answer to `hello`.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Greeting {
    /// The server's name, as user-data told it.
    pub server: Text,
    /// Proofs of the host key.
    #[serde(default)]
    pub macs: Macs,
    /// Token of this progress, for the next `hello`.
    pub progress: Text,
    /// How far boot and installation are.
    pub phase: Phase,
    /// The steps of the installation.
    #[serde(default)]
    pub steps: Last<Step, 64>,
    /// Whose voice the server holds.
    pub armed: Option<Armed>,
    /// Whether it ever held one.
    pub ever_armed: bool,
    /// The highest epoch it has seen.
    pub epoch: u64,
    /// What it has applied.
    pub applied: Option<Applied>,
    /// The agent's unit, once there is one.
    pub unit: Option<Unit>,
}

/// Answer to `configure`.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Configured {
    /// Whether the server now holds the voice.
    pub armed: bool,
    /// The epoch it stored.
    pub epoch: u64,
    /// The config revision it applied.
    pub config_revision: Text,
    /// The tag of the secret files it applied.
    pub secrets_tag: Text,
    /// Paths of the files it wrote or removed.
    #[serde(default)]
    pub changed: Last<Text, 256>,
    /// Whether the unit was started again.
    pub restarted: bool,
    /// The agent's unit.
    pub unit: Unit,
}

/// Answer to `status`.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// The agent's unit, once there is one.
    pub unit: Option<Unit>,
    /// Whose voice the server holds.
    pub armed: Option<Armed>,
    /// The highest epoch it has seen.
    pub epoch: u64,
    /// What it has applied.
    pub applied: Option<Applied>,
    /// Its root file system.
    pub disk: Disk,
    /// How far the installation is.
    pub phase: Phase,
}

/// Size of a file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Disk {
    /// All of it.
    pub total_bytes: u64,
    /// What is left.
    pub free_bytes: u64,
}

/// Answer to `restart`.
#[derive(Clone, Debug, Deserialize)]
pub struct Restarted {
    /// The agent's unit.
    pub unit: Unit,
}

/// Answer to `logs`.
#[derive(Clone, Debug, Deserialize)]
pub struct Logs {
    /// The unit's last lines.
    pub journal: Last<Text, 200>,
}

/// Answer to `probe`.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Probed {
    /// The command's exit code, if it ended by itself.
    pub exit: Option<i32>,
    /// Whether it was killed.
    pub timed_out: bool,
    /// Its last lines.
    #[serde(default)]
    pub output: Last<Text, 40>,
}

/// Answer to `release`.
#[derive(Clone, Debug, Deserialize)]
pub struct Released {
    /// Whether the voice is given up and nothing of the agent runs.
    pub released: bool,
    /// Files that the agent may have changed, to be brought along.
    #[serde(default)]
    pub kept: Last<KeptFile, 64>,
}

/// A secret file as the agent left it.
///
/// It comes from a server that the agent may own: it goes to another one only by way of
/// [`Configure::bring_along`](super::bundle::Configure::bring_along).
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct KeptFile {
    /// Where it was.
    pub path: Text,
    /// Its mode in octal digits.
    pub mode: Text,
    /// Its owner.
    pub owner: Text,
    /// The tag of the declared content that it grew from.
    pub declared_tag: Text,
    /// The content in base64; none where it is too large to be brought along.
    #[serde(deserialize_with = "secret", serialize_with = "expose_if_any")]
    pub content: Option<SecretString>,
}

/// Answer to `upgrade`.
#[derive(Clone, Copy, Debug, Deserialize)]
pub struct Upgraded {
    /// Whether the new program is in place.
    pub upgraded: bool,
}

fn secret<'de, D: Deserializer<'de>>(from: D) -> Result<Option<SecretString>, D::Error> {
    Ok(Option::<String>::deserialize(from)?.map(SecretString::from))
}

/// Writes a secret into a request that is itself kept secret.
pub(super) fn expose<S: Serializer>(value: &SecretString, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(value.expose_secret())
}

#[expect(
    clippy::ref_option,
    reason = "serde calls it with a reference to the field"
)]
fn expose_if_any<S: Serializer>(value: &Option<SecretString>, to: S) -> Result<S::Ok, S::Error> {
    match value {
        Some(value) => expose(value, to),
        None => to.serialize_none(),
    }
}
