//! The agent's systemd unit, from typed fields to text.
//!
//! Values come from a class and may hold anything; what they hold must never become another
//! setting, another argument or a specifier. Sources: systemd.syntax(7), systemd.service(5)
//! "COMMAND LINES", systemd.exec(5). Every value is literal, except a command line given as
//! [`ExecStart::Line`], which is systemd's own syntax.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::Duration;

/// The home directory of the unit's user, as a working directory (systemd.exec(5)).
pub const HOME: &str = "~";

/// The command of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ExecStart {
    /// A line as in a unit file: quotes, `$VARIABLE` and `%specifiers` mean what they do there.
    Line(String),
    /// Program and arguments, taken literally.
    Arguments(Vec<String>),
}

/// `Restart=`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "systemd's own words")]
pub enum Restart {
    No,
    Always,
    OnSuccess,
    OnFailure,
    OnAbnormal,
    OnAbort,
    OnWatchdog,
}

/// `KillMode=`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "systemd's own words")]
pub enum KillMode {
    ControlGroup,
    Mixed,
    Process,
    None,
}

/// `ProtectSystem=`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "systemd's own words")]
pub enum ProtectSystem {
    No,
    Yes,
    Full,
    Strict,
}

/// `ProtectHome=`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "systemd's own words")]
pub enum ProtectHome {
    No,
    Yes,
    ReadOnly,
    Tmpfs,
}

/// The fields of a service; an absent one leaves systemd's default.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "systemd's own names")]
pub struct Service {
    pub description: String,
    pub user: String,
    pub exec_start: ExecStart,
    /// Absolute, or [`HOME`].
    pub working_directory: Option<String>,
    pub environment: BTreeMap<String, String>,
    /// Absolute paths; one with `-` before it may be absent.
    pub environment_files: Vec<String>,
    pub restart: Option<Restart>,
    pub restart_sec: Option<Duration>,
    pub restart_steps: Option<u32>,
    pub restart_max_delay_sec: Option<Duration>,
    pub start_limit_interval_sec: Option<Duration>,
    pub start_limit_burst: Option<u32>,
    pub timeout_stop_sec: Option<Duration>,
    pub kill_mode: Option<KillMode>,
    pub kill_signal: Option<String>,
    pub syslog_identifier: Option<String>,
    pub private_tmp: Option<bool>,
    pub private_devices: Option<bool>,
    pub no_new_privileges: Option<bool>,
    pub protect_system: Option<ProtectSystem>,
    pub protect_home: Option<ProtectHome>,
    pub protect_kernel_tunables: Option<bool>,
    pub protect_control_groups: Option<bool>,
    pub restrict_suid_sgid: Option<bool>,
    pub read_write_paths: Vec<String>,
    /// Bytes.
    pub memory_max: Option<u64>,
    pub tasks_max: Option<u32>,
}

/// A value that no unit file can hold.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field} {problem}")]
pub struct UnitError {
    /// The setting, as in a unit file.
    pub field: &'static str,
    /// What is wrong with it.
    pub problem: &'static str,
}

impl Service {
    /// A service with nothing but what it must have.
    pub fn new(description: &str, user: &str, exec_start: ExecStart) -> Self {
        Self {
            description: description.to_owned(),
            user: user.to_owned(),
            exec_start,
            working_directory: None,
            environment: BTreeMap::new(),
            environment_files: Vec::new(),
            restart: None,
            restart_sec: None,
            restart_steps: None,
            restart_max_delay_sec: None,
            start_limit_interval_sec: None,
            start_limit_burst: None,
            timeout_stop_sec: None,
            kill_mode: None,
            kill_signal: None,
            syslog_identifier: None,
            private_tmp: None,
            private_devices: None,
            no_new_privileges: None,
            protect_system: None,
            protect_home: None,
            protect_kernel_tunables: None,
            protect_control_groups: None,
            restrict_suid_sgid: None,
            read_write_paths: Vec::new(),
            memory_max: None,
            tasks_max: None,
        }
    }

