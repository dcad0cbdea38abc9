//! What an attacker, an agent and a guest that went mad can do on real machines: nothing that counts.

mod agents_user;
mod canaries;
mod mad_guest;
mod operators_login;
mod released;
mod somebody_in_the_middle;

use std::collections::BTreeSet;

use agentfleet::fleet::MASTER_KEY_SECRET;
use agentfleet::keys::{MasterKey, ServerKeys};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bed::{Attacker, Bed, FLEET, Failure, Heard, Instance, Outcome, SYSTEM, TENANT, ensure};
use serde_json::{Value, json};

/// Waits until the instance says why it is not Ready, and that nothing was sent; a failure tells what the attacker was sent instead.
async fn is_told(one: &Instance<'_>, attacker: &Attacker, reason: &str) -> Outcome {
    let told = match one.told(&["nothing was sent"]).await {
        Ok(told) => told,
        Err(failure) => {
            let heard = attacker.heard().await?;
            let commands: BTreeSet<_> = heard.iter().map(|heard| &heard.command).collect();
            let words = format!("somebody in the middle was sent {commands:?}; {failure}");
            return Err(Failure::new(words));
        }
    };
    ensure(told["reason"] == reason, || format!("{told:#}"))
}

/// Fails unless all he heard were challenges.
async fn heard_only_challenges(attacker: &Attacker) -> Outcome<usize> {
    let heard = attacker.heard().await?;
    for Heard { command, input } in &heard {
        ensure(command == "hello", || {
            format!("somebody in the middle was sent {command}")
        })?;
        // One that is just being heard.
        if input.is_empty() {
            continue;
        }
        let input: Value = serde_json::from_slice(input)?;
        let asked = input.as_object().into_iter().flat_map(|asked| asked.keys());
        let only = asked
            .into_iter()
            .all(|field| ["nonce", "wait", "seen"].contains(&field.as_str()));
        ensure(only, || {
            format!("somebody in the middle was sent {command}: {input}")
        })?;
    }
    Ok(heard.len())
}

/// All that is known of the instance is lost while nobody looks.
async fn lose_status(bed: &mut Bed) -> Outcome {
    bed.operator.stop().await?;
    let status = bed.instance("one").status().await?;
    let fields = status.as_object().into_iter().flat_map(|all| all.keys());
    let nothing = fields.map(|field| (field.clone(), json!(null))).collect();
    bed.cluster
        .merge_status("AgentInstance", Some(TENANT), "one", nothing)
        .await?;
    bed.operator.start()
}

/// The fleet's master key, as whoever may read that one Secret has it.
async fn master_key(bed: &Bed) -> Outcome<Vec<u8>> {
    let secret = bed.cluster.get("Secret", Some(SYSTEM), MASTER_KEY_SECRET);
    let secret = secret.await?.unwrap_or_default();
    let key = secret["data"]["key"].as_str().unwrap_or_default();
    Ok(STANDARD.decode(key)?)
}

/// What the operator derives from it for the server of an instance.
async fn server_keys(bed: &Bed, one: &Instance<'_>) -> Outcome<ServerKeys> {
    let status = one.status().await?;
    let server = status["server"]["name"].as_str().unwrap_or_default();
    Ok(MasterKey::new(FLEET, &master_key(bed).await?)?.server_keys(server))
}
