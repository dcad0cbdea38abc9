//! The demo: `examples/quickstart` from nothing to Ready, a changed Secret, and back to nothing; then a customer's subscription, from beginning to end.
//!
//! Every claim that it prints was looked up before, at the API server, in the simulator's ledger or on a machine's disk.

mod customer;

use std::collections::BTreeMap;

use std::sync::Arc;

use bed::{Bed, Options, Outcome, Pace, ensure, from_yaml, manifests, wait_for, wait_until};
use hetzner_sim::{Config, Shell, Simulator, Spread};
use serde_json::json;

const EXAMPLES: &str = "examples/quickstart";
const NAMESPACE: &str = "agents";
const AGENTS: u32 = 3;
/// Two of them create and delete the server. The rest are lists, which a larger fleet shares; three agents in a hurry pay most of them alone.
const REQUESTS_PER_LIFECYCLE_MAX: f64 = 8.0;
/// Rarer than in tests, more often than by default: the demo is to be short.
const PACE: Pace = Pace {
    fast: "2s",
    slow: "10s",
    project: "10s",
    request_timeout: "5s",
    settle: "1s",
    lease: "15s",
    unreachable: "5m",
};

pub(crate) async fn run() -> Outcome {
    step(
        "Starting a Kubernetes control plane, a simulated Hetzner Cloud, and the operator under its own ServiceAccount.",
    );
    let bed = Bed::with(Options {
        simulator: Some(Arc::new(cloud().await?)),
        pace: PACE,
        ..Options::default()
    })
    .await?;
    set_up(&bed).await?;
    let set_up_requests = requests(&bed);
    bed.cloud().forget_requests();

    step("Applying three agents, each with a Secret of its own: each becomes a server.");
    bed.cluster
        .kubectl(&["apply", "--filename", &example("03-agents.yaml")])?;
    show_until_ready(&bed).await?;
    change_a_secret(&bed).await?;
    delete_agents(&bed)?;
    let per_life = f64::from(requests(&bed)) / f64::from(AGENTS);
    customer::live(&bed).await?;
    tear_down(&bed).await?;
    bed.finish().await?;

    println!("\nservers left: 0");
    println!(
        "requests per lifecycle: {per_life:.1} ({AGENTS} agents, all shared lists included; set-up: {set_up_requests})"
    );
    ensure(per_life <= REQUESTS_PER_LIFECYCLE_MAX, || {
        format!("more than {REQUESTS_PER_LIFECYCLE_MAX} requests per lifecycle")
    })
}

fn step(text: &str) {
    println!("\n» {text}");
}

fn example(file: &str) -> String {
    format!("{EXAMPLES}/{file}")
}

/// Real machines where they can be had; otherwise, and said so, fake ones, whose boots take a few seconds, so that there is something to see.
pub(crate) async fn cloud() -> Outcome<Simulator> {
    match bed::real_cloud().await? {
        Ok(simulator) => {
            println!(
                "Its servers are real machines here: Debian with systemd, sshd and cloud-init, each booted from what Hetzner would get."
            );
            return Ok(simulator);
        }
        Err(error) => println!(
            "Its servers are fake machines, since real ones need root on Linux, systemd-nspawn and `make machine-root`: {error}."
        ),
    }
    let fake = Config {
        time_factor: 1.0,
        boot_ssh_s: Spread { from: 2.0, to: 4.0 },
        boot_cloud_init_s: Spread { from: 2.0, to: 5.0 },
        ..bed::quick_cloud()
    };
    Ok(Simulator::start(fake).await?)
}

fn requests(bed: &Bed) -> u32 {
    bed.cloud()
        .requests()
        .iter()
        .map(|route| u32::try_from(route.count).unwrap_or(u32::MAX))
        .sum()
}

async fn set_up(bed: &Bed) -> Outcome {
    step("Applying a token Secret, a HetznerProject and an AgentClass: what an admin does once.");
    bed.cluster
        .apply(&manifests::secret(
            bed::SYSTEM,
            "hetzner",
            "token",
            bed::TOKEN,
        ))
        .await?;
    bed.cluster
        .kubectl(&["apply", "--filename", &example("01-project.yaml")])?;
    // As the example says: whoever reaches SSH is the operator, which is here.
    let mut class = from_yaml(&std::fs::read(example("02-class.yaml"))?)?;
    class["spec"]["firewall"]["sshFrom"] = json!([format!("{}/32", bed.host())]);
    bed.cluster.apply(&class).await?;
    for object in ["hetznerproject/quickstart", "agentclass/greeter"] {
        bed.cluster
            .kubectl(&["wait", "--for=condition=Ready", "--timeout=180s", object])?;
    }
    print!(
        "{}",
        bed.cluster
            .kubectl(&["get", "hetznerprojects,agentclasses"])?
    );
    Ok(())
}

