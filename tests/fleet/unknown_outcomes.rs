//! Requests whose outcome the operator cannot know: lost answers, timeouts, errors that may or may not mean what they say, late commits,
//! double delivery.

use bed::{Bed, Options, Outcome, TOKEN, ensure, manifests, quick_cloud};
use hetzner_sim::{Config, Fault, FaultBody, FaultRule, MachineFaults, WhichAnswer};
use serde_json::{Value, json};

/// Longer than the operator waits for an answer, which is 5 s in a bed.
const BEYOND_TIMEOUT_S: f64 = 6.0;
/// A commit this late is still within request timeout and settle window.
const LATE_S: f64 = 3.0;
/// A commit this late is beyond them, which at Hetzner would be more than two minutes.
const TOO_LATE_S: f64 = 10.0;
/// A project beside the first.
const SECOND: (&str, &str) = ("second", "token-of-the-second-project");

/// Each way in which an outcome can stay unknown.
fn unknown() -> Vec<(&'static str, Fault)> {
    let status = |status, commit, body| Fault::Status {
        status,
        code: None,
        message: None,
        commit,
        body,
    };
    vec![
        ("reset-before", Fault::ResetBeforeCommit),
        ("reset-after", Fault::ResetAfterCommit),
        ("reset-late", Fault::ResetThenCommit { seconds: LATE_S }),
        (
            "timeout-before",
            Fault::Delay {
                seconds: BEYOND_TIMEOUT_S,
                after_commit: false,
            },
        ),
        (
            "timeout-after",
            Fault::Delay {
                seconds: BEYOND_TIMEOUT_S,
                after_commit: true,
            },
        ),
        ("e500", status(500, false, FaultBody::Json)),
        ("e500-done", status(500, true, FaultBody::Json)),
        ("e502-page", status(502, false, FaultBody::Html)),
        ("e504-done", status(504, true, FaultBody::Empty)),
        ("truncated", Fault::TruncatedBody),
        (
            "twice-first",
            Fault::DeliverTwice {
                answer: WhichAnswer::First,
            },
        ),
        (
            "twice-second",
            Fault::DeliverTwice {
                answer: WhichAnswer::Second,
            },
        ),
    ]
}

