//! crds
fn main() -> Result<(), Box<dyn std::error::Error>> {
    for (f, t) in agentfleet::api::crds()? {
        std::fs::write(format!("crds/{f}"), t)?;
    }
    Ok(())
}
