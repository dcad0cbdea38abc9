//! User-data: what a server needs to boot, and nothing that it does not.
//!
//! Typed values go through a YAML serializer; no text is pasted together. The one secret in it is
//! the boot proof key (and with `phone_home` its one-time token), worthless once the host key is
//! pinned. The same input gives the same bytes.

mod overlay;

use std::io::Write;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use flate2::{Compression, GzBuilder};
use secrecy::{ExposeSecret, SecretString};
use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::guest::bundle::Description;
use crate::guest::transport::LOGIN;
use crate::keys::SecretKey32;

/// The largest user-data that Hetzner takes, in bytes as sent.
pub const MAX_USER_DATA: usize = 32 * 1024;
/// The account that break-glass keys open.
pub const ADMIN: &str = "agentfleet-admin";

const GUEST: &str = "/usr/local/lib/agentfleet/guest";
const IDENTITY: &str = "/etc/agentfleet/identity.json";
const AGENT: &str = "/etc/agentfleet/agent.json";
const INSTALL_UNIT: &str = "agentfleet-install.service";
/// A home of its own, beside the guest's state that only root may read.
const LOGIN_HOME: &str = "/var/lib/agentfleet-login";
/// cloud-init waits three seconds between attempts: a day in all. The installation waits for their end, and a server that nobody heard of is
/// given up long before.
const PHONE_HOME_TRIES: u32 = 28_800;
const REDACTED: &str = "REDACTED";
/// One more than zlib's best, which miniz has.
const SMALLEST: Compression = Compression::new(10);

/// Everything that goes into user-data.
#[derive(Debug)]
pub struct CloudInit<'a> {
    /// The fleet.
    pub fleet: &'a str,
    /// The server's name.
    pub server: &'a str,
    /// Proves the host key at first contact.
    pub boot_proof: &'a SecretKey32,
    /// The operator's public key for the guest's login.
    pub login_public_key: &'a str,
    /// Break-glass keys; none means no admin account.
    pub admin_keys: &'a [String],
    /// Whether the agent's user may become root.
    pub sudo: bool,
    /// Size of the swap file in bytes.
    pub swap_bytes: Option<u64>,
    /// Name of a time zone, as `Europe/Berlin`.
    pub time_zone: Option<&'a str>,
    /// The agent, which the guest installs.
    pub description: &'a Description,
    /// The guest program.
    pub guest_program: &'a str,
    /// Where the host key is posted to, token included.
    pub phone_home: Option<&'a SecretString>,
    /// The class's own cloud-config, merged on top.
    pub raw: Option<&'a Map<String, Value>>,
}

/// Why there is no user-data.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CloudInitError {
    /// It would be refused by Hetzner.
    #[error("user-data has {bytes} bytes as sent, {limit} are possible")]
    TooLarge {
        /// What it has.
        bytes: usize,
        /// What it may have.
        limit: usize,
    },
    /// The class's cloud-config takes what is the operator's.
    #[error("cloudInit may not set {0}: the operator needs it")]
    Reserved(String),
    /// The class's cloud-config has another type than what it is merged with.
    #[error("cloudInit sets {0}, which is {1} here, to something else")]
    WrongType(String, &'static str),
    /// The document cannot be written.
    #[error("user-data cannot be written: {0}")]
    Write(String),
}

/// User-data, ready to be sent.
#[derive(Debug)]
pub struct UserData {
    document: SecretString,
    shown: String,
    sent: SecretString,
}

impl UserData {
    /// Renders the document, and compresses it when that makes it smaller.
    ///
    /// # Errors
    /// When the class's own part takes what is reserved, or the whole is too large.
    pub fn render(input: &CloudInit<'_>) -> Result<Self, CloudInitError> {
        let mut config = input.base()?;
        if let Some(raw) = input.raw {
            overlay::lay(&mut config, raw, input.description)?;
        }
        let document = to_yaml(&config)?;
        let sent = encode(&document)?;
        if sent.len() > MAX_USER_DATA {
            return Err(CloudInitError::TooLarge {
                bytes: sent.len(),
                limit: MAX_USER_DATA,
            });
        }
        Ok(Self {
            shown: input.redact(&document),
            document: document.into(),
            sent: sent.into(),
        })
    }

