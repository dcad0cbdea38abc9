//! What a status tells of the time that each step took.

use bed::oracle::STEPS;
use bed::{Bed, Outcome, ensure};
use jiff::Timestamp;
use serde_json::Value;

fn steps(status: &Value) -> Outcome<Vec<(&str, Timestamp)>> {
    let mut steps = vec![];
    for timing in status["timings"].as_array().into_iter().flatten() {
        let at = timing["at"].as_str().unwrap_or_default().parse()?;
        steps.push((timing["step"].as_str().unwrap_or_default(), at));
    }
    Ok(steps)
}

#[tokio::test(flavor = "multi_thread")]
async fn each_step_of_a_life_has_its_time_and_keeps_it_over_a_restart() -> Outcome {
    let mut bed = Bed::start().await?;
    bed.create("one").await?.ready().await?;
    let status = bed.instance("one").status().await?;
    let timings = steps(&status)?;
    let names: Vec<&str> = timings.iter().map(|(step, _)| *step).collect();
    assert_eq!(names, STEPS, "{status:#}");
    ensure(timings.is_sorted_by_key(|(_, at)| *at), || {
        format!("not in order: {status:#}")
    })?;
    bed.operator.restart()?;
    let (one, secret) = (bed.instance("one"), bed.apply_secret("one").await?);
    one.has_in_file(bed::manifests::SECRET_FILE, &secret)
        .await?;
    one.ready().await?;
    assert_eq!(one.status().await?["timings"], status["timings"]);
    bed.delete_all().await?;
    bed.finish().await
}
