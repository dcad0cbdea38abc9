//! I7: deletion finishes or explains, whatever is missing or broken meanwhile.

use bed::{Bed, Instance, Options, Outcome, SYSTEM, TENANT, TOKEN, manifests, quick_cloud};
use hetzner_sim::{Config, MachineFaults, SshFault};
use serde_json::{Value, json};

async fn nothing_is_left_of(bed: &Bed, one: &Instance<'_>) -> Outcome {
    one.gone().await?;
    assert_eq!(bed.cloud().servers().len(), 0);
    Ok(())
}

/// A class, project or Secret is gone without anybody having waited for it.
async fn force_away(bed: &Bed, kind: &str, namespace: Option<&str>, name: &str) -> Outcome {
    let object = bed
        .cluster
        .get(kind, namespace, name)
        .await?
        .unwrap_or_default();
    bed.cluster.delete(kind, namespace, name).await?;
    bed.wait_until("it is gone", async || {
        let left = bed.cluster.get(kind, namespace, name).await?;
        if left.is_some() {
            bed.cluster.remove(&object, kind).await?;
        }
        Ok(left.is_none())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn i7_deletion_ends_without_the_class_and_without_the_secret() -> Outcome {
    let bed = Bed::start().await?;
    let one = bed.create("one").await?;
    one.ready().await?;
    force_away(&bed, "AgentClass", None, manifests::CLASS).await?;
    force_away(&bed, "Secret", Some(TENANT), "one").await?;
    one.delete().await?;
    nothing_is_left_of(&bed, &one).await?;
    bed.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn i7_deletion_ends_with_a_spec_that_is_not_allowed_any_more() -> Outcome {
    let bed = Bed::start().await?;
    let one = bed.create("one").await?;
    one.ready().await?;
    bed.cluster
        .merge(
            "AgentInstance",
            Some(TENANT),
            "one",
            json!({"spec": {"overrides": {"serverTypes": ["cx53"]}, "secretName": null}}),
        )
        .await?;
    one.delete().await?;
    nothing_is_left_of(&bed, &one).await?;
    bed.delete_all().await?;
    bed.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn i7_deletion_without_the_project_explains_and_ends_when_it_is_back() -> Outcome {
    let bed = Bed::start().await?;
    let one = bed.create("one").await?;
    let server = one.ready().await?;
    force_away(&bed, "HetznerProject", None, manifests::PROJECT).await?;
    one.delete().await?;
    one.told(&[manifests::PROJECT]).await?;
    assert_eq!(bed.cloud().servers()[0]["id"], server);
    bed.cluster
        .apply(&manifests::project(manifests::PROJECT))
        .await?;
    nothing_is_left_of(&bed, &one).await?;
    bed.delete_all().await?;
    bed.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn i7_deletion_with_a_rejected_token_explains_and_ends_when_it_is_right() -> Outcome {
    let bed = Bed::start().await?;
    let one = bed.create("one").await?;
    one.ready().await?;
    bed.cloud().revoke_token(TOKEN);
    one.delete().await?;
    one.told(&["token"]).await?;
    bed.cloud().allow_token(TOKEN, 0, false)?;
    nothing_is_left_of(&bed, &one).await?;
    bed.delete_all().await?;
    bed.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn i7_deletion_ends_when_the_server_does_not_answer() -> Outcome {
    let bed = Bed::start().await?;
    for (name, ssh) in [("refuses", SshFault::Refuse), ("hangs", SshFault::Hang)] {
        let instance = bed.create(name).await?;
        let server = instance.ready().await?;
        bed.cloud().set_machine_faults(
            server,
            MachineFaults {
                ssh,
                ..MachineFaults::default()
            },
        )?;
        instance.delete().await?;
        nothing_is_left_of(&bed, &instance).await?;
    }
    bed.delete_all().await?;
    bed.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn i7_deletion_ends_while_the_server_boots_and_when_it_has_vanished() -> Outcome {
    let slow = Config {
        time_factor: 1.0,
        ..quick_cloud()
    };
    let bed = Bed::with(Options {
        cloud: slow,
        ..Options::default()
    })
    .await?;
    bed.apply_basics().await?;
    let booting = bed.create("booting").await?;
    bed.wait_until("the server exists", async || {
        Ok(booting.status().await?["server"]["id"].is_u64())
    })
    .await?;
    booting.delete().await?;
    nothing_is_left_of(&bed, &booting).await?;

    let vanished = bed.create("vanished").await?;
    let server = vanished.ready().await?;
    bed.cloud().vanish(server)?;
    vanished.delete().await?;
    nothing_is_left_of(&bed, &vanished).await?;
    bed.delete_all().await?;
    bed.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_that_never_got_a_server_goes_at_once() -> Outcome {
    let bed = Bed::with(Options::default()).await?;
    bed.cluster
        .apply(&manifests::instance(TENANT, "one"))
        .await?;
    let one = bed.instance("one");
    one.told(&[manifests::CLASS]).await?;
    one.delete().await?;
    nothing_is_left_of(&bed, &one).await?;
    bed.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn class_project_and_token_wait_for_what_is_theirs_and_say_so() -> Outcome {
    let bed = Bed::start().await?;
    let one = bed.create("one").await?;
    let server = one.ready().await?;
    bed.cluster
        .delete("AgentClass", None, manifests::CLASS)
        .await?;
    bed.cluster
        .delete("HetznerProject", None, manifests::PROJECT)
        .await?;
    let token = manifests::token_secret(manifests::PROJECT);
    bed.cluster.delete("Secret", Some(SYSTEM), &token).await?;
    bed.told(("AgentClass", None, manifests::CLASS), &["1"])
        .await?;
    bed.condition(
        ("HetznerProject", None, manifests::PROJECT),
        "Ready",
        "False",
        "InUse",
    )
    .await?;
    for (kind, namespace, name) in [
        ("AgentClass", None, manifests::CLASS),
        ("HetznerProject", None, manifests::PROJECT),
        ("Secret", Some(SYSTEM), token.as_str()),
    ] {
        let waiting = bed.cluster.get(kind, namespace, name).await?;
        assert!(
            waiting.is_some_and(|object| object["metadata"]["deletionTimestamp"].is_string()),
            "{kind} did not wait"
        );
    }
    assert_eq!(bed.cloud().servers()[0]["id"], server);
    one.delete().await?;
    nothing_is_left_of(&bed, &one).await?;
    bed.delete_all().await?;
    bed.wait_until("the token goes last", async || {
        Ok(bed
            .cluster
            .get("Secret", Some(SYSTEM), &token)
            .await?
            .is_none())
    })
    .await?;
    bed.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn i14_a_retained_server_is_silent_and_labelled_and_a_new_instance_takes_it_up_by_a_persons_word()
-> Outcome {
    let bed = Bed::start().await?;
    let one = bed.create("one").await?;
    let server = one.ready().await?;
    let retain = json!({"spec": {"deletionPolicy": "Retain"}});
    bed.cluster
        .merge("AgentInstance", Some(bed::TENANT), "one", retain)
        .await?;
    let root = bed.cloud().machine(server)?.root;
    one.delete().await?;
    one.gone().await?;
    let labels = |bed: &Bed| bed.cloud().servers()[0]["labels"].clone();
    assert_eq!(labels(&bed)["agentfleet.dev/retained"], "true");
    assert_eq!(bed.cloud().servers().len(), 1);
    let told = format!("server {server} in project {} is kept", manifests::PROJECT);
    bed.wait_until("an Event tells where it is", async || {
        let events = bed.cluster.list("Event").await?;
        Ok(events.iter().any(|event| {
            let note = event["note"].as_str().unwrap_or_default();
            event["reason"] == "ServerRetained" && note.contains(&told)
        }))
    })
    .await?;
    assert!(
        !root
            .join(manifests::SECRET_FILE.trim_start_matches('/'))
            .exists(),
        "put away"
    );

    let again = bed.create("one").await?;
    again.condition("Stalled", "True", "AdoptOrDelete").await?;
    again
        .annotate("agentfleet.dev/adopt", &server.to_string())
        .await?;
    assert_eq!(again.ready().await?, server);
    assert_eq!(labels(&bed)["agentfleet.dev/retained"], Value::Null);
    assert_eq!(bed.cloud().lives().len(), 1);
    bed.delete_all().await?;
    bed.finish().await
}
