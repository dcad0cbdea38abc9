//! What cloud-init would make of a server's user-data.
//!
//! Decoding follows cloud-init's own Hetzner data source: base64 where it is that, then gzip where it is
//! that. Of the modules those count that the operator may use: files, users' keys, `runcmd`, `phone_home`.

use std::io::{self, Read};
use std::path::{Component, Path, PathBuf};

use base64::Engine;
use base64::alphabet::STANDARD as STANDARD_ALPHABET;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig, STANDARD};
use flate2::read::GzDecoder;
use russh::keys::PublicKey;
use serde::Deserialize;

/// The most that user-data may unpack to, in bytes.
const MAX_UNPACKED: u64 = 4 << 20;
/// Base64 as Python's `b64decode` takes it with `validate`.
const LIKE_PYTHON: GeneralPurpose = GeneralPurpose::new(
    &STANDARD_ALPHABET,
    GeneralPurposeConfig::new().with_decode_allow_trailing_bits(true),
);
/// Where the guest program is installed.
const GUEST: &str = "/usr/local/lib/agentfleet/guest";

/// Why user-data cannot be applied.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CloudInitError {
    #[error("user-data cannot be unpacked")]
    Packed(#[source] io::Error),
    #[error("user-data is not a cloud-config")]
    NotCloudConfig,
    #[error("user-data is not valid YAML: {0}")]
    Yaml(String),
    #[error("cannot write {path}")]
    Write {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("file {0} has content that cannot be decoded")]
    Content(String),
}

/// The part of a cloud-config that counts here; the rest is ignored.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct CloudConfig {
    write_files: Vec<WriteFile>,
    users: Vec<User>,
    runcmd: Vec<Command>,
    pub(crate) phone_home: Option<PhoneHome>,
}

#[derive(Debug, Deserialize)]
struct WriteFile {
    path: String,
    #[serde(default)]
    content: String,
    #[serde(default)]
    encoding: String,
    permissions: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum User {
    Named(NamedUser),
    /// `default`, which is the image's own user.
    #[expect(dead_code, reason = "it is only read to be passed over")]
    Default(String),
}

#[derive(Debug, Deserialize)]
struct NamedUser {
    name: String,
    #[serde(default, alias = "ssh-authorized-keys")]
    ssh_authorized_keys: Vec<String>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Command {
    Words(Vec<String>),
    Shell(String),
}

/// The call that tells of a finished boot.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct PhoneHome {
    pub(crate) url: String,
    #[serde(default)]
    post: Post,
    #[serde(default = "ten")]
    pub(crate) tries: u32,
}

fn ten() -> u32 {
    10
}

#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
enum Post {
    Fields(Vec<String>),
    /// `all`, which is also the default.
    #[expect(dead_code, reason = "there is no other word")]
    All(String),
}

impl Default for Post {
    fn default() -> Self {
        Self::All("all".to_owned())
    }
}

impl PhoneHome {
    /// Whether a field is to be posted.
    pub(crate) fn posts(&self, field: &str) -> bool {
        match &self.post {
            Post::Fields(fields) => fields.iter().any(|wanted| wanted == field),
            Post::All(_) => true,
        }
    }
}

/// One key that may log in.
#[derive(Debug, Clone)]
pub(crate) struct Login {
    pub(crate) user: String,
    pub(crate) key: PublicKey,
    /// What is run instead of the client's command.
    pub(crate) forced_command: Option<String>,
}

impl Login {
    /// One line of an `authorized_keys` file.
    fn parse(user: &str, line: &str) -> Option<Self> {
        let (options, key) = if PublicKey::from_openssh(line).is_ok() {
            ("", line)
        } else {
            split_options(line)
        };
        let key = PublicKey::from_openssh(key).ok()?;
        let forced_command = forced_command(options);
        Some(Self {
            user: user.to_owned(),
            key,
            forced_command,
        })
    }

