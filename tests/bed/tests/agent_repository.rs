//! The small agent's repository can be cloned as a guest does it, each ref of it.

use std::net::Ipv4Addr;
use std::path::Path;
use std::process::Command;

use bed::{AGENT_REFS, AgentRepository, Outcome, ensure, scratch};

fn git(dir: &Path, words: &[&str]) -> Outcome {
    let ran = Command::new("git").current_dir(dir).args(words).output()?;
    ensure(ran.status.success(), || {
        format!("{words:?}: {}", String::from_utf8_lossy(&ran.stderr))
    })
}

#[test]
fn each_ref_of_the_small_agent_is_fetched_over_http() -> Outcome {
    let dir = scratch("repository")?;
    let repository = AgentRepository::serve(&dir, Ipv4Addr::LOCALHOST.into(), &[])?;
    let clone = dir.join("clone");
    std::fs::create_dir(&clone)?;
    git(&clone, &["init", "--quiet"])?;
    let branches = "+refs/heads/*:refs/remotes/origin/*";
    let fetch = ["fetch", "--quiet", "--tags", repository.url(), branches];
    git(&clone, &fetch)?;
    for reference in AGENT_REFS {
        git(&clone, &["checkout", "--quiet", "--detach", reference])?;
        let version = std::fs::read_to_string(clone.join("VERSION"))?;
        assert_eq!(version.trim(), reference);
    }
    assert!(Command::new(clone.join("install.sh")).status()?.success());
    assert!(repository.log().contains("GET /agent.git/info/refs"));
    drop(repository);
    Ok(std::fs::remove_dir_all(dir)?)
}
