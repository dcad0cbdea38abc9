//! The death of an agent on a fake machine, where nothing runs that could be killed.

use std::io::Write as _;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use hetzner_sim::Control;
use serde_json::{Value, json};

use crate::failure::Outcome;

/// The agent of a fake machine dies, and systemd gives it up.
///
/// # Errors
/// Fails when the server has no agent.
pub fn die(cloud: &Control, server: u64) -> Outcome {
    let machine = cloud.machine(server)?.root.join(".machine");
    let file = machine.join("unit.json");
    let mut units: Value = serde_json::from_str(&std::fs::read_to_string(&file)?)?;
    for unit in units
        .as_object_mut()
        .into_iter()
        .flat_map(|units| units.values_mut())
    {
        unit["active"] = json!("failed");
        unit["sub"] = json!("failed");
        unit["result"] = json!("exit-code");
    }
    let fallen_silent = SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis();
    append(
        &machine.join("voice.log"),
        &format!("stop {fallen_silent}\n"),
    )?;
    let new = machine.join("unit.json.dies");
    std::fs::write(&new, units.to_string())?;
    Ok(std::fs::rename(new, file)?)
}

fn append(file: &Path, text: &str) -> Outcome {
    let mut file = std::fs::File::options().append(true).open(file)?;
    Ok(file.write_all(text.as_bytes())?)
}
