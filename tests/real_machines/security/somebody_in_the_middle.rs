//! Somebody who takes over a server's address, with a real sshd of his own: he says again what the server once said, or has it answer for him.

use bed::{Attacker, Bed, Instance, Outcome, ensure, manifests};
use hetzner_sim::Stage;
use serde_json::json;

use super::{heard_only_challenges, is_told, lose_status};

/// What a server's own guest answers to a challenge of somebody who could make it do so.
const FORMER_ANSWER: &str =
    r#"printf '{"nonce": "%064d"}' 7 | /usr/local/lib/agentfleet/guest ssh hello"#;

/// The port on which the server itself answers what he is asked, and keeps what it said.
const RELAY_PORT: &str = "7000";
/// It takes somebody on the server to let it do so.
const RELAY: &str = r#"systemd-run --quiet python3 -c '
import socketserver, subprocess
class Relay(socketserver.StreamRequestHandler):
    def handle(self):
        guest = ["/usr/local/lib/agentfleet/guest", "ssh", "hello"]
        said = subprocess.run(guest, input=self.rfile.read(), stdout=subprocess.PIPE).stdout
        with open("/root/relayed", "ab") as relayed:
            relayed.write(said)
        self.wfile.write(said)
socketserver.ThreadingTCPServer(("", PORT), Relay).serve_forever()'
until nc -z 127.0.0.1 PORT; do sleep 0.1; done"#;
/// His half of it.
const RELAYS: &str = r#"#!/usr/bin/python3
import shutil, socket, sys
sys.stdin.buffer.readline()
with socket.create_connection(("SERVER", PORT)) as server:
    server.sendall(sys.stdin.buffer.read())
    server.shutdown(socket.SHUT_WR)
    shutil.copyfileobj(server.makefile("rb"), sys.stdout.buffer)
"#;

async fn bed_with(bootstrap: &str) -> Outcome<Option<Bed>> {
    let Some(bed) = Bed::start_real().await? else {
        return Ok(None);
    };
    let mut class = bed.class();
    class["spec"]["bootstrap"] = json!(bootstrap);
    class["spec"]["firewall"]["rules"] = json!([{"direction": "In", "protocol": "Tcp", "port": RELAY_PORT, "networks": ["0.0.0.0/0"]}]);
    bed.change(&class).await?;
    Ok(Some(bed))
}

/// The instance, whose server's address is taken over before it has booted.
async fn taken_over_from_birth<'a>(
    bed: &'a Bed,
    attacker: &Attacker,
) -> Outcome<(Instance<'a>, u64)> {
    let one = bed.create("one").await?;
    let server = bed
        .wait_for("the server exists", async || {
            Ok(one.status().await?["server"]["id"].as_u64())
        })
        .await?;
    attacker.takes_over(server).await?;
    bed.wait_until("it has booted", async || {
        Ok(bed.cloud().machine(server)?.stage == Stage::Up)
    })
    .await?;
    Ok((one, server))
}

/// Lets the server answer what he is asked, and waits until it has done so twice: the second time because the first counted for nothing.
async fn relays(bed: &Bed, one: &Instance<'_>, attacker: &Attacker, proof: &str) -> Outcome {
    let server = one.status().await?["server"]["id"].as_u64();
    let address = bed.cloud().machine(server.unwrap_or_default())?.address;
    let address = address.unwrap_or_default().replace(":22", "");
    let program = RELAYS.replace("SERVER", &address);
    attacker
        .answers_by(&program.replace("PORT", RELAY_PORT))
        .await?;
    bed.wait_until("he has relayed two answers", async || {
        let heard = attacker.heard().await?;
        let mut commands = heard.into_iter().map(|heard| heard.command);
        let more = commands.find(|command| command != "hello");
        ensure(more.is_none(), || format!("he was sent {more:?}"))?;
        let relayed = one.file("/root/relayed").await?.unwrap_or_default();
        Ok(relayed.matches(proof).count() >= 2)
    })
    .await
}

/// Before the pin, after it, and when it is lost; `at_first` is the reason that is told before the pin.
async fn he_gets_nothing(bootstrap: &str, at_first: &str) -> Outcome {
    let Some(mut bed) = bed_with(bootstrap).await? else {
        return Ok(());
    };
    let attacker = Attacker::start(bed.cloud()).await?;
    let (one, server) = taken_over_from_birth(&bed, &attacker).await?;
    let former = one.shell(FORMER_ANSWER).await?;
    ensure(former.contains("\"boot\""), || former.clone())?;
    attacker.says(&former).await?;
    is_told(&one, &attacker, at_first).await?;
    one.shell(&RELAY.replace("PORT", RELAY_PORT)).await?;
    if bootstrap == "SshProof" {
        relays(&bed, &one, &attacker, "\"boot\"").await?;
        is_told(&one, &attacker, at_first).await?;
    }
    // With SshProof he was given a challenge and failed it; with a posted key not even that.
    let challenged = heard_only_challenges(&attacker).await? > 0;
    assert_eq!(challenged, bootstrap == "SshProof");
    attacker.goes_away_from(server).await?;
    assert_eq!(one.ready().await?, server);

    attacker.forgets().await?;
    attacker.takes_over(server).await?;
    let second = bed.apply_secret("one").await?;
    is_told(&one, &attacker, "HostKeyChanged").await?;
    assert_eq!(attacker.heard().await?.len(), 0);
    attacker.goes_away_from(server).await?;
    one.has_in_file(manifests::SECRET_FILE, &second).await?;
    assert_eq!(one.ready().await?, server);

    attacker.says(&one.shell(FORMER_ANSWER).await?).await?;
    attacker.takes_over(server).await?;
    lose_status(&mut bed).await?;
    let one = bed.instance("one");
    is_told(&one, &attacker, "HostKeyUnproven").await?;
    relays(&bed, &one, &attacker, "\"resume\"").await?;
    is_told(&one, &attacker, "HostKeyUnproven").await?;
    assert!(heard_only_challenges(&attacker).await? > 0);
    attacker.goes_away_from(server).await?;
    assert_eq!(one.ready().await?, server);
    attacker.leaves_without(&[&second, "canary-"]).await?;
    bed.delete_all().await?;
    bed.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn i5_whoever_takes_over_an_address_gets_nothing_where_the_server_proves_its_key() -> Outcome
{
    he_gets_nothing("SshProof", "HostKeyUnproven").await
}

#[tokio::test(flavor = "multi_thread")]
async fn i5_whoever_takes_over_an_address_gets_nothing_where_the_server_phones_home() -> Outcome {
    he_gets_nothing("PhoneHome", "HostKeyChanged").await
}
