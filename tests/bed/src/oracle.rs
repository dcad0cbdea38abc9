//! What must hold in every test, told from the simulator's ledger, the machines' disks and the audit log, never from the operator's own words.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use base64::Engine as _;
use hetzner_sim::{Life, Origin, ProjectView};
use serde_json::Value;

use crate::audit::Write;
use crate::bed::Bed;
use crate::control_plane::OPERATOR;
use crate::failure::{Failure, Outcome, ensure};
use crate::manifests::SECRET_FILE;
use crate::wait;

/// The steps of a life in `status.timings`, in order.
pub const STEPS: [&str; 7] = [
    "WrittenDown",
    "Requested",
    "Accepted",
    "Answered",
    "Installed",
    "Configured",
    "Ready",
];

/// A condition in a status.
pub fn condition<'a>(status: &'a Value, kind: &str) -> Option<&'a Value> {
    status["conditions"]
        .as_array()?
        .iter()
        .find(|condition| condition["type"] == kind)
}

/// Fails when the operator ever had two live servers for one instance (I1).
///
/// # Errors
/// As said.
pub fn one_server(lives: &[Life]) -> Outcome {
    one_at_once(lives, &["fleet", "namespace", "name"])
}

/// Fails when the operator ever had two live servers for one incarnation of an instance (I1).
///
/// # Errors
/// As said.
pub fn one_server_each(lives: &[Life]) -> Outcome {
    one_at_once(lives, &["fleet", "namespace", "name", "incarnation"])
}

/// Fails when two servers that the operator made, and that carry the same of these labels, lived at once.
fn one_at_once(lives: &[Life], same: &[&str]) -> Outcome {
    let mut groups: BTreeMap<Vec<_>, Vec<&Life>> = BTreeMap::new();
    for life in lives.iter().filter(|life| life.origin == Origin::Api) {
        let label = |key: &&str| life.labels.get(&format!("agentfleet.dev/{key}"));
        let group = same.iter().map(label).collect();
        groups.entry(group).or_default().push(life);
    }
    for lives in groups.values_mut() {
        lives.sort_by_key(|life| life.created);
        for pair in lives.windows(2) {
            let apart = pair[0].deleted.is_some_and(|end| end <= pair[1].created);
            ensure(apart, || {
                format!("two servers at once: {:?} and {:?}", pair[0], pair[1])
            })?;
        }
    }
    Ok(())
}

/// Fails when a server was created without a key, so that Hetzner mailed a root password.
///
/// # Errors
/// As said.
pub fn no_root_password(projects: &[ProjectView]) -> Outcome {
    ensure(
        projects.iter().all(|project| project.root_passwords == 0),
        || format!("root passwords were handed out: {projects:?}"),
    )
}

/// How long nothing may be written before it counts as calm: longer than any period of the operator, which is 10 s for a class's counts.
const CALM: Duration = Duration::from_secs(12);

/// Fails unless writing ends: to Hetzner, to Kubernetes (the Lease excepted) and to servers (I4).
///
/// An operator that runs must lead meanwhile: one that waits for the Lease of another that crashed is silent too.
///
/// # Errors
/// As said, with what was written last.
pub async fn calm(bed: &Bed) -> Outcome {
    let mut written = String::new();
    let waited = wait::wait_until("nothing is written any more", async || {
        let (mutation, audit, disks) = (bed.latest_mutation(), bed.audit.later()?, disks(bed)?);
        tokio::time::sleep(CALM).await;
        let mutations: Vec<_> = bed.cloud().mutations(mutation);
        let since = audit.writes_of(OPERATOR)?.into_iter();
        let (renewals, since): (Vec<_>, Vec<_>) = since.partition(Write::is_lease);
        let changed: Vec<_> = disks_changed(&disks, &self::disks(bed)?);
        let leads = !renewals.is_empty() || bed.operator.process().is_none();
        written = format!(
            "to Hetzner: {mutations:#?}; to Kubernetes: {since:#?}; to servers: {changed:#?}; the operator leads: {leads}"
        );
        Ok(leads && mutations.is_empty() && since.is_empty() && changed.is_empty())
    })
    .await;
    waited.map_err(|failure| Failure::new(format!("{failure}; written last: {written}")))
}

fn disks_changed(
    before: &BTreeMap<PathBuf, Vec<u8>>,
    after: &BTreeMap<PathBuf, Vec<u8>>,
) -> Vec<PathBuf> {
    let paths: BTreeSet<_> = before.keys().chain(after.keys()).collect();
    paths
        .into_iter()
        .filter(|path| before.get(*path) != after.get(*path))
        .cloned()
        .collect()
}

/// Content of all files of all machines.
fn disks(bed: &Bed) -> Outcome<BTreeMap<PathBuf, Vec<u8>>> {
    let mut found = BTreeMap::new();
    for machine in bed.cloud().machines() {
        read_all(&machine.root, &mut found)?;
    }
    Ok(found)
}

fn read_all(dir: &Path, found: &mut BTreeMap<PathBuf, Vec<u8>>) -> Outcome {
    // A machine that never ran has no disk yet, and one that is deleted takes it along.
    let Some(entries) = unless_gone(std::fs::read_dir(dir))? else {
        return Ok(());
    };
    for entry in entries {
        let entry = entry?;
        let Some(kind) = unless_gone(entry.file_type())? else {
            continue;
        };
        if kind.is_dir() {
            read_all(&entry.path(), found)?;
        } else if kind.is_file()
            && let Some(content) = unless_gone(std::fs::read(entry.path()))?
        {
            found.insert(entry.path(), content);
        }
    }
    Ok(())
}

