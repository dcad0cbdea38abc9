//! One voice, as the service hears it that the agents poll: whoever is paused, does not boot, is frozen or is switched on by hand, at no time do
//! two of them claim its token.

use std::process::Command;

use bed::{Bed, Failure, Instance, Outcome, Token, ensure, manifests, run_in, wait_until};
use hetzner_sim::{Fault, FaultBody, FaultRule, MachineFaults, Shell, SshFault, Stage};
use serde_json::{Value, json};

/// The agent that claims the token.
const AGENT: &str = include_str!("../agent/agent.py");
const RECREATE: &str = "agentfleet.dev/recreate";
/// A `configure` that runs on a server; the brackets keep this command from finding itself.
const CONFIGURES: &str = "pgrep -f '[g]uest ssh configure'";
/// Ends well where a whole boot went by without the agent, and nothing of its Secret is left.
const SILENT: &str =
    "systemctl is-active --quiet multi-user.target && test ! -e /home/agent/.env &&
test $(systemctl show -p ActiveEnterTimestampMonotonic --value agent) = 0";
/// Holds the first one as soon as it is there: it may be made ready long before the rest of it comes.
const HOLD: &str = "until pgrep -f '[g]uest ssh configure' > /dev/null; do sleep 0.01; done
for again in 1 2 3; do pgrep -f '[g]uest ssh configure' | xargs kill -STOP; done";
/// The agent's own unit, which does not start before it may.
const WAITING_UNIT: &str = "\
[Service]
User=agent
WorkingDirectory=/home/agent
ExecStartPre=/bin/sh -c 'until test -e /run/go; do sleep 0.1; done'
ExecStart=/usr/bin/python3 /home/agent/agent.py

[Install]
WantedBy=multi-user.target
";
const GO: &str = "touch /run/go";
/// Ends well while the unit begins to start.
const STARTS: &str = "systemctl show -p ActiveState agent | grep -qx ActiveState=activating";
/// Nobody hears any more what the guest says.
const CUT: &str = "pkill -KILL -f '^sshd-session: agentfleet'";
/// The operator waits so long, in milliseconds, before its first `configure`: for us to see what it sends.
const BEFORE_CONFIGURE: (&str, &str) = ("FAILPOINTS", "ssh configure before=1*sleep(4000)");
/// What a `configure` with the agent's code has at least, in bytes.
const CONFIGURE: u64 = 4_000;
/// Whoever has sent nothing more at so many looks waits for the answer.
const LOOKS: usize = 10;

/// An instance whose agent claims a token.
struct Bot {
    bed: Bed,
    token: Token,
    class: Value,
}

impl Bot {
    /// None where there are no real machines.
    async fn new() -> Outcome<Option<Self>> {
        let Some(bed) = Bed::start_real().await? else {
            return Ok(None);
        };
        let token = Token::serve(bed.host().into()).await?;
        let mut class = bed.class();
        class["spec"]["lifecycle"] = json!({"disk": "Disposable"});
        class["spec"]["health"] = json!({"interval": "2s", "failureThreshold": 2});
        let agent = &mut class["spec"]["agent"];
        agent["files"] = json!([
            {"path": "/home/agent/agent.py", "content": AGENT},
            {"path": "/home/agent/VERSION", "content": "v1\n"},
        ]);
        agent["environment"] = json!({"CLAIM": token.url()});
        agent["service"]["execStart"] = json!(["/usr/bin/python3", "/home/agent/agent.py"]);
        bed.change(&class).await?;
        Ok(Some(Self { bed, token, class }))
    }

