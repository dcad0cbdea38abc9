//! The same stack as the tests', kept until Ctrl-C, with a kubeconfig and an environment for one's own tools.

use std::fmt::Write as _;
use std::path::Path;
use std::sync::Arc;

use bed::{Bed, Options, Outcome, manifests, project};

use crate::demo::cloud;
use tokio::signal::unix::{SignalKind, signal};

pub(crate) async fn run() -> Outcome {
    let dir = project().join("target/dev");
    std::fs::create_dir_all(&dir)?;
    let bed = Bed::with(Options {
        simulator: Some(Arc::new(cloud().await?)),
        dir: Some(dir.clone()),
        ..Options::default()
    })
    .await?;
    bed.cluster
        .apply(&manifests::secret(
            bed::SYSTEM,
            "hetzner",
            "token",
            bed::TOKEN,
        ))
        .await?;
    tell(&bed, &dir)?;
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::select! {
        interrupted = tokio::signal::ctrl_c() => interrupted?,
        _ = terminate.recv() => {}
    }
    bed.close();
    Ok(())
}

/// Writes the two files and says how to use them.
fn tell(bed: &Bed, dir: &Path) -> Outcome {
    let kubeconfig = dir.join("kubeconfig");
    std::fs::copy(bed.cluster.kubeconfig(), &kubeconfig)?;
    let endpoint = bed.simulator().endpoint();
    let mut env = String::new();
    for (name, value) in [
        ("KUBECONFIG", kubeconfig.display().to_string()),
        ("HCLOUD_ENDPOINT", endpoint),
        ("HCLOUD_TOKEN", bed::TOKEN.into()),
    ] {
        writeln!(env, "export {name}='{value}'")?;
    }
    std::fs::write(dir.join("env"), env)?;
    println!(
        "Kubernetes, Hetzner Cloud (simulated) and the operator are up. In another terminal:\n"
    );
    println!("  source {}", dir.join("env").display());
    println!(
        "  kubectl apply -f examples/quickstart/01-project.yaml -f examples/quickstart/02-class.yaml -f examples/quickstart/03-agents.yaml"
    );
    println!("  kubectl get agents --all-namespaces --watch\n");
    println!(
        "The token is in the Secret agentfleet-system/hetzner. The operator's log: {}",
        bed.operator.log_file().display()
    );
    println!(
        "The simulator's own controls: {}. Ctrl-C ends it all.",
        bed.simulator().control_endpoint()
    );
    Ok(())
}