/// Nothing of a file that is not there any more: what writes anew renames, also while somebody reads.
fn unless_gone<T>(read: std::io::Result<T>) -> Outcome<Option<T>> {
    match read {
        Err(gone) if gone.kind() == std::io::ErrorKind::NotFound => Ok(None),
        other => Ok(Some(other?)),
    }
}

/// Values of Secrets that can be told from everything else.
#[derive(Default)]
pub struct Canaries(Mutex<Vec<String>>);

impl Canaries {
    /// A new value.
    pub fn fresh(&self) -> String {
        let value = format!("canary-{:032x}", rand::random::<u128>());
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(value.clone());
        value
    }

    /// Fails when a value, or the token of the project, stands anywhere but in its Secret and the file declared for it (I5).
    ///
    /// # Errors
    /// As said.
    pub async fn are_nowhere_else(&self, bed: &Bed) -> Outcome {
        let mut values = self
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        values.push(crate::bed::TOKEN.to_owned());
        for (place, content) in places(bed).await? {
            for value in &values {
                ensure(!holds(&content, value), || {
                    format!("{} of a Secret stands in {place}", &value[..12])
                })?;
            }
        }
        Ok(())
    }
}

/// A value as it may be found: plain, and in base64 at each of the three alignments that it can have within something longer.
pub fn forms(value: &str) -> Vec<String> {
    let engine = base64::engine::general_purpose::STANDARD_NO_PAD;
    let bytes = value.as_bytes();
    let aligned =
        (0..3).map(|skip| engine.encode(&bytes[skip..skip + (bytes.len() - skip) / 3 * 3]));
    aligned.chain([value.to_owned()]).collect()
}

fn holds(content: &[u8], value: &str) -> bool {
    let stands = |form: &String| memchr::memmem::find(content, form.as_bytes()).is_some();
    forms(value).iter().any(stands)
}

/// What others than a server's root can read: log, metrics while the operator runs, audit log, objects, events, requests to Hetzner; each with its name.
///
/// # Errors
/// Fails when one of them cannot be read.
pub async fn told(bed: &Bed) -> Outcome<Vec<(String, Vec<u8>)>> {
    let mut places = vec![
        (
            "the operator's log".to_owned(),
            bed.operator.log().into_bytes(),
        ),
        ("the audit log".to_owned(), bed.audit.text()?.into_bytes()),
    ];
    if bed.operator.process().is_some() {
        let metrics = bed
            .wait_for("the operator tells its metrics", async || {
                Ok(bed.operator.scrape().await)
            })
            .await?;
        places.push(("the metrics".to_owned(), metrics.into_bytes()));
    }
    for kind in [
        "HetznerProject",
        "AgentClass",
        "AgentInstance",
        "Subscription",
        "Event",
    ] {
        places.push((
            format!("a {kind}"),
            serde_json::to_vec(&bed.cluster.list(kind).await?)?,
        ));
    }
    for mutation in bed.cloud().mutations(0) {
        places.push((
            format!("{} {}", mutation.method, mutation.route),
            serde_json::to_vec(&mutation.body)?,
        ));
    }
    Ok(places)
}

async fn places(bed: &Bed) -> Outcome<Vec<(String, Vec<u8>)>> {
    let mut places = told(bed).await?;
    for mutation in bed.cloud().mutations(0) {
        if let Ok(user_data) = bed.cloud().user_data_of_mutation(mutation.seq) {
            places.push(("user-data".to_owned(), decoded(&user_data)?));
        }
    }
    let files = disks(bed)?
        .into_iter()
        .filter(|(path, _)| !may_hold_secrets(path));
    places.extend(files.map(|(path, content)| (path.display().to_string(), content)));
    Ok(places)
}

/// The declared file, also while a guest at work has it beside its place, and where a released guest keeps what its agent may have changed: for
/// root alone, until the next `configure`.
fn may_hold_secrets(path: &Path) -> bool {
    let text = path.to_string_lossy();
    let written = text
        .strip_suffix(".agentfleet-new")
        .map(|text| text.replace("/..", "/."));
    let declared = written.as_deref().unwrap_or(&text);
    declared.ends_with(SECRET_FILE) || text.contains("/var/lib/agentfleet/kept/")
}

/// User-data as cloud-init sees it.
///
/// # Errors
/// Fails when it is no gzip where it begins like one.
pub fn decoded(user_data: &str) -> Outcome<Vec<u8>> {
    let compact: String = user_data.split_whitespace().collect();
    let bytes = base64::engine::general_purpose::STANDARD
        .decode(compact)
        .unwrap_or_else(|_| user_data.as_bytes().to_vec());
    if !bytes.starts_with(&[0x1f, 0x8b]) {
        return Ok(bytes);
    }
    let mut plain = Vec::new();
    flate2::read::GzDecoder::new(bytes.as_slice())
        .read_to_end(&mut plain)
        .map_err(|error| Failure::new(format!("user-data: {error}")))?;
    Ok(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_canary_is_found_in_base64_at_every_alignment() {
        let value = Canaries::default().fresh();
        for padding in ["", "a", "ab", "abc"] {
            let hidden =
                base64::engine::general_purpose::STANDARD.encode(format!("{padding}{value}\n"));
            assert!(holds(hidden.as_bytes(), &value), "{padding:?}");
        }
        assert!(!holds(b"canary-", &value));
    }
}