    /// The text of the unit file.
    ///
    /// # Errors
    /// When a value cannot stand in a unit file.
    pub fn render(&self) -> Result<String, UnitError> {
        let mut unit = Text::default();
        unit.section("Unit");
        unit.set("Description", plain("Description", &self.description)?);
        unit.set("Wants", "network-online.target");
        unit.set("After", "network-online.target");
        unit.set_some(
            "StartLimitIntervalSec",
            self.start_limit_interval_sec.map(seconds),
        );
        unit.set_some("StartLimitBurst", self.start_limit_burst);
        unit.section("Service");
        unit.set("Type", "exec");
        unit.set("User", word("User", &self.user)?);
        self.render_command(&mut unit)?;
        self.render_lifetime(&mut unit)?;
        self.render_sandbox(&mut unit)?;
        unit.section("Install");
        unit.set("WantedBy", "multi-user.target");
        Ok(unit.0)
    }

    fn render_command(&self, unit: &mut Text) -> Result<(), UnitError> {
        if let Some(directory) = &self.working_directory {
            let home = directory == HOME;
            let directory = if home {
                HOME.to_owned()
            } else {
                path("WorkingDirectory", directory)?
            };
            unit.set("WorkingDirectory", directory);
        }
        for (name, value) in &self.environment {
            if !is_environment_name(name) {
                return refuse("Environment", "holds a name that is none");
            }
            let assignment = format!("{name}={value}");
            unit.set("Environment", quote("Environment", &assignment)?);
        }
        for file in &self.environment_files {
            let (optional, bare) = match file.strip_prefix('-') {
                Some(bare) => ("-", bare),
                None => ("", file.as_str()),
            };
            let bare = path("EnvironmentFile", bare)?;
            unit.set("EnvironmentFile", format!("{optional}{bare}"));
        }
        unit.set("ExecStart", self.exec_start.render()?);
        if let Some(identifier) = &self.syslog_identifier {
            unit.set("SyslogIdentifier", word("SyslogIdentifier", identifier)?);
        }
        Ok(())
    }

    fn render_lifetime(&self, unit: &mut Text) -> Result<(), UnitError> {
        unit.set_some("Restart", self.restart.map(Restart::as_str));
        unit.set_some("RestartSec", self.restart_sec.map(seconds));
        unit.set_some("RestartSteps", self.restart_steps);
        unit.set_some(
            "RestartMaxDelaySec",
            self.restart_max_delay_sec.map(seconds),
        );
        unit.set_some("TimeoutStopSec", self.timeout_stop_sec.map(seconds));
        unit.set_some("KillMode", self.kill_mode.map(KillMode::as_str));
        if let Some(signal) = &self.kill_signal {
            let known = |c: char| c.is_ascii_uppercase() || c.is_ascii_digit() || "+-".contains(c);
            if !signal.starts_with("SIG") || !signal.chars().all(known) {
                return refuse("KillSignal", "is no name of a signal, as SIGTERM");
            }
            unit.set("KillSignal", signal);
        }
        Ok(())
    }

    fn render_sandbox(&self, unit: &mut Text) -> Result<(), UnitError> {
        let switches = [
            ("PrivateTmp", self.private_tmp),
            ("PrivateDevices", self.private_devices),
            ("NoNewPrivileges", self.no_new_privileges),
            ("ProtectKernelTunables", self.protect_kernel_tunables),
            ("ProtectControlGroups", self.protect_control_groups),
            ("RestrictSUIDSGID", self.restrict_suid_sgid),
        ];
        for (name, switch) in switches {
            unit.set_some(name, switch.map(|on| if on { "yes" } else { "no" }));
        }
        unit.set_some(
            "ProtectSystem",
            self.protect_system.map(ProtectSystem::as_str),
        );
        unit.set_some("ProtectHome", self.protect_home.map(ProtectHome::as_str));
        for directory in &self.read_write_paths {
            path("ReadWritePaths", directory)?;
            unit.set("ReadWritePaths", quote("ReadWritePaths", directory)?);
        }
        unit.set_some("MemoryMax", self.memory_max);
        unit.set_some("TasksMax", self.tasks_max);
        Ok(())
    }
}

