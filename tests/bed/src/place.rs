//! Where things are: the project's directory, what it has built, directories and ports for one run.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::failure::{Outcome, ensure};
use crate::skip::skip;

/// The project's directory.
pub fn project() -> PathBuf {
    let bed = Path::new(env!("CARGO_MANIFEST_DIR"));
    bed.ancestors().nth(2).unwrap_or(bed).to_owned()
}

/// A program that `make` builds under `target/`; `how` is its target.
///
/// # Errors
/// Fails when it was not built.
pub fn built(path: &str, how: &str) -> Outcome<PathBuf> {
    let program = project().join("target").join(path);
    ensure(program.is_file(), || {
        format!("{} is missing: run `make {how}`", program.display())
    })?;
    Ok(program)
}

/// The root that real machines boot, with real programs to run in it; none, and a word on the missing parts, where it cannot be used.
///
/// # Errors
/// Fails instead where `CI=true` says that nothing may be left out.
pub fn machine_root() -> Outcome<Option<PathBuf>> {
    let root = project().join("target/machine-root/current");
    let user = Command::new("id").arg("-u").output()?.stdout;
    if user == b"0\n" && root.is_dir() {
        return Ok(Some(root));
    }
    skip("needs root and `make machine-root`")?;
    Ok(None)
}

/// The operator that was built together with the program that runs now.
///
/// # Errors
/// Fails when it was not built.
pub fn operator() -> Outcome<PathBuf> {
    let this = std::env::current_exe()?;
    let beside = this
        .ancestors()
        .skip(1)
        .take(2)
        .map(|dir| dir.join("agentfleet"));
    let found = beside.into_iter().find(|program| program.is_file());
    found.ok_or_else(|| {
        crate::Failure::new("the operator is not built: run `cargo build --workspace --bins`")
    })
}

/// A new directory under `target/bed/`, for what one run leaves to look at when it fails.
///
/// # Errors
/// Fails when it cannot be made.
pub fn scratch(purpose: &str) -> Outcome<PathBuf> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let name = format!(
        "{purpose}-{}-{}",
        std::process::id(),
        NEXT.fetch_add(1, Ordering::Relaxed)
    );
    let dir = project().join("target/bed").join(name);
    std::fs::create_dir_all(&dir)?;
    Ok(dir)
}

/// Ports that the system gives to nobody who does not ask for one by its number.
const PORTS: std::ops::Range<u16> = 10_000..32_000;

/// A port on 127.0.0.1 that was free a moment ago, and that nobody gets by chance.
///
/// # Errors
/// Fails when there is none.
pub fn free_port() -> Outcome<u16> {
    let free = |port: &u16| TcpListener::bind(("127.0.0.1", *port)).is_ok();
    let mut tries = (0..100).map(|_| rand::random_range(PORTS));
    let found = tries.find(free);
    found.ok_or_else(|| crate::Failure::new("no free port in a hundred tries"))
}
