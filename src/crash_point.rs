//! Crash points: marks right before and right after everything the operator does to the world.
//!
//! Each Kubernetes call, Hetzner request, SSH act and event for the webhook passes [`around`], under a name made of a site and a call. With the feature `failpoints`
//! a test can abort the process at any of them (`FAILPOINTS="hetzner POST /servers after=1*off->return"`: right after the second create) and,
//! with `AGENTFLEET_CALL_LOG` naming a file, record the calls of one whole life, so that a matrix of crashes covers new calls by itself.
//! Without the feature nothing of this is compiled.
//!
//! Names are templates, never filled in: an id in a name would make it another point at each run, and `;` and `=` end a name in `FAILPOINTS`.

/// Runs `act` between the marks before and after it.
///
/// `site` is `kubernetes`, `hetzner`, `guest` or `webhook`; `call` is verb and route, such as `POST /servers`. When the future is dropped half way, only
/// the first mark was passed.
#[cfg(feature = "failpoints")]
pub async fn around<T>(site: &str, call: &str, act: impl Future<Output = T>) -> T {
    before(site, call);
    let outcome = act.await;
    after(site, call);
    outcome
}

/// Runs `act`: the marks are compiled in with the feature `failpoints` only.
#[cfg(not(feature = "failpoints"))]
pub async fn around<T>(_site: &str, _call: &str, act: impl Future<Output = T>) -> T {
    act.await
}

#[cfg(feature = "failpoints")]
pub use marks::{after, before};

/// Marks that `call` is about to be made.
#[cfg(not(feature = "failpoints"))]
pub fn before(_site: &str, _call: &str) {}

/// Marks that the outcome of `call` is known.
#[cfg(not(feature = "failpoints"))]
pub fn after(_site: &str, _call: &str) {}

#[cfg(feature = "failpoints")]
mod marks {
    use std::collections::HashMap;
    use std::fs::File;
    use std::io::Write as _;
    use std::sync::{LazyLock, Mutex, PoisonError};

    /// The crash points that `FAILPOINTS` arms, and the file that records calls; read once, at the first mark.
    static CALLS: LazyLock<Calls> = LazyLock::new(|| {
        if let Err(mistake) = arm(&std::env::var("FAILPOINTS").unwrap_or_default()) {
            refuse("FAILPOINTS", &mistake);
        }
        let log = std::env::var_os("AGENTFLEET_CALL_LOG").map(|path| {
            let opened = File::options().append(true).create(true).open(path);
            opened.unwrap_or_else(|error| refuse("AGENTFLEET_CALL_LOG", &error.to_string()))
        });
        Calls {
            log,
            made: Mutex::default(),
        }
    });

    struct Calls {
        log: Option<File>,
        made: Mutex<HashMap<String, u64>>,
    }

    /// Marks that `call` is about to be made.
    pub fn before(site: &str, call: &str) {
        CALLS.record(site, call);
        crash_if_armed(site, call, "before");
    }

    /// Marks that the outcome of `call` is known.
    pub fn after(site: &str, call: &str) {
        LazyLock::force(&CALLS);
        crash_if_armed(site, call, "after");
    }

    fn crash_if_armed(site: &str, call: &str, moment: &str) {
        debug_assert!(
            !call.contains([';', '=']),
            "not a name for a crash point: {call}"
        );
        fail::eval(&format!("{site} {call} {moment}"), |_| {
            std::process::abort()
        });
    }

    impl Calls {
        /// Appends one line in one write: two calls at once must not mix theirs, and an abort right after loses nothing.
        fn record(&self, site: &str, call: &str) {
            let Some(mut log) = self.log.as_ref() else {
                return;
            };
            let occurrence = {
                let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
                let count = made.entry(format!("{site} {call}")).or_default();
                *count += 1;
                *count
            };
            let line = format!(
                "{}\n",
                serde_json::json!({"site": site, "call": call, "occurrence": occurrence})
            );
            if let Err(error) = log.write_all(line.as_bytes()) {
                refuse("AGENTFLEET_CALL_LOG", &error.to_string());
            }
        }
    }