    /// Whether this login runs the guest and nothing else.
    pub(crate) fn is_guest(&self) -> bool {
        self.forced_command
            .as_ref()
            .is_some_and(|command| command.contains(&format!("{GUEST} ssh")))
    }
}

/// What cloud-init's data source for Hetzner makes of user-data before cloud-init itself sees it: base64 is
/// decoded where all of it is that, without so much as a line end.
pub(crate) fn maybe_b64decode(user_data: &str) -> Vec<u8> {
    let decoded = LIKE_PYTHON.decode(user_data);
    decoded.unwrap_or_else(|_| user_data.as_bytes().to_vec())
}

/// Unpacks user-data as cloud-init does.
pub(crate) fn decode(user_data: &str) -> Result<String, CloudInitError> {
    let bytes = gunzip(maybe_b64decode(user_data)).map_err(CloudInitError::Packed)?;
    String::from_utf8(bytes).map_err(|_| CloudInitError::NotCloudConfig)
}

fn gunzip(bytes: Vec<u8>) -> io::Result<Vec<u8>> {
    if !bytes.starts_with(&[0x1f, 0x8b]) {
        return Ok(bytes);
    }
    let mut unpacked = Vec::new();
    GzDecoder::new(bytes.as_slice())
        .take(MAX_UNPACKED)
        .read_to_end(&mut unpacked)?;
    Ok(unpacked)
}

impl CloudConfig {
    pub(crate) fn parse(user_data: &str) -> Result<Self, CloudInitError> {
        let text = decode(user_data)?;
        if !text.trim_start().starts_with("#cloud-config") {
            return Err(CloudInitError::NotCloudConfig);
        }
        serde_saphyr::from_str(&text).map_err(|error| CloudInitError::Yaml(error.to_string()))
    }

    /// Who may log in. A line that is no key is skipped, as sshd does.
    pub(crate) fn logins(&self) -> Vec<Login> {
        let named = self.users.iter().filter_map(|user| match user {
            User::Named(user) => Some(user),
            User::Default(_) => None,
        });
        let logins = named.flat_map(|user| {
            let lines = user.ssh_authorized_keys.iter();
            lines.filter_map(|line| Login::parse(&user.name, line.trim()))
        });
        logins.collect()
    }

    /// Writes the files below `root`, with their permissions; owners are ignored.
    pub(crate) fn write_files(&self, root: &Path) -> Result<(), CloudInitError> {
        self.write_files
            .iter()
            .try_for_each(|file| file.write(root))
    }

    /// What the guest is run with because `runcmd` starts a unit of its.
    ///
    /// Call it after the files are written.
    pub(crate) fn guest_units(&self, root: &Path) -> Vec<Vec<String>> {
        let started = self.runcmd.iter().map(|command| match command {
            Command::Words(words) => words.clone(),
            Command::Shell(line) => line.split_whitespace().map(str::to_owned).collect(),
        });
        let units = started.filter(|words: &Vec<String>| {
            words
                .first()
                .is_some_and(|word| word.rsplit('/').next() == Some("systemctl"))
        });
        units
            .filter_map(|words| guest_arguments(root, words.last()?))
            .collect()
    }
}

/// The options that stand before a key: up to the first space outside quotes.
///
/// The parser of the `ssh-key` crate ends them at any space, also one within `command="…"`.
fn split_options(line: &str) -> (&str, &str) {
    let (mut quoted, mut escaped) = (false, false);
    for (at, c) in line.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' if quoted => escaped = true,
            '"' => quoted = !quoted,
            ' ' if !quoted => return (&line[..at], line[at..].trim_start()),
            _ => {}
        }
    }
    ("", line)
}

/// The value of `command="…"` among the options.
fn forced_command(options: &str) -> Option<String> {
    let value = options.split_once("command=\"")?.1;
    let (mut command, mut escaped) = (String::new(), false);
    for c in value.chars() {
        match c {
            '\\' if !escaped => escaped = true,
            '"' if !escaped => return Some(command),
            _ => {
                escaped = false;
                command.push(c);
            }
        }
    }
    None
}

/// The guest's arguments in the unit's `ExecStart`, where the unit runs the guest.
fn guest_arguments(root: &Path, unit: &str) -> Option<Vec<String>> {
    let text = std::fs::read_to_string(root.join("etc/systemd/system").join(unit)).ok()?;
    let start = text
        .lines()
        .find_map(|line| line.trim().strip_prefix("ExecStart="))?;
    let words = start
        .trim_start_matches(['-', '+', '!', ':', '@'])
        .split_whitespace();
    let words: Vec<String> = words.map(str::to_owned).collect();
    let at = words.iter().position(|word| word == GUEST)?;
    Some(words[at + 1..].to_vec())
}

