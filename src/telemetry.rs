//! Logs, one line each, and the end of a process that has panicked.
//!
//! A JSON line carries the fields of its event and of all spans around it at the top, so that `instance`, `incarnation` and `correlation_id`
//! can be searched for wherever a line came from. No secret gets here by our own code; of dependencies only what cannot quote one is let
//! through: the kube crate logs whole answers, Secrets included, when it cannot parse them, and debug output of any client may show headers.
//!
//! A panic in a task would be swallowed by the runtime and leave half an operator running: it ends the process, on purpose.

use std::fmt;
use std::io::IsTerminal as _;

use serde_json::{Map, Value};
use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_subscriber::Layer as _;
use tracing_subscriber::filter::{EnvFilter, FilterExt as _, filter_fn};
use tracing_subscriber::fmt::format::{JsonFields, Writer};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormattedFields, MakeWriter};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt as _;

/// How log lines look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// One JSON object for each line.
    #[default]
    Json,
    /// For a person at a terminal.
    Text,
}

/// Why logging cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// The filter is not understood.
    #[error(
        "{0:?} is no log level: give error, warn, info, debug or trace, or a list such as info,agentfleet::hetzner=debug"
    )]
    InvalidLevel(String),
    /// Something else has set it up already.
    #[error("logging is set up already")]
    SetTwice(#[from] tracing_subscriber::util::TryInitError),
}

/// Sends logs to standard error, and makes a panic one more line there and the end of the process.
///
/// `level` is a level, or a list of targets and levels as in `RUST_LOG`; dependencies never get below `info`.
///
/// # Errors
/// Fails on a level that is not understood, and when called twice.
pub fn init(format: LogFormat, level: &str) -> Result<(), TelemetryError> {
    let filter = filter(level)?;
    let registry = tracing_subscriber::registry();
    match format {
        LogFormat::Json => registry
            .with(json_layer(std::io::stderr).with_filter(filter.and(filter_fn(is_safe))))
            .try_init()?,
        LogFormat::Text => {
            let text = tracing_subscriber::fmt::layer()
                .with_ansi(std::io::stderr().is_terminal())
                .with_writer(std::io::stderr);
            registry
                .with(text.with_filter(filter.and(filter_fn(is_safe))))
                .try_init()?;
        }
    }
    end_on_panic();
    Ok(())
}

fn filter(level: &str) -> Result<EnvFilter, TelemetryError> {
    let invalid = || TelemetryError::InvalidLevel(level.to_owned());
    // A word that is no level would be taken for a target, and everything else would fall silent.
    let known = |directive: &str| {
        directive.contains(['=', '['])
            || (!directive.trim().is_empty() && directive.trim().parse::<LevelFilter>().is_ok())
    };
    if !level.split(',').all(known) {
        return Err(invalid());
    }
    EnvFilter::builder().parse(level).map_err(|_| invalid())
}

/// Whether a line of this origin cannot quote a secret.
fn is_safe(metadata: &Metadata<'_>) -> bool {
    let target = metadata.target();
    let ours = target.split("::").next() == Some("agentfleet");
    // Its warnings hold the text of an answer that could not be parsed.
    let quotes_answers = target == "kube_client::client";
    ours || (*metadata.level() <= Level::INFO && !quotes_answers)
}

fn json_layer<S, W>(writer: W) -> impl tracing_subscriber::Layer<S>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    W: for<'a> MakeWriter<'a> + 'static,
{
    tracing_subscriber::fmt::layer()
        .fmt_fields(JsonFields::new())
        .event_format(FlatJson)
        .with_writer(writer)
}

/// Writes one event as one JSON object, the fields of its spans beside its own.
struct FlatJson;

impl<S> FormatEvent<S, JsonFields> for FlatJson
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, JsonFields>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut line = Line(Map::new());
        for span in context
            .event_scope()
            .into_iter()
            .flat_map(tracing_subscriber::registry::Scope::from_root)
        {
            let extensions = span.extensions();
            let fields = extensions
                .get::<FormattedFields<JsonFields>>()
                .map(|fields| serde_json::from_str(&fields.fields));
            if let Some(Ok(Value::Object(fields))) = fields {
                line.0.extend(fields);
            }
        }
        event.record(&mut line);
        let metadata = event.metadata();
        line.0.insert(
            "timestamp".into(),
            jiff::Timestamp::now().to_string().into(),
        );
        line.0
            .insert("level".into(), metadata.level().as_str().into());
        line.0.insert("target".into(), metadata.target().into());
        writeln!(writer, "{}", Value::Object(line.0))
    }
}

/// Collects the fields of an event.
struct Line(Map<String, Value>);

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.0
            .insert(field.name().into(), format!("{value:?}").into());
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.0.insert(field.name().into(), value.into());
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.0.insert(field.name().into(), value.into());
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.0.insert(field.name().into(), value.into());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.0.insert(field.name().into(), value.into());
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.0.insert(field.name().into(), value.into());
    }
}

