//! The agent's systemd unit, from the fields of a class to text.
//!
//! Values come from a class and may hold anything; what they hold must never become another setting, another argument or a specifier. Every
//! value is literal. Sources: systemd.service(5) "COMMAND LINES", systemd.exec(5); how a value is written is in [`syntax`].

mod syntax;

use crate::api::{KillMode, ProtectHome, ProtectSystem, Restart, Service};
use syntax::{Text, path, plain, quote, refuse, seconds, word};

/// The home directory of the unit's user, as a working directory (systemd.exec(5)).
pub const HOME: &str = "~";

/// A value that no unit file can hold.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field} {problem}")]
pub struct UnitError {
    /// The setting, as in a unit file.
    pub field: &'static str,
    /// What is wrong with it.
    pub problem: &'static str,
}

/// The text of the unit of a service that is told by its fields.
///
/// The service runs as `user`, and in `directory` (absolute, or [`HOME`]) unless it names another.
///
/// # Errors
/// When a value cannot stand in a unit file.
pub fn render(service: &Service, user: &str, directory: &str) -> Result<String, UnitError> {
    let mut text = Text::default();
    text.section("Unit");
    let description = service.description.as_ref().unwrap_or(&service.name);
    text.set("Description", plain("Description", description)?);
    text.set("Wants", "network-online.target");
    text.set("After", "network-online.target");
    let interval = service.start_limit_interval_sec.map(seconds);
    text.set_some("StartLimitIntervalSec", interval);
    text.set_some("StartLimitBurst", service.start_limit_burst);
    text.section("Service");
    text.set("Type", "exec");
    text.set("User", word("User", user)?);
    set_command(&mut text, service, directory)?;
    set_lifetime(&mut text, service)?;
    set_sandbox(&mut text, service)?;
    text.section("Install");
    text.set("WantedBy", "multi-user.target");
    Ok(text.done())
}

fn set_command(text: &mut Text, service: &Service, directory: &str) -> Result<(), UnitError> {
    let directory = service.working_directory.as_deref().unwrap_or(directory);
    text.set("WorkingDirectory", working(directory)?);
    for file in &service.environment_files {
        text.set("EnvironmentFile", path("EnvironmentFile", file)?);
    }
    let arguments = service.exec_start.as_deref().unwrap_or_default();
    text.set("ExecStart", command(arguments)?);
    let identifier = service.syslog_identifier.as_ref().unwrap_or(&service.name);
    text.set("SyslogIdentifier", word("SyslogIdentifier", identifier)?);
    Ok(())
}

fn set_lifetime(text: &mut Text, service: &Service) -> Result<(), UnitError> {
    text.set("Restart", service.restart.unwrap_or(Restart::Always).word());
    text.set_some("RestartSec", service.restart_sec.map(seconds));
    text.set_some("RestartSteps", service.restart_steps);
    let longest = service.restart_max_delay_sec.map(seconds);
    text.set_some("RestartMaxDelaySec", longest);
    text.set_some("TimeoutStopSec", service.timeout_stop_sec.map(seconds));
    text.set_some("KillMode", service.kill_mode.map(KillMode::word));
    let signal = service.kill_signal.as_deref().map(signal).transpose()?;
    text.set_some("KillSignal", signal);
    Ok(())
}

fn set_sandbox(text: &mut Text, service: &Service) -> Result<(), UnitError> {
    let switches = [
        ("PrivateTmp", service.private_tmp),
        ("PrivateDevices", service.private_devices),
        ("NoNewPrivileges", service.no_new_privileges),
        ("ProtectKernelTunables", service.protect_kernel_tunables),
        ("ProtectControlGroups", service.protect_control_groups),
        ("RestrictSUIDSGID", service.restrict_suid_sgid),
    ];
    for (name, switch) in switches {
        text.set_some(name, switch.map(|on| if on { "yes" } else { "no" }));
    }
    let system = service.protect_system.map(ProtectSystem::word);
    text.set_some("ProtectSystem", system);
    let home = service.protect_home.map(ProtectHome::word);
    text.set_some("ProtectHome", home);
    for directory in &service.read_write_paths {
        path("ReadWritePaths", directory)?;
        text.set("ReadWritePaths", quote("ReadWritePaths", directory)?);
    }
    let memory = service
        .memory_max
        .as_deref()
        .map(|size| word("MemoryMax", size));
    text.set_some("MemoryMax", memory.transpose()?);
    text.set_some("TasksMax", service.tasks_max);
    Ok(())
}

