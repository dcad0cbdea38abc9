//! Somebody between operator and server: whatever he relays or replays, nothing is sent to him, and a condition says why.
//!
//! His strongest form is a host key of his own in front of the real guest, which answers every `hello` as only the server can. Nobody could
//! relay that far, because SSH binds the login to the session; if even that is refused, less is too.

use std::process::Stdio;

use bed::{
    Bed, Heard, Impostor, Instance, Options, Outcome, ensure, manifests, oracle, quick_cloud,
    status_of,
};
use hetzner_sim::{Config, MachineFaults, Spread, SshFault, Stage};
use serde_json::{Value, json};

/// Boots slowly enough that a test can get between.
async fn slow_bed(bootstrap: &str) -> Outcome<Bed> {
    bed_that_boots_in(2.0, bootstrap).await
}

/// So many seconds until SSH answers, and again until cloud-init is through.
async fn bed_that_boots_in(seconds: f64, bootstrap: &str) -> Outcome<Bed> {
    let boot = Spread::exactly(seconds);
    let cloud = Config {
        time_factor: 1.0,
        boot_ssh_s: boot,
        boot_cloud_init_s: boot,
        action_s: Spread::exactly(0.0),
        ..quick_cloud()
    };
    let bed = Bed::with(Options {
        cloud,
        ..Options::default()
    })
    .await?;
    bed.apply_basics().await?;
    let mut class = manifests::class();
    class["spec"]["bootstrap"] = json!(bootstrap);
    bed.change(&class).await?;
    Ok(bed)
}

/// Cuts a booting server off until it has booted, puts another host key in front of it, and lets it be reached.
async fn get_between(bed: &Bed, one: &Instance<'_>) -> Outcome<u64> {
    let server = server_of(bed).await?;
    bed.cloud().set_machine_faults(server, unreachable())?;
    bed.wait_until("it has booted", async || {
        Ok(bed.cloud().machine(server)?.stage == Stage::Up)
    })
    .await?;
    bed.wait_until(
        "its host key is posted, where that is the way",
        async || {
            let posted = one.status().await?["server"]["hostKey"].is_string();
            let class = bed
                .cluster
                .get("AgentClass", None, manifests::CLASS)
                .await?
                .unwrap_or_default();
            Ok(posted || class["spec"]["bootstrap"] != "PhoneHome")
        },
    )
    .await?;
    bed.cloud().change_host_key(server, false)?;
    bed.cloud()
        .set_machine_faults(server, MachineFaults::default())?;
    Ok(server)
}

fn nothing_was_sent(bed: &Bed, server: u64, secret: &str) -> Outcome {
    let root = bed.cloud().machine(server)?.root;
    let file = std::fs::read_to_string(root.join(manifests::SECRET_FILE.trim_start_matches('/')))
        .unwrap_or_default();
    ensure(!file.contains(secret), || {
        "the Secret was sent to somebody in the middle".into()
    })
}

/// Waits for what is to be told, and fails as soon as he gets what he must not.
async fn before_he_gets_anything<T>(
    bed: &Bed,
    told: impl Future<Output = Outcome<T>>,
    he_has_nothing: impl Fn() -> Outcome,
) -> Outcome<T> {
    let gets = bed.wait_for("he gets something", async || Ok(he_has_nothing().err()));
    tokio::select! {
        told = told => told,
        Ok(failure) = gets => Err(failure),
    }
}

