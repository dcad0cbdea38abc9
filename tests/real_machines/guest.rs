//! What goes wrong on a server, and how the guest stands it: each failure is told, changes nothing that it need not, and is over when its cause is.

mod install;
mod obstacles;
mod packages;
mod release;
mod source;
mod upgrade;

use bed::{Bed, Instance, Outcome};
use serde_json::{Value, json};

/// A secret file in a folder of its own.
const CREDENTIALS: &str = "/home/agent/.claude/.credentials.json";

/// The run of the agent, the content that it was given, the commit of its source, and what must never be left beside a file.
const AS_IT_IS: &str = "systemctl show -p InvocationID -p ActiveState agent
sha256sum /home/agent/.env
cat /home/agent/app/.git/HEAD 2>/dev/null
find /home /etc /var/lib/agentfleet -name '.*.agentfleet-*'";

/// The usual class, with that second secret file.
fn class(bed: &Bed) -> Value {
    let mut class = bed.class();
    if let Some(files) = class["spec"]["agent"]["secretFiles"].as_array_mut() {
        files.push(json!({"path": CREDENTIALS, "key": "API_KEY"}));
    }
    class
}

/// Says a verb to the guest as the operator's login would, with an epoch that is so much higher than the one it knows; answers what it answers.
pub(crate) async fn ask(one: &Instance<'_>, verb: &str, higher: u32) -> Outcome<Value> {
    let epoch = r#"python3 -c 'import json; print(json.load(open("/var/lib/agentfleet/state.json"))["epoch"])'"#;
    let request = format!(r#"printf '{{"epoch": %d}}' $(($({epoch}) + {higher}))"#);
    let command = format!("{request} | /usr/local/lib/agentfleet/guest ssh {verb}");
    Ok(serde_json::from_str(&one.shell(&command).await?)?)
}
