//! Secret files are read back byte for byte by the programs that read them: systemd itself, dotenv for JavaScript and for Python, Node, Bun, and
//! Python's json.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use agentfleet::secret_files::{Content, SecretData, SecretFileError, render};
use bed::{Failure, HARD_VALUES, Outcome, built, ensure, machine_root, scratch, skip};
use proptest::prelude::*;
use proptest::strategy::ValueTree as _;
use proptest::test_runner::TestRunner;
use secrecy::{ExposeSecret as _, SecretSlice};

/// How many generated values each reader is given.
const GENERATED: usize = 3000;
/// systemd's own reader takes a process for each three values.
const FOR_SYSTEMD: usize = 450;

type Values = BTreeMap<String, String>;

/// The hard values, and generated ones that are made of what is special to some reader.
fn values(generated: usize) -> Outcome<Values> {
    let special = "[a-c1 '\"`\\\\$#%\n\t=;:{}()<>|&!*?~é日\u{1f600}\u{2028}\u{feff}]{0,16}";
    let (mut runner, strategy) = (TestRunner::deterministic(), special.prop_map(String::from));
    let mut values: Values = HARD_VALUES
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into();
    for number in 0..generated {
        let made = strategy.new_tree(&mut runner);
        let value = made.map_err(|reason| Failure::new(reason.message()))?;
        values.insert(format!("V{number}"), value.current());
    }
    Ok(values)
}

fn secret(values: &Values) -> SecretData {
    let bytes = |value: &String| SecretSlice::from(value.as_bytes().to_vec());
    values
        .iter()
        .map(|(name, value)| (name.clone(), bytes(value)))
        .collect()
}

/// Those values that have a form at all; the others are refused by their name.
fn writable(values: &Values) -> Values {
    let data = secret(values);
    let is_written = |name: &String| {
        let one = [name.clone()];
        match render(Content::Env(&one), &data) {
            Ok(_) => true,
            Err(error) => {
                assert_eq!(error, SecretFileError::NotQuotable(name.clone()));
                false
            }
        }
    };
    let written: Values = values
        .clone()
        .into_iter()
        .filter(|(name, _)| is_written(name))
        .collect();
    for (name, _) in HARD_VALUES {
        assert!(written.contains_key(name), "{name} is refused");
    }
    assert!(written.len() * 4 > values.len() * 3, "most are written");
    written
}

/// Writes values as one environment file, as an agent has it.
fn write_env(dir: &Path, values: &Values) -> Outcome<PathBuf> {
    let file = dir.join(".env");
    let content = render(Content::EnvAll, &secret(values))?;
    fs::write(&file, content.expose_secret())?;
    Ok(file)
}

/// What a command prints as a JSON object of strings.
fn printed(command: &mut Command) -> Outcome<Values> {
    let ran = command.output()?;
    ensure(ran.status.success(), || {
        String::from_utf8_lossy(&ran.stderr).into_owned()
    })?;
    Ok(serde_json::from_slice(&ran.stdout)?)
}

fn assert_read(reader: &str, written: &Values, read: &Values) {
    for (name, value) in written {
        assert_eq!(read.get(name), Some(value), "{reader}: {name}");
    }
}

fn python() -> Outcome<Command> {
    Ok(Command::new(built("venv/bin/python", "venv")?))
}

fn modules() -> Outcome<PathBuf> {
    built("readers/node_modules/dotenv/package.json", "readers")?;
    Ok(bed::project().join("target/readers/node_modules"))
}

const ENVIRONMENT: &str = "console.log(JSON.stringify(process.env))";

#[test]
fn dotenv_for_python_reads_what_was_written() -> Outcome {
    let (dir, values) = (scratch("quoting")?, writable(&values(GENERATED)?));
    let read = "import dotenv, json, sys; print(json.dumps(dotenv.dotenv_values(sys.argv[1])))";
    let file = write_env(&dir, &values)?;
    let read = printed(python()?.args(["-c", read]).arg(file))?;
    assert_read("python-dotenv", &values, &read);
    Ok(fs::remove_dir_all(dir)?)
}

#[test]
fn dotenv_for_javascript_and_node_read_what_was_written() -> Outcome {
    let (dir, values) = (scratch("quoting")?, writable(&values(GENERATED)?));
    let file = write_env(&dir, &values)?;
    let parse = "console.log(JSON.stringify(require(process.argv[1]).parse(require('fs').readFileSync(process.argv[2]))))";
    let mut dotenv = Command::new("node");
    dotenv
        .args(["-e", parse])
        .arg(modules()?.join("dotenv"))
        .arg(&file);
    assert_read("dotenv", &values, &printed(&mut dotenv)?);
    let mut node = Command::new("node");
    node.arg(format!("--env-file={}", file.display()))
        .args(["-e", ENVIRONMENT]);
    assert_read("node", &values, &printed(&mut node)?);
    Ok(fs::remove_dir_all(dir)?)
}