/// Prints the agents whenever the phase of one has changed.
async fn show_until_ready(bed: &Bed) -> Outcome {
    let mut shown = BTreeMap::new();
    wait_for("three agents are Ready", async || {
        let table = bed
            .cluster
            .kubectl(&["get", "agents", "--namespace", NAMESPACE])?;
        let phases = phases(&table);
        if phases != shown {
            print!("{table}");
            shown = phases;
        }
        let ready = shown.values().filter(|phase| *phase == "Ready").count();
        Ok((ready == AGENTS as usize).then_some(()))
    })
    .await?;
    let servers = bed.cloud().servers();
    ensure(servers.len() == AGENTS as usize, || {
        format!("{} servers for {AGENTS} agents", servers.len())
    })?;
    for name in ["alice", "bob", "carol"] {
        says(bed, name, &format!("hello from {name}")).await?;
    }
    Ok(())
}

/// Name and phase in each line but the first: NAME CLASS PHASE …
fn phases(table: &str) -> BTreeMap<String, String> {
    let rows = table.lines().skip(1).map(|line| line.split_whitespace());
    rows.filter_map(|mut words| Some((words.next()?.to_owned(), words.nth(1)?.to_owned())))
        .collect()
}

async fn change_a_secret(bed: &Bed) -> Outcome {
    step(
        "Changing bob's Secret: the new value goes to his server over SSH, and nothing changes at Hetzner.",
    );
    let before = bed.latest_mutation();
    bed.cluster
        .apply(&manifests::secret(
            NAMESPACE,
            "bob",
            "GREETING",
            "good morning from bob",
        ))
        .await?;
    let bob = bed
        .cluster
        .get("AgentInstance", Some(NAMESPACE), "bob")
        .await?
        .unwrap_or_default();
    let server = bob["status"]["server"]["id"].as_u64().unwrap_or_default();
    let file = bed.cloud().machine(server)?.root.join("home/greeter/.env");
    wait_until("bob's server has the new Secret", async || {
        Ok(std::fs::read_to_string(&file)
            .is_ok_and(|content| content.contains("good morning from bob")))
    })
    .await?;
    ensure(bed.latest_mutation() == before, || {
        "a changed Secret changed something at Hetzner".into()
    })?;
    println!(
        "/home/greeter/.env on server {server}: {}",
        std::fs::read_to_string(&file)?.trim()
    );
    says(bed, "bob", "good morning from bob").await
}

/// Waits until the agent's own log shows that it has its Secret; fake machines run no agents.
async fn says(bed: &Bed, name: &str, greeting: &str) -> Outcome {
    let agent = bed.cluster.get("AgentInstance", Some(NAMESPACE), name);
    let server = agent.await?.unwrap_or_default()["status"]["server"]["id"].as_u64();
    let server = server.unwrap_or_default();
    if bed.cloud().console(server).is_err() {
        return Ok(());
    }
    let log = Shell {
        command: "journalctl --quiet --unit agent --output cat --lines 1 _COMM=greet".into(),
        ..Shell::default()
    };
    wait_until(&format!("{name} says {greeting:?}"), async || {
        let said = bed.cloud().shell(server, &log).await?.output;
        Ok(said.trim() == greeting)
    })
    .await?;
    println!("{name}'s agent, in the journal of server {server}: {greeting}");
    Ok(())
}

fn delete_agents(bed: &Bed) -> Outcome {
    step("Deleting the agents: their servers go with them.");
    bed.cluster.kubectl(&[
        "delete",
        "agents",
        "--all",
        "--namespace",
        NAMESPACE,
        "--timeout=180s",
    ])?;
    let left = bed.cloud().servers();
    ensure(left.is_empty(), || {
        format!("the agents are gone and {} servers are left", left.len())
    })?;
    for life in bed.cloud().lives() {
        println!("server {} ({}) deleted", life.server, life.name);
    }
    Ok(())
}

async fn tear_down(bed: &Bed) -> Outcome {
    step("Deleting class, project and token: what they had made at Hetzner goes too.");
    for object in ["agentclass/greeter", "hetznerproject/quickstart"] {
        bed.cluster.kubectl(&["delete", object, "--timeout=180s"])?;
    }
    bed.cluster.kubectl(&[
        "delete",
        "secret/hetzner",
        "--namespace",
        bed::SYSTEM,
        "--timeout=180s",
    ])?;
    bed.delete_all().await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn phases_are_the_third_column() {
        let table = "NAME    CLASS     PHASE          READY   IP\nalice   greeter   Provisioning   False\nbob     greeter   Ready   True   127.32.0.2\n";
        let expected = [("alice", "Provisioning"), ("bob", "Ready")];
        assert_eq!(
            phases(table),
            expected
                .map(|(name, phase)| (name.to_owned(), phase.to_owned()))
                .into()
        );
    }
}
