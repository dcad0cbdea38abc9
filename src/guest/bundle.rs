//! What `configure` and `upgrade` send: a tar, built in memory and wiped afterwards.
//!
//! The first member is `request.json`, then come the contents it names. The archive is
//! deterministic, and it is allocated in one piece: a buffer that grew would leave copies of
//! secrets behind.

use std::collections::BTreeMap;
use std::io;

use secrecy::zeroize::Zeroizing;
use secrecy::{ExposeSecret, SecretSlice, SecretString};
use serde::Serialize;
use sha2::{Digest, Sha256};
use tar::{Builder, EntryType, Header};

use super::answers::{Configured, KeptFile, Upgraded, expose};
use super::protocol::{Command, Verb};
use super::untrusted::Text;
use crate::keys::SecretKey32;

/// The agent as the guest installs and updates it: `agent.json`, and part of `configure`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Description {
    /// UID of the instance.
    pub instance: String,
    /// The incarnation that this server is.
    pub incarnation: u32,
    /// The user that the agent runs as.
    pub user: String,
    /// Packages of the distribution.
    pub packages: Vec<String>,
    /// Where the agent's code comes from.
    pub source: Option<Source>,
    /// Commands for the first installation.
    pub install: Vec<String>,
    /// Commands after a new ref.
    pub update: Vec<String>,
    /// Files without secrets.
    pub files: Vec<PlainFile>,
    /// Environment of the unit.
    pub environment: BTreeMap<String, String>,
    /// The unit.
    pub unit: UnitFile,
    /// Secret files without which the unit must not start.
    pub secret_paths: Vec<String>,
    /// Hash of all this as the class declares it.
    pub config_revision: String,
}

/// A git repository and where it is cloned to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[expect(missing_docs, reason = "each says what its name says")]
pub struct Source {
    pub url: String,
    #[serde(rename = "ref")]
    pub reference: String,
    pub directory: String,
}

/// A file without secrets.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[expect(missing_docs, reason = "each says what its name says")]
pub struct PlainFile {
    pub path: String,
    pub mode: String,
    pub owner: String,
    pub content: String,
}

/// Name and text of the agent's unit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[expect(missing_docs, reason = "each says what its name says")]
pub struct UnitFile {
    pub name: String,
    pub text: String,
}

/// A secret file as declared.
#[derive(Debug)]
pub struct SecretFile {
    /// Absolute path.
    pub path: String,
    /// Octal digits.
    pub mode: String,
    /// A user of the server.
    pub owner: String,
    /// Tag of path and content, by the server's tag key.
    pub tag: String,
    /// Whether the agent's own changes to it are kept.
    pub agent_may_change: bool,
    /// The content.
    pub content: SecretSlice<u8>,
}

/// Gives a server everything that its agent needs, and the voice.
#[derive(Debug)]
pub struct Configure {
    /// The instance's epoch, freshly written ahead.
    pub epoch: u64,
    /// The key that proves the host key from now on.
    pub resume_key: SecretKey32,
    /// The agent.
    pub description: Description,
    /// Tag over all secret files.
    pub secrets_tag: String,
    /// The secret files.
    pub secret_files: Vec<SecretFile>,
    /// Files that the last holder of the voice gave up; see [`Configure::bring_along`].
    pub kept: Vec<KeptFile>,
}

/// Replaces the guest program.
#[derive(Clone, Copy, Debug)]
pub struct Upgrade<'a> {
    /// The instance's epoch.
    pub epoch: u64,
    /// The new program.
    pub program: &'a str,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ConfigureRequest<'a> {
    epoch: u64,
    instance: &'a str,
    incarnation: u32,
    #[serde(serialize_with = "expose")]
    resume_key: SecretString,
    description: &'a Description,
    secrets_tag: &'a str,
    secret_files: Vec<SecretFileEntry<'a>>,
    kept: &'a [KeptFile],
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct SecretFileEntry<'a> {
    path: &'a str,
    mode: &'a str,
    owner: &'a str,
    member: String,
    tag: &'a str,
    agent_may_change: bool,
}

#[derive(Serialize)]
struct UpgradeRequest {
    epoch: u64,
    sha256: String,
}

