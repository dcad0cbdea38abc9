//! A server gives up the voice: nothing of its agent runs, and nothing starts it, but a `configure`.

use bed::{Bed, Outcome};
use hetzner_sim::Stage;
use serde_json::json;

use super::{CREDENTIALS, ask, class};

/// An agent that no signal but SIGKILL ends, with a child that has left its session and its parent.
const STUBBORN: &str = "\
import os, signal
signal.signal(signal.SIGTERM, signal.SIG_IGN)
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        open('child', 'w').write(str(os.getpid()))
    else:
        os._exit(0)
while True:
    signal.pause()
";

/// Nothing of the agent is left: no process, none in its control group, no secret; and it cannot be started by hand.
const SILENT: &str = "! pgrep -u agent && test ! -e /home/agent/.env &&
! cat /sys/fs/cgroup/system.slice/agent.service/cgroup.procs 2>/dev/null | grep . &&
systemctl start agent && ! systemctl is-active agent";

#[tokio::test(flavor = "multi_thread")]
async fn i13_a_released_server_is_silent_whatever_its_agent_tries_and_brings_its_files_back()
-> Outcome {
    let Some(bed) = Bed::start_real().await? else {
        return Ok(());
    };
    let mut class = class(&bed);
    let agent = &mut class["spec"]["agent"];
    agent["files"] = json!([{"path": "/home/agent/stubborn.py", "content": STUBBORN}]);
    agent["service"]["execStart"] = json!(["/usr/bin/python3", "stubborn.py"]);
    agent["service"]["killMode"] = json!("Process");
    agent["service"]["timeoutStopSec"] = json!("1s");
    bed.change(&class).await?;
    let one = bed.create("one").await?;
    let server = one.ready().await?;
    one.shell("cd /home/agent && until test -s child; do sleep 0.1; done && pgrep -f stubborn.py | grep -qx $(cat child)")
        .await?;
    one.shell(&format!(
        "runuser -u agent -- sh -c 'echo refreshed > {CREDENTIALS}'"
    ))
    .await?;

    let released = ask(&one, "release", 1).await?;
    assert_eq!(released["released"], true, "{released}");
    one.shell(SILENT).await?;
    let boot = one.shell("cut -d' ' -f22 /proc/1/stat").await?;
    one.act("reboot", json!(null)).await?;
    bed.wait_until("it has booted again", async || {
        let up = bed.cloud().machine(server)?.stage == Stage::Up;
        let now =
            one.shell("systemctl is-active -q multi-user.target && cut -d' ' -f22 /proc/1/stat");
        Ok(up && now.await.is_ok_and(|now| now != boot))
    })
    .await?;
    one.shell(SILENT).await?;

    class["spec"]["agent"]["environment"] = json!({"LEVEL": "debug"});
    bed.change(&class).await?;
    bed.wait_until("the agent has its files again", async || {
        Ok(one.file(CREDENTIALS).await?.as_deref() == Some("refreshed\n"))
    })
    .await?;
    assert_eq!(one.ready().await?, server);
    let kept = format!("stat -c '%a %U' {CREDENTIALS}; ls /var/lib/agentfleet/kept");
    assert_eq!(one.shell(&kept).await?, "600 agent\n");
    bed.delete_all().await?;
    bed.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn i13_an_agent_that_moves_its_secrets_behind_a_link_is_released_all_the_same() -> Outcome {
    let Some(bed) = Bed::start_real().await? else {
        return Ok(());
    };
    bed.change(&class(&bed)).await?;
    let one = bed.create("one").await?;
    one.ready().await?;
    one.shell(
        "cd /home/agent && mv .claude .moved && ln -s /etc .claude && touch /etc/.credentials.json",
    )
    .await?;
    let released = ask(&one, "release", 1).await?;
    assert_eq!(released["released"], true, "{released}");
    one.shell("! pgrep -u agent && test ! -e /home/agent/.env && test -e /etc/.credentials.json")
        .await?;
    bed.delete_all().await?;
    bed.finish().await
}
