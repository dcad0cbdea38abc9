//! The guest program in its two forms.
//!
//! User-data is small, so it carries only the part that proves the host key, installs the agent
//! and can be upgraded. The rest stands between two cut lines in the same file and comes with the
//! first `upgrade`, over the pinned channel.

use sha2::{Digest as _, Sha256};

use super::bundle::Upgrade;
use super::untrusted::Text;

const CUT: &str = "# ---- cut ----\n";
const VERSION: &str = "VERSION = \"";

/// The guest program that this operator installs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Program {
    whole: String,
    boot: String,
    version: String,
}

/// The text is no guest program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the guest program lacks a version or its two cut lines")]
pub struct NotAProgram;

impl Program {
    /// Takes the whole program and finds its boot part. Its version is the one written in it and a hash of its content, so that no change is
    /// kept from the guests.
    ///
    /// # Errors
    /// When there are not two cut lines, or no version right behind the first one.
    pub fn new(whole: &str) -> Result<Self, NotAProgram> {
        let parts: Vec<&str> = whole.split(CUT).collect();
        let [before, extension, after] = parts.as_slice() else {
            return Err(NotAProgram);
        };
        let first = extension
            .lines()
            .next()
            .and_then(|line| line.strip_prefix(VERSION));
        let written = first
            .and_then(|rest| rest.strip_suffix('"'))
            .ok_or(NotAProgram)?;
        let content = hex::encode(Sha256::digest(whole));
        let version = format!("{written}+{}", &content[..8]);
        let line = |version: &str| format!("{CUT}{VERSION}{version}\"\n");
        Ok(Self {
            whole: whole.replacen(&line(written), &line(&version), 1),
            boot: format!("{before}{after}"),
            version,
        })
    }

    /// The part that travels in user-data.
    pub fn boot(&self) -> &str {
        &self.boot
    }

    /// The version that the whole program answers with.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// Says whether a guest, by the version it answered with, is to be upgraded.
    pub fn is_wanted_by(&self, guest: &Text) -> bool {
        guest.as_str() != self.version
    }

    /// The command that brings a guest to this program.
    pub fn upgrade(&self, epoch: u64) -> Upgrade<'_> {
        Upgrade {
            epoch,
            program: &self.whole,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WHOLE: &str = "\
VERSION = \"1.0.0-boot\"
first()
# ---- cut ----
VERSION = \"1.0.0\"
more()
# ---- cut ----
main()
";

    #[test]
    fn user_data_gets_what_stands_around_the_cut_lines() {
        let program = Program::new(WHOLE).unwrap();
        assert_eq!(
            program.boot(),
            "VERSION = \"1.0.0-boot\"\nfirst()\nmain()\n"
        );
        let sent = program.upgrade(3).program;
        let version = format!("\"{}\"", program.version());
        assert_eq!(sent, WHOLE.replace("\"1.0.0\"", &version));
    }

    #[test]
    fn a_guest_of_another_version_or_of_the_boot_part_is_upgraded() {
        let program = Program::new(WHOLE).unwrap();
        assert!(program.is_wanted_by(&Text::new("1.0.0-boot")));
        assert!(program.is_wanted_by(&Text::new("0.9.0")));
        assert!(program.is_wanted_by(&Text::new("1.0.0")));
        assert!(!program.is_wanted_by(&Text::new(program.version())));
        let changed = Program::new(&WHOLE.replace("more", "most")).unwrap();
        assert!(changed.is_wanted_by(&Text::new(program.version())));
    }

    #[test]
    fn a_text_without_its_cut_lines_or_version_is_no_program() {
        let (no_version, one_cut) = (
            WHOLE.replace("1.0.0\"", "1.0.0"),
            WHOLE.replacen(CUT, "", 1),
        );
        for text in ["", &no_version, &one_cut] {
            assert_eq!(Program::new(text), Err(NotAProgram));
        }
    }
}