    fn one(&self) -> Instance<'_> {
        self.bed.instance("one")
    }

    /// Changes what only a new server can take up.
    async fn change(&mut self, disk: &str, sudo: bool) -> Outcome {
        self.class["spec"]["lifecycle"]["disk"] = json!(disk);
        self.class["spec"]["agent"]["sudo"] = json!(sudo);
        self.bed.change(&self.class).await
    }

    /// Changes how long a server may take to answer at first.
    async fn waits_for_a_boot(&mut self, timeout: &str) -> Outcome {
        self.class["spec"]["lifecycle"]["firstContactTimeout"] = json!(timeout);
        self.bed.change(&self.class).await
    }

    fn name(&self, server: u64) -> Outcome<String> {
        let servers = self.bed.cloud().servers();
        let found = servers.iter().find(|found| found["id"] == json!(server));
        let name = found.and_then(|found| found["name"].as_str());
        Ok(name.ok_or_else(|| Failure::new("no such server"))?.into())
    }

    /// Waits until the agent of a server has the token.
    async fn is_heard(&self, server: u64) -> Outcome {
        let name = self.name(server)?;
        let what = format!("{name} claims the token");
        self.bed
            .wait_until(
                &what,
                async || Ok(self.token.holder() == Some(name.clone())),
            )
            .await
    }

    /// Waits for a server beside these.
    async fn another(&self, but: &[u64]) -> Outcome<u64> {
        let other = async || {
            let servers = self.bed.cloud().servers();
            let mut ids = servers.iter().filter_map(|server| server["id"].as_u64());
            Ok(ids.find(|id| !but.contains(id)))
        };
        self.bed.wait_for("there is another server", other).await
    }

    async fn on(&self, server: u64, command: &str) -> Outcome<String> {
        let shell = Shell {
            command: command.to_owned(),
            ..Shell::default()
        };
        run_in(&self.bed.cloud(), server, &shell).await
    }

    /// Waits until a command ends well on a server.
    async fn ends_well(&self, server: u64, command: &str) -> Outcome {
        self.bed
            .wait_until(command, async || Ok(self.on(server, command).await.is_ok()))
            .await
    }

    /// How often the operator has given a server its configuration.
    fn configures(&self) -> Outcome<usize> {
        let calls = self.bed.operator.calls()?.into_iter();
        let configures = calls.filter(|call| call.site == "ssh" && call.call == "configure");
        Ok(configures.count())
    }

    /// How many bytes were sent to the SSH of a server on the connections that there are.
    fn sent_to(&self, server: u64) -> Outcome<u64> {
        let address = self
            .bed
            .cloud()
            .machine(server)?
            .address
            .unwrap_or_default();
        let to = format!("dst {address}");
        let told = Command::new("ss").args(["-Htin", &to]).output()?.stdout;
        let told = String::from_utf8_lossy(&told).into_owned();
        let counts = told
            .split_whitespace()
            .filter_map(|word| word.strip_prefix("bytes_sent:"));
        Ok(counts.filter_map(|count| count.parse::<u64>().ok()).sum())
    }

    /// An operator that was stopped in the middle of its first `configure`: all of it is sent, and the guest has not read it. Another operator has
    /// taken its place in the bed. Answers the stopped one, and the server.
    async fn paused_operator(&mut self) -> Outcome<(bed::Operator, u64)> {
        self.bed.operator.stop().await?;
        self.bed.operator.start_with(&[BEFORE_CONFIGURE])?;
        self.bed.create("one").await?;
        let server = self.another(&[]).await?;
        self.ends_well(server, HOLD).await?;
        wait_until("configure begins", async || Ok(self.configures()? > 0)).await?;
        let before = self.sent_to(server)?;
        let (mut sent, mut still) = (before, 0);
        wait_until("all of configure is sent, and nothing more", async || {
            let last = std::mem::replace(&mut sent, self.sent_to(server)?);
            still = if sent == last { still + 1 } else { 0 };
            Ok(sent >= before + CONFIGURE && still == LOOKS)
        })
        .await?;
        self.bed.operator.hold(true)?;
        let next = self.bed.operator.another()?;
        let paused = std::mem::replace(&mut self.bed.operator, next);
        Ok((paused, server))
    }

    /// Replaces a server by one that never boots, which changes nothing, and then by one that does; the old one cannot be deleted.
    async fn hands_over(&mut self, server: u64) -> Outcome<(u64, u64)> {
        self.change("Disposable", true).await?;
        let dead = self.another(&[server]).await?;
        self.bed
            .wait_until("it begins to boot", async || {
                Ok(!self.bed.cloud().console(dead)?.is_empty())
            })
            .await?;
        self.bed.cloud().kill(dead)?;
        self.waits_for_a_boot("1s").await?;
        self.bed
            .wait_until("it is given up", async || {
                let status = self.one().status().await?;
                Ok(status["rollbacks"][0]["reason"] == "FirstContactOverdue"
                    && self.bed.cloud().machine(dead).is_err())
            })
            .await?;
        // The next one is made after a pause.
        self.waits_for_a_boot("5m").await?;
        self.is_heard(server).await?;
        let refused = self.bed.cloud().add_fault(FaultRule {
            times: None,
            ..FaultRule::next("DELETE", "/servers/{id}", UNAVAILABLE)
        });
        let next = self.another(&[server]).await?;
        self.is_heard(next).await?;
        Ok((next, refused))
    }
}

