//! What servers are born with: every example renders, small and without a secret, and the real cloud-init finds every document well-formed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use agentfleet::{
    cloud_init::{MAX_USER_DATA, UserData},
    render,
};
use bed::{Outcome, TENANT, ensure, machine_root, manifests, project, scratch};
use secrecy::ExposeSecret as _;
use serde_json::{Value, json};

/// What the class for a real agent may take of Hetzner's 32 KiB.
const RACHEL8_BYTES: usize = 12_288;
/// Checks each document that was copied into a root's `/tmp`, where nothing stays: the mount ends with the command.
const CHECK: &str = r#"
mount -t tmpfs tmpfs "$1/tmp"
cp "$2"/*.yaml "$1/tmp/"
exec chroot "$1" sh -c 'for each in /tmp/*.yaml; do cloud-init schema --config-file "$each" || exit; done' 2>&1
"#;

/// The examples of agents; others, such as a billing system's program, have no class among their manifests.
fn examples() -> Outcome<Vec<PathBuf>> {
    let mut found = vec![];
    for entry in fs::read_dir(project().join("examples"))? {
        let example = entry?.path();
        if of_kind(&objects(&example)?, "AgentClass").next().is_some() {
            found.push(example);
        }
    }
    for known in ["quickstart", "rachel8"] {
        ensure(found.iter().any(|example| example.ends_with(known)), || {
            format!("{known} is not among the examples {found:?}")
        })?;
    }
    Ok(found)
}

fn objects(example: &Path) -> Outcome<Vec<Value>> {
    Ok(render::objects(&[example.to_owned()])?)
}

fn of_kind<'a>(objects: &'a [Value], kind: &str) -> impl Iterator<Item = &'a Value> {
    objects.iter().filter(move |object| object["kind"] == kind)
}

/// The user-data of each instance among objects.
fn each_user_data(objects: &[Value]) -> Outcome<Vec<UserData>> {
    let names = of_kind(objects, "AgentInstance").map(|instance| &instance["metadata"]["name"]);
    let rendered: Result<Vec<UserData>, _> = names
        .map(|name| render::user_data(objects, name.as_str()))
        .collect();
    let rendered = rendered?;
    ensure(!rendered.is_empty(), || {
        format!("no instance in {objects:#?}")
    })?;
    Ok(rendered)
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
        for user_data in each_user_data(&objects)? {
            assert!(user_data.sent_bytes() <= MAX_USER_DATA);
            let document = user_data.document().expose_secret();
            for secret in &secrets {
                assert!(!document.contains(secret), "{example:?}: {secret}");
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

/// An instance of a class with everything that has a place of its own in user-data, and some that it brings itself.
fn with_everything() -> Vec<Value> {
    let mut project = manifests::project(manifests::PROJECT);
    project["spec"]["sshKeys"] = json!(["anna", "bert"]);
    let mut class = manifests::class();
    class["spec"]["bootstrap"] = json!("PhoneHome");
    let agent = &mut class["spec"]["agent"];
    agent["sudo"] = json!(true);
    agent["swap"] = json!("2G");
    agent["timeZone"] = json!("Europe/Berlin");
    agent["packages"] = json!(["git", "curl"]);
    agent["files"] =
        json!([{"path": "/home/agent/motto", "content": "50% of \"it\": #1\n\u{e9}\n"}]);
    agent["cloudInit"] = json!(
        "#cloud-config\nntp: {enabled: true}\nruncmd: [[echo, hello]]\nwrite_files: [{path: /etc/motd, content: hi}]\nusers: [{name: eve}]\n"
    );
    vec![project, class, manifests::instance(TENANT, "one")]
}

/// All documents, those of the examples and those of tests.
fn documents() -> Outcome<Vec<UserData>> {
    let plain = vec![manifests::class(), manifests::instance(TENANT, "one")];
    let mut all = each_user_data(&plain)?;
    all.extend(each_user_data(&with_everything())?);
    for example in examples()? {
        all.extend(each_user_data(&objects(&example)?)?);
    }
    Ok(all)
}

#[test]
fn every_document_passes_the_schema_of_the_real_cloud_init() -> Outcome {
    let Some(root) = machine_root()? else {
        return Ok(());
    };
    let (dir, documents) = (scratch("cloud-init")?, documents()?);
    for (number, user_data) in documents.iter().enumerate() {
        let file = dir.join(format!("{number}.yaml"));
        fs::write(file, user_data.document().expose_secret())?;
    }
    let mut check = Command::new("unshare");
    check.args(["--mount", "sh", "-euc", CHECK, "sh"]);
    let ran = check.args([&root, &dir]).output()?;
    let said = String::from_utf8_lossy(&ran.stdout);
    ensure(ran.status.success(), || said.to_string())?;
    assert_eq!(
        said.matches("Valid schema").count(),
        documents.len(),
        "{said}"
    );
    assert!(!said.contains("deprecat"), "{said}");
    Ok(fs::remove_dir_all(dir)?)
}