/// Bun by itself puts variables in wherever a value has `$`; with an environment that systemd has read from the same file, it does not.
#[test]
fn bun_reads_what_was_written_and_keeps_what_systemd_has_read() -> Outcome {
    let (dir, values) = (scratch("quoting")?, writable(&values(GENERATED)?));
    let bun = || -> Outcome<Command> {
        let mut bun = Command::new(modules()?.join(".bin/bun"));
        bun.current_dir(&dir).args(["-e", ENVIRONMENT]);
        Ok(bun)
    };
    write_env(&dir, &values)?;
    let kept = printed(bun()?.envs(&values))?;
    assert_read("bun after systemd", &values, &kept);
    let plain: Values = values
        .into_iter()
        .filter(|(_, value)| !value.contains('$'))
        .collect();
    write_env(&dir, &plain)?;
    assert_read("bun", &plain, &printed(&mut bun()?)?);
    Ok(fs::remove_dir_all(dir)?)
}

/// systemd has one parser for environment files and os-release; systemd-tmpfiles writes these fields of the latter as it has read them.
const FIELDS: [(&str, &str); 3] = [
    ("BUILD_ID", "%B"),
    ("VARIANT_ID", "%W"),
    ("VERSION_ID", "%w"),
];
/// For each directory in a directory.
const READ_AND_WRITE: &str = r#"
for each in "$1"/[0-9]*; do systemd-tmpfiles --root="$each" --create "$1/tmpfiles.conf" || exit; done
"#;
/// The same in a root, of which nothing is changed: the mounts end with the command.
const IN_A_ROOT: &str = r#"
mount -t proc proc "$1/proc"
mount --bind "$2" "$1/mnt"
exec chroot "$1" sh -c "$3" sh /mnt
"#;

/// Roots in a directory whose os-release has three values each, and these values.
fn write_os_releases(dir: &Path) -> Outcome<Vec<(PathBuf, Values)>> {
    let lines = FIELDS.map(|(name, specifier)| format!("f /{name} - - - - {specifier}\n"));
    fs::write(dir.join("tmpfiles.conf"), lines.concat())?;
    let values: Vec<String> = writable(&values(FOR_SYSTEMD)?).into_values().collect();
    let mut roots = vec![];
    for (number, three) in values.chunks(FIELDS.len()).enumerate() {
        let named = FIELDS.iter().zip(three);
        let wanted: Values = named
            .map(|((name, _), value)| ((*name).to_owned(), value.clone()))
            .collect();
        let root = dir.join(number.to_string());
        fs::create_dir_all(root.join("etc"))?;
        let content = render(Content::EnvAll, &secret(&wanted))?;
        fs::write(root.join("etc/os-release"), content.expose_secret())?;
        roots.push((root, wanted));
    }
    Ok(roots)
}

fn assert_systemd_reads(dir: &Path, read_and_write: &mut Command) -> Outcome {
    let roots = write_os_releases(dir)?;
    let ran = read_and_write.output()?;
    ensure(ran.status.success(), || {
        String::from_utf8_lossy(&ran.stderr).into_owned()
    })?;
    for (root, wanted) in roots {
        let mut read = Values::new();
        for name in wanted.keys() {
            read.insert(name.clone(), fs::read_to_string(root.join(name))?);
        }
        assert_read("systemd", &wanted, &read);
    }
    Ok(())
}

#[test]
fn systemd_of_this_host_reads_what_was_written() -> Outcome {
    let mut version = Command::new("systemd-tmpfiles");
    if version.arg("--version").output().is_err() {
        return skip("this host has no systemd-tmpfiles");
    }
    let dir = scratch("quoting")?;
    let mut shell = Command::new("sh");
    shell.args(["-c", READ_AND_WRITE, "sh"]).arg(&dir);
    assert_systemd_reads(&dir, &mut shell)?;
    Ok(fs::remove_dir_all(dir)?)
}

#[test]
fn systemd_of_a_real_machine_reads_what_was_written() -> Outcome {
    let Some(root) = machine_root()? else {
        return Ok(());
    };
    let dir = scratch("quoting")?;
    let mut unshare = Command::new("unshare");
    unshare.args(["--mount", "sh", "-euc", IN_A_ROOT, "sh"]);
    unshare.args([&root, &dir]).arg(READ_AND_WRITE);
    assert_systemd_reads(&dir, &mut unshare)?;
    Ok(fs::remove_dir_all(dir)?)
}

#[test]
fn json_of_a_template_is_read_by_python() -> Outcome {
    let (dir, values) = (scratch("quoting")?, values(GENERATED)?);
    let fields: Vec<String> = values
        .keys()
        .map(|name| format!("\"{name}\": {{{{ {name} | json }}}}"))
        .collect();
    let template = format!("{{{}}}", fields.join(",\n"));
    let file = dir.join("credentials.json");
    let content = render(Content::Template(&template), &secret(&values))?;
    fs::write(&file, content.expose_secret())?;
    let read =
        "import json, sys; print(json.dumps(json.load(open(sys.argv[1], encoding='utf-8'))))";
    let read = printed(python()?.args(["-c", read]).arg(&file))?;
    assert_read("json", &values, &read);
    Ok(fs::remove_dir_all(dir)?)
}
