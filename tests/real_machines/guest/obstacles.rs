//! What is in the way of a new Secret on a server, and what is told of it.

use bed::{Bed, Instance, Outcome};
use serde_json::{Value, json};

use super::{AS_IT_IS, CREDENTIALS, class};
use crate::record::{Record, tells};

/// What a person, the agent or bad luck does to a server.
struct Obstacle {
    /// Its name in the records.
    name: &'static str,
    /// How it comes, as root on the server.
    comes: &'static str,
    /// What is told of it.
    told: &'static [&'static str],
    /// What shows, with status 0, that nothing was done which must not be.
    harmless: &'static str,
    /// How it goes.
    goes: &'static str,
}

/// The agent keeps its run, its Secret and its word that it serves for as long as a new Secret cannot be given to it; then it takes the newest.
async fn is_told_and_outlived(bed: &Bed, one: &Instance<'_>, obstacle: &Obstacle) -> Outcome {
    let before = one.shell(AS_IT_IS).await?;
    let mut record = Record::begin(obstacle.name);
    one.shell(obstacle.comes).await?;
    bed.apply_secret(&one.name).await?;
    let what = format!("{:?} is told", obstacle.told);
    record
        .until(bed, one, &what, |status| says(status, obstacle.told))
        .await?;
    let told = one.told(obstacle.told).await?;
    assert_eq!(told["type"], "UpToDate", "{told}");
    one.serves().await?;
    one.is("Ready").await?;
    assert_eq!(one.shell(AS_IT_IS).await?, before);
    one.shell(obstacle.harmless).await?;

    one.shell(obstacle.goes).await?;
    let value = bed.apply_secret(&one.name).await?;
    bed.wait_until("the agent has the new Secret", async || {
        let read = one.shell("cat /home/agent/.env").await?;
        Ok(read.contains(&value))
    })
    .await?;
    record
        .until(bed, one, "UpToDate", |status| {
            tells(status, "UpToDate", "True", "AsDeclared")
        })
        .await?;
    one.ready().await?;
    record.end(bed, one).await
}

/// Whether a condition says all of these words.
fn says(status: &Value, words: &[&str]) -> bool {
    let conditions = status["conditions"].as_array().into_iter().flatten();
    let mut told = conditions.filter_map(|told| told["message"].as_str());
    told.any(|told| words.iter().all(|word| told.contains(word)))
}

