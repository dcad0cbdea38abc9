//! The operator's login with its own key, by OpenSSH's client: it gives the guest commands, and can do nothing else.

use bed::{Bed, Instance, Outcome, ensure, run_in};
use hetzner_sim::Shell;
use russh::keys::ssh_key::LineEnding;
use serde_json::Value;

use super::server_keys;

const ASK: &str = r#"printf '{"nonce": "%064d"}' 7"#;

/// What a client at the server's own address gets to, with the operator's key.
struct Login<'a> {
    one: &'a Instance<'a>,
}

impl<'a> Login<'a> {
    async fn with_the_operators_key(bed: &Bed, one: &'a Instance<'a>) -> Outcome<Self> {
        let keys = server_keys(bed, one).await?;
        let shell = Shell {
            command: "umask 077; cat > /root/key; ssh-keyscan -t ed25519 127.0.0.1 > /root/known 2> /dev/null".into(),
            stdin: keys.login.to_openssh(LineEnding::LF)?.to_string(),
            user: None,
        };
        let server = one.serves().await?;
        run_in(&bed.cloud(), server, &shell).await?;
        Ok(Self { one })
    }

    /// Exit code and output of one of OpenSSH's programs.
    async fn tries(&self, program: &str, arguments: &str) -> Outcome<(i32, String)> {
        let options =
            "-o UserKnownHostsFile=/root/known -o IdentitiesOnly=yes -o BatchMode=yes -i /root/key";
        let command =
            format!("{ASK} | timeout 20 {program} {options} {arguments} 2>&1; echo \"exit $?\"");
        let told = self.one.shell(&command).await?;
        let (output, exit) = told.trim_end().rsplit_once("exit ").unwrap_or_default();
        Ok((exit.parse()?, output.to_owned()))
    }

    async fn ssh(&self, arguments: &str) -> Outcome<(i32, String)> {
        self.tries("ssh", arguments).await
    }

    /// Fails unless it ends badly, and says so.
    async fn is_refused(&self, program: &str, arguments: &str, words: &str) -> Outcome {
        let (exit, output) = self.tries(program, arguments).await?;
        ensure(exit != 0 && exit != 124 && output.contains(words), || {
            format!("{program} {arguments}: {exit}: {output}")
        })
    }
}

const HERE: &str = "agentfleet@127.0.0.1";

#[tokio::test(flavor = "multi_thread")]
async fn the_operators_login_can_do_nothing_but_the_guests_commands() -> Outcome {
    let Some(bed) = Bed::start_real().await? else {
        return Ok(());
    };
    let one = bed.create("one").await?;
    let server = one.ready().await?;
    let login = Login::with_the_operators_key(&bed, &one).await?;
    let (exit, told) = login.ssh(&format!("{HERE} hello")).await?;
    let greeting: Value = serde_json::from_str(&told)?;
    assert_eq!((exit, &greeting["ok"]), (0, &Value::Bool(true)), "{told}");

    one.shell("touch /root/before; sleep 0.05").await?;
    let others = [
        "id",
        "sh",
        "'hello; id'",
        "'hello && id'",
        "'$(id)'",
        "'`id`'",
        "'hello\nid'",
        "install",
        "--version",
        "'../guest'",
        "'-c id'",
        "''",
    ];
    for command in others {
        login
            .is_refused("ssh", &format!("-T {HERE} -- {command}"), "BadCommand")
            .await?;
    }
    login
        .is_refused("ssh", &format!("-T {HERE}"), "BadCommand")
        .await?;
    refuses_forwarding(&login).await?;
    refuses_files(&login).await?;
    takes_no_environment(&login, &greeting).await?;

    // All the same by root's own word: nothing came about that the guest did not do.
    let made = "find / -xdev -newer /root/before -user agentfleet -not -path '/proc/*' -not -path '/run/*' -o -path /tmp/brought";
    assert_eq!(one.shell(made).await?, "");
    assert_eq!(one.ready().await?, server);
    bed.delete_all().await?;
    bed.finish().await
}

async fn refuses_forwarding(login: &Login<'_>) -> Outcome {
    let refused = "administratively prohibited";
    login
        .is_refused("ssh", &format!("-W 127.0.0.1:22 {HERE}"), refused)
        .await?;
    for way_back in ["9998:127.0.0.1:22", "/tmp/brought:127.0.0.1:22"] {
        let arguments = format!("-N -o ExitOnForwardFailure=yes -R {way_back} {HERE}");
        login.is_refused("ssh", &arguments, "forwarding").await?;
    }
    let (_, told) = login.ssh(&format!("-tt {HERE} hello")).await?;
    ensure(told.contains("PTY allocation request failed"), || {
        told.clone()
    })
}

async fn refuses_files(login: &Login<'_>) -> Outcome {
    // What the guest answers to any other command is no file transfer, and the client says so: the one takes it for a packet, the other shows it.
    let (no_packet, shown) = ("message too long", "BadCommand");
    for (program, arguments, words) in [
        (
            "scp",
            format!("/etc/hostname {HERE}:/tmp/brought"),
            no_packet,
        ),
        (
            "scp -O",
            format!("/etc/hostname {HERE}:/tmp/brought"),
            shown,
        ),
        ("scp", format!("{HERE}:/etc/passwd /root/taken"), no_packet),
        ("scp -O", format!("{HERE}:/etc/passwd /root/taken"), shown),
        ("sftp", HERE.to_owned(), no_packet),
    ] {
        login.is_refused(program, &arguments, words).await?;
    }
    login
        .one
        .shell("test ! -e /tmp/brought -a ! -e /root/taken")
        .await?;
    Ok(())
}

/// Neither what a client sends along nor an agent of his gets to the guest.
async fn takes_no_environment(login: &Login<'_>, greeting: &Value) -> Outcome {
    let (_, told) = login
        .ssh(&format!("-o SetEnv=AGENTFLEET_ROOT=/tmp {HERE} hello"))
        .await?;
    let told: Value = serde_json::from_str(&told)?;
    assert_eq!(told["server"], greeting["server"]);
    let waits = format!(
        r#"rm -f /root/agent; eval $(ssh-agent -a /root/agent) > /dev/null
        printf '{{"nonce": "%064d", "wait": 3, "seen": {}}}' 7 |
            ssh -A -o UserKnownHostsFile=/root/known -o SetEnv="LC_SENT=sent LD_PRELOAD=/tmp/x" -i /root/key {HERE} hello > /root/told &
        until pgrep -f '^/usr/bin/python3 -IS /usr/local/lib/agentfleet/guest ssh hello' > /root/pid; do sleep 0.05; done
        cat /proc/$(head -1 /root/pid)/environ | tr '\0' '\n'
        for pid in $(pgrep -u agentfleet); do tr '\0' '\n' < /proc/$pid/environ; done
        kill $SSH_AGENT_PID"#,
        greeting["progress"]
    );
    let environment = login.one.shell(&waits).await?;
    for name in ["SSH_AUTH_SOCK", "LD_PRELOAD"] {
        ensure(!environment.contains(name), || environment.clone())?;
    }
    ensure(environment.contains("SSH_ORIGINAL_COMMAND=hello"), || {
        environment.clone()
    })
}