async fn is_refused_before_the_pin(bootstrap: &str) -> Outcome {
    let bed = slow_bed(bootstrap).await?;
    let secret = bed.apply_secret("one").await?;
    bed.cluster
        .apply(&manifests::instance(bed::TENANT, "one"))
        .await?;
    let one = bed.instance("one");
    let server = get_between(&bed, &one).await?;
    let told = one.told(&["nothing was sent"]);
    let told = before_he_gets_anything(&bed, told, || nothing_was_sent(&bed, server, &secret));
    let told = told.await?;
    assert!(
        ["HostKeyUnproven", "HostKeyChanged"]
            .iter()
            .any(|reason| told["reason"] == *reason),
        "{told:#}"
    );
    oracle::calm(&bed).await?;
    nothing_was_sent(&bed, server, &secret)?;
    one.delete().await?;
    one.gone().await?;
    bed.delete_all().await?;
    bed.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_sent_to_another_host_key_than_the_one_that_proves_itself() -> Outcome {
    is_refused_before_the_pin("SshProof").await
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_sent_to_another_host_key_than_the_one_that_phoned_home() -> Outcome {
    is_refused_before_the_pin("PhoneHome").await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_phones_home_becomes_ready() -> Outcome {
    let bed = slow_bed("PhoneHome").await?;
    bed.create("one").await?.ready().await?;
    bed.delete_all().await?;
    bed.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_key_that_changes_after_it_was_pinned_is_told_and_gets_nothing() -> Outcome {
    let bed = Bed::start().await?;
    let one = bed.create("one").await?;
    let server = one.ready().await?;
    bed.cloud().change_host_key(server, true)?;
    let secret = bed.apply_secret("one").await?;
    let told = one.condition("Stalled", "True", "HostKeyChanged");
    let told = before_he_gets_anything(&bed, told, || nothing_was_sent(&bed, server, &secret));
    let message = told.await?;
    assert!(message.contains("nothing was sent"), "{message}");
    nothing_was_sent(&bed, server, &secret)?;
    assert_eq!(bed.cloud().lives().len(), 1, "it is not replaced either");
    one.delete().await?;
    one.gone().await?;
    bed.delete_all().await?;
    bed.finish().await
}

fn unreachable() -> MachineFaults {
    MachineFaults {
        ssh: SshFault::Refuse,
        ..MachineFaults::default()
    }
}

/// The server of the only instance, as soon as it exists.
async fn server_of(bed: &Bed) -> Outcome<u64> {
    bed.wait_for("the server exists", async || {
        Ok(bed.cloud().machines().first().map(|machine| machine.server))
    })
    .await
}

async fn put_impostor(bed: &Bed, server: u64) -> Outcome<Impostor> {
    bed.cloud().set_machine_faults(server, unreachable())?;
    let address = bed.cloud().machine(server)?.address.unwrap_or_default();
    Impostor::at(address.parse()?).await
}

fn goes_away(bed: &Bed, server: u64, impostor: Impostor) -> Outcome {
    drop(impostor);
    Ok(bed
        .cloud()
        .set_machine_faults(server, MachineFaults::default())?)
}

/// What the guest on a server truly answered to a `hello` in the past.
async fn former_answer(bed: &Bed, server: u64) -> Outcome<Vec<u8>> {
    bed.wait_until("it has booted", async || {
        Ok(bed.cloud().machine(server)?.stage == Stage::Up)
    })
    .await?;
    let root = bed.cloud().machine(server)?.root;
    let mut guest = tokio::process::Command::new("python3")
        .arg(root.join("usr/local/lib/agentfleet/guest"))
        .args(["ssh", "hello"])
        .env("AGENTFLEET_ROOT", &root)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let question = json!({"nonce": "5a".repeat(32)}).to_string();
    if let Some(mut stdin) = guest.stdin.take() {
        tokio::io::AsyncWriteExt::write_all(&mut stdin, question.as_bytes()).await?;
    }
    let said = guest.wait_with_output().await?.stdout;
    let answer: Value = serde_json::from_slice(&said)?;
    ensure(answer["macs"]["boot"].is_string(), || {
        format!("no proof to replay: {answer:#}")
    })?;
    Ok(said)
}

/// Fails unless all he heard were challenges.
fn only_challenges(heard: &[Heard], secret: &str) -> Outcome {
    for Heard { command, input } in heard {
        let input = String::from_utf8_lossy(input);
        ensure(command == "hello" && !input.contains(secret), || {
            format!("somebody in the middle was sent {command}: {input}")
        })?;
    }
    Ok(())
}

/// Fails unless he heard nothing at all.
fn nothing_was_heard(heard: &[Heard]) -> Outcome {
    ensure(heard.is_empty(), || {
        let commands: Vec<_> = heard.iter().map(|heard| &heard.command).collect();
        format!("somebody in the middle was sent {commands:?}")
    })
}

/// Somebody stands at the address of a booting server and replays what that server's guest said once.
async fn replaying_before_the_pin_is_refused(bootstrap: &str, reason: &str) -> Outcome {
    let bed = slow_bed(bootstrap).await?;
    let secret = bed.apply_secret("one").await?;
    bed.cluster
        .apply(&manifests::instance(bed::TENANT, "one"))
        .await?;
    let one = bed.instance("one");
    let server = server_of(&bed).await?;
    let impostor = put_impostor(&bed, server).await?;
    impostor.says(former_answer(&bed, server).await?);
    let told = one.told(&["nothing was sent"]);
    let challenged = || only_challenges(&impostor.heard(), &secret);
    let told = before_he_gets_anything(&bed, told, challenged).await?;
    assert_eq!(told["reason"], reason, "{told:#}");
    only_challenges(&impostor.heard(), &secret)?;
    // With SshProof he was given a challenge and failed it; with a pinned key not even that.
    assert_eq!(impostor.heard().is_empty(), bootstrap == "PhoneHome");

    goes_away(&bed, server, impostor)?;
    assert_eq!(one.ready().await?, server);
    bed.delete_all().await?;
    bed.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_former_answer_replayed_to_a_challenge_is_told_and_gets_nothing() -> Outcome {
    replaying_before_the_pin_is_refused("SshProof", "HostKeyUnproven").await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_former_answer_replayed_while_the_server_phones_home_is_told_and_gets_nothing() -> Outcome
{
    replaying_before_the_pin_is_refused("PhoneHome", "HostKeyChanged").await
}

/// The same once the host key is pinned, when there is something new to send.
async fn replaying_after_the_pin_is_refused(bootstrap: &str) -> Outcome {
    let bed = slow_bed(bootstrap).await?;
    let one = bed.create("one").await?;
    let server = server_of(&bed).await?;
    bed.cloud().set_machine_faults(server, unreachable())?;
    let former = former_answer(&bed, server).await?;
    bed.cloud()
        .set_machine_faults(server, MachineFaults::default())?;
    one.ready().await?;

    let impostor = put_impostor(&bed, server).await?;
    impostor.says(former);
    let secret = bed.apply_secret("one").await?;
    let told = one.condition("Stalled", "True", "HostKeyChanged");
    let unheard = || nothing_was_heard(&impostor.heard());
    let message = before_he_gets_anything(&bed, told, unheard).await?;
    assert!(message.contains("nothing was sent"), "{message}");
    nothing_was_heard(&impostor.heard())?;

    goes_away(&bed, server, impostor)?;
    one.has_in_file(manifests::SECRET_FILE, &secret).await?;
    assert_eq!(one.ready().await?, server);
    bed.delete_all().await?;
    bed.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_former_answer_replayed_after_the_proof_was_pinned_gets_nothing() -> Outcome {
    replaying_after_the_pin_is_refused("SshProof").await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_former_answer_replayed_after_the_phoned_key_was_pinned_gets_nothing() -> Outcome {
    replaying_after_the_pin_is_refused("PhoneHome").await
}

/// The path that the server's user-data tells cloud-init to post to.
fn phone_home_path(bed: &Bed) -> Outcome<String> {
    let created = bed
        .cloud()
        .mutations(0)
        .into_iter()
        .find(|mutation| mutation.route == "/servers")
        .map(|mutation| mutation.seq);
    let user_data = oracle::decoded(
        &bed.cloud()
            .user_data_of_mutation(created.unwrap_or_default())?,
    )?;
    let config: Value = bed::from_yaml(&user_data)?;
    let url = config["phone_home"]["url"].as_str().unwrap_or_default();
    Ok(url
        .split_once("://")
        .and_then(|(_, rest)| rest.find('/').map(|at| rest[at..].to_owned()))
        .unwrap_or_default())
}

/// Posts a form, as cloud-init does; answers the status, none where the connection is cut.
async fn posts(bed: &Bed, path: &str, body: &str) -> Option<u16> {
    let head =
        "Host: operator\r\nContent-Type: application/x-www-form-urlencoded\r\nConnection: close";
    let request = format!(
        "POST {path} HTTP/1.1\r\n{head}\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    status_of(bed.operator.phone_home(), &request).await
}

/// The same path with a token of the same server and form that nobody gave out.
fn forged(path: &str) -> String {
    let (server, secret) = path.rsplit_once('.').unwrap_or_default();
    let secret: String = secret.chars().rev().collect();
    format!("{server}.{secret}")
}

const HIS_KEY: &str =
    "ssh-ed25519+AAAAC3NzaC1lZDI1NTE5AAAAIHNvbWVib2R5IGluIHRoZSBtaWRkbGUgaGFzIGEga2V5";

#[tokio::test(flavor = "multi_thread")]
async fn a_forged_call_during_the_boot_pins_nothing() -> Outcome {
    let bed = bed_that_boots_in(6.0, "PhoneHome").await?;
    let one = bed.create("one").await?;
    // What the status names, the operator has listed.
    let server = bed.wait_for("the server is listed", async || {
        Ok(one.status().await?["server"]["id"].as_u64())
    });
    let server = server.await?;
    let path = phone_home_path(&bed)?;
    for (what, path, id) in [
        ("a forged token", forged(&path), server),
        ("a genuine token for another server", path, server + 1),
    ] {
        let body = format!("pub_key_ed25519={HIS_KEY}&instance_id={id}&hostname=x");
        let status = posts(&bed, &path, &body).await;
        ensure(status == Some(404), || {
            format!("{what} was answered {status:?}")
        })?;
    }
    let pinned = one.status().await?["server"]["hostKey"].clone();
    ensure(pinned.is_null(), || {
        format!("{pinned} is pinned before the server called")
    })?;
    assert_eq!(one.ready().await?, server);
    assert_eq!(
        one.status().await?["server"]["hostKey"],
        bed.cloud().machine(server)?.host_key
    );
    bed.delete_all().await?;
    bed.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_reused_oversized_and_malformed_phone_home_calls_are_refused_and_change_nothing()
-> Outcome {
    let bed = slow_bed("PhoneHome").await?;
    let one = bed.create("one").await?;
    let server = one.ready().await?;
    let (path, pinned) = (
        phone_home_path(&bed)?,
        one.status().await?["server"]["hostKey"].clone(),
    );
    let own = bed.cloud().machine(server)?.host_key.replace(' ', "+");
    let body = format!("pub_key_ed25519={own}&instance_id={server}&hostname=x");
    let other = format!("pub_key_ed25519={HIS_KEY}&instance_id=1&hostname=x");
    let forged = forged(&path);
    let huge = "x".repeat(100_000);
    for (path, body) in [
        (path.as_str(), body.as_str()),
        (&path, &other),
        (&forged, &body),
        ("/v1/phone-home/no-token", &body),
        ("/v1/phone-home/", &body),
        (&path, "no form at all \u{0}"),
        (&path, ""),
        (&path, &huge),
    ] {
        let status = posts(&bed, path, body).await;
        assert!(
            status.is_none_or(|status| (400..500).contains(&status)),
            "{status:?} for {} bytes to {path}",
            body.len()
        );
    }
    assert_eq!(one.status().await?["server"]["hostKey"], pinned);
    assert_eq!(one.ready().await?, server);
    bed.delete_all().await?;
    bed.finish().await
}
