//! Somebody with a real server of his own, a real OpenSSH on it, and power over the network: he leads the way to other servers to his.
//!
//! He lets anybody log in, keeps every command with all that came along, and answers as he was taught.

use std::net::{Ipv4Addr, SocketAddrV4};

use hetzner_sim::{Control, Shell, Stage};
use serde_json::{Value, json};

use crate::failure::{Outcome, ensure};
use crate::impostor::Heard;
use crate::{shell, wait};

/// Takes any key as that of whoever logs in.
const ANYBODY: &str = "#!/bin/sh\necho \"$1 $2\"\n";
/// Keeps what is said, and says what he was taught; that program reads what was heard.
const LISTENS: &str = "#!/bin/sh
heard=$(mktemp /var/tmp/heard/XXXXXXXX)
{ printf '%s\\n' \"$SSH_ORIGINAL_COMMAND\"; cat; } > \"$heard\"
exec /var/tmp/answer < \"$heard\"
";
const SSHD: &str = "AuthorizedKeysCommand /usr/local/bin/anybody %t %k
AuthorizedKeysCommandUser root
ForceCommand /usr/local/bin/listens
";
/// All that was heard, as JSON; without what is just being written down.
const HEARD: &str = "import json, os
texts = (open('/var/tmp/heard/' + name, errors='replace').read() for name in os.listdir('/var/tmp/heard'))
print(json.dumps([text.split('\\n', 1) for text in texts if '\\n' in text]))";

/// He and his server.
pub struct Attacker {
    cloud: Control,
    server: u64,
    address: Ipv4Addr,
}

impl Attacker {
    /// Gets himself a server and waits until it is as he wants it.
    ///
    /// # Errors
    /// Fails when it does not boot.
    pub async fn start(cloud: Control) -> Outcome<Self> {
        let name = "attacker";
        let wish = json!({"name": name, "server_type": "cx23", "location": "nbg1", "image": "debian-13", "user_data": user_data()});
        let server = cloud.create_server(0, &wish)?;
        wait::wait_until("the attacker's server has booted", async || {
            Ok(cloud.machine(server)?.stage == Stage::Up)
        })
        .await?;
        let address = cloud.machine(server)?.address.unwrap_or_default();
        let address: SocketAddrV4 = address.parse()?;
        let attacker = Self {
            cloud,
            server,
            address: *address.ip(),
        };
        // It was read when sshd started, which may have been before.
        attacker.shell("systemctl restart ssh", "").await?;
        attacker.says("").await?;
        Ok(attacker)
    }

    /// His own host key.
    ///
    /// # Errors
    /// Fails when he has no server any more.
    pub fn host_key(&self) -> Outcome<String> {
        Ok(self.cloud.machine(self.server)?.host_key)
    }

    /// From now on, whoever connects to that server's SSH gets to his.
    ///
    /// # Errors
    /// Fails when there is no such server.
    pub async fn takes_over(&self, server: u64) -> Outcome {
        let own = SocketAddrV4::new(self.address, 22);
        Ok(self.cloud.divert_ssh(server, Some(own)).await?)
    }

    /// Lets the others' server be reached again.
    ///
    /// # Errors
    /// Fails when there is no such server.
    pub async fn goes_away_from(&self, server: u64) -> Outcome {
        Ok(self.cloud.divert_ssh(server, None).await?)
    }

    /// What he says from now on, to whatever he is asked.
    ///
    /// # Errors
    /// Fails when his server is not up.
    pub async fn says(&self, answer: &str) -> Outcome {
        let keep = "cat > /var/tmp/said; printf '#!/bin/sh\\ncat /var/tmp/said\\n' > /var/tmp/answer; chmod 755 /var/tmp/answer; chmod 644 /var/tmp/said";
        self.shell(keep, answer).await?;
        Ok(())
    }

    /// A program that answers from now on: it reads the command in the first line, then what came along.
    ///
    /// # Errors
    /// Fails when his server is not up.
    pub async fn answers_by(&self, program: &str) -> Outcome {
        let keep = "cat > /var/tmp/new; chmod 755 /var/tmp/new; mv /var/tmp/new /var/tmp/answer";
        self.shell(keep, program).await?;
        Ok(())
    }

    /// All that was said to him.
    ///
    /// # Errors
    /// Fails when his server is not up.
    pub async fn heard(&self) -> Outcome<Vec<Heard>> {
        let told = self.shell(&format!("python3 -c \"{HEARD}\""), "").await?;
        let heard: Vec<(String, String)> = serde_json::from_str(&told)?;
        let heard = heard.into_iter().map(|(command, input)| Heard {
            command,
            input: input.into_bytes(),
        });
        Ok(heard.collect())
    }

    /// Forgets all that was said to him.
    ///
    /// # Errors
    /// Fails when his server is not up.
    pub async fn forgets(&self) -> Outcome {
        self.shell("rm -f /var/tmp/heard/*", "").await?;
        Ok(())
    }

    /// Gives his server back, unless one of these texts is on it.
    ///
    /// # Errors
    /// Fails when one is, naming the file.
    pub async fn leaves_without(self, secrets: &[&str]) -> Outcome {
        let search = "grep -raFl --exclude-dir=proc --exclude-dir=sys -f - / || true";
        let found = self.shell(search, &secrets.join("\n")).await?;
        ensure(found.is_empty(), || format!("he got a secret: {found}"))?;
        Ok(self.cloud.vanish(self.server)?)
    }

    async fn shell(&self, command: &str, stdin: &str) -> Outcome<String> {
        let shell = Shell {
            command: command.to_owned(),
            user: None,
            stdin: stdin.to_owned(),
        };
        shell::run_in(&self.cloud, self.server, &shell).await
    }
}

fn user_data() -> String {
    let file = |path: &str, permissions: &str, content: &str| json!({"path": path, "permissions": permissions, "content": content});
    let config: Value = json!({
        "users": [{"name": "agentfleet", "shell": "/bin/sh"}],
        "ssh_genkeytypes": ["ed25519"],
        "write_files": [
            file("/usr/local/bin/anybody", "0755", ANYBODY),
            file("/usr/local/bin/listens", "0755", LISTENS),
            file("/etc/ssh/sshd_config.d/attacker.conf", "0644", SSHD),
        ],
        "runcmd": ["mkdir -m 1777 /var/tmp/heard"],
    });
    format!("#cloud-config\n{config}")
}
