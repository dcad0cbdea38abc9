//! The guest replaces its own program: whatever cuts that, a program is left that runs, and so does the agent.

use bed::{Bed, Outcome};
use serde_json::json;

use super::AS_IT_IS;

/// Upgrades the guest to the same program under another version, and dies with SIGKILL at the rename of that number, or gets so much of its input.
const UPGRADE: &str = r#"cat > /run/upgrade.py <<'END'
import hashlib, io, json, os, re, runpy, signal, sys, tarfile
live = "/usr/local/lib/agentfleet/guest"
state = json.load(open("/var/lib/agentfleet/state.json"))
program = re.sub(rb'VERSION = "1[.0-9]+[+][0-9a-f]+"', b'VERSION = "9.9.9"', open(live, "rb").read())
request = {"epoch": state["epoch"], "sha256": hashlib.sha256(program).hexdigest()}
data = io.BytesIO()
with tarfile.open(fileobj=data, mode="w") as tar:
    for name, content in ("request.json", json.dumps(request).encode()), ("program", program):
        item = tarfile.TarInfo(name)
        item.size = len(content)
        tar.addfile(item, io.BytesIO(content))
rename, left, share = os.rename, int(sys.argv[1]), float(sys.argv[2])
def dying(*names, **folders):
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    rename(*names, **folders)
os.rename = dying
whole = data.getvalue()
sys.stdin = io.TextIOWrapper(io.BytesIO(whole[:int(len(whole) * share)]))
sys.argv = [live, "ssh", "upgrade"]
runpy.run_path(live, run_name="__main__")
END
upgrade() { python3 -I /run/upgrade.py "$1" "$2"; }
runs() { case "$(/usr/local/lib/agentfleet/guest --version)" in "$1"|"$1+"*) ;; *) return 1;; esac; }
"#;

#[tokio::test(flavor = "multi_thread")]
async fn i10_an_upgrade_that_is_cut_anywhere_leaves_a_guest_and_another_operators_is_no_matter_to_the_agent()
-> Outcome {
    let Some(mut bed) = Bed::start_real().await? else {
        return Ok(());
    };
    let one = bed.create("one").await?;
    let server = one.ready().await?;
    for cut in ["1 1", "2 1", "3 1", "99 0.5", "99 0"] {
        let refused = format!("{UPGRADE}! upgrade {cut} | grep '\"ok\": true' && runs 1.0.0");
        one.shell(&refused).await?;
    }
    let value = bed.apply_secret("one").await?;
    one.has_in_file(bed::manifests::SECRET_FILE, &value).await?;
    assert_eq!(one.ready().await?, server, "the guest configures");

    one.shell(&format!("{UPGRADE}upgrade 99 1 && runs 9.9.9"))
        .await?;
    let value = bed.apply_secret("one").await?;
    one.has_in_file(bed::manifests::SECRET_FILE, &value).await?;
    assert_eq!(one.ready().await?, server);

    bed.operator.stop().await?;
    let one = bed.instance("one");
    one.shell(&format!("{UPGRADE}upgrade 99 1; runs 9.9.9"))
        .await?;
    let (before, mutations) = (one.shell(AS_IT_IS).await?, bed.latest_mutation());
    bed.operator.start()?;
    // What does not concern the agent is applied by the new operator's guest.
    let mut class = bed.class();
    class["spec"]["agent"]["packages"] = json!(["git"]);
    bed.change(&class).await?;
    let one = bed.instance("one");
    bed.wait_until("the guest is the new operator's", async || {
        let runs = one.shell(&format!("{UPGRADE}runs 1.0.0")).await;
        Ok(runs.is_ok())
    })
    .await?;
    one.is("UpToDate").await?;
    assert_eq!(one.ready().await?, server);
    assert_eq!(one.shell(AS_IT_IS).await?, before);
    assert_eq!(bed.mutations_after(mutations), [""; 0]);
    bed.delete_all().await?;
    bed.finish().await
}
