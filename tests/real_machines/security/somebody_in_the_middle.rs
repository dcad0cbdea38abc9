//! Somebody who takes over a server's address, with a real sshd of his own.

use bed::{Attacker, Bed, Instance, Outcome, ensure, manifests};
use hetzner_sim::Stage;
use serde_json::json;

use super::{heard_only_challenges, is_told, lose_status};

/// What a server's own guest answers to a challenge of somebody who could make it do so.
const FORMER_ANSWER: &str =
    r#"printf '{"nonce": "%064d"}' 7 | /usr/local/lib/agentfleet/guest ssh hello"#;

async fn bed_with(bootstrap: &str) -> Outcome<Option<Bed>> {
    let Some(bed) = Bed::start_real().await? else {
        return Ok(None);
    };
    let mut class = bed.class();
    class["spec"]["bootstrap"] = json!(bootstrap);
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
