//! The small agent of `tests/agent` as a git repository that machines clone over HTTP, by the plainest of git's protocols: static files.

use std::fs;
use std::net::IpAddr;
use std::path::Path;
use std::process::Command;

use crate::failure::{Outcome, ensure};
use crate::place;
use crate::served::Served;

/// The refs, oldest first: two that work, and one that dies at its start.
pub const AGENT_REFS: [&str; 3] = ["v1", "v2", "broken"];
/// What a clone holds.
const FILES: [&str; 3] = ["agent.py", "install.sh", ".gitignore"];

/// A repository with the small agent, served while this lives.
pub struct AgentRepository {
    url: String,
    served: Served,
}

impl AgentRepository {
    /// Makes it in a directory and serves it on a free port of an address, as [`Served::start`] does.
    ///
    /// # Errors
    /// Fails when git or python3 does.
    pub fn serve(dir: &Path, address: IpAddr, within: &[&str]) -> Outcome<Self> {
        let (work, public) = (dir.join("agent"), dir.join("served"));
        fs::create_dir_all(&work)?;
        for name in FILES {
            let from = place::project().join("tests/agent").join(name);
            fs::copy(from, work.join(name))?;
        }
        for reference in AGENT_REFS {
            fs::write(work.join("VERSION"), format!("{reference}\n"))?;
            commit_all(&work, reference)?;
        }
        publish(&work, &public.join("agent.git"))?;
        let served = Served::start(&public, address, within)?;
        Ok(Self {
            url: format!("{}/agent.git", served.url()),
            served,
        })
    }

    /// What a class names as its source.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The requests so far, and what went wrong with them.
    pub fn log(&self) -> String {
        self.served.log()
    }
}

/// Commits all files of a directory to its branch `main`, with a tag.
///
/// # Errors
/// Fails when git does.
pub fn commit_all(work: &Path, tag: &str) -> Outcome {
    git(work, &["init", "--quiet", "--initial-branch=main"])?;
    git(work, &["add", "--all"])?;
    git(work, &["commit", "--quiet", "--message", tag])?;
    git(work, &["tag", tag])
}

/// Makes a repository to be served out of one to work in.
///
/// # Errors
/// Fails when git does.
pub fn publish(work: &Path, bare: &Path) -> Outcome {
    let to = bare.to_string_lossy();
    git(work, &["clone", "--quiet", "--bare", ".", &to])?;
    git(bare, &["update-server-info"])
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