impl Configure {
    /// Takes along what the agent made of its files elsewhere.
    ///
    /// It comes from a server that the agent may own: only declared files that the agent may
    /// change are taken, with the declared mode and owner.
    pub fn bring_along(&mut self, kept: impl IntoIterator<Item = KeptFile>) {
        for file in kept {
            let declared =
                |secret: &&SecretFile| secret.agent_may_change && secret.path == file.path.as_str();
            if file.content.is_none() {
                tracing::warn!(path = file.path.as_str(), "too large to be brought along");
                continue;
            }
            if let Some(secret) = self.secret_files.iter().find(declared) {
                self.kept.push(KeptFile {
                    mode: Text::new(&secret.mode),
                    owner: Text::new(&secret.owner),
                    ..file
                });
            }
        }
    }

    fn request(&self) -> ConfigureRequest<'_> {
        ConfigureRequest {
            epoch: self.epoch,
            instance: &self.description.instance,
            incarnation: self.description.incarnation,
            resume_key: self.resume_key.to_hex(),
            description: &self.description,
            secrets_tag: &self.secrets_tag,
            secret_files: self
                .secret_files
                .iter()
                .enumerate()
                .map(SecretFileEntry::new)
                .collect(),
            kept: &self.kept,
        }
    }
}

impl<'a> SecretFileEntry<'a> {
    fn new((at, file): (usize, &'a SecretFile)) -> Self {
        Self {
            path: &file.path,
            mode: &file.mode,
            owner: &file.owner,
            member: member(at),
            tag: &file.tag,
            agent_may_change: file.agent_may_change,
        }
    }
}

impl Command for Configure {
    type Answer = Configured;
    const VERB: Verb = Verb::Configure;

    fn stdin(&self) -> io::Result<SecretSlice<u8>> {
        let names: Vec<String> = (0..self.secret_files.len()).map(member).collect();
        let contents = self
            .secret_files
            .iter()
            .map(|file| file.content.expose_secret());
        let members = names.iter().map(String::as_str).zip(contents);
        archive(&self.request(), &members.collect::<Vec<_>>())
    }
}

impl Command for Upgrade<'_> {
    type Answer = Upgraded;
    const VERB: Verb = Verb::Upgrade;

    fn stdin(&self) -> io::Result<SecretSlice<u8>> {
        let program = self.program.as_bytes();
        let request = UpgradeRequest {
            epoch: self.epoch,
            sha256: hex::encode(Sha256::digest(program)),
        };
        archive(&request, &[("program", program)])
    }
}

fn member(at: usize) -> String {
    format!("files/{at}")
}

/// A tar of `request.json` and the members.
fn archive(request: &impl Serialize, members: &[(&str, &[u8])]) -> io::Result<SecretSlice<u8>> {
    let request = Zeroizing::new(serde_json::to_vec(request)?);
    let all = std::iter::once(("request.json", request.as_slice())).chain(members.iter().copied());
    let blocks = |bytes: &[u8]| 512 + bytes.len().next_multiple_of(512);
    let size = all.clone().map(|(_, bytes)| blocks(bytes)).sum::<usize>() + 1024;
    let mut tar = Builder::new(Vec::with_capacity(size));
    for (name, bytes) in all {
        append(&mut tar, name, bytes)?;
    }
    let written = tar.into_inner()?;
    debug_assert_eq!(written.len(), size, "the buffer must not have grown");
    Ok(written.into())
}

