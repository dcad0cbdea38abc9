//! When the agent on a machine began and ceased to run: what "one voice" is judged by.
//!
//! The machine host notes it on the machine's disk; what a disk held is kept when the disk goes.

use std::path::Path;

use serde::Serialize;

/// The agent of one server began or ceased to run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct VoiceChange {
    /// Milliseconds since the epoch.
    pub at_ms: u64,
    /// Id of the server.
    pub server: u64,
    /// Whether it runs from then on.
    pub speaks: bool,
}

/// All changes noted on the disk below `root`, oldest first.
pub(crate) fn on_disk(server: u64, root: &Path) -> Vec<VoiceChange> {
    let noted = std::fs::read_to_string(root.join(".machine/voice.log")).unwrap_or_default();
    let change = |line: &str| {
        let (what, at) = line.split_once(' ')?;
        let speaks = match what {
            "start" => true,
            "stop" => false,
            _ => return None,
        };
        Some(VoiceChange {
            at_ms: at.trim().parse().ok()?,
            server,
            speaks,
        })
    };
    noted.lines().filter_map(change).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn starts_and_stops_are_read_and_the_rest_is_passed_over() {
        let root = std::env::temp_dir().join(format!("voice-{}", std::process::id()));
        std::fs::create_dir_all(root.join(".machine")).unwrap();
        std::fs::write(
            root.join(".machine/voice.log"),
            "start 5\nhum\nstop 9\nstart x\n",
        )
        .unwrap();
        let changes = on_disk(7, &root);
        std::fs::remove_dir_all(&root).unwrap();
        assert_eq!(
            changes,
            [(5, true), (9, false)].map(|(at_ms, speaks)| VoiceChange {
                at_ms,
                server: 7,
                speaks
            })
        );
        assert!(on_disk(7, &root).is_empty());
    }
}
