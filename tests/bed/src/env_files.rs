//! Values that are hard to write into an `EnvironmentFile`, and how to see what a service reads there.

/// Values with everything that some reader takes for something else, by names for a Secret.
pub const HARD_VALUES: [(&str, &str); 16] = [
    ("EMPTY", ""),
    ("SPACES", "  a  b  "),
    ("LINES", "-----BEGIN KEY-----\nabc/+=\n-----END KEY-----\n"),
    ("LINE_BREAK_ONLY", "\n"),
    ("SINGLE_QUOTE", "it's"),
    ("DOUBLE_QUOTE", "say \"a\""),
    ("BOTH_QUOTES", "{\"a\": \"it's\"}"),
    ("BACKTICK", "`id`"),
    ("DOLLAR", "pa$$word $HOME $1"),
    ("HASH", "a#b #c"),
    ("PERCENT", "100% %h %%n"),
    ("BACKSLASH", "C:\\dir\\new \\t \\$x"),
    ("UNICODE", "grüße 日本 \u{1f600} \u{feff} \u{2028}"),
    ("ASSIGNMENT", "export A=b; c=d"),
    ("COMMENT", "# none"),
    ("TAB", "\ta\t"),
];

/// A command for a machine with systemd: it prints, as a JSON object, the environment of a service with this `EnvironmentFile`.
pub fn service_environment(file: &str) -> Vec<String> {
    let dump = "import json, os; print(json.dumps(dict(os.environ)))";
    let property = format!("--property=EnvironmentFile={file}");
    let run = ["systemd-run", "--quiet", "--wait", "--pipe", "--collect"];
    run.into_iter()
        .chain([&property, "/usr/bin/python3", "-c", dump])
        .map(str::to_owned)
        .collect()
}