    /// Configures the points of a list `name=actions;name=actions`.
    fn arm(points: &str) -> Result<(), String> {
        for point in points
            .split(';')
            .map(str::trim)
            .filter(|point| !point.is_empty())
        {
            let (name, actions) = point
                .split_once('=')
                .ok_or_else(|| format!("no actions in {point:?}"))?;
            fail::cfg(name.trim(), actions)?;
        }
        Ok(())
    }

    /// Ends the process: a crash test that silently runs without its crash proves nothing.
    fn refuse(variable: &str, mistake: &str) -> ! {
        tracing::error!(variable, mistake, "crash points cannot be set up");
        std::process::exit(2)
    }
}

#[cfg(feature = "failpoints")]
#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt as _;
    use std::process::{Command, ExitStatus};

    const SIGABRT: i32 = 6;
    const CHILD: &str = "AGENTFLEET_TEST_CRASH_CHILD";

    /// Runs this very test in a process of its own, since an abort takes everything with it and the registry of fail points is global.
    fn child(test: &str, failpoints: &str, log: &std::path::Path) -> ExitStatus {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", &format!("crash_point::tests::{test}")]);
        command
            .env(CHILD, "1")
            .env("FAILPOINTS", failpoints)
            .env("AGENTFLEET_CALL_LOG", log)
            .output()
            .unwrap()
            .status
    }

    fn is_child() -> bool {
        std::env::var_os(CHILD).is_some()
    }

    async fn three_calls() {
        super::around("hetzner", "POST /servers", async {}).await;
        super::around("hetzner", "POST /servers", async {}).await;
        super::around("hetzner", "GET /servers/{id}", async {}).await;
    }

    #[test]
    fn fail_points_are_compiled_in() {
        assert!(fail::has_failpoints());
    }

    #[tokio::test]
    async fn process_aborts_right_after_the_named_occurrence() {
        if is_child() {
            return three_calls().await;
        }
        let log = std::env::temp_dir().join(format!("agentfleet-crash-{}", std::process::id()));
        let name = "process_aborts_right_after_the_named_occurrence";

        let status = child(name, "hetzner POST /servers after=1*off->return", &log);

        let recorded = std::fs::read_to_string(&log).unwrap();
        std::fs::remove_file(&log).unwrap();
        assert_eq!(status.signal(), Some(SIGABRT));
        let calls: Vec<serde_json::Value> = recorded
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        assert_eq!(
            calls.len(),
            2,
            "the third call must not be reached: {recorded}"
        );
        assert_eq!(
            calls[1],
            serde_json::json!({"site": "hetzner", "call": "POST /servers", "occurrence": 2})
        );
    }

    #[tokio::test]
    async fn process_aborts_before_the_call_has_any_effect() {
        let effect = std::env::temp_dir().join(format!("agentfleet-effect-{}", std::process::id()));
        if is_child() {
            let written = std::env::var("AGENTFLEET_CALL_LOG").unwrap() + "-effect";
            return super::around("guest", "configure", async {
                std::fs::write(written, "").unwrap();
            })
            .await;
        }

        let status = child(
            "process_aborts_before_the_call_has_any_effect",
            "guest configure before=return",
            &effect,
        );

        std::fs::remove_file(&effect).unwrap();
        assert_eq!(status.signal(), Some(SIGABRT));
        assert!(
            !effect
                .with_file_name(format!("agentfleet-effect-{}-effect", std::process::id()))
                .exists()
        );
    }

    #[tokio::test]
    async fn points_that_are_not_armed_do_nothing_and_are_recorded() {
        if is_child() {
            return three_calls().await;
        }
        let log = std::env::temp_dir().join(format!("agentfleet-calls-{}", std::process::id()));

        let status = child(
            "points_that_are_not_armed_do_nothing_and_are_recorded",
            "",
            &log,
        );

        let recorded = std::fs::read_to_string(&log).unwrap();
        std::fs::remove_file(&log).unwrap();
        assert!(status.success());
        assert_eq!(recorded.lines().count(), 3);
    }

    #[tokio::test]
    async fn malformed_fail_points_end_the_process() {
        if is_child() {
            return three_calls().await;
        }
        let log = std::env::temp_dir().join(format!("agentfleet-malformed-{}", std::process::id()));

        let status = child(
            "malformed_fail_points_end_the_process",
            "hetzner POST /servers before",
            &log,
        );

        assert_eq!(status.code(), Some(2));
    }
}