impl ExecStart {
    fn render(&self) -> Result<String, UnitError> {
        match self {
            Self::Line(line) => {
                if line.trim().is_empty() {
                    return refuse("ExecStart", "is empty");
                }
                Ok(one_line("ExecStart", line)?.trim().to_owned())
            }
            Self::Arguments(arguments) => {
                let [program, ..] = arguments.as_slice() else {
                    return refuse("ExecStart", "is empty");
                };
                if !program.starts_with('/') {
                    return refuse("ExecStart", "must begin with an absolute path");
                }
                let quoted = |word: &String| Ok(quote("ExecStart", word)?.replace('$', "$$"));
                let words: Result<Vec<String>, UnitError> = arguments.iter().map(quoted).collect();
                Ok(words?.join(" "))
            }
        }
    }
}

impl Restart {
    fn as_str(self) -> &'static str {
        match self {
            Self::No => "no",
            Self::Always => "always",
            Self::OnSuccess => "on-success",
            Self::OnFailure => "on-failure",
            Self::OnAbnormal => "on-abnormal",
            Self::OnAbort => "on-abort",
            Self::OnWatchdog => "on-watchdog",
        }
    }
}

impl KillMode {
    fn as_str(self) -> &'static str {
        match self {
            Self::ControlGroup => "control-group",
            Self::Mixed => "mixed",
            Self::Process => "process",
            Self::None => "none",
        }
    }
}

impl ProtectSystem {
    fn as_str(self) -> &'static str {
        match self {
            Self::No => "no",
            Self::Yes => "yes",
            Self::Full => "full",
            Self::Strict => "strict",
        }
    }
}

impl ProtectHome {
    fn as_str(self) -> &'static str {
        match self {
            Self::No => "no",
            Self::Yes => "yes",
            Self::ReadOnly => "read-only",
            Self::Tmpfs => "tmpfs",
        }
    }
}

/// A unit file as it grows.
#[derive(Default)]
struct Text(String);

impl Text {
    fn section(&mut self, name: &str) {
        let gap = if self.0.is_empty() { "" } else { "\n" };
        // Writing to a String has no way to fail.
        let _ = writeln!(self.0, "{gap}[{name}]");
    }

    fn set(&mut self, key: &str, value: impl std::fmt::Display) {
        let _ = writeln!(self.0, "{key}={value}");
    }

    fn set_some(&mut self, key: &str, value: Option<impl std::fmt::Display>) {
        if let Some(value) = value {
            self.set(key, value);
        }
    }
}

fn refuse<T>(field: &'static str, problem: &'static str) -> Result<T, UnitError> {
    Err(UnitError { field, problem })
}

/// A time span in systemd's words, to the millisecond.
fn seconds(span: Duration) -> String {
    if span.subsec_millis() == 0 {
        format!("{}s", span.as_secs())
    } else {
        format!("{}ms", span.as_millis())
    }
}

/// Refuses what would end the line, or carry it on into the next one.
fn one_line<'a>(field: &'static str, value: &'a str) -> Result<&'a str, UnitError> {
    if value.chars().any(|c| c.is_control() && c != '\t') {
        return refuse(field, "holds a line break or another control character");
    }
    if value.trim_end().ends_with('\\') {
        return refuse(field, "ends with a backslash");
    }
    Ok(value)
}

/// Free text, which systemd takes as it stands but for specifiers and white space at the ends.
fn plain(field: &'static str, value: &str) -> Result<String, UnitError> {
    Ok(one_line(field, value)?.trim().replace('%', "%%"))
}

/// A value without white space.
fn word(field: &'static str, value: &str) -> Result<String, UnitError> {
    if value.is_empty() || value.chars().any(char::is_whitespace) {
        return refuse(field, "must be one word");
    }
    plain(field, value)
}