/// The agent's home on a disk of its own, a small one.
const SMALL_HOME: &str = "mkdir /run/small && mount -t tmpfs -o size=256k tmpfs /run/small &&
cp -a /home/agent/. /run/small && chown --reference /home/agent /run/small && chmod --reference /home/agent /run/small &&
mount --bind /run/small /home/agent";

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_written_is_told_and_the_agent_goes_on_with_what_it_has() -> Outcome {
    let Some(bed) = Bed::start_real().await? else {
        return Ok(());
    };
    bed.change(&class(&bed)).await?;
    let one = bed.create("one").await?;
    one.ready().await?;
    one.shell(SMALL_HOME).await?;
    for obstacle in [
        Obstacle {
            name: "disk full",
            // As the agent does.
            comes: "runuser -u agent -- dd if=/dev/zero of=/home/agent/full bs=4k 2>/dev/null || test -s /home/agent/full",
            told: &["DiskFull", "/home/agent/", "no space left, free some"],
            harmless: "true",
            goes: "rm /home/agent/full",
        },
        Obstacle {
            name: "home read-only",
            comes: "mount -o remount,ro /home/agent",
            told: &["WriteFailed", "/home/agent/", "Read-only file system"],
            harmless: "true",
            goes: "mount -o remount,rw /home/agent",
        },
        Obstacle {
            name: "state of the guest read-only",
            comes: "mount --bind /var/lib/agentfleet /var/lib/agentfleet &&
mount -o remount,bind,ro /var/lib/agentfleet",
            told: &[
                "WriteFailed",
                "/var/lib/agentfleet/",
                "Read-only file system",
            ],
            harmless: "true",
            goes: "umount /var/lib/agentfleet",
        },
        // As the agent may do.
        Obstacle {
            name: "way of a secret taken by a link",
            comes: "cd /home/agent && runuser -u agent -- mv .claude .moved && runuser -u agent -- ln -s /etc .claude",
            told: &["WriteFailed", CREDENTIALS, "remove the link in its way"],
            harmless: "! ls -A /etc | grep credentials",
            goes: "cd /home/agent && rm .claude && mv .moved .claude",
        },
    ] {
        is_told_and_outlived(&bed, &one, &obstacle).await?;
    }
    bed.delete_all().await?;
    bed.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_or_unit_that_a_person_took_away_is_missed_and_welcome_back() -> Outcome {
    let Some(bed) = Bed::start_real().await? else {
        return Ok(());
    };
    bed.change(&class(&bed)).await?;
    let one = bed.create("one").await?;
    one.ready().await?;
    for obstacle in [
        Obstacle {
            name: "user deleted",
            comes: "userdel --force agent",
            told: &["UserMissing", "no user agent on this server"],
            harmless: "true",
            goes: "useradd --uid $(stat -c %u /home/agent) --no-create-home --shell /bin/bash agent",
        },
        Obstacle {
            name: "unit masked before a new secret",
            comes: "ln -sf /dev/null /etc/systemd/system/agent.service && systemctl daemon-reload",
            told: &[
                "UnitMasked",
                "agent.service is masked",
                "systemctl unmask agent.service",
            ],
            harmless: "test -L /etc/systemd/system/agent.service",
            goes: "systemctl unmask agent.service",
        },
    ] {
        is_told_and_outlived(&bed, &one, &obstacle).await?;
    }
    bed.delete_all().await?;
    bed.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn i6_an_agent_that_dies_while_its_new_secret_waits_is_not_ready() -> Outcome {
    let Some(bed) = Bed::start_real().await? else {
        return Ok(());
    };
    let mut class = class(&bed);
    class["spec"]["health"] = json!({"systemd": {}, "interval": "1s", "failureThreshold": 2});
    // Nothing is tried, so that what the probes say stays told.
    class["spec"]["lifecycle"]["recovery"] = json!({"restarts": 0, "reboots": 0});
    bed.change(&class).await?;
    let one = bed.create("one").await?;
    one.ready().await?;
    one.shell("ln -sf /dev/null /etc/systemd/system/agent.service && systemctl daemon-reload")
        .await?;
    bed.apply_secret("one").await?;
    one.told(&["UnitMasked"]).await?;
    one.is("Ready").await?;
    one.shell("systemctl stop agent").await?;
    one.condition("Ready", "False", "ProbeFailed").await?;
    one.told(&["the unit is inactive", "UnitMasked"]).await?;
    one.shell("systemctl unmask agent").await?;
    one.ready().await?;
    bed.delete_all().await?;
    bed.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn i10_a_run_of_the_agent_outlives_the_operators_and_what_does_not_concern_it() -> Outcome {
    let Some(mut bed) = Bed::start_real().await? else {
        return Ok(());
    };
    bed.create("one").await?.ready().await?;
    let before = bed.instance("one").shell(AS_IT_IS).await?;
    bed.operator.stop().await?;
    bed.operator.start()?;
    let mut class = bed.class();
    class["spec"]["agent"]["packages"] = json!(["git"]);
    bed.change(&class).await?;
    let one = bed.instance("one");
    let revision = one.status().await?["configRevision"].clone();
    bed.wait_until("the other configuration is applied", async || {
        Ok(one.status().await?["configRevision"] != revision)
    })
    .await?;
    one.ready().await?;
    assert_eq!(one.shell(AS_IT_IS).await?, before);
    bed.delete_all().await?;
    bed.finish().await
}