/// Makes a panic a log line that tells where, but not what was said, which may quote anything; then the process ends.
fn end_on_panic() {
    std::panic::set_hook(Box::new(|panic| {
        let place = panic.location().map(ToString::to_string);
        let thread = std::thread::current();
        tracing::error!(
            place,
            thread = thread.name(),
            "panic: the process ends, a new one takes up the work"
        );
        std::process::abort()
    }));
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::process::ExitStatusExt as _;
    use std::process::Command;
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Written(Arc<Mutex<Vec<u8>>>);

    impl Write for Written {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    /// The lines that `act` logs at this level.
    fn logged(level: &str, act: impl FnOnce()) -> Vec<Value> {
        let written = Written::default();
        let writer = written.clone();
        let layer = json_layer(move || writer.clone())
            .with_filter(filter(level).unwrap().and(filter_fn(is_safe)));
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), act);
        let bytes = written.0.lock().unwrap().clone();
        String::from_utf8(bytes)
            .unwrap()
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }

    #[test]
    fn fields_of_spans_stand_beside_those_of_the_event() {
        let lines = logged("info", || {
            let _instance =
                tracing::info_span!("reconcile", instance = "ns/one", incarnation = 1).entered();
            let _request =
                tracing::info_span!("request", correlation_id = "abc", incarnation = 2).entered();
            tracing::info!(
                route = "POST /servers",
                done = true,
                seconds = 0.5,
                server = 7_u64,
                "created"
            );
        });

        let [line] = &lines[..] else {
            panic!("one line expected: {lines:?}")
        };
        assert_eq!(line["instance"], "ns/one");
        assert_eq!(line["incarnation"], 2, "the inner span knows better");
        assert_eq!(line["correlation_id"], "abc");
        assert_eq!(
            (
                &line["route"],
                &line["done"],
                &line["seconds"],
                &line["server"]
            ),
            (
                &"POST /servers".into(),
                &true.into(),
                &0.5.into(),
                &7.into()
            )
        );
        assert_eq!(
            (&line["message"], &line["level"], &line["target"]),
            (&"created".into(), &"INFO".into(), &module_path!().into())
        );
        line["timestamp"]
            .as_str()
            .unwrap()
            .parse::<jiff::Timestamp>()
            .unwrap();
    }

    #[test]
    fn text_with_line_breaks_stays_one_line() {
        let lines = logged("info", || tracing::warn!(tail = "one\ntwo", "a\r\nb"));

        assert_eq!(lines.len(), 1);
        assert_eq!(lines[0]["tail"], "one\ntwo");
    }

    #[test]
    fn answers_that_the_kube_crate_quotes_are_not_logged() {
        let lines = logged("trace", || {
            tracing::warn!(target: "kube_client::client", "canary");
            tracing::debug!(target: "hyper::proto", "canary");
            tracing::debug!(target: "agentfleet_not::ours", "canary");
            tracing::trace!("ours");
            tracing::info!(target: "kube_runtime::watcher", "theirs");
        });

        let messages: Vec<_> = lines
            .iter()
            .map(|line| line["message"].as_str().unwrap())
            .collect();
        assert_eq!(messages, ["ours", "theirs"]);
    }

    #[test]
    fn level_that_is_not_understood_is_refused() {
        for level in ["agentfleet=loud", "loud", "inof,agentfleet=debug", ""] {
            let error = filter(level).unwrap_err().to_string();

            assert!(
                error.starts_with(&format!("{level:?} is no log level")),
                "{error}"
            );
        }
        for level in ["info", "WARN", "info,agentfleet::hetzner=debug", "off"] {
            filter(level).unwrap();
        }
    }

    #[test]
    fn panic_in_a_task_ends_the_process_with_one_line_that_does_not_quote_it() {
        const CHILD: &str = "AGENTFLEET_TEST_PANIC_CHILD";
        if std::env::var_os(CHILD).is_some() {
            init(LogFormat::Json, "info").unwrap();
            let runtime = tokio::runtime::Builder::new_current_thread()
                .build()
                .unwrap();
            runtime.block_on(async { tokio::spawn(async { panic!("canary") }).await.unwrap_err() });
            return;
        }
        let mut this_test = Command::new(std::env::current_exe().unwrap());
        this_test.args([
            "--exact",
            "telemetry::tests::panic_in_a_task_ends_the_process_with_one_line_that_does_not_quote_it",
            "--nocapture",
        ]);

        let ended = this_test.env(CHILD, "1").output().unwrap();

        let text = String::from_utf8(ended.stderr).unwrap();
        let line: Value = serde_json::from_str(text.trim()).unwrap();
        assert_eq!(ended.status.signal(), Some(6), "aborted");
        assert!(
            line["place"]
                .as_str()
                .unwrap()
                .starts_with("src/telemetry.rs:"),
            "{line}"
        );
        assert!(!text.contains("canary"), "{text}");
    }
}