    /// The document as cloud-init reads it.
    pub fn document(&self) -> &SecretString {
        &self.document
    }

    /// The document for a person's eyes: secrets are replaced.
    pub fn shown(&self) -> &str {
        &self.shown
    }

    /// What goes into the request: the document, or base64 of its gzip.
    pub fn sent(&self) -> &SecretString {
        &self.sent
    }

    /// Size of what goes into the request.
    pub fn sent_bytes(&self) -> usize {
        self.sent.expose_secret().len()
    }
}

#[derive(Serialize)]
struct User<'a> {
    name: &'a str,
    gecos: &'a str,
    shell: &'a str,
    lock_passwd: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    homedir: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    sudo: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    ssh_authorized_keys: Vec<String>,
}

#[derive(Serialize)]
struct File<'a> {
    path: &'a str,
    permissions: &'a str,
    owner: &'a str,
    content: String,
}

impl CloudInit<'_> {
    /// The operator's part of the document.
    fn base(&self) -> Result<Map<String, Value>, CloudInitError> {
        let mut config = Map::new();
        let mut set = |key: &str, value: Value| config.insert(key.to_owned(), value);
        set("users", to_value(self.users())?);
        set("disable_root", json!(true));
        set("ssh_pwauth", json!(false));
        set("ssh_genkeytypes", json!(["ed25519"]));
        set("ssh_deletekeys", json!(true));
        // Generating one would take a minute of the boot.
        set("locale", json!(false));
        set("write_files", to_value(self.files()?)?);
        set("runcmd", json!([self.start_of_install()]));
        if let Some(zone) = self.time_zone {
            set("timezone", json!(zone));
        }
        if let Some(bytes) = self.swap_bytes {
            let swap = json!({"filename": "/swapfile", "size": bytes, "maxsize": bytes});
            set("swap", swap);
        }
        if let Some(url) = self.phone_home {
            let post = ["pub_key_ed25519", "instance_id", "hostname"];
            let url = url.expose_secret();
            let phone_home = json!({"url": url, "post": post, "tries": PHONE_HOME_TRIES});
            set("phone_home", phone_home);
        }
        Ok(config)
    }

    /// Without waiting for it: cloud-init goes on meanwhile. With `phone_home` the unit is enabled by its own first start, see [`Self::install_unit`].
    fn start_of_install(&self) -> Vec<&str> {
        let verb: &[&str] = match self.phone_home {
            Some(_) => &["start"],
            None => &["enable", "--now"],
        };
        [&["systemctl"], verb, &["--no-block", INSTALL_UNIT]].concat()
    }

    /// The unit that installs the agent.
    ///
    /// Whoever runs on the server can read the one-time token in its user-data. With `phone_home` nothing of the agent's runs before cloud-init
    /// has used it up: the unit waits for cloud-init's end, and a server that boots again before that, for which cloud-init does not call a second
    /// time, installs nothing. What it is wanted by would wait for it, and cloud-init for that, unless it says that it comes later.
    fn install_unit(&self) -> String {
        let (after, enable) = match self.phone_home {
            Some(_) => (
                " cloud-final.service multi-user.target",
                "ExecStartPre=systemctl enable --no-reload agentfleet-install.service\n",
            ),
            None => ("", ""),
        };
        format!(
            "\
[Unit]
Description=Install the agent (agentfleet)
Wants=network-online.target
After=network-online.target{after}

[Service]
Type=oneshot
{enable}ExecStart=/usr/local/lib/agentfleet/guest install
TimeoutStartSec=infinity

[Install]
WantedBy=multi-user.target
"
        )
    }

    /// None is a `system` user: for those cloud-init makes no home, and then fails to write their keys into it.
    fn users(&self) -> Vec<User<'_>> {
        let anything = || Some("ALL=(ALL) NOPASSWD:ALL".to_owned());
        let agent = User {
            name: &self.description.user,
            gecos: "agent",
            shell: "/bin/bash",
            lock_passwd: true,
            homedir: None,
            sudo: anything().filter(|_| self.sudo),
            ssh_authorized_keys: Vec::new(),
        };
        let command = format!("sudo -n {GUEST} ssh \\\"$SSH_ORIGINAL_COMMAND\\\"");
        let login = User {
            name: LOGIN,
            gecos: "agentfleet operator",
            shell: "/bin/sh",
            homedir: Some(LOGIN_HOME),
            sudo: Some(format!("ALL=(root) NOPASSWD: {GUEST} ssh *")),
            ssh_authorized_keys: vec![format!(
                "restrict,command=\"{command}\" {}",
                self.login_public_key
            )],
            ..agent
        };
        let admin = User {
            name: ADMIN,
            gecos: "agentfleet break-glass",
            sudo: anything(),
            ssh_authorized_keys: self.admin_keys.to_vec(),
            ..agent
        };
        let mut users = vec![agent, login];
        if !self.admin_keys.is_empty() {
            users.push(admin);
        }
        users
    }

    fn files(&self) -> Result<Vec<File<'_>>, CloudInitError> {
        let identity = json!({
            "fleet": self.fleet,
            "server": self.server,
            "bootProofKey": self.boot_proof.to_hex().expose_secret(),
        });
        let file = |path, permissions, content| File {
            path,
            permissions,
            owner: "root:root",
            content,
        };
        Ok(vec![
            file(GUEST, "0755", self.guest_program.to_owned()),
            file(IDENTITY, "0600", json_text(&identity)?),
            file(AGENT, "0600", json_text(self.description)?),
            file(INSTALL_UNIT_PATH, "0644", self.install_unit()),
        ])
    }

    fn redact(&self, document: &str) -> String {
        let boot_proof = self.boot_proof.to_hex();
        let secrets = [Some(&boot_proof), self.phone_home];
        secrets
            .into_iter()
            .flatten()
            .fold(document.to_owned(), |shown, secret| {
                shown.replace(secret.expose_secret(), REDACTED)
            })
    }
}

