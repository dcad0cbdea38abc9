//! The class of `examples/rachel8` on a real machine, with the real Bun and the real Claude Code, which read what they were given.
//!
//! What is a stand-in, as machines of tests reach nothing of the web: the installers of Bun and Claude Code (they fetch the same programs, from
//! this host), the assistant's repository (a program that proves its secrets and waits), `apt-get update` and the GitHub CLI (noted and no more),
//! Ubuntu's image (Debian), and the login's tokens. Every `https://` of the class leads to this host; the rest of it is as it is.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bed::{
    Bed, Failure, Instance, Outcome, Served, TENANT, built, commit_all, ensure, from_yaml,
    manifests, project, publish, skip, wait_within,
};
use serde_json::{Value, json};

use crate::agent::proof;

/// In the place of the assistant.
const ASSISTANT: &str = r#"
for (const name of ["TELEGRAM_BOT_TOKEN", "OWNER_TELEGRAM_USER_ID", "SHARED_FOLDER_PATH", "NODE_ENV", "LOG_LEVEL"]) {
  const proof = new Bun.CryptoHasher("sha256", "proof").update(process.env[name] ?? "").digest("hex");
  console.log("proof", name, proof);
}
setInterval(() => {}, 60_000);
"#;
/// It tells that `bun install` ran.
const PACKAGE: &str =
    r#"{"name": "rachel8", "scripts": {"postinstall": "echo installed > ../bun-install.txt"}}"#;
/// In front of `apt-get`: what needs an archive is noted, the packages of the class are there already.
const APT_GET: &str = r#"#cloud-config
write_files:
- path: /usr/local/sbin/apt-get
  permissions: "0755"
  content: |
    #!/bin/sh
    case "$*" in
      *" update" | *" gh") echo "$@" >> /var/log/stand-in-apt-get.log ;;
      *) exec /usr/bin/apt-get "$@" ;;
    esac
"#;
/// As hard as a value of `.env` can be.
const BOT_TOKEN: &str = "123456789:AA$HOME \"#x\" %h $1";
/// When an access token expires: Claude Code refreshes it then, so the login is one all the same.
const FAR_OFF: &str = "4102444800000";
const LONG_AGO: &str = "1500000000000";
/// Packages, installers and 340 MB of programs.
const INSTALLED_WITHIN: Duration = Duration::from_mins(5);
/// What the service has to have, by systemd's own words.
const UNIT: [&str; 16] = [
    "Description=Rachel8 Personal AI Assistant",
    "User=rachel",
    "WorkingDirectory=/home/rachel/rachel8",
    "Restart=always",
    "RestartUSec=5s",
    "RestartSteps=5",
    "RestartMaxDelayUSec=1min",
    "StartLimitIntervalUSec=5min",
    "StartLimitBurst=5",
    "TimeoutStopUSec=10s",
    "KillMode=mixed",
    "KillSignal=15",
    "PrivateTmp=yes",
    "SyslogIdentifier=rachel8",
    "ActiveState=active",
    "UnitFileState=enabled",
];

/// systemd would not start it, and it does not run.
const HELD_BACK: &str =
    "test $(systemctl show -p ConditionResult --value rachel8) = no && ! pgrep -u rachel -x bun";

/// Bun and Claude Code, as npm has them; none, and said so, where they were not fetched. With `CI=true` that is a failure.
fn programs() -> Outcome<Option<[PathBuf; 2]>> {
    let program = |name: &str| built(&format!("readers/node_modules/.bin/{name}"), "readers");
    match (program("bun"), program("claude")) {
        (Ok(bun), Ok(claude)) => Ok(Some([bun, claude])),
        (Err(missing), _) | (_, Err(missing)) => {
            skip(&missing.to_string())?;
            Ok(None)
        }
    }
}

/// The web, as far as the class needs it.
fn stand_ins(dir: &Path, bed: &Bed, [bun, claude]: &[PathBuf; 2]) -> Outcome<Served> {
    let (web, work) = (dir.join("web"), dir.join("assistant"));
    fs::create_dir_all(&web)?;
    let served = Served::start(&web, bed.host().into(), &[])?;
    for (program, at, script, to) in [
        (bun, "bun.sh", "install", ".bun/bin/bun"),
        (claude, "claude.ai", "install.sh", ".local/bin/claude"),
    ] {
        let (site, url) = (web.join(at), served.url());
        fs::create_dir(&site)?;
        std::os::unix::fs::symlink(program, site.join("program"))?;
        let install =
            format!("curl -fsS --create-dirs -o ~/{to} {url}/{at}/program\nchmod +x ~/{to}\n");
        fs::write(site.join(script), install)?;
    }
    let keyring = web.join("cli.github.com/packages/githubcli-archive-keyring.gpg");
    fs::create_dir_all(keyring.parent().unwrap_or(&web))?;
    fs::write(keyring, "no key")?;
    fs::create_dir_all(work.join("src"))?;
    fs::write(work.join("src/index.ts"), ASSISTANT)?;
    fs::write(work.join("package.json"), PACKAGE)?;
    commit_all(&work, "v1")?;
    publish(&work, &web.join("github.com/polly3223/Rachel8.git"))?;
    Ok(served)
}

/// The example's class, for this bed.
fn class(bed: &Bed, url: &str) -> Outcome<Value> {
    let example = fs::read_to_string(project().join("examples/rachel8/02-class.yaml"))?;
    let mut class = from_yaml(example.replace("https://", &format!("{url}/")).as_bytes())?;
    let spec = &mut class["spec"];
    spec["projects"] = json!([manifests::PROJECT]);
    spec["firewall"]["sshFrom"] = json!([format!("{}/32", bed.host())]);
    spec["agent"]["cloudInit"] = json!(APT_GET);
    spec["health"]["interval"] = json!("3s");
    spec["health"]["failureThreshold"] = json!(2);
    Ok(class)
}

