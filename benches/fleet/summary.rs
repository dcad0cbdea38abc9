//! What was measured: a table for people, `target/bench/summary.json` for everything else.

use std::fs;
use std::path::PathBuf;

use bed::Outcome;
use serde::Serialize;

/// One number.
#[derive(Serialize)]
struct Entry {
    name: String,
    value: f64,
    unit: &'static str,
    /// How many things it was counted over.
    n: usize,
    /// How it was counted.
    how: String,
}

/// All numbers so far; each addition is on disk and on the screen at once, so that a run that fails leaves what it found.
pub(crate) struct Summary {
    file: PathBuf,
    entries: Vec<Entry>,
}

impl Summary {
    /// An empty summary, in the place of an earlier one.
    pub(crate) fn begin() -> Outcome<Self> {
        let dir = bed::project().join("target/bench");
        fs::create_dir_all(&dir)?;
        let summary = Self {
            file: dir.join("summary.json"),
            entries: vec![],
        };
        summary.write()?;
        Ok(summary)
    }

    /// Adds a number.
    pub(crate) fn add(
        &mut self,
        name: impl Into<String>,
        (value, unit): (f64, &'static str),
        n: usize,
        how: impl Into<String>,
    ) -> Outcome {
        let entry = Entry {
            name: name.into(),
            value: (value * 1000.0).round() / 1000.0,
            unit,
            n,
            how: how.into(),
        };
        println!("{}", row(&entry));
        self.entries.push(entry);
        self.write()
    }

    /// Shows all numbers once more.
    pub(crate) fn end(&self) -> Outcome {
        println!("\n{}", self.file.display());
        for entry in &self.entries {
            println!("{}", row(entry));
        }
        self.write()
    }

    fn write(&self) -> Outcome {
        let text = serde_json::to_string_pretty(&self.entries)?;
        Ok(fs::write(&self.file, text + "\n")?)
    }
}

fn row(entry: &Entry) -> String {
    let Entry {
        name,
        value,
        unit,
        n,
        how,
    } = entry;
    format!("{name:34} {value:>10} {unit:10} n={n:<5} {how}")
}

/// A count as a number to calculate with.
pub(crate) fn number(count: impl TryInto<u32>) -> f64 {
    count.try_into().map_or(f64::INFINITY, f64::from)
}

/// The value below which that share of the values lies; the values in any order.
pub(crate) fn quantile(values: &mut [f64], share: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a share of a small count"
    )]
    let at = (number(values.len().saturating_sub(1)) * share).round() as usize;
    values.get(at).copied().unwrap_or(f64::NAN)
}
