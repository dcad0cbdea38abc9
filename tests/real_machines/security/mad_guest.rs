//! A guest that answers garbage, without end, or with control characters: the instance says so, and nothing else suffers.

use bed::{Bed, Instance, Outcome, ensure, manifests};
use serde_json::{Value, json};

const PROGRAM: &str = "/usr/local/lib/agentfleet/guest";

/// A refusal whose every text tries to move a terminal's cursor, to break a log line, or to turn the writing round.
const CURSED: &str = r#"cat > /dev/null; printf '%s' '{"protocol": 1, "guest": "1.0.0\u001b[2J", "ok": false, "error": {"code": "Busy\r\nX", "message": "a\u001b]0;title\u0007b\r\n{\"level\": \"ERROR\"}\u202ec\u0000", "tail": ["\u001b[31mred\u009b1m", "\u2028"]}}'"#;

/// Puts a shell script in the guest's place.
async fn goes_mad(one: &Instance<'_>, script: &str) -> Outcome {
    let put = format!(
        "test -e {PROGRAM}.sane || cp -p {PROGRAM} {PROGRAM}.sane\n\
         cat > {PROGRAM}.mad <<'END'\n#!/bin/sh\n{script}\nEND\n\
         chmod 755 {PROGRAM}.mad; mv {PROGRAM}.mad {PROGRAM}"
    );
    one.shell(&put).await?;
    Ok(())
}

async fn is_sane_again(one: &Instance<'_>) -> Outcome {
    one.shell(&format!("mv {PROGRAM}.sane {PROGRAM}")).await?;
    Ok(())
}

/// The most memory that the operator ever had, in KiB.
fn peak_memory(bed: &Bed) -> Outcome<u64> {
    let process = bed.operator.process().unwrap_or_default();
    let status = std::fs::read_to_string(format!("/proc/{process}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let amount = line.and_then(|line| line.split_whitespace().next());
    Ok(amount.unwrap_or_default().parse()?)
}

/// Fails when a text in there holds what is not to be shown: control characters, and those that turn the writing round.
fn is_presentable(value: &Value) -> Outcome {
    match value {
        Value::String(text) => {
            let odd = |c: char| {
                c.is_control() || matches!(c, '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
            };
            ensure(!text.contains(odd), || format!("{text:?}"))
        }
        Value::Array(items) => items.iter().try_for_each(is_presentable),
        Value::Object(fields) => fields.values().try_for_each(is_presentable),
        _ => Ok(()),
    }
}

async fn all_is_presentable(bed: &Bed) -> Outcome {
    for kind in ["AgentInstance", "Event"] {
        for object in bed.cluster.list(kind).await? {
            let shown = json!([
                object["status"],
                object["message"],
                object["reason"],
                object["note"]
            ]);
            is_presentable(&shown)?;
        }
    }
    for line in bed.operator.log().lines() {
        is_presentable(&serde_json::from_str(line)?)?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_went_mad_is_told_and_harms_nothing() -> Outcome {
    let Some(bed) = Bed::start_real().await? else {
        return Ok(());
    };
    let mut class = bed.class();
    class["spec"]["health"] = json!({"systemd": {}, "interval": "1s", "failureThreshold": 1});
    bed.change(&class).await?;
    let one = bed.create("one").await?;
    let server = one.ready().await?;
    let other = bed.create("other").await?;
    let neighbour = other.ready().await?;
    let before = peak_memory(&bed)?;

    for (script, word) in [
        ("head -c 5000 /dev/urandom", "malformed"),
        ("cat /dev/zero", "longer than"),
        ("yes >&2", "longer than"),
        ("yes '{\"protocol\": 1,'", "malformed"),
        (CURSED, "refused"),
    ] {
        goes_mad(&one, script).await?;
        let told = one.told(&[word]).await?;
        ensure(
            told["status"] != "True" || told["type"] == "Stalled",
            || format!("{told:#}"),
        )?;
        bed.apply_secret("one").await?;
        let fresh = bed.apply_secret("other").await?;
        other.has_in_file(manifests::SECRET_FILE, &fresh).await?;
        assert_eq!(other.ready().await?, neighbour);
        is_sane_again(&one).await?;
        let value = bed.apply_secret("one").await?;
        one.has_in_file(manifests::SECRET_FILE, &value).await?;
        assert_eq!(one.ready().await?, server);
    }
    all_is_presentable(&bed).await?;
    let grown = peak_memory(&bed)? - before;
    ensure(grown < 32 << 10, || {
        format!("the operator grew by {grown} KiB")
    })?;
    bed.delete_all().await?;
    bed.finish().await
}
