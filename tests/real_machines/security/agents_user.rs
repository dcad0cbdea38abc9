//! What an agent without sudo can do on its own server: read what it was given, and no more.

use bed::{Attacker, Bed, Instance, Outcome, ensure, from_yaml, manifests, oracle};
use serde_json::{Value, json};

use super::{heard_only_challenges, is_told, lose_status};

/// Answers a challenge with a proof by the boot proof key, for the host key of this very server.
const PROVES: &str = r#"#!/usr/bin/python3
import base64, hashlib, hmac, json, sys
stolen = json.loads('''STOLEN''')
sys.stdin.readline()
nonce = json.load(sys.stdin)["nonce"]
with open("/etc/ssh/ssh_host_ed25519_key.pub") as key:
    blob = base64.b64decode(key.read().split()[1])
proven = "\n".join(("agentfleet hello v1", stolen["fleet"], stolen["server"], nonce, hashlib.sha256(blob).hexdigest()))
mac = hmac.new(bytes.fromhex(stolen["bootProofKey"]), proven.encode(), "sha256").hexdigest()
print(json.dumps({
    "protocol": 1, "guest": "1.0.0", "ok": True, "server": stolen["server"], "macs": {"boot": mac}, "progress": "0",
    "phase": "Installed", "steps": [], "armed": None, "everArmed": False, "epoch": 0, "applied": None, "unit": None,
}))
"#;

/// All of this belongs to root.
const GUESTS_OWN: [&str; 4] = [
    "/etc/agentfleet/identity.json",
    "/etc/agentfleet/agent.json",
    "/etc/agentfleet/environment",
    "/var/lib/agentfleet/state.json",
];

/// Tried by the agent's user during the install, before anything was configured.
const READS_NOTHING_YET: &str = "for file in /etc/agentfleet/*; do
    if test -r $file; then echo the agent reads $file; exit 1; fi
done";

/// Posts a key of its own with the token in the user-data, as soon as it runs; the answer is for the test to read.
const POSTS_FIRST: &str = r#"metadata=http://169.254.169.254/hetzner/v1
url=$(curl -sf $metadata/userdata | base64 -d | gunzip | grep -o 'http[^ "]*/v1/phone-home/[A-Za-z0-9._-]*' | head -1)
test -n "$url"
curl -s -o /dev/null -w '%{http_code}' --data-urlencode 'pub_key_ed25519=HIS_KEY' -d instance_id=$(curl -sf $metadata/metadata/instance-id) -d hostname=x "$url" > posted.txt"#;

/// The installation was enabled by its own start, and waits for a target that does not wait for it.
const GOES_ON_AFTER_A_REBOOT: &str =
    "systemctl is-enabled -q agentfleet-install && systemctl daemon-reload &&
! systemctl show -p After --value multi-user.target | grep agentfleet-install";

/// Holds cloud-init up, between the start of the installation and `phone_home`, for as long as that would take to post.
const HOLDS_UP: &str = "#cloud-config
runcmd: ['for i in $(seq 30); do test -s /home/agent/posted.txt && break; sleep 0.1; done']
";

fn class_without_sudo(bed: &Bed, bootstrap: &str) -> Value {
    let mut class = bed.class();
    class["spec"]["bootstrap"] = json!(bootstrap);
    class["spec"]["agent"]["sudo"] = json!(false);
    let install = ["echo installed > installed.txt", READS_NOTHING_YET];
    class["spec"]["agent"]["install"] = json!(install);
    class
}

