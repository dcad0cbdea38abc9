//! Requests whose outcome the operator cannot know: lost answers, timeouts, errors that may or may not mean what they say, late commits,
//! double delivery.

use bed::{Bed, Options, Outcome, ensure};
use hetzner_sim::{Fault, FaultBody, FaultRule, WhichAnswer};

/// Longer than the operator waits for an answer, which is 5 s in a bed.
const BEYOND_TIMEOUT_S: f64 = 6.0;
/// A commit this late is still within request timeout and settle window.
const LATE_S: f64 = 3.0;

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
    assert_eq!(
        bed.cloud().lives().len(),
        slow.len(),
        "each create was carried out: {:#?}",
        bed.cloud().lives()
    );
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
