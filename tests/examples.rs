//! The examples are what people begin with: each of them renders, small and without a secret.

use std::path::{Path, PathBuf};

use agentfleet::{cloud_init::MAX_USER_DATA, render};
use bed::{Outcome, ensure, project};
use serde_json::Value;

/// What the class for a real agent may take of Hetzner's 32 KiB.
const RACHEL8_BYTES: usize = 12_288;

fn examples() -> Outcome<Vec<PathBuf>> {
    let mut found = vec![];
    for entry in std::fs::read_dir(project().join("examples"))? {
        found.push(entry?.path());
    }
    Ok(found)
}

fn objects(example: &Path) -> Outcome<Vec<Value>> {
    Ok(render::objects(&[example.to_owned()])?)
}

fn of_kind<'a>(objects: &'a [Value], kind: &str) -> impl Iterator<Item = &'a Value> {
    objects.iter().filter(move |object| object["kind"] == kind)
}

/// The values of all Secrets in an example.
fn secrets(objects: &[Value]) -> Vec<&str> {
    of_kind(objects, "Secret")
        .flat_map(|secret| secret["stringData"].as_object().into_iter().flatten())
        .filter_map(|(_, value)| value.as_str())
        .collect()
}

#[test]
fn every_instance_of_every_example_renders_without_its_secrets() -> Outcome {
    for example in examples()? {
        let objects = objects(&example)?;
        let secrets = secrets(&objects);
        ensure(!secrets.is_empty(), || format!("{example:?} has no Secret"))?;
        let instances: Vec<_> = of_kind(&objects, "AgentInstance").collect();
        ensure(!instances.is_empty(), || {
            format!("{example:?} has no instance")
        })?;
        for instance in instances {
            let name = instance["metadata"]["name"].as_str();
            let user_data = render::user_data(&objects, name)?;
            assert!(user_data.sent_bytes() <= MAX_USER_DATA);
            for secret in &secrets {
                assert!(!user_data.shown().contains(secret), "{example:?} {name:?}");
            }
        }
    }
    Ok(())
}

#[test]
fn the_class_of_a_real_agent_keeps_within_its_bytes_as_sent() -> Outcome {
    let user_data = render::user_data(&objects(&project().join("examples/rachel8"))?, None)?;
    let bytes = user_data.sent_bytes();
    assert!(bytes <= RACHEL8_BYTES, "{bytes} bytes as sent");
    Ok(())
}