/// Fails if a command of the agent's user ends well.
async fn is_refused(one: &Instance<'_>, command: &str) -> Outcome {
    let ran = one.shell_as_agent(command).await;
    ensure(ran.is_err(), || {
        format!("the agent's user can: {command}: {ran:?}")
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_without_sudo_neither_reads_nor_changes_what_is_the_guests() -> Outcome {
    let Some(bed) = Bed::start_real().await? else {
        return Ok(());
    };
    bed.change(&class_without_sudo(&bed, "SshProof")).await?;
    let one = bed.create("one").await?;
    let server = one.ready().await?;
    one.shell_as_agent("test -r ~/.env -a -r ~/installed.txt")
        .await?;
    is_refused(&one, "sudo -n true").await?;
    for path in GUESTS_OWN {
        let seen = format!("test -f {path} && stat -c '%a %U' {path}");
        let found = one.shell(&seen).await?;
        ensure(found == "600 root\n", || {
            format!("{path} is not root's alone: {found}")
        })?;
        for attempt in ["cat", "rm -f", "truncate -s 0", "touch"] {
            is_refused(&one, &format!("{attempt} {path}")).await?;
        }
    }
    let writes = [
        "ls /var/lib/agentfleet",
        "mv /var/lib/agentfleet /tmp/x",
        "mv /etc/agentfleet /tmp/x",
        "touch /etc/agentfleet/new",
        "touch /usr/local/lib/agentfleet/guest",
        "mv /usr/local/lib/agentfleet/guest /tmp/x",
        "touch /etc/systemd/system/agent.service",
        "touch /etc/systemd/system/agent.service.d/99.conf",
        "touch /etc/systemd/system/agent.service.d/10-agentfleet.conf",
        "touch /etc/systemd/system/new.service",
        "touch /etc/ssh/sshd_config.d/x.conf /var/lib/agentfleet-login/.ssh/authorized_keys",
        "cat /etc/ssh/ssh_host_ed25519_key",
        "systemctl --no-ask-password restart agent",
        "systemctl --no-ask-password stop agent",
        "/usr/local/lib/agentfleet/armed",
        "touch /usr/local/lib/agentfleet/armed",
        "find /var/lib/cloud /run/cloud-init /var/log -type f -readable | xargs grep -il bootproofkey",
    ];
    for attempt in writes {
        is_refused(&one, attempt).await?;
    }
    let asked = "printf '{\"nonce\": \"%064d\"}' 7 | /usr/local/lib/agentfleet/guest ssh hello";
    let said: Value = serde_json::from_str(&one.shell_as_agent(asked).await?)?;
    assert_eq!(said["ok"], false, "{said:#}");
    assert_eq!(one.ready().await?, server);
    bed.delete_all().await?;
    bed.finish().await
}

/// What the agent finds in the user-data that anybody on the server is served.
struct Stolen {
    identity: String,
    boot_proof_key: String,
    url: String,
}

async fn steal(one: &Instance<'_>) -> Outcome<Stolen> {
    let ask = "curl -sf http://169.254.169.254/hetzner/v1/userdata";
    let config: Value = from_yaml(&oracle::decoded(&one.shell_as_agent(ask).await?)?)?;
    let files = config["write_files"]
        .as_array()
        .cloned()
        .unwrap_or_default();
    let identity = files
        .iter()
        .find(|file| file["path"] == "/etc/agentfleet/identity.json");
    let identity: Value = serde_json::from_str(
        identity
            .and_then(|file| file["content"].as_str())
            .unwrap_or_default(),
    )?;
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    Ok(Stolen {
        boot_proof_key: text(&identity["bootProofKey"]),
        identity: identity.to_string(),
        url: text(&config["phone_home"]["url"]),
    })
}

/// The agent posts a host key with the token that it found; fails unless that is refused.
async fn posts_in_vain(
    one: &Instance<'_>,
    stolen: &Stolen,
    host_key: &str,
    server: u64,
) -> Outcome {
    let post = format!(
        "curl -s -o /dev/null -w '%{{http_code}}' --data-urlencode 'pub_key_ed25519={host_key}' -d instance_id={server} -d hostname=x '{}'",
        stolen.url
    );
    let status = one.shell_as_agent(&post).await?;
    ensure(status == "404", || {
        format!("a host key under a used token was answered {status}")
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn i5_what_an_agent_finds_in_its_user_data_is_used_up_also_after_the_status_was_lost()
-> Outcome {
    let Some(mut bed) = Bed::start_real().await? else {
        return Ok(());
    };
    let accomplice = Attacker::start(bed.cloud()).await?;
    let his_key = accomplice.host_key()?;
    let mut class = class_without_sudo(&bed, "PhoneHome");
    class["spec"]["agent"]["install"] = json!([POSTS_FIRST.replace("HIS_KEY", &his_key)]);
    class["spec"]["agent"]["cloudInit"] = json!(HOLDS_UP);
    bed.change(&class).await?;
    let one = bed.create("one").await?;
    one.is("ServerCreated").await?;
    one.has_in_file("/home/agent/posted.txt", "404").await?;
    let server = one.ready().await?;
    one.shell(GOES_ON_AFTER_A_REBOOT).await?;
    // The proof that it was born with counts no longer.
    class["spec"]["lifecycle"] = json!({"provisionTimeout": "1s"});
    bed.change(&class).await?;
    let stolen = steal(&one).await?;
    assert_eq!(stolen.boot_proof_key.len(), 64);
    posts_in_vain(&one, &stolen, &his_key, server).await?;
    let pinned = one.status().await?["server"]["hostKey"].clone();
    assert_ne!(pinned, his_key);

    accomplice
        .answers_by(&PROVES.replace("STOLEN", &stolen.identity))
        .await?;
    accomplice.takes_over(server).await?;
    lose_status(&mut bed).await?;
    let one = bed.instance("one");
    is_told(&one, &accomplice, "HostKeyUnproven").await?;
    posts_in_vain(&one, &stolen, &his_key, server).await?;
    let second = bed.apply_secret("one").await?;
    is_told(&one, &accomplice, "HostKeyUnproven").await?;
    assert!(heard_only_challenges(&accomplice).await? > 0);
    accomplice.goes_away_from(server).await?;
    one.has_in_file(manifests::SECRET_FILE, &second).await?;
    assert_eq!(one.ready().await?, server);
    assert_eq!(one.status().await?["server"]["hostKey"], pinned);
    let token = stolen.url.rsplit('/').next().unwrap_or_default();
    assert!(token.len() > 16, "no token in {}", stolen.url);
    for told in [bed.operator.log(), one.status().await?.to_string()] {
        assert!(!told.contains(&stolen.boot_proof_key));
        assert!(!told.contains(token));
    }
    accomplice.leaves_without(&[&second, "canary-"]).await?;
    bed.delete_all().await?;
    bed.finish().await
}