const INSTALL_UNIT_PATH: &str = "/etc/systemd/system/agentfleet-install.service";

fn written(error: impl std::fmt::Display) -> CloudInitError {
    CloudInitError::Write(error.to_string())
}

fn to_value(part: impl Serialize) -> Result<Value, CloudInitError> {
    serde_json::to_value(part).map_err(written)
}

/// In one line: what makes it pretty would be sent, too.
fn json_text(part: &impl Serialize) -> Result<String, CloudInitError> {
    let text = serde_json::to_string(part).map_err(written)?;
    Ok(text + "\n")
}

fn to_yaml(config: &Map<String, Value>) -> Result<String, CloudInitError> {
    // Folding long lines would make a program unreadable; a literal block shows it as it is.
    let options = serde_saphyr::ser_options! { folded_wrap_chars: usize::MAX };
    let yaml = serde_saphyr::to_string_with_options(config, options).map_err(written)?;
    Ok(format!("#cloud-config\n{yaml}"))
}

/// As sent: cloud-init's data source for Hetzner decodes base64, and cloud-init itself gzip.
fn encode(document: &str) -> Result<String, CloudInitError> {
    let mut gzip = GzBuilder::new().mtime(0).write(Vec::new(), SMALLEST);
    gzip.write_all(document.as_bytes()).map_err(written)?;
    let packed = STANDARD.encode(gzip.finish().map_err(written)?);
    let smaller = packed.len() < document.len();
    Ok(if smaller { packed } else { document.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guest::bundle::tests::description;
    use crate::keys::{MasterKey, ServerKeys};
    use flate2::read::GzDecoder;
    use proptest::prelude::*;
    use std::io::Read;

    const PROGRAM: &str =
        "#!/usr/bin/python3\n\"\"\"Guest: # x\"\"\"\n\tprint('it\\'s', \"%s\" % 1)\n\n";

    struct Input {
        keys: ServerKeys,
        public: String,
        description: Description,
        admin_keys: Vec<String>,
        phone_home: Option<SecretString>,
        program: String,
        raw: Option<Map<String, Value>>,
    }

    fn input() -> Input {
        let keys = MasterKey::new("fleet-1", &[7; 32])
            .unwrap()
            .server_keys("a-1");
        Input {
            public: keys.login_public(),
            keys,
            description: description(),
            admin_keys: vec![],
            phone_home: None,
            program: PROGRAM.into(),
            raw: None,
        }
    }

    impl Input {
        fn render(&self) -> Result<UserData, CloudInitError> {
            UserData::render(&CloudInit {
                fleet: "fleet-1",
                server: "a-1",
                boot_proof: &self.keys.boot_proof,
                login_public_key: &self.public,
                admin_keys: &self.admin_keys,
                sudo: true,
                swap_bytes: Some(2 << 30),
                time_zone: Some("Europe/Berlin"),
                description: &self.description,
                guest_program: &self.program,
                phone_home: self.phone_home.as_ref(),
                raw: self.raw.as_ref(),
            })
        }

        fn with_raw(raw: &Value) -> Result<UserData, CloudInitError> {
            let raw = raw.as_object().cloned();
            Input { raw, ..input() }.render()
        }
    }

    /// Decodes what was sent as cloud-init does.
    fn decode(data: &UserData) -> String {
        let sent = data.sent().expose_secret();
        let Ok(packed) = STANDARD.decode(sent) else {
            return sent.to_owned();
        };
        let mut document = String::new();
        GzDecoder::new(packed.as_slice())
            .read_to_string(&mut document)
            .unwrap();
        document
    }

    fn config(data: &UserData) -> Value {
        let document = decode(data);
        assert!(document.starts_with("#cloud-config\n"));
        serde_saphyr::from_str(&document).unwrap()
    }

    fn file<'a>(config: &'a Value, path: &str) -> &'a Value {
        let files = config["write_files"].as_array().unwrap();
        files.iter().find(|file| file["path"] == path).unwrap()
    }

    fn user<'a>(config: &'a Value, name: &str) -> Option<&'a Value> {
        let users = config["users"].as_array().unwrap();
        users.iter().find(|user| user["name"] == name)
    }

    #[test]
    fn the_document_holds_guest_identity_agent_and_install_unit() {
        let input = input();
        let config = config(&input.render().unwrap());
        let guest = file(&config, "/usr/local/lib/agentfleet/guest");
        assert_eq!(guest["content"], PROGRAM);
        assert_eq!(guest["permissions"], "0755");
        let identity = file(&config, "/etc/agentfleet/identity.json");
        assert_eq!(identity["permissions"], "0600");
        let content: Value = serde_json::from_str(identity["content"].as_str().unwrap()).unwrap();
        let key = input.keys.boot_proof.to_hex();
        let expected = json!({
            "fleet": "fleet-1", "server": "a-1", "bootProofKey": key.expose_secret(),
        });
        assert_eq!(content, expected);
        let agent = file(&config, "/etc/agentfleet/agent.json");
        let content: Value = serde_json::from_str(agent["content"].as_str().unwrap()).unwrap();
        assert_eq!(content, serde_json::to_value(&input.description).unwrap());
        let unit = file(&config, "/etc/systemd/system/agentfleet-install.service");
        assert!(
            unit["content"]
                .as_str()
                .unwrap()
                .contains("\nExecStart=/usr/local/lib/agentfleet/guest install\n")
        );
        let start = json!([[
            "systemctl",
            "enable",
            "--now",
            "--no-block",
            "agentfleet-install.service"
        ]]);
        assert_eq!(config["runcmd"], start);
    }

    #[test]
    fn the_login_can_run_the_guest_and_nothing_else() {
        let input = input();
        let config = config(&input.render().unwrap());
        let login = user(&config, "agentfleet").unwrap();
        let expected = format!(
            r#"restrict,command="sudo -n /usr/local/lib/agentfleet/guest ssh \"$SSH_ORIGINAL_COMMAND\"" {}"#,
            input.public
        );
        assert_eq!(login["ssh_authorized_keys"], json!([expected]));
        assert_eq!(
            login["sudo"],
            "ALL=(root) NOPASSWD: /usr/local/lib/agentfleet/guest ssh *"
        );
        assert_eq!(config["ssh_pwauth"], false);
        assert_eq!(config["disable_root"], true);
        assert_eq!(config["ssh_genkeytypes"], json!(["ed25519"]));
        assert!(user(&config, ADMIN).is_none());
        assert!(
            user(&config, "agent")
                .unwrap()
                .get("ssh_authorized_keys")
                .is_none()
        );
    }

    #[test]
    fn an_admin_account_exists_only_with_break_glass_keys() {
        let admin_keys = vec!["ssh-ed25519 AAAA admin".to_owned()];
        let config = config(
            &Input {
                admin_keys,
                ..input()
            }
            .render()
            .unwrap(),
        );
        let admin = user(&config, ADMIN).unwrap();
        assert_eq!(
            admin["ssh_authorized_keys"],
            json!(["ssh-ed25519 AAAA admin"])
        );
    }

    #[test]
    fn swap_time_zone_and_phone_home_are_set_where_asked_for() {
        let url = "https://fleet.example/v1/phone-home/a-1.abcdef";
        let phone_home = Some(url.into());
        let data = Input {
            phone_home,
            ..input()
        }
        .render()
        .unwrap();
        let config = config(&data);
        assert_eq!(config["timezone"], "Europe/Berlin");
        assert_eq!(config["swap"]["size"], 2_147_483_648_u64);
        assert_eq!(config["phone_home"]["url"], url);
        assert_eq!(config["phone_home"]["post"][0], "pub_key_ed25519");
        assert!(!data.shown().contains("abcdef"));
    }

    #[test]
    fn with_phone_home_the_installation_waits_for_cloud_inits_end_and_is_enabled_by_its_start() {
        let of = |phone_home: Option<SecretString>| {
            let data = Input {
                phone_home,
                ..input()
            };
            let config = config(&data.render().unwrap());
            let unit = file(&config, INSTALL_UNIT_PATH)["content"].clone();
            (
                config["runcmd"][0].clone(),
                unit.as_str().unwrap().to_owned(),
            )
        };
        let (start, unit) = of(Some("https://fleet.example/v1/phone-home/x".into()));
        assert_eq!(
            start,
            json!(["systemctl", "start", "--no-block", INSTALL_UNIT])
        );
        let lines: Vec<&str> = unit.lines().collect();
        for line in [
            "After=network-online.target cloud-final.service multi-user.target",
            "ExecStartPre=systemctl enable --no-reload agentfleet-install.service",
            "ExecStart=/usr/local/lib/agentfleet/guest install",
        ] {
            assert!(lines.contains(&line), "{line} is not in {unit}");
        }
        let (_, unit) = of(None);
        assert!(unit.contains("\nAfter=network-online.target\n") && !unit.contains("ExecStartPre"));
    }

    #[test]
    fn the_boot_proof_key_is_shown_to_nobody() {
        let input = input();
        let data = input.render().unwrap();
        let key = input.keys.boot_proof.to_hex();
        assert!(decode(&data).contains(key.expose_secret()));
        assert!(!data.shown().contains(key.expose_secret()));
        assert!(data.shown().contains("\"bootProofKey\":\"REDACTED\""));
        assert!(!format!("{data:?}").contains(key.expose_secret()));
        let resume = input.keys.resume_proof.to_hex();
        assert!(!decode(&data).contains(resume.expose_secret()));
    }

    #[test]
    fn the_same_input_gives_the_same_bytes_and_compresses() {
        let program = PROGRAM.repeat(400);
        let render = || {
            Input {
                program: program.clone(),
                ..input()
            }
            .render()
            .unwrap()
        };
        let (one, other) = (render(), render());
        assert_eq!(one.sent().expose_secret(), other.sent().expose_secret());
        assert!(one.sent().expose_secret().len() * 5 < program.len());
        assert_eq!(decode(&one), one.document().expose_secret());
    }

    #[test]
    fn what_is_too_large_as_sent_is_refused_with_both_sizes() {
        let noise: Vec<u8> = (0..40_000).map(|_| rand::random()).collect();
        let program = STANDARD.encode(noise);
        let error = Input { program, ..input() }.render().unwrap_err();
        let CloudInitError::TooLarge { bytes, limit } = error else {
            panic!("{error:?}");
        };
        assert!(bytes > limit && limit == 32_768);
    }

    #[test]
    fn the_limit_is_for_what_is_sent_and_not_for_the_document() {
        let program = "pass\n".repeat(MAX_USER_DATA);
        let data = Input { program, ..input() }.render().unwrap();
        assert!(data.document().expose_secret().len() > MAX_USER_DATA);
        assert!(data.sent_bytes() < MAX_USER_DATA);
    }

    #[test]
    fn what_packing_would_not_make_smaller_is_sent_as_it_is() {
        let document = "#cloud-config\n{}\n";
        assert_eq!(encode(document).unwrap(), document);
    }

    #[test]
    fn the_classs_cloud_config_is_merged_on_top() {
        let raw = json!({
            "users": [{"name": "helper"}],
            "write_files": [{"path": "/etc/motd", "content": "hi"}],
            "runcmd": ["echo hi"],
            "timezone": "UTC",
            "swap": {"filename": "/swap2"},
            "apt": {"preserve_sources_list": true},
        });
        let config = config(&Input::with_raw(&raw).unwrap());
        assert_eq!(config["users"].as_array().unwrap().len(), 3);
        assert_eq!(file(&config, "/etc/motd")["content"], "hi");
        assert_eq!(config["runcmd"].as_array().unwrap().len(), 2);
        assert_eq!(config["timezone"], "UTC");
        assert_eq!(config["swap"]["filename"], "/swap2");
        assert_eq!(config["swap"]["size"], 2_147_483_648_u64);
        assert_eq!(config["apt"]["preserve_sources_list"], true);
    }

    #[test]
    fn what_is_the_operators_cannot_be_taken() {
        let reserved = [
            (json!({"ssh_pwauth": true}), "ssh_pwauth"),
            (json!({"disable_root": false}), "disable_root"),
            (json!({"ssh_keys": {}}), "ssh_keys"),
            (json!({"phone_home": {"url": "http://evil"}}), "phone_home"),
            (
                json!({"users": [{"name": "agentfleet"}]}),
                "users[agentfleet]",
            ),
            (json!({"users": ["root"]}), "users[root]"),
            (json!({"users": [{"name": "agent"}]}), "users[agent]"),
            (
                write("/etc/agentfleet/identity.json"),
                "write_files[/etc/agentfleet/identity.json]",
            ),
            (
                write("/tmp/..//etc/./agentfleet"),
                "write_files[/tmp/..//etc/./agentfleet]",
            ),
            (
                write("/usr/local/lib/agentfleet/x"),
                "write_files[/usr/local/lib/agentfleet/x]",
            ),
            (
                write("/etc/systemd/system/agent.service.d/a"),
                "write_files[/etc/systemd/system/agent.service.d/a]",
            ),
            (
                write("/etc/ssh/ssh_host_ed25519_key.pub"),
                "write_files[/etc/ssh/ssh_host_ed25519_key.pub]",
            ),
        ];
        for (raw, what) in reserved {
            let error = Input::with_raw(&raw).unwrap_err();
            assert_eq!(error, CloudInitError::Reserved(what.to_owned()));
        }
        let neighbour = write("/etc/agentfleet-notes");
        assert!(Input::with_raw(&neighbour).is_ok());
        let error = Input::with_raw(&json!({"runcmd": "echo"})).unwrap_err();
        assert_eq!(error, CloudInitError::WrongType("runcmd".into(), "a list"));
    }

    fn write(path: &str) -> Value {
        json!({"write_files": [{"path": path, "content": ""}]})
    }

    proptest! {
        #[test]
        fn any_text_survives_the_document(text in "[ -~\\n\\t#:é\u{85}\u{2028}]{0,200}") {
            let mut input = input();
            input.description.environment.insert("K".into(), text.clone());
            input.program = text.clone();
            let config = config(&input.render().unwrap());
            let guest = file(&config, "/usr/local/lib/agentfleet/guest");
            prop_assert_eq!(guest["content"].as_str().unwrap(), text.as_str());
        }
    }
}
