//! What is seen of a failure from outside, and when: printed, and kept in `target/bench/failures/` for people to look at. Nothing is asserted of it.

use std::time::Instant;

use bed::{Bed, Instance, Outcome, project};
use serde_json::{Value, json};

/// What is told of these says how it stands.
const TOLD: [&str; 4] = ["Ready", "Healthy", "UpToDate", "Stalled"];

/// One failure on one real machine.
pub struct Record {
    what: &'static str,
    began: Instant,
    seen: Vec<Value>,
}

impl Record {
    /// It comes now.
    pub fn begin(what: &'static str) -> Self {
        Self {
            what,
            began: Instant::now(),
            seen: vec![],
        }
    }

    /// Waits until the status is so, and notes each change of what it tells.
    pub async fn until(
        &mut self,
        bed: &Bed,
        one: &Instance<'_>,
        what: &str,
        is_so: impl Fn(&Value) -> bool,
    ) -> Outcome {
        let mut last = self
            .seen
            .last()
            .map_or(Value::Null, |seen| seen["told"].clone());
        bed.wait_until(what, async || {
            let status = one.status().await?;
            let told = told(&status);
            if told != last {
                let after = self.began.elapsed().as_secs_f64();
                self.seen.push(json!({"afterSeconds": after, "told": told}));
                last = told;
            }
            Ok(is_so(&status))
        })
        .await
    }

    /// It is over; so is the record.
    pub async fn end(self, bed: &Bed, one: &Instance<'_>) -> Outcome {
        let events = bed.cluster.list("Event").await?;
        let of_it = |event: &&Value| {
            event["regarding"]["name"] == json!(one.name)
                || event["involvedObject"]["name"] == json!(one.name)
        };
        let said = |event: &Value| {
            let words = ["note", "message"].map(|key| event[key].clone());
            let words = words.into_iter().find(Value::is_string);
            json!({"reason": event["reason"], "words": words})
        };
        let record = json!({
            "failure": self.what,
            "seconds": self.began.elapsed().as_secs_f64(),
            "seen": self.seen,
            "recovery": one.status().await?["recovery"],
            "events": events.iter().filter(of_it).map(said).collect::<Vec<_>>(),
        });
        println!("{record:#}");
        let dir = project().join("target/bench/failures");
        std::fs::create_dir_all(&dir)?;
        let file = dir.join(format!("{}.json", self.what.replace(' ', "-")));
        Ok(std::fs::write(file, format!("{record:#}\n"))?)
    }
}

/// Whether it tells that it is Ready.
pub fn is_ready(status: &Value) -> bool {
    tells(status, "Ready", "True", "Serving")
}

/// Whether a condition has this status and this reason.
pub fn tells(status: &Value, kind: &str, wanted: &str, reason: &str) -> bool {
    let found = bed::oracle::condition(status, kind);
    found.is_some_and(|found| found["status"] == wanted && found["reason"] == reason)
}

/// What the conditions tell, without their times.
fn told(status: &Value) -> Value {
    let found = TOLD.map(|kind| {
        let found = bed::oracle::condition(status, kind);
        found.map(|found| json!([kind, found["status"], found["reason"], found["message"]]))
    });
    json!(found)
}