fn working(directory: &str) -> Result<String, UnitError> {
    if directory == HOME {
        Ok(HOME.to_owned())
    } else {
        path("WorkingDirectory", directory)
    }
}

/// Program and arguments, with `$` switched off, which only here means a variable.
fn command(arguments: &[String]) -> Result<String, UnitError> {
    let [program, ..] = arguments else {
        return refuse("ExecStart", "is empty");
    };
    if !program.starts_with('/') {
        return refuse("ExecStart", "must begin with an absolute path");
    }
    let quoted = |word: &String| Ok(quote("ExecStart", word)?.replace('$', "$$"));
    let words: Result<Vec<String>, UnitError> = arguments.iter().map(quoted).collect();
    Ok(words?.join(" "))
}

fn signal(name: &str) -> Result<&str, UnitError> {
    let known = |c: char| c.is_ascii_uppercase() || c.is_ascii_digit() || "+-".contains(c);
    if name.starts_with("SIG") && name.chars().all(known) {
        Ok(name)
    } else {
        refuse("KillSignal", "is no name of a signal, as SIGTERM")
    }
}

impl Restart {
    fn word(self) -> &'static str {
        match self {
            Self::Always => "always",
            Self::OnSuccess => "on-success",
            Self::OnFailure => "on-failure",
            Self::OnAbnormal => "on-abnormal",
            Self::OnAbort => "on-abort",
            Self::OnWatchdog => "on-watchdog",
            Self::Never => "no",
        }
    }
}

impl KillMode {
    fn word(self) -> &'static str {
        match self {
            Self::ControlGroup => "control-group",
            Self::Mixed => "mixed",
            Self::Process => "process",
        }
    }
}

impl ProtectSystem {
    fn word(self) -> &'static str {
        match self {
            Self::Usr => "yes",
            Self::Full => "full",
            Self::Strict => "strict",
        }
    }
}