/// Gives the customer a login, and the rest of the Secret.
async fn log_in(bed: &Bed, expires_at: &str) -> Outcome {
    let mut secret = manifests::secret(TENANT, "alice", "", "");
    secret["stringData"] = json!({
        "TELEGRAM_BOT_TOKEN": BOT_TOKEN,
        "OWNER_TELEGRAM_USER_ID": "123456789",
        "CLAUDE_ACCESS_TOKEN": format!("sk-ant-oat01-{}", bed.canaries.fresh()),
        "CLAUDE_REFRESH_TOKEN": format!("sk-ant-ort01-{}", bed.canaries.fresh()),
        "CLAUDE_EXPIRES_AT": expires_at,
    });
    bed.cluster.apply(&secret).await?;
    Ok(())
}

/// Waits until the guest is through with its installation, while nobody is there to configure it.
async fn installed(alice: &Instance<'_>) -> Outcome {
    wait_within(INSTALLED_WITHIN, "all is installed", async || {
        let stored = alice.file("/var/lib/agentfleet/state.json").await?;
        let state: Value = serde_json::from_str(&stored.unwrap_or_else(|| "{}".into()))?;
        let steps = state["steps"].as_array().cloned().unwrap_or_default();
        let are = |word: &str| steps.iter().filter(|step| step["state"] == word).count();
        ensure(are("Failed") == 0, || format!("{steps:#?}"))?;
        Ok((!steps.is_empty() && are("Done") == steps.len()).then_some(()))
    })
    .await
}

/// What Claude Code says when the agent's user asks it.
async fn logged_in(alice: &Instance<'_>) -> Outcome<Value> {
    let said = alice
        .shell("sudo --login --user rachel .local/bin/claude auth status || true")
        .await?;
    let status: Value = serde_json::from_str(&said).map_err(|_| Failure::new(said))?;
    Ok(status["loggedIn"].clone())
}

#[tokio::test(flavor = "multi_thread")]
async fn rachel8_is_ready_while_the_real_claude_code_finds_the_login_that_it_was_given() -> Outcome
{
    let Some(programs) = programs()? else {
        return Ok(());
    };
    let Some(mut bed) = Bed::start_real().await? else {
        return Ok(());
    };
    let web = stand_ins(bed.dir(), &bed, &programs)?;
    bed.change(&class(&bed, web.url())?).await?;
    log_in(&bed, FAR_OFF).await?;
    let mut instance = manifests::instance(TENANT, "alice");
    instance["spec"]["className"] = json!("rachel8");
    bed.cluster.apply(&instance).await?;
    bed.instance("alice").is("ServerCreated").await?;
    bed.operator.stop().await?;
    installed(&bed.instance("alice")).await?;
    assert_eq!(logged_in(&bed.instance("alice")).await?, false);

    bed.operator.start()?;
    let alice = bed.instance("alice");
    let server = alice.ready().await?;
    assert_eq!(logged_in(&alice).await?, true);
    has_all_that_the_class_declares(&alice).await?;

    alice
        .shell("pgrep -u rachel -x bun && rm /home/rachel/.claude/.credentials.json")
        .await?;
    // Starting it again does not help: it would have no login.
    alice.condition("Ready", "False", "Restarting").await?;
    bed.wait_until("the assistant is held back", async || {
        Ok(alice.shell(HELD_BACK).await.is_ok())
    })
    .await?;
    assert_eq!(logged_in(&alice).await?, false);
    log_in(&bed, LONG_AGO).await?;
    assert_eq!(alice.ready().await?, server);
    assert_eq!(logged_in(&alice).await?, true);
    bed.delete_all().await?;
    bed.finish().await
}

/// Files, service and secrets, as the machine and the assistant see them.
async fn has_all_that_the_class_declares(alice: &Instance<'_>) -> Outcome {
    let installed = "test -d /home/rachel/shared && cat /home/rachel/bun-install.txt";
    assert_eq!(alice.shell(installed).await?, "installed\n");
    let modes = "cd /home/rachel && stat -c '%a %U' rachel8/.env .claude/.credentials.json";
    assert_eq!(alice.shell(modes).await?, "600 rachel\n600 rachel\n");
    let login = alice.file("/home/rachel/.claude/.credentials.json").await?;
    let login: Value = serde_json::from_str(&login.unwrap_or_default())?;
    assert_eq!(login["claudeAiOauth"]["expiresAt"].to_string(), FAR_OFF);
    let unit = alice.shell("systemctl show rachel8").await?;
    for line in UNIT {
        assert!(unit.lines().any(|each| each == line), "no {line} in {unit}");
    }
    let log = alice
        .shell("journalctl --quiet --identifier rachel8 --output cat --no-pager")
        .await?;
    for (name, value) in [
        ("TELEGRAM_BOT_TOKEN", BOT_TOKEN),
        ("OWNER_TELEGRAM_USER_ID", "123456789"),
        ("SHARED_FOLDER_PATH", "/home/rachel/shared"),
        ("NODE_ENV", "production"),
        ("LOG_LEVEL", "info"),
    ] {
        let proof = proof(name, value.as_bytes())?;
        assert!(log.lines().any(|line| line == proof), "{name}: {log}");
    }
    let apt = alice.shell("cat /var/log/stand-in-apt-get.log").await?;
    assert!(
        apt.contains(" update\n") && apt.ends_with(" install gh\n"),
        "{apt}"
    );
    Ok(())
}
