//! A server that is replaced hands over its voice, and what its agent had changed.

use bed::{Bed, Outcome, manifests, oracle};
use serde_json::{Value, json};

/// An agent that has much to put in order before it stops.
const SLOW_TO_STOP: &str = "trap 'sleep 12; exit' TERM; while :; do sleep 1 & wait; done";

/// The class with a disposable disk, and an agent that is slow to stop; whether its user may become root only a new server can take up.
fn class(bed: &Bed, sudo: bool) -> Value {
    let mut class = bed.class();
    class["spec"]["lifecycle"] = json!({"disk": "Disposable"});
    let agent = &mut class["spec"]["agent"];
    agent["sudo"] = json!(sudo);
    agent["service"]["execStart"] = json!(["/bin/bash", "-c", SLOW_TO_STOP]);
    agent["service"]["timeoutStopSec"] = json!("1m");
    class
}

#[tokio::test(flavor = "multi_thread")]
async fn i13_an_agent_that_is_slow_to_stop_moves_to_a_server_prepared_beside_its_own_with_what_it_had_changed()
-> Outcome {
    let Some(bed) = Bed::start_real().await? else {
        return Ok(());
    };
    bed.change(&class(&bed, false)).await?;
    let one = bed.create("one").await?;
    let server = one.ready().await?;
    let refresh = format!("echo REFRESHED=yes >> {}", manifests::SECRET_FILE);
    one.shell(&refresh).await?;
    let refreshed = one.file(manifests::SECRET_FILE).await?;
    bed.change(&class(&bed, true)).await?;
    bed.wait_until("it serves on another server", async || {
        let status = one.status().await?;
        let ready = oracle::condition(&status, "Ready");
        Ok(ready.is_some_and(|ready| ready["status"] == "True")
            && status["server"]["id"] != json!(server))
    })
    .await?;
    bed.wait_until("the former server is gone", async || {
        Ok(bed.cloud().machine(server).is_err())
    })
    .await?;
    assert_eq!(one.file(manifests::SECRET_FILE).await?, refreshed);
    one.condition("UpToDate", "True", "AsDeclared").await?;
    bed.delete_all().await?;
    bed.finish_after_replacements().await
}