fn all_hit(bed: &Bed) -> Outcome {
    let missed: Vec<_> = bed
        .cloud()
        .faults()
        .into_iter()
        .filter(|fault| fault.hits == 0)
        .collect();
    ensure(missed.is_empty(), || {
        format!("faults that hit nothing: {missed:#?}")
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn i1_an_unknown_outcome_of_a_create_makes_one_server() -> Outcome {
    let bed = Bed::start().await?;
    for (name, fault) in unknown() {
        let rule = FaultRule {
            body_contains: Some(format!("\"{name}-")),
            ..FaultRule::next("POST", "/servers", fault)
        };
        bed.cloud().add_fault(rule);
        bed.create(name).await?;
    }
    for (name, _) in unknown() {
        bed.instance(name)
            .ready()
            .await
            .map_err(|failure| failure.during(name))?;
    }
    all_hit(&bed)?;
    assert_eq!(
        bed.cloud().lives().len(),
        unknown().len(),
        "one server each: {:#?}",
        bed.cloud().lives()
    );
    bed.delete_all().await?;
    bed.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn i2_an_unknown_outcome_of_a_deletion_leaves_nothing() -> Outcome {
    let bed = Bed::start().await?;
    for (name, _) in unknown() {
        bed.create(name).await?;
    }
    for (name, _) in unknown() {
        bed.instance(name).ready().await?;
    }
    for (name, fault) in unknown() {
        bed.cloud().clear_faults();
        bed.cloud()
            .add_fault(FaultRule::next("DELETE", "/servers/{id}", fault));
        bed.instance(name).delete().await?;
        bed.instance(name)
            .gone()
            .await
            .map_err(|failure| failure.during(name))?;
        all_hit(&bed)?;
    }
    assert_eq!(bed.cloud().servers().len(), 0);
    bed.cloud().clear_faults();
    bed.delete_all().await?;
    bed.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_outcomes_of_all_other_mutations_are_made_good() -> Outcome {
    for (name, fault) in unknown() {
        let bed = Bed::with(Options::default()).await?;
        for (method, route) in [
            ("POST", "/ssh_keys"),
            ("POST", "/firewalls"),
            ("DELETE", "/firewalls/{id}"),
            ("DELETE", "/ssh_keys/{id}"),
        ] {
            bed.cloud()
                .add_fault(FaultRule::next(method, route, fault.clone()));
        }
        let during = |failure: bed::Failure| failure.during(name);
        bed.apply_basics().await?;
        bed.create("one").await?.ready().await.map_err(during)?;
        bed.delete_all().await.map_err(during)?;
        all_hit(&bed).map_err(during)?;
        bed.finish().await.map_err(during)?;
    }
    Ok(())
}

/// What the cloud was told last on a route.
fn told_last(bed: &Bed, route: &str) -> Option<Value> {
    let mutations = bed.cloud().mutations(0);
    let last = mutations.into_iter().rfind(|told| told.route == route);
    last.map(|told| told.body)
}

const POWER_ON: &str = "/servers/{id}/actions/poweron";

/// Everything that the operator changes in place: power, firewall rules, and the label of who leads.
async fn changes_meet(bed: &mut Bed, fault: &Fault, server: u64, rule: u8) -> Outcome {
    bed.cloud().clear_faults();
    for (method, route) in [
        ("POST", POWER_ON),
        ("POST", "/firewalls/{id}/actions/set_rules"),
        ("PUT", "/ssh_keys/{id}"),
    ] {
        bed.cloud()
            .add_fault(FaultRule::next(method, route, fault.clone()));
    }
    let network = format!("127.{rule}.0.0/16");
    let mut class = manifests::class();
    class["spec"]["firewall"]["sshFrom"] = json!([network]);
    bed.cluster.apply(&class).await?;
    bed.operator.stop().await?;
    bed.operator.start()?;
    bed.wait_until("all were tried", async || {
        let faults = bed.cloud().faults();
        // What came too late of the round before may have switched it on again.
        if faults
            .iter()
            .any(|fault| fault.hits == 0 && fault.rule.route == POWER_ON)
        {
            bed.cloud().power(server, false)?;
        }
        Ok(all_hit(bed).is_ok())
    })
    .await?;
    bed.wait_until("the rules are those of the class", async || {
        let told = told_last(bed, "/firewalls/{id}/actions/set_rules").unwrap_or_default();
        Ok(told.to_string().contains(&network))
    })
    .await?;
    bed.wait_until("the server is on", async || {
        let servers = bed.cloud().servers();
        Ok(servers.iter().any(|server| server["status"] == "running"))
    })
    .await?;
    assert_eq!(bed.instance("one").ready().await?, server);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_outcomes_of_changes_in_place_are_made_good() -> Outcome {
    let mut bed = Bed::start().await?;
    let server = bed.create("one").await?.ready().await?;
    for (rule, (name, fault)) in (1..).zip(unknown()) {
        changes_meet(&mut bed, &fault, server, rule)
            .await
            .map_err(|failure| failure.during(name))?;
    }
    bed.cloud().clear_faults();
    bed.delete_all().await?;
    bed.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn i2_an_instance_deleted_while_its_create_is_in_flight_leaves_nothing() -> Outcome {
    let bed = Bed::start().await?;
    let slow = [
        ("late", Fault::ResetThenCommit { seconds: LATE_S }),
        (
            "slow",
            Fault::Delay {
                seconds: LATE_S,
                after_commit: false,
            },
        ),
        (
            "lost",
            Fault::Delay {
                seconds: BEYOND_TIMEOUT_S,
                after_commit: true,
            },
        ),
    ];
    for (name, fault) in slow.clone() {
        bed.cloud().add_fault(FaultRule {
            body_contains: Some(format!("\"{name}-")),
            ..FaultRule::next("POST", "/servers", fault)
        });
        let instance = bed.create(name).await?;
        bed.wait_until("the create is under way", async || {
            Ok(instance.status().await?["provisioning"].is_object())
        })
        .await?;
        bed.wait_until("the create was sent", async || {
            Ok(bed.cloud().faults().iter().any(|fault| fault.hits > 0))
        })
        .await?;
        instance.delete().await?;
        instance
            .gone()
            .await
            .map_err(|failure| failure.during(name))?;
        assert_eq!(
            bed.cloud().servers().len(),
            0,
            "{name}: a server outlives its instance"
        );
        bed.cloud().clear_faults();
    }
    // Nothing may come later either, from a request that was still on its way.
    let lives = bed.cloud().lives();
    for (name, _) in &slow {
        let of_it = lives.iter().filter(|life| life.name.starts_with(name));
        // A connection that broke is known at once: where the deletion comes later than that, it finds one that was sent again.
        let most = if *name == "late" { 2 } else { 1 };
        assert!(
            (1..=most).contains(&of_it.count()),
            "each create was carried out: {lives:#?}"
        );
    }
    bed.delete_all().await?;
    bed.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn i1_an_instance_made_again_while_the_create_of_the_first_is_in_flight_gets_one_server()
-> Outcome {
    let bed = Bed::start().await?;
    bed.cloud().add_fault(FaultRule::next(
        "POST",
        "/servers",
        Fault::ResetThenCommit { seconds: LATE_S },
    ));
    let one = bed.create("one").await?;
    bed.wait_until("the create was sent", async || {
        Ok(bed.cloud().faults().iter().any(|fault| fault.hits > 0))
    })
    .await?;
    one.delete().await?;
    one.gone().await?;
    bed.create("one").await?.ready().await?;
    assert_eq!(bed.cloud().servers().len(), 1);
    bed.delete_all().await?;
    bed.finish().await
}

/// Sends the create of an instance off so that it seems lost, and takes effect so much later.
async fn create_in_flight(bed: &Bed, seconds: f64) -> Outcome<bed::Instance<'_>> {
    let late = Fault::ResetThenCommit { seconds };
    bed.cloud()
        .add_fault(FaultRule::next("POST", "/servers", late));
    let one = bed.create("one").await?;
    bed.wait_until("the create was sent", async || Ok(all_hit(bed).is_ok()))
        .await?;
    Ok(one)
}

/// Waits until the instance is Ready, and fails unless its server is the one that was asked for first, and all that ever was.
async fn has_the_first_server(bed: &Bed, one: &bed::Instance<'_>) -> Outcome {
    one.ready().await?;
    let (status, mut lives) = (one.status().await?, bed.cloud().lives());
    lives.retain(|life| life.labels.get("agentfleet.dev/name") == Some(&one.name));
    let place = (&status["server"]["project"], &status["server"]["location"]);
    let first = status["incarnation"] == 1 && place == (&json!(manifests::PROJECT), &json!("nbg1"));
    ensure(first && lives.len() == 1, || {
        format!("it did not wait: {lives:#?}, {status:#}")
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn i1_another_place_waits_for_the_create_that_is_in_flight_to_the_one_that_ran_out() -> Outcome
{
    let bed = Bed::start().await?;
    let out_of_stock = Fault::Status {
        status: 412,
        code: Some("resource_unavailable".into()),
        message: None,
        commit: false,
        body: FaultBody::Json,
    };
    bed.cloud().add_fault(FaultRule {
        after: 1,
        ..FaultRule::next("POST", "/servers", out_of_stock)
    });
    let one = create_in_flight(&bed, LATE_S).await?;
    has_the_first_server(&bed, &one).await?;
    bed.delete_all().await?;
    bed.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn i1_another_location_of_the_class_waits_for_the_create_that_is_in_flight() -> Outcome {
    let bed = Bed::start().await?;
    let one = create_in_flight(&bed, LATE_S).await?;
    let mut class = manifests::class();
    class["spec"]["locations"] = json!(["hel1"]);
    bed.change(&class).await?;
    has_the_first_server(&bed, &one).await?;
    bed.delete_all().await?;
    bed.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn i1_another_project_of_the_class_waits_for_the_create_that_is_in_flight() -> Outcome {
    let (name, token) = SECOND;
    let cloud = Config {
        tokens: vec![TOKEN.into(), token.into()],
        ..quick_cloud()
    };
    let bed = Bed::with(Options {
        cloud,
        ..Options::default()
    })
    .await?;
    bed.apply_basics().await?;
    bed.apply_token(name, token).await?;
    bed.change(&manifests::project(name)).await?;
    // It keeps the firewall there, without which the late request would be refused.
    bed.create("other").await?.ready().await?;
    let one = create_in_flight(&bed, LATE_S).await?;
    let mut class = manifests::class();
    class["spec"]["projects"] = json!([name]);
    bed.change(&class).await?;
    has_the_first_server(&bed, &one).await?;
    bed.delete_all().await?;
    bed.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn i2_a_create_that_takes_effect_after_all_waiting_makes_a_server_that_goes_again() -> Outcome
{
    let bed = Bed::start().await?;
    let one = create_in_flight(&bed, TOO_LATE_S).await?;
    let mut class = manifests::class();
    class["spec"]["locations"] = json!(["hel1"]);
    bed.change(&class).await?;
    let server = one.ready().await?;
    assert_eq!(one.status().await?["incarnation"], 2);
    bed.wait_until("the late server came and went", async || {
        let lives = bed.cloud().lives();
        let late = lives.iter().find(|life| life.server != server);
        Ok(late.is_some_and(|late| late.deleted.is_some()))
    })
    .await?;
    assert_eq!(one.ready().await?, server);
    bed.delete_all().await?;
    bed.finish_after_a_late_server().await
}

#[tokio::test(flavor = "multi_thread")]
async fn i13_a_configuration_whose_answer_is_lost_is_given_to_the_same_server_again() -> Outcome {
    let bed = Bed::start().await?;
    bed.apply_basics().await?;
    let one = bed.create("one").await?;
    let server = one.ready().await?;
    let given = || -> Outcome<usize> {
        let calls = bed.operator.calls()?.into_iter();
        Ok(calls.filter(|call| call.call == "configure").count())
    };
    let (before, voice) = (given()?, one.status().await?["voice"].clone());
    let cut = MachineFaults {
        cut_output_after: Some(10),
        ..MachineFaults::default()
    };
    bed.cloud().set_machine_faults(server, cut)?;
    let secret = bed.apply_secret("one").await?;
    one.has_in_file(manifests::SECRET_FILE, &secret).await?;
    bed.wait_until("it is given again", async || Ok(given()? >= before + 2))
        .await?;
    let told = one
        .condition("UpToDate", "False", "ConfigureFailed")
        .await?;
    ensure(told.contains("GuestUnreachable"), || told)?;
    bed.cloud()
        .set_machine_faults(server, MachineFaults::default())?;
    one.condition("UpToDate", "True", "AsDeclared").await?;
    assert_eq!(one.ready().await?, server);
    let now = one.status().await?["voice"].clone();
    assert_eq!(now["incarnation"], voice["incarnation"]);
    ensure(
        now["epoch"].as_i64() >= voice["epoch"].as_i64().map(|epoch| epoch + 2),
        || format!("each has an epoch of its own: {voice} {now}"),
    )?;
    assert_eq!(bed.requests_to("POST", "/servers"), 1);
    bed.delete_all().await?;
    bed.finish().await
}