fn append(tar: &mut Builder<Vec<u8>>, name: &str, bytes: &[u8]) -> io::Result<()> {
    let mut header = Header::new_ustar();
    header.set_entry_type(EntryType::Regular);
    header.set_path(name)?;
    header.set_mode(0o600);
    header.set_size(bytes.len() as u64);
    header.set_cksum();
    tar.append(&header, bytes)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::keys::MasterKey;
    use std::io::Read;

    pub(in crate::guest) fn configure() -> Configure {
        let master = MasterKey::new("fleet-1", &[7; 32]).unwrap();
        let keys = master.server_keys("a-1");
        let secret = |path: &str, content: &[u8]| SecretFile {
            path: path.into(),
            mode: "0600".into(),
            owner: "agent".into(),
            tag: keys.tag(path, content),
            agent_may_change: true,
            content: content.to_vec().into(),
        };
        Configure {
            epoch: 4,
            resume_key: keys.resume_proof.clone(),
            secret_files: vec![
                secret("/h/.env", b"TOKEN=canary\n"),
                secret("/h/c", &[0; 1024]),
            ],
            description: description(),
            secrets_tag: "tag".into(),
            kept: vec![],
        }
    }

    pub(crate) fn description() -> Description {
        Description {
            instance: "uid-1".into(),
            incarnation: 1,
            user: "agent".into(),
            packages: vec!["git".into()],
            source: Some(Source {
                url: "https://git.example/a".into(),
                reference: "v1".into(),
                directory: "/home/agent/a".into(),
            }),
            install: vec!["make".into()],
            update: vec!["make".into()],
            files: vec![],
            environment: BTreeMap::new(),
            unit: UnitFile {
                name: "agent.service".into(),
                text: "[Service]\n".into(),
            },
            secret_paths: vec!["/h/.env".into()],
            config_revision: "rev".into(),
        }
    }

    fn members(tar: &SecretSlice<u8>) -> Vec<(String, Vec<u8>)> {
        let mut archive = tar::Archive::new(tar.expose_secret());
        let read = |entry: std::io::Result<tar::Entry<'_, &[u8]>>| {
            let mut entry = entry.unwrap();
            let mut content = Vec::new();
            entry.read_to_end(&mut content).unwrap();
            (entry.path().unwrap().display().to_string(), content)
        };
        archive.entries().unwrap().map(read).collect()
    }

    #[test]
    fn a_configure_holds_the_request_first_and_then_each_file() {
        let asked = configure();
        let members = members(&asked.stdin().unwrap());
        let names: Vec<&str> = members.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["request.json", "files/0", "files/1"]);
        let request: serde_json::Value = serde_json::from_slice(&members[0].1).unwrap();
        assert_eq!(request["epoch"], 4);
        assert_eq!(request["instance"], "uid-1");
        assert_eq!(request["incarnation"], 1);
        assert_eq!(request["description"]["source"]["ref"], "v1");
        assert_eq!(request["secretFiles"][1]["member"], "files/1");
        assert_eq!(request["secretFiles"][0]["agentMayChange"], true);
        assert_eq!(
            request["resumeKey"],
            asked.resume_key.to_hex().expose_secret()
        );
        assert_eq!(members[1].1, b"TOKEN=canary\n");
        assert_eq!(members[2].1, [0; 1024]);
    }

    #[test]
    fn the_same_configure_is_the_same_bytes() {
        assert_eq!(
            configure().stdin().unwrap().expose_secret(),
            configure().stdin().unwrap().expose_secret()
        );
    }

    #[test]
    fn debug_output_holds_no_secret() {
        let asked = configure();
        let shown = format!("{asked:?} {:?}", asked.stdin().unwrap());
        assert!(!shown.contains("canary"));
        assert!(!shown.contains(asked.resume_key.to_hex().expose_secret()));
    }

    #[test]
    fn only_declared_files_are_brought_along_with_the_declared_mode_and_owner() {
        let kept = |path: &str| KeptFile {
            path: Text::new(path),
            mode: Text::new("4777"),
            owner: Text::new("root"),
            declared_tag: Text::new("00"),
            content: Some("eA==".into()),
        };
        let mut asked = configure();
        asked.secret_files[1].agent_may_change = false;
        asked.bring_along([kept("/h/.env"), kept("/h/c"), kept("/etc/shadow")]);
        let brought: Vec<(&str, &str, &str)> = asked
            .kept
            .iter()
            .map(|file| (file.path.as_str(), file.mode.as_str(), file.owner.as_str()))
            .collect();
        assert_eq!(brought, [("/h/.env", "0600", "agent")]);
    }

    #[test]
    fn an_upgrade_names_the_hash_of_its_program() {
        let upgrade = Upgrade {
            epoch: 2,
            program: "print()\n",
        };
        let members = members(&upgrade.stdin().unwrap());
        let request: serde_json::Value = serde_json::from_slice(&members[0].1).unwrap();
        assert_eq!(request["sha256"], hex::encode(Sha256::digest("print()\n")));
        assert_eq!(members[1], ("program".to_owned(), b"print()\n".to_vec()));
    }
}
