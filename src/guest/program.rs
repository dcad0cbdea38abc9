//! The guest program in its two forms.
//!
//! User-data is small, so it carries only the part that proves the host key, installs the agent
//! and can be upgraded. The rest stands between two cut lines in the same file and comes with the
//! first `upgrade`, over the pinned channel.

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
    /// Takes the whole program and finds its boot part and version.
    ///
    /// # Errors
    /// When there are not two cut lines, or no version behind the first one.
    pub fn new(whole: &str) -> Result<Self, NotAProgram> {
        let parts: Vec<&str> = whole.split(CUT).collect();
        let [before, extension, after] = parts.as_slice() else {
            return Err(NotAProgram);
        };
        let mut lines = extension.lines();
        let version = lines.find_map(|line| line.strip_prefix(VERSION)?.strip_suffix('"'));
        Ok(Self {
            whole: whole.to_owned(),
            boot: format!("{before}{after}"),
            version: version.ok_or(NotAProgram)?.to_owned(),
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
        assert_eq!(program.upgrade(3).program, WHOLE);
    }

    #[test]
    fn a_guest_of_another_version_or_of_the_boot_part_is_upgraded() {
        let program = Program::new(WHOLE).unwrap();
        assert!(program.is_wanted_by(&Text::new("1.0.0-boot")));
        assert!(program.is_wanted_by(&Text::new("0.9.0")));
        assert!(!program.is_wanted_by(&Text::new("1.0.0")));
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
