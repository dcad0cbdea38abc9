//! The fields of a service as a real systemd takes them: a program gets its arguments as they stand, and what is kept from an agent is.

use std::fs;

use bed::{Bed, Outcome, ensure, from_yaml, manifests, project};
use serde_json::{Value, json};

/// Each as hard as an argument can be that is on one line.
const ARGUMENTS: [&str; 6] = [
    "$HOME ${HOME} $$",
    "100%h %%n",
    "a \"b\\",
    "it's",
    " \u{e9}\t#;",
    "",
];
/// The process that is the agent, and commands in the mounts that it has.
const AGENT: &str = "agent=$(systemctl show -p MainPID --value agent)
within() { nsenter --target $agent --mount -- \"$@\"; }
";
/// What root cannot do there, let alone the agent; and what it can.
const IS_KEPT_AWAY: &str = "
! within touch /etc/new && ! within touch /usr/new &&
mkdir /sys/fs/cgroup/new && rmdir /sys/fs/cgroup/new && ! within mkdir /sys/fs/cgroup/new &&
touch /tmp/outside && ! within test -e /tmp/outside &&
within runuser -u agent -- touch /home/agent/new /tmp/inside &&
test -e /home/agent/new -a ! -e /tmp/inside";

/// The fields that `docs/agents.md` gives to an agent without sudo.
fn hardened() -> Outcome<Value> {
    let page = fs::read_to_string(project().join("docs/agents.md"))?;
    let mut blocks = page.split("```yaml\n").skip(1);
    let block = blocks.find(|block| block.starts_with("service:"));
    let block = block.and_then(|block| block.split("```").next());
    Ok(from_yaml(block.unwrap_or_default().as_bytes())?["service"].clone())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_gets_its_arguments_as_they_stand_and_is_kept_from_what_the_class_keeps_from_it()
-> Outcome {
    let Some(bed) = Bed::start_real().await? else {
        return Ok(());
    };
    let words = ["/usr/bin/python3", "-c", "import signal; signal.pause()"];
    let words = [&words[..], &ARGUMENTS].concat();
    let mut service = hardened()?;
    service["execStart"] = json!(words);
    service["environmentFiles"] = json!([manifests::SECRET_FILE]);
    let mut class = bed.class();
    class["spec"]["agent"]["service"] = service;
    bed.change(&class).await?;
    let one = bed.create("one").await?;
    one.ready().await?;
    let given = one
        .shell(&format!("{AGENT}tr '\\0' '\\n' < /proc/$agent/cmdline"))
        .await?;
    assert_eq!(given, words.join("\n") + "\n");
    one.shell(&format!("{AGENT}{IS_KEPT_AWAY}")).await?;
    let status = one
        .shell(&format!("{AGENT}cat /proc/$agent/status"))
        .await?;
    ensure(status.contains("NoNewPrivs:\t1\n"), || status.clone())?;
    let shown = one.shell("systemctl show agent").await?;
    for line in [
        "MemoryMax=2147483648",
        "TasksMax=512",
        "User=agent",
        "PrivateDevices=yes",
        "ProtectKernelTunables=yes",
        "RestrictSUIDSGID=yes",
    ] {
        assert!(
            shown.lines().any(|each| each == line),
            "no {line} in {shown}"
        );
    }
    bed.delete_all().await?;
    bed.finish().await
}