/// An absolute path where systemd splits nothing and takes no quotes.
fn path(field: &'static str, value: &str) -> Result<String, UnitError> {
    if !value.starts_with('/') {
        return refuse(field, "must be an absolute path");
    }
    if value.trim_end() != value {
        return refuse(field, "ends with white space");
    }
    plain(field, value)
}

/// One word in double quotes with C escapes, specifiers switched off.
fn quote(field: &'static str, value: &str) -> Result<String, UnitError> {
    let mut quoted = String::with_capacity(value.len() + 2);
    quoted.push('"');
    for c in value.chars() {
        match c {
            '\0' => return refuse(field, "holds a NUL character"),
            '"' | '\\' => quoted.extend(['\\', c]),
            '\n' => quoted.push_str("\\n"),
            '\r' => quoted.push_str("\\r"),
            '\t' => quoted.push_str("\\t"),
            '%' => quoted.push_str("%%"),
            control if control.is_control() => {
                for byte in control.encode_utf8(&mut [0; 4]).bytes() {
                    let _ = write!(quoted, "\\x{byte:02x}");
                }
            }
            other => quoted.push(other),
        }
    }
    quoted.push('"');
    Ok(quoted)
}

/// Says whether a name can be that of an environment variable everywhere (POSIX "Name").
pub fn is_environment_name(name: &str) -> bool {
    let starts = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
    starts && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service() -> Service {
        let line = ExecStart::Line("/usr/bin/bun run src/index.ts".into());
        Service::new("the agent", "agent", line)
    }

    fn lines(service: &Service) -> Vec<String> {
        service
            .render()
            .unwrap()
            .lines()
            .map(str::to_owned)
            .collect()
    }

    fn has(service: &Service, line: &str) {
        let lines = lines(service);
        assert!(
            lines.iter().any(|found| found == line),
            "no {line} in {lines:#?}"
        );
    }

    #[test]
    fn every_field_stands_in_its_section() {
        let full = Service {
            working_directory: Some("/home/agent/app".into()),
            environment: [("TZ".to_owned(), "Europe/Berlin".to_owned())].into(),
            environment_files: vec!["-/home/agent/.env".into(), "/etc/a b".into()],
            restart: Some(Restart::OnFailure),
            restart_sec: Some(Duration::from_secs(5)),
            restart_steps: Some(4),
            restart_max_delay_sec: Some(Duration::from_millis(90_500)),
            start_limit_interval_sec: Some(Duration::from_mins(5)),
            start_limit_burst: Some(7),
            timeout_stop_sec: Some(Duration::from_secs(30)),
            kill_mode: Some(KillMode::Mixed),
            kill_signal: Some("SIGINT".into()),
            syslog_identifier: Some("agent".into()),
            private_tmp: Some(true),
            private_devices: Some(true),
            no_new_privileges: Some(false),
            protect_system: Some(ProtectSystem::Full),
            protect_home: Some(ProtectHome::ReadOnly),
            protect_kernel_tunables: Some(true),
            protect_control_groups: Some(true),
            restrict_suid_sgid: Some(true),
            read_write_paths: vec!["/srv/my data".into()],
            memory_max: Some(1_073_741_824),
            tasks_max: Some(512),
            ..service()
        };
        let expected = "\
[Unit]
Description=the agent
Wants=network-online.target
After=network-online.target
StartLimitIntervalSec=300s
StartLimitBurst=7

[Service]
Type=exec
User=agent
WorkingDirectory=/home/agent/app
Environment=\"TZ=Europe/Berlin\"
EnvironmentFile=-/home/agent/.env
EnvironmentFile=/etc/a b
ExecStart=/usr/bin/bun run src/index.ts
SyslogIdentifier=agent
Restart=on-failure
RestartSec=5s
RestartSteps=4
RestartMaxDelaySec=90500ms
TimeoutStopSec=30s
KillMode=mixed
KillSignal=SIGINT
PrivateTmp=yes
PrivateDevices=yes
NoNewPrivileges=no
ProtectKernelTunables=yes
ProtectControlGroups=yes
RestrictSUIDSGID=yes
ProtectSystem=full
ProtectHome=read-only
ReadWritePaths=\"/srv/my data\"
MemoryMax=1073741824
TasksMax=512

[Install]
WantedBy=multi-user.target
";
        assert_eq!(full.render().unwrap(), expected);
    }

    #[test]
    fn arguments_reach_the_program_as_they_are() {
        let arguments = [
            "/bin/echo",
            "a b",
            "$HOME",
            "100%h",
            "\"'\\",
            "x\ny",
            "é",
            "",
            ";",
            "\u{7}",
        ];
        let exec_start = ExecStart::Arguments(arguments.map(str::to_owned).to_vec());
        let service = Service {
            exec_start,
            ..service()
        };
        has(
            &service,
            r#"ExecStart="/bin/echo" "a b" "$$HOME" "100%%h" "\"'\\" "x\ny" "é" "" ";" "\x07""#,
        );
    }

    #[test]
    fn a_command_line_keeps_systemds_own_syntax() {
        let line = ExecStart::Line(" /bin/sh -c 'echo $HOME %n' ".into());
        has(
            &Service {
                exec_start: line,
                ..service()
            },
            "ExecStart=/bin/sh -c 'echo $HOME %n'",
        );
    }

    #[test]
    fn the_environment_is_taken_literally() {
        let value = "50% of \"$X\"\\\n[Service]\nExecStart=/bin/evil";
        let environment = [("A".to_owned(), value.to_owned())].into();
        let service = Service {
            environment,
            ..service()
        };
        has(
            &service,
            r#"Environment="A=50%% of \"$X\"\\\n[Service]\nExecStart=/bin/evil""#,
        );
        let starts = lines(&service)
            .iter()
            .filter(|l| l.starts_with("ExecStart="))
            .count();
        assert_eq!(starts, 1);
    }

    #[test]
    fn no_value_can_add_a_setting_or_swallow_the_next() {
        let injected = || "x\nExecStartPre=/bin/evil".to_owned();
        let bad = [
            Service {
                description: injected(),
                ..service()
            },
            Service {
                description: "x \\ ".into(),
                ..service()
            },
            Service {
                user: injected(),
                ..service()
            },
            Service {
                user: "a b".into(),
                ..service()
            },
            Service {
                user: String::new(),
                ..service()
            },
            Service {
                exec_start: ExecStart::Line(injected()),
                ..service()
            },
            Service {
                exec_start: ExecStart::Line("/bin/a \\".into()),
                ..service()
            },
            Service {
                exec_start: ExecStart::Line(" ".into()),
                ..service()
            },
            Service {
                exec_start: ExecStart::Arguments(vec![]),
                ..service()
            },
            Service {
                exec_start: ExecStart::Arguments(vec!["-/bin/a".into()]),
                ..service()
            },
            Service {
                working_directory: Some("relative".into()),
                ..service()
            },
            Service {
                working_directory: Some(format!("/{}", injected())),
                ..service()
            },
            Service {
                environment: [("A B".to_owned(), String::new())].into(),
                ..service()
            },
            Service {
                environment: [("A".to_owned(), "\0".to_owned())].into(),
                ..service()
            },
            Service {
                environment_files: vec![format!("/{}", injected())],
                ..service()
            },
            Service {
                kill_signal: Some("TERM\n".into()),
                ..service()
            },
            Service {
                syslog_identifier: Some(injected()),
                ..service()
            },
            Service {
                read_write_paths: vec![format!("/{}", injected())],
                ..service()
            },
        ];
        for service in bad {
            let outcome = service.render();
            assert!(outcome.is_err(), "{outcome:?}");
        }
    }

    #[test]
    fn a_specifier_in_a_description_or_path_is_text() {
        let directory = Some("/srv/100%h".to_owned());
        let service = Service {
            working_directory: directory,
            ..service()
        };
        has(&service, "WorkingDirectory=/srv/100%%h");
        let service = Service {
            description: "50% faster".into(),
            ..service
        };
        has(&service, "Description=50%% faster");
    }
}
