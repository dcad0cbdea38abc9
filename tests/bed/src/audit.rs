//! The API server's audit log: the truth about who wrote what.

use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::PathBuf;

use serde_json::Value;

use crate::failure::Outcome;

/// The log of one control plane, from one moment on.
#[derive(Clone)]
pub struct Audit {
    path: PathBuf,
    from: u64,
}

/// One write, as the API server logged it.
#[derive(Clone, Debug)]
pub struct Write {
    /// Verb, resource with subresource, namespace and name: `patch agentinstances/status tenant/one`.
    pub what: String,
    /// The event as the API server logged it.
    pub event: Value,
}

impl Audit {
    /// The log from now on.
    ///
    /// # Errors
    /// Fails when there is no log.
    pub fn from_now(path: &std::path::Path) -> Outcome<Self> {
        Ok(Self {
            path: path.to_owned(),
            from: std::fs::metadata(path)?.len(),
        })
    }

    /// The same log from now on.
    ///
    /// # Errors
    /// Fails when the log cannot be read.
    pub fn later(&self) -> Outcome<Self> {
        let text = self.text()?;
        // The last line may be half written.
        let whole = text.rfind('\n').map_or(0, |end| end + 1);
        Ok(Self {
            path: self.path.clone(),
            from: self.from + u64::try_from(whole)?,
        })
    }

    /// What was logged since, as text.
    ///
    /// # Errors
    /// Fails when the log cannot be read.
    pub fn text(&self) -> Outcome<String> {
        let mut file = File::open(&self.path)?;
        file.seek(SeekFrom::Start(self.from))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// The writes of one user that were carried out since.
    ///
    /// # Errors
    /// Fails when the log cannot be read.
    pub fn writes_of(&self, user: &str) -> Outcome<Vec<Write>> {
        self.writes(user, |code| code < 300)
    }

    /// The writes of one user that were refused since because they replaced a version that was not the latest any more.
    ///
    /// # Errors
    /// Fails when the log cannot be read.
    pub fn stale_writes_of(&self, user: &str) -> Outcome<Vec<Write>> {
        self.writes(user, |code| code == 409)
    }

    fn writes(&self, user: &str, answered: fn(u64) -> bool) -> Outcome<Vec<Write>> {
        let text = self.text()?;
        // The last line may be half written.
        let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
        let events = whole
            .lines()
            .map(serde_json::from_str)
            .collect::<Result<Vec<Value>, _>>()?;
        Ok(events
            .into_iter()
            .filter(|event| is_write_of(event, user) && code(event).is_some_and(answered))
            .map(Write::of)
            .collect())
    }
}

fn is_write_of(event: &Value, user: &str) -> bool {
    let verb = event["verb"].as_str().unwrap_or_default();
    event["user"]["username"] == user
        && matches!(
            verb,
            "create" | "update" | "patch" | "delete" | "deletecollection"
        )
        && event["stage"] == "ResponseComplete"
}

fn code(event: &Value) -> Option<u64> {
    event["responseStatus"]["code"].as_u64()
}

impl Write {
    fn of(event: Value) -> Self {
        let said = |field: &str| {
            event["objectRef"][field]
                .as_str()
                .unwrap_or_default()
                .to_owned()
        };
        let resource = [said("resource"), said("subresource")].join("/");
        let resource = resource.trim_end_matches('/');
        let object = [said("namespace"), said("name")].join("/");
        let what = format!(
            "{} {resource} {}",
            event["verb"].as_str().unwrap_or_default(),
            object.trim_start_matches('/')
        );
        Self { what, event }
    }

    /// Whether it is about the Lease, the one thing that is written while all is calm.
    pub fn is_lease(&self) -> bool {
        self.event["objectRef"]["resource"] == "leases"
    }
}
