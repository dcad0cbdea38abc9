//! What is declared, and what becomes of what others say.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;

use super::*;
use crate::{api::TimingStep, hetzner::Lane};

/// The line of a table for one metric.
fn row(declared: &Declared) -> String {
    let labels: Vec<String> = declared
        .labels
        .iter()
        .map(|label| format!("`{label}`"))
        .collect();
    let (name, kind, help) = (declared.name, declared.kind, declared.help);
    format!("| `{name}` | {kind} | {} | {help} |", labels.join(", "))
}

#[test]
fn the_table_in_the_docs_is_what_is_declared() {
    let docs = include_str!("../../docs/metrics.md");
    let told = docs
        .lines()
        .filter(|line| line.starts_with("| `agentfleet_"));
    let mut told: Vec<&str> = told.collect();
    let metrics = Metrics::new();
    let mut declared: Vec<String> = metrics.declared().iter().map(row).collect();
    told.sort_unstable();
    declared.sort_unstable();
    assert_eq!(told, declared, "\n{}", declared.join("\n"));
}

#[test]
fn the_example_rules_use_what_is_declared_and_nothing_else() {
    let rules = include_str!("../../docs/alerts.yaml");
    let metrics = Metrics::new();
    let words = rules.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
    let mut used = 0;
    for word in words.filter(|word| word.starts_with("agentfleet_")) {
        used += 1;
        let known = metrics
            .declared()
            .iter()
            .any(|declared| match declared.kind {
                "histogram" => ["_bucket", "_sum", "_count"]
                    .iter()
                    .any(|part| word == format!("{}{part}", declared.name)),
                _ => word == declared.name,
            });
        assert!(known, "{word} is in no registry");
    }
    assert!(used >= 8, "the rules use only {used}");
}

#[test]
fn names_follow_the_conventions_of_prometheus() {
    for declared in Metrics::new().declared() {
        let Declared {
            name, kind, help, ..
        } = declared;
        let plain = |c: char| c.is_ascii_lowercase() || c == '_';
        assert!(
            name.starts_with("agentfleet_") && name.chars().all(plain),
            "{name}"
        );
        assert_eq!(name.ends_with("_total"), *kind == "counter", "{name}");
        assert!(*kind != "histogram" || name.ends_with("_seconds"), "{name}");
        assert!(!help.ends_with('.') && !help.contains('|'), "{name}");
    }
}

#[test]
fn requests_are_counted_by_their_answer_and_a_word_that_only_hetzner_knows_is_no_label() {
    let metrics = Metrics::new();
    let (refused, strange) = (
        ErrorCode::RateLimitExceeded,
        ErrorCode::Other("brand_new".into()),
    );
    for code in [Ok(201), Err(&refused), Err(&strange), Err(&strange)] {
        metrics.exchanged(&Exchange {
            route: "POST /servers",
            lane: Lane::Create,
            code,
            took: Duration::from_millis(300),
        });
    }
    let text = metrics.scrape();
    for (code, number) in [("201", 1), ("rate_limit_exceeded", 1), ("other", 2)] {
        let line = format!(
            "agentfleet_hetzner_requests_total{{route=\"POST /servers\",code=\"{code}\",lane=\"create\"}} {number}\n"
        );
        assert!(text.contains(&line), "{line} in {text}");
    }
    assert!(!text.contains("brand_new"));
    let slow = "agentfleet_hetzner_request_duration_seconds_bucket{le=\"0.5\",route=\"POST /servers\"} 4\n";
    let quick = "agentfleet_hetzner_request_duration_seconds_bucket{le=\"0.25\",route=\"POST /servers\"} 0\n";
    assert!(text.contains(slow) && text.contains(quick), "{text}");
}

#[test]
fn a_step_of_a_life_is_measured_from_when_it_was_written_down() {
    let metrics = Metrics::new();
    let begun = Timestamp::from_second(100).unwrap();
    let ready = Timing {
        step: TimingStep::Ready,
        at: MicroTime(Timestamp::from_second(140).unwrap()),
    };
    metrics.reached(&ready, begun);
    let line = "agentfleet_lifecycle_step_seconds_sum{step=\"Ready\"} 40.0\n";
    let text = metrics.scrape();
    assert!(text.contains(line), "{text}");
}

#[test]
fn a_process_that_never_led_shows_that_and_nothing_of_a_fleet() {
    let text = Metrics::new().scrape();
    let samples: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
    assert!(samples.contains(&"agentfleet_leader 0"), "{text}");
    assert!(!text.contains("agentfleet_instances{"), "{text}");
}