impl WriteFile {
    fn write(&self, root: &Path) -> Result<(), CloudInitError> {
        let path = below(root, &self.path);
        let failed = |source| CloudInitError::Write {
            path: path.clone(),
            source,
        };
        let content = self.decoded()?;
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent).map_err(failed)?;
        }
        std::fs::write(&path, content).map_err(failed)?;
        let mode = self.permissions.as_deref().unwrap_or("0644");
        let mode = u32::from_str_radix(mode.trim_start_matches("0o"), 8).unwrap_or(0o644);
        let permissions = std::os::unix::fs::PermissionsExt::from_mode(mode);
        std::fs::set_permissions(&path, permissions).map_err(failed)
    }

    fn decoded(&self) -> Result<Vec<u8>, CloudInitError> {
        let bad = || CloudInitError::Content(self.path.clone());
        let base64 = || {
            let packed: String = self.content.split_whitespace().collect();
            STANDARD.decode(packed).map_err(|_| bad())
        };
        match self.encoding.as_str() {
            "" | "text/plain" => Ok(self.content.clone().into_bytes()),
            "b64" | "base64" => base64(),
            "gz+b64" | "gz+base64" | "gzip+b64" | "gzip+base64" => {
                gunzip(base64()?).map_err(|_| bad())
            }
            _ => Err(bad()),
        }
    }
}

/// An absolute path of the machine, in its scratch directory, whatever dots it holds.
fn below(root: &Path, path: &str) -> PathBuf {
    let parts = Path::new(path).components();
    let named = parts.filter_map(|part| match part {
        Component::Normal(name) => Some(name),
        _ => None,
    });
    named.fold(root.to_owned(), |path, name| path.join(name))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use flate2::Compression;
    use flate2::write::GzEncoder;

    use super::*;

    const KEY: &str =
        "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJdD7y3aLq454yWBdwLWbieU1ebz9/cu7/QEXn9OIeZJ";

    fn gzip(text: &str) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
        encoder.write_all(text.as_bytes()).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn user_data_is_unpacked_as_cloud_init_does() {
        let text = "#cloud-config\nusers: []\n";
        assert_eq!(decode(text).unwrap(), text);
        assert_eq!(decode(&STANDARD.encode(text)).unwrap(), text);
        assert_eq!(decode(&STANDARD.encode(gzip(text))).unwrap(), text);
    }

    #[test]
    fn only_what_is_base64_to_its_last_byte_is_decoded() {
        assert_eq!(maybe_b64decode("eA=="), b"x");
        // Python takes bits that belong to no byte.
        assert_eq!(maybe_b64decode("eB=="), b"x");
        for other in ["eA==\n", "eA=", "#cloud-config", "e A=="] {
            assert_eq!(maybe_b64decode(other), other.as_bytes());
        }
    }

    #[test]
    fn a_forced_command_with_quotes_is_kept_whole() {
        let line = format!(
            r#"restrict,command="sudo -n {GUEST} ssh \"$SSH_ORIGINAL_COMMAND\"" {KEY} operator"#
        );
        let config = serde_json::json!({"users": [
            "default",
            {"name": "agentfleet", "ssh_authorized_keys": [line]},
            {"name": "agentfleet-admin", "ssh_authorized_keys": [KEY, "no key"]},
        ]});
        let config = CloudConfig::parse(&format!("#cloud-config\n{config}")).unwrap();
        let logins = config.logins();
        assert_eq!(logins.len(), 2);
        let command = format!("sudo -n {GUEST} ssh \"$SSH_ORIGINAL_COMMAND\"");
        assert_eq!(logins[0].forced_command.as_ref(), Some(&command));
        assert!(logins[0].is_guest());
        assert_eq!(
            (logins[1].user.as_str(), logins[1].is_guest()),
            ("agentfleet-admin", false)
        );
    }

    #[test]
    fn whatever_is_no_cloud_config_is_refused() {
        let refused = CloudConfig::parse("#!/bin/sh\necho");
        assert!(matches!(refused, Err(CloudInitError::NotCloudConfig)));
        assert!(matches!(
            CloudConfig::parse("#cloud-config\nusers: {"),
            Err(CloudInitError::Yaml(_))
        ));
    }

    #[test]
    fn files_land_below_the_root_whatever_their_path() {
        assert_eq!(
            below(Path::new("/r"), "/etc/../../x"),
            Path::new("/r/etc/x")
        );
    }
}
