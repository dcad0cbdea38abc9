//! What a server is born with, as its own sshd, systemd and cloud-init see it: who may log in, and a unit that is the class's own from its first
//! to its last line.

use bed::{Bed, Instance, Outcome, ensure, manifests};
use russh::keys::ssh_key::LineEnding;
use russh::keys::{Algorithm, PrivateKey};
use serde_json::{Value, json};

use crate::guest::ask;

/// A whole unit. What it wants of the environment it has from the drop-in, and so has a raw unit like any other.
const UNIT: &str = "\
[Unit]
Description=An agent by its own words

[Service]
User=agent
EnvironmentFile=/home/agent/.env
ExecStart=/usr/bin/sleep infinity
Restart=always

[Install]
WantedBy=multi-user.target
";

/// The environment that the agent was started with.
const ENVIRONMENT: &str =
    "systemctl show -p MainPID --value agent | xargs -I{} cat /proc/{}/environ | tr '\\0' '\\n'";

/// What a released agent is, also after somebody has put its secret file back and tried to start it.
const SILENT: &str = "! pgrep -u agent && test ! -e /home/agent/.env && runuser -u agent -- touch /home/agent/.env &&
systemctl start agent && ! systemctl is-active agent";

/// The address of a server, for a client on that server itself.
const HERE: &str = "127.0.0.1";

/// A class with a unit of its own, and what only cloud-init can set.
fn class(bed: &Bed) -> Value {
    let mut class = bed.class();
    let agent = &mut class["spec"]["agent"];
    agent["timeZone"] = json!("Europe/Berlin");
    agent["service"] = json!({"unit": UNIT});
    agent["environment"] = json!({"API_KEY": "by the class", "LEVEL": "by the class"});
    class
}

/// Makes a key known at Hetzner and names it as the project's break-glass key; answers its id there.
async fn break_glass(bed: &Bed, key: &PrivateKey) -> Outcome<Value> {
    let public = key.public_key().to_openssh()?;
    let body = json!({"name": "anna", "public_key": public});
    let made = bed.at_hetzner("POST", "/ssh_keys", &body).await?;
    let mut project = manifests::project(manifests::PROJECT);
    project["spec"]["sshKeys"] = json!(["anna"]);
    bed.change(&project).await?;
    Ok(made["ssh_key"]["id"].clone())
}

/// What OpenSSH's client says with these options: its exit code, then its words.
async fn ssh(one: &Instance<'_>, options: &str) -> Outcome<String> {
    let known = "-o UserKnownHostsFile=/root/known -o StrictHostKeyChecking=no -o LogLevel=ERROR";
    one.shell(&format!(
        "said=$(timeout 20 ssh {known} {options} < /dev/null 2>&1) && echo 0 \"$said\" || echo $? \"$said\""
    ))
    .await
}

/// The key opens the account that is made for it, which may become root; nothing else opens anything.
async fn logs_in_by_the_key_alone(one: &Instance<'_>, key: &PrivateKey) -> Outcome {
    let text = key.to_openssh(LineEnding::LF)?.to_string();
    one.shell(&format!("umask 077; printf '%s' '{text}' > /root/key"))
        .await?;
    let with_key = "-i /root/key -o IdentitiesOnly=yes -o BatchMode=yes";
    let admin = ssh(
        one,
        &format!("{with_key} agentfleet-admin@{HERE} sudo -n id -un"),
    )
    .await?;
    assert_eq!(admin, "0 root\n");

    // Root has the key of the request, whose other half nobody has; here it is taken for one that somebody has.
    let public = key.public_key().to_openssh()?;
    let body = public.split(' ').nth(1).unwrap_or_default();
    one.shell(&format!(
        "grep -q ssh-ed25519 /root/.ssh/authorized_keys && sed -i 's|ssh-ed25519 [^ ]*|ssh-ed25519 {body}|' /root/.ssh/authorized_keys"
    ))
    .await?;
    let root = ssh(one, &format!("{with_key} root@{HERE} id")).await?;
    ensure(root.contains("Please login as the user"), || root.clone())?;
    ensure(!root.starts_with("0 ") && !root.contains("uid="), || {
        root.clone()
    })?;

    one.shell("echo 'agent:known\nroot:known\nagentfleet-admin:known' | chpasswd")
        .await?;
    for account in ["agent", "root", "agentfleet-admin", "agentfleet"] {
        let said = ssh(
            one,
            &format!("-o PubkeyAuthentication=no -o NumberOfPasswordPrompts=0 {account}@{HERE} id"),
        )
        .await?;
        let refused = format!("255 {account}@{HERE}: Permission denied (publickey).");
        assert_eq!(said.trim_end(), refused, "only keys are offered");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_is_as_declared_opens_for_break_glass_keys_alone_and_guards_a_unit_that_is_the_classs_own()
-> Outcome {
    let Some(bed) = Bed::start_real().await? else {
        return Ok(());
    };
    let key = PrivateKey::random(&mut rand::rng(), Algorithm::Ed25519)?;
    let id = break_glass(&bed, &key).await?;
    bed.change(&class(&bed)).await?;
    let value = bed.apply_secret("one").await?;
    let mut instance = manifests::instance(bed::TENANT, "one");
    instance["spec"]["environment"] = json!({"LEVEL": "by the instance"});
    bed.cluster.apply(&instance).await?;
    let one = bed.instance("one");
    one.ready().await?;

    // What cloud-init warns of is not among its errors.
    one.shell("cloud-init status --wait --long").await?;
    let schema = one.shell("cloud-init schema --system 2>&1").await?;
    ensure(schema.contains("Valid schema user-data"), || schema.clone())?;
    let zone = one.shell("readlink -f /etc/localtime; date +%Z").await?;
    ensure(zone.contains("/Europe/Berlin\nCE"), || zone.clone())?;
    logs_in_by_the_key_alone(&one, &key).await?;

    let unit = one.shell("cat /etc/systemd/system/agent.service").await?;
    assert_eq!(unit, UNIT);
    let environment = one.shell(ENVIRONMENT).await?;
    for line in ["API_KEY=by the class", "LEVEL=by the instance"] {
        ensure(environment.lines().any(|each| each == line), || {
            environment.clone()
        })?;
    }
    one.has_in_file(manifests::SECRET_FILE, &value).await?;
    let released = ask(&one, "release", 1).await?;
    assert_eq!(released["released"], true, "{released}");
    assert_eq!(one.shell(SILENT).await?, "inactive\n");

    bed.at_hetzner("DELETE", &format!("/ssh_keys/{id}"), &json!(null))
        .await?;
    bed.delete_all().await?;
    bed.finish().await
}