impl ProtectHome {
    fn word(self) -> &'static str {
        match self {
            Self::Inaccessible => "yes",
            Self::ReadOnly => "read-only",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    /// A service as a class declares it.
    fn service(fields: &Value) -> Service {
        let mut declared = json!({"execStart": ["/usr/bin/bun", "run", "src/index.ts"]});
        for (name, value) in fields.as_object().unwrap() {
            declared[name] = value.clone();
        }
        serde_json::from_value(declared).unwrap()
    }

    fn rendered(fields: &Value) -> Result<String, UnitError> {
        render(&service(fields), "agent", HOME)
    }

    fn has(fields: &Value, line: &str) {
        let text = rendered(fields).unwrap();
        assert!(
            text.lines().any(|found| found == line),
            "no {line} in {text}"
        );
    }

    fn full() -> Value {
        json!({
            "name": "worker",
            "description": "the agent",
            "workingDirectory": "/home/agent/app",
            "environmentFiles": ["/home/agent/.env", "/etc/a b"],
            "restart": "OnFailure",
            "restartSec": "5s",
            "restartSteps": 4,
            "restartMaxDelaySec": "1m30s",
            "startLimitIntervalSec": "5m",
            "startLimitBurst": 7,
            "timeoutStopSec": "30s",
            "killMode": "Mixed",
            "killSignal": "SIGINT",
            "syslogIdentifier": "agent",
            "privateTmp": true,
            "privateDevices": true,
            "noNewPrivileges": false,
            "protectSystem": "Full",
            "protectHome": "ReadOnly",
            "protectKernelTunables": true,
            "protectControlGroups": true,
            "restrictSUIDSGID": true,
            "readWritePaths": ["/srv/my data"],
            "memoryMax": "1G",
            "tasksMax": 512,
        })
    }

    #[test]
    fn every_field_that_a_class_offers_is_written() {
        let schema = schemars::schema_for!(Service);
        let offered = schema.as_value()["properties"].as_object().unwrap();
        let full = service(&full());
        let declared = serde_json::to_value(&full).unwrap();
        for name in offered.keys().filter(|name| *name != "unit") {
            assert!(declared.get(name).is_some(), "{name} is not in this test");
        }
    }

    #[test]
    fn every_field_stands_in_its_section() {
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
EnvironmentFile=/home/agent/.env
EnvironmentFile=/etc/a b
ExecStart=\"/usr/bin/bun\" \"run\" \"src/index.ts\"
SyslogIdentifier=agent
Restart=on-failure
RestartSec=5s
RestartSteps=4
RestartMaxDelaySec=90s
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
MemoryMax=1G
TasksMax=512

[Install]
WantedBy=multi-user.target
";
        assert_eq!(rendered(&full()).unwrap(), expected);
    }

    #[test]
    fn what_is_not_declared_is_systemds_own_but_for_the_restart() {
        let expected = "\
[Unit]
Description=agent
Wants=network-online.target
After=network-online.target

[Service]
Type=exec
User=agent
WorkingDirectory=~
ExecStart=\"/usr/bin/bun\" \"run\" \"src/index.ts\"
SyslogIdentifier=agent
Restart=always

[Install]
WantedBy=multi-user.target
";
        assert_eq!(rendered(&json!({})).unwrap(), expected);
    }

    #[test]
    fn arguments_reach_the_program_as_they_are() {
        let arguments = json!({"execStart": [
            "/bin/echo", "a b", "$HOME", "100%h", "\"'\\", "x\ny", "é", "", ";", "\u{7}"
        ]});
        has(
            &arguments,
            r#"ExecStart="/bin/echo" "a b" "$$HOME" "100%%h" "\"'\\" "x\ny" "é" "" ";" "\x07""#,
        );
    }

    #[test]
    fn no_value_can_add_a_setting_or_swallow_the_next() {
        let injected = "x\nExecStartPre=/bin/evil";
        let bad = [
            json!({"description": injected}),
            json!({"description": "x \\ "}),
            json!({"execStart": []}),
            json!({"execStart": ["-/bin/a"]}),
            json!({"execStart": ["/bin/a", "\0"]}),
            json!({"workingDirectory": "relative"}),
            json!({"workingDirectory": format!("/{injected}")}),
            json!({"environmentFiles": [format!("/{injected}")]}),
            json!({"environmentFiles": ["-/may/be/absent"]}),
            json!({"killSignal": "TERM\n"}),
            json!({"killSignal": "SIGTERM\n"}),
            json!({"syslogIdentifier": injected}),
            json!({"syslogIdentifier": "a b"}),
            json!({"readWritePaths": [format!("/{injected}")]}),
            json!({"memoryMax": format!("1G{injected}")}),
        ];
        for fields in bad {
            let outcome = rendered(&fields);
            assert!(outcome.is_err(), "{fields}: {outcome:?}");
        }
        for user in [injected, "a b", ""] {
            assert!(
                render(&service(&json!({})), user, HOME).is_err(),
                "{user:?}"
            );
        }
    }

    #[test]
    fn a_specifier_in_a_description_or_path_is_text() {
        has(
            &json!({"workingDirectory": "/srv/100%h"}),
            "WorkingDirectory=/srv/100%%h",
        );
        has(
            &json!({"description": "50% faster"}),
            "Description=50%% faster",
        );
    }
}
