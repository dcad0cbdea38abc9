//! A server that gave up its voice, and a copy of one that has it: neither speaks, whoever switches it on.

use bed::{Bed, Instance, Outcome, ensure, manifests, run_in};
use hetzner_sim::{Fault, FaultBody, FaultRule, Shell, Stage};
use serde_json::{Value, json};

/// Whoever puts the file back without which the unit does not start, and starts it; systemd takes a condition that does not hold for no failure.
const START_BY_HAND: &str = "touch /home/agent/.env; systemctl enable agent; systemctl start agent; systemctl is-active agent || true";
/// The agent begins by writing the boot that it speaks in: what the simulator sees in its control group may be the guest that was asked first.
const SPEAKS: &str =
    "cat /proc/sys/kernel/random/boot_id >> /home/agent/spoken; exec sleep infinity";

/// Files that hold a value of a Secret; this search is not one of them.
const SECRETS_LEFT: &str =
    "grep -ral --exclude-dir=proc --exclude-dir=sys '[c]anary-' / 2> /dev/null || true";

async fn bed_that_keeps_what_was_spoken() -> Outcome<Option<Bed>> {
    let Some(bed) = Bed::start_real().await? else {
        return Ok(None);
    };
    let mut class = bed.class();
    class["spec"]["agent"]["service"]["execStart"] = json!(["/bin/sh", "-c", SPEAKS]);
    bed.change(&class).await?;
    Ok(Some(bed))
}

async fn root(bed: &Bed, server: u64, command: &str) -> Outcome<String> {
    let shell = Shell {
        command: command.to_owned(),
        ..Shell::default()
    };
    run_in(&bed.cloud(), server, &shell).await
}

async fn spoken(bed: &Bed, server: u64) -> Outcome<String> {
    root(bed, server, "cat /home/agent/spoken").await
}

/// Waits until a machine has booted, starts its agent by hand too, and fails if it has spoken since.
async fn stays_silent(bed: &Bed, server: u64, before: &str) -> Outcome {
    let booted = "systemctl is-system-running --wait | grep -E 'running|degraded'";
    bed.wait_until("the machine has booted", async || {
        let up = bed.cloud().machine(server)?.stage == Stage::Up;
        Ok(up && root(bed, server, booted).await.is_ok())
    })
    .await?;
    let told = root(bed, server, START_BY_HAND).await?;
    ensure(told.trim_end().ends_with("inactive"), || {
        format!("the agent of server {server} can be started: {told}")
    })?;
    let spoken = spoken(bed, server).await?;
    ensure(spoken == before, || {
        format!("server {server} has spoken since, in boot {spoken}")
    })
}

/// A server made from a snapshot of another, as a person would: with the same user-data, or without any.
async fn copy(bed: &Bed, one: &Instance<'_>, user_data: Option<String>) -> Outcome<u64> {
    let image = json!({"description": "a copy"});
    let made = one.act("create_image", image).await?;
    let mut wish = json!({"name": "copy", "server_type": "cx23", "location": "nbg1", "image": made["image"]["id"]});
    if let Some(user_data) = user_data {
        wish["user_data"] = Value::String(user_data);
    }
    Ok(bed.cloud().create_server(0, &wish)?)
}

#[tokio::test(flavor = "multi_thread")]
async fn i13_a_copy_of_a_server_that_speaks_does_not_speak() -> Outcome {
    let Some(bed) = bed_that_keeps_what_was_spoken().await? else {
        return Ok(());
    };
    let one = bed.create("one").await?;
    let server = one.ready().await?;
    let before = spoken(&bed, server).await?;
    assert_eq!(before.lines().count(), 1);
    for user_data in [None, bed.cloud().user_data(server)?] {
        let copy = copy(&bed, &one, user_data).await?;
        stays_silent(&bed, copy, &before).await?;
        bed.cloud().vanish(copy)?;
    }
    assert_eq!(one.ready().await?, server);
    bed.delete_all().await?;
    bed.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn i13_a_released_server_stays_silent_through_reboot_power_and_snapshot() -> Outcome {
    let Some(bed) = bed_that_keeps_what_was_spoken().await? else {
        return Ok(());
    };
    let one = bed.create("one").await?;
    let server = one.ready().await?;
    let before = spoken(&bed, server).await?;
    let held = root(&bed, server, SECRETS_LEFT).await?;
    assert_eq!(held.trim_end(), manifests::SECRET_FILE);
    let refused = Fault::Status {
        status: 503,
        code: None,
        message: None,
        commit: false,
        body: FaultBody::Json,
    };
    let stays = FaultRule {
        times: None,
        ..FaultRule::next("DELETE", "/servers/{id}", refused)
    };
    let fault = bed.cloud().add_fault(stays);
    one.delete().await?;
    bed.wait_until("the operator asks for the server's end", async || {
        let faults = bed.cloud().faults();
        Ok(faults
            .iter()
            .any(|state| state.id == fault && state.hits > 0))
    })
    .await?;
    stays_silent(&bed, server, &before).await?;
    let left = root(&bed, server, SECRETS_LEFT).await?;
    ensure(left.is_empty(), || {
        format!("a released server keeps a Secret in {left}")
    })?;
    for power in ["reboot", "reset", "poweroff"] {
        goes_off_and_on(&bed, &one, server, power).await?;
        stays_silent(&bed, server, &before).await?;
    }
    for user_data in [None, bed.cloud().user_data(server)?] {
        let copy = copy(&bed, &one, user_data).await?;
        stays_silent(&bed, copy, &before).await?;
        bed.cloud().vanish(copy)?;
    }
    bed.cloud().remove_fault(fault)?;
    one.gone().await?;
    bed.delete_all().await?;
    bed.finish().await
}

async fn goes_off_and_on(bed: &Bed, one: &Instance<'_>, server: u64, power: &str) -> Outcome {
    let before = bed.cloud().machine(server)?.ssh_since;
    one.act(power, json!(null)).await?;
    if power == "poweroff" {
        bed.wait_until("it is off", async || {
            Ok(bed.cloud().machine(server)?.stage == Stage::Off)
        })
        .await?;
        one.act("poweron", json!(null)).await?;
    }
    bed.wait_until("it is up again", async || {
        let since = bed.cloud().machine(server)?.ssh_since;
        Ok(since.is_some() && since != before)
    })
    .await
}
