//! A directory that machines fetch from over HTTP.
//!
//! Python's own server does it. It runs as a child, so that it can be put where machines reach it, and ends with the program that started it.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::failure::{Outcome, ensure};

/// Serves a directory until its standard input ends; prints its port.
const SERVER: &str = r"
import functools, http.server, sys, threading
handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=sys.argv[1])
server = http.server.ThreadingHTTPServer((sys.argv[2], 0), handler)
threading.Thread(target=server.serve_forever, daemon=True).start()
print(server.server_port, flush=True)
sys.stdin.read()
";

/// A directory that is served while this lives.
pub struct Served {
    log: PathBuf,
    url: String,
    server: Child,
}

impl Served {
    /// Serves it on a free port of an address, with its log beside it. `within` are the words of a command that runs the server elsewhere, as in
    /// another network namespace; none runs it here.
    ///
    /// # Errors
    /// Fails when python3 does.
    pub fn start(dir: &Path, address: IpAddr, within: &[&str]) -> Outcome<Self> {
        let own = ["python3", "-c", SERVER];
        let words: Vec<&str> = within.iter().copied().chain(own).collect();
        let log = dir.with_extension("log");
        let mut server = Command::new(words[0])
            .args(&words[1..])
            .arg(dir)
            .arg(address.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(File::create(&log)?)
            .spawn()?;
        let mut port = String::new();
        if let Some(output) = server.stdout.take() {
            BufReader::new(output).read_line(&mut port)?;
        }
        let url = format!("http://{address}:{}", port.trim());
        let this = Self { log, url, server };
        ensure(!port.is_empty(), || format!("not served: {}", this.log()))?;
        Ok(this)
    }

    /// Where it is.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The requests so far, and what went wrong with them.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        drop(self.server.stdin.take());
        let _ended = self.server.wait();
    }
}
