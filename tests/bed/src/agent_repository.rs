//! The small agent of `tests/agent` as a git repository that machines clone over HTTP.
//!
//! The protocol is git's plainest: static files, which Python's own server can serve. It runs as a child, so that it can be put where machines
//! reach it, and ends with the program that started it.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::failure::{Outcome, ensure};
use crate::place;

/// The refs, oldest first: two that work, and one that dies at its start.
pub const AGENT_REFS: [&str; 3] = ["v1", "v2", "broken"];
/// What a clone holds.
const FILES: [&str; 3] = ["agent.py", "install.sh", ".gitignore"];
/// Serves a directory until its standard input ends; prints its port.
const SERVER: &str = r"
import functools, http.server, sys, threading
handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=sys.argv[1])
server = http.server.ThreadingHTTPServer((sys.argv[2], 0), handler)
threading.Thread(target=server.serve_forever, daemon=True).start()
print(server.server_port, flush=True)
sys.stdin.read()
";

/// A repository with the small agent, served while this lives.
pub struct AgentRepository {
    dir: PathBuf,
    url: String,
    server: Child,
}

impl AgentRepository {
    /// Makes it in a directory and serves it on a free port of an address. `within` are the words of a command that runs the server elsewhere,
    /// as in another network namespace; none runs it here.
    ///
    /// # Errors
    /// Fails when git or python3 does.
    pub fn serve(dir: &Path, address: IpAddr, within: &[&str]) -> Outcome<Self> {
        commit_all(&dir.join("agent"))?;
        let bare = dir.join("served/agent.git");
        git(
            dir,
            &["clone", "--quiet", "--bare", "agent", "served/agent.git"],
        )?;
        git(&bare, &["update-server-info"])?;
        let (server, port) = start_server(dir, address, within)?;
        let this = Self {
            dir: dir.to_owned(),
            url: format!("http://{address}:{port}/agent.git"),
            server,
        };
        ensure(!port.is_empty(), || {
            format!("the repository is not served: {}", this.log())
        })?;
        Ok(this)
    }

    /// What a class names as its source.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The requests so far, and what went wrong with them.
    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.join("requests.log")).unwrap_or_default()
    }
}

impl Drop for AgentRepository {
    fn drop(&mut self) {
        drop(self.server.stdin.take());
        let _ended = self.server.wait();
    }
}

/// The server and its port, which is empty when it did not start.
fn start_server(dir: &Path, address: IpAddr, within: &[&str]) -> Outcome<(Child, String)> {
    let own = ["python3", "-c", SERVER];
    let words: Vec<&str> = within.iter().copied().chain(own).collect();
    let mut server = Command::new(words[0])
        .args(&words[1..])
        .arg(dir.join("served"))
        .arg(address.to_string())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(File::create(dir.join("requests.log"))?)
        .spawn()?;
    let mut port = String::new();
    if let Some(output) = server.stdout.take() {
        BufReader::new(output).read_line(&mut port)?;
    }
    Ok((server, port.trim().to_owned()))
}

/// One commit for each ref, each of them a tag.
fn commit_all(work: &Path) -> Outcome {
    fs::create_dir_all(work)?;
    git(work, &["init", "--quiet", "--initial-branch=main"])?;
    for name in FILES {
        fs::copy(
            place::project().join("tests/agent").join(name),
            work.join(name),
        )?;
    }
    for reference in AGENT_REFS {
        fs::write(work.join("VERSION"), format!("{reference}\n"))?;
        git(work, &["add", "--all"])?;
        git(work, &["commit", "--quiet", "--message", reference])?;
        git(work, &["tag", reference])?;
    }
    Ok(())
}

/// Runs git as nobody in particular, without what this user has configured.
fn git(dir: &Path, words: &[&str]) -> Outcome {
    let ran = Command::new("git")
        .current_dir(dir)
        .args([
            "-c",
            "user.name=tests",
            "-c",
            "user.email=tests@example.com",
        ])
        .args(words)
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .output()?;
    ensure(ran.status.success(), || {
        let said = String::from_utf8_lossy(&ran.stderr).into_owned();
        format!("git {}: {said}", words.join(" "))
    })
}