const UNAVAILABLE: Fault = Fault::Status {
    status: 503,
    code: None,
    message: None,
    commit: false,
    body: FaultBody::Json,
};

#[tokio::test(flavor = "multi_thread")]
async fn i13_one_agent_is_heard_whoever_comes_late_never_boots_is_switched_on_by_hand_or_frozen()
-> Outcome {
    let Some(mut bot) = Bot::new().await? else {
        return Ok(());
    };
    let (mut paused, first) = bot.paused_operator().await?;
    let secret = bot.bed.apply_secret("one").await?;
    bot.bed.operator.start()?;
    bot.one()
        .has_in_file(manifests::SECRET_FILE, &secret)
        .await?;
    assert_eq!(bot.one().ready().await?, first);
    bot.is_heard(first).await?;

    let (second, refused) = bot.hands_over(first).await?;
    // The former operator's configure comes late, and then that operator itself.
    let go_on = format!("{CONFIGURES} | xargs kill -CONT");
    bot.on(first, &go_on).await?;
    paused.hold(false)?;
    let ended = paused.end().await?;
    assert!(!ended.success(), "it lost the lease");
    bot.ends_well(first, &format!("! {CONFIGURES}")).await?;
    bot.ends_well(
        first,
        "! systemctl is-active --quiet agent && test ! -e /home/agent/.env",
    )
    .await?;
    bot.token.one_holder()?;

    bot.bed.cloud().power(first, false)?;
    bot.bed
        .wait_until("it is off", async || {
            Ok(bot.bed.cloud().machine(first)?.stage == Stage::Off)
        })
        .await?;
    bot.bed.cloud().power(first, true)?;
    bot.ends_well(first, SILENT).await?;
    bot.is_heard(second).await?;
    bot.bed.cloud().remove_fault(refused)?;
    // The operator would, after a pause that has grown meanwhile.
    bot.bed.cloud().vanish(first)?;
    assert_eq!(bot.one().ready().await?, second);

    is_given_up_by_a_person_only(&mut bot, second).await?;
    for (from, to, silence) in bot.token.moves() {
        println!("from {from} to {to}: nobody for {silence:?}");
    }
    bot.token.one_holder()?;
    bot.bed.delete_all().await?;
    bot.bed.finish_after_replacements().await
}

#[tokio::test(flavor = "multi_thread")]
async fn i13_one_agent_is_heard_while_the_way_to_the_server_that_it_leaves_is_cut() -> Outcome {
    let Some(mut bot) = Bot::new().await? else {
        return Ok(());
    };
    let old = bot.bed.create("one").await?.ready().await?;
    bot.is_heard(old).await?;
    // Nobody can silence its agent, which reaches its service as before.
    let cut = MachineFaults {
        ssh: SshFault::Hang,
        ..MachineFaults::default()
    };
    bot.bed.cloud().set_machine_faults(old, cut)?;
    let refused = bot.bed.cloud().add_fault(FaultRule {
        times: None,
        ..FaultRule::next("DELETE", "/servers/{id}", UNAVAILABLE)
    });
    bot.change("Disposable", true).await?;
    let next = bot.another(&[old]).await?;
    bot.bed
        .wait_until("its deletion is asked for, and refused", async || {
            Ok(bot.bed.requests_to("DELETE", "/servers/{id}") > 0)
        })
        .await?;
    bot.is_heard(old).await?;
    assert_eq!(bot.token.claims_of(&bot.name(next)?), 0);
    bot.bed.cloud().remove_fault(refused)?;
    bot.is_heard(next).await?;
    assert_eq!(bot.one().ready().await?, next);
    is_gone(&bot, old)?;
    bot.token.one_holder()?;
    bot.bed.delete_all().await?;
    bot.bed.finish_after_replacements().await
}

#[tokio::test(flavor = "multi_thread")]
async fn i13_one_agent_is_heard_when_the_answer_to_configure_is_lost_in_a_hand_over() -> Outcome {
    let Some(mut bot) = Bot::new().await? else {
        return Ok(());
    };
    bot.class["spec"]["agent"]["service"] = json!({"unit": WAITING_UNIT});
    bot.change("Disposable", false).await?;
    bot.bed.create("one").await?;
    let first = bot.another(&[]).await?;
    bot.ends_well(first, STARTS).await?;
    bot.on(first, GO).await?;
    assert_eq!(bot.one().ready().await?, first);
    bot.is_heard(first).await?;

    let before = bot.configures()?;
    bot.change("Disposable", true).await?;
    let next = bot.another(&[first]).await?;
    bot.ends_well(next, STARTS).await?;
    bot.on(next, CUT).await?;
    assert_eq!(bot.token.claims_of(&bot.name(next)?), 0);
    bot.on(next, GO).await?;
    bot.is_heard(next).await?;
    assert_eq!(bot.one().ready().await?, next);
    let asked = bot.configures()? - before;
    assert!(asked >= 2, "asked {asked} times");
    bot.bed
        .wait_until("the former server is gone", async || {
            Ok(bot.bed.cloud().machine(first).is_err())
        })
        .await?;
    bot.is_heard(next).await?;
    bot.token.one_holder()?;
    bot.bed.delete_all().await?;
    bot.bed.finish_after_replacements().await
}

#[tokio::test(flavor = "multi_thread")]
async fn i14_a_kept_server_that_cannot_be_told_to_be_silent_is_a_persons_matter() -> Outcome {
    let Some(mut bot) = Bot::new().await? else {
        return Ok(());
    };
    let first = bot.bed.create("one").await?.ready().await?;
    bot.is_heard(first).await?;
    let refused = bot.bed.cloud().add_fault(FaultRule {
        times: None,
        ..FaultRule::next("DELETE", "/servers/{id}", UNAVAILABLE)
    });
    bot.change("Disposable", true).await?;
    let next = bot.another(&[first]).await?;
    bot.is_heard(next).await?;
    assert_eq!(bot.one().ready().await?, next);
    // Its disk is declared to be worth something, and nobody remembers that it is silent.
    bot.change("Preserve", true).await?;
    let frozen = MachineFaults {
        frozen: true,
        ..MachineFaults::default()
    };
    bot.bed.cloud().set_machine_faults(first, frozen)?;
    bot.bed.operator.restart()?;
    let secret = bot.bed.apply_secret("one").await?;
    let one = bot.one();
    let told = one.condition("Stalled", "True", "CannotRelease").await?;
    assert!(told.contains(&format!("server {first}")), "{told}");
    bot.is_heard(next).await?;
    assert!(bot.bed.cloud().machine(first).is_ok());

    bot.bed
        .cloud()
        .set_machine_faults(first, MachineFaults::default())?;
    one.has_in_file(manifests::SECRET_FILE, &secret).await?;
    one.condition("Stalled", "False", "NotStalled").await?;
    bot.bed.cloud().remove_fault(refused)?;
    bot.bed
        .wait_until("the former server is gone", async || {
            Ok(bot.bed.cloud().machine(first).is_err())
        })
        .await?;
    assert_eq!(bot.one().ready().await?, next);
    bot.is_heard(next).await?;
    bot.token.one_holder()?;
    bot.bed.delete_all().await?;
    bot.bed.finish_after_replacements().await
}

fn is_gone(bot: &Bot, server: u64) -> Outcome {
    let lives = bot.bed.cloud().lives();
    let gone = lives
        .iter()
        .any(|life| life.server == server && life.deleted.is_some());
    ensure(gone, || format!("{lives:#?}"))
}

/// A frozen server whose disk is kept stays the agent's, whatever the class says; given up, it is gone before another one speaks.
async fn is_given_up_by_a_person_only(bot: &mut Bot, server: u64) -> Outcome {
    let mutations = bot.bed.latest_mutation();
    bot.change("Preserve", false).await?;
    let one = bot.one();
    let told = one.condition("UpToDate", "False", "NeedsNewServer").await?;
    ensure(told.contains(RECREATE), || told)?;
    let frozen = MachineFaults {
        frozen: true,
        ..MachineFaults::default()
    };
    bot.bed.cloud().set_machine_faults(server, frozen)?;
    one.condition("Ready", "False", "Unreachable").await?;
    one.condition("UpToDate", "False", "NeedsNewServer").await?;
    let done = bot.bed.mutations_after(mutations);
    ensure(done.is_empty(), || format!("nobody asked for {done:?}"))?;
    one.annotate(RECREATE, "it does not come back").await?;
    let next = bot.another(&[server]).await?;
    bot.is_heard(next).await?;
    assert_eq!(one.ready().await?, next);
    is_gone(bot, server)
}
