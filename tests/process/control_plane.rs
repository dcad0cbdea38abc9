//! One real control plane for all tests of this program, started at first use; it ends with the program, since it watches its standard input.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Namespace;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{Api, ObjectMeta, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Config, ResourceExt as _};

use agentfleet::kube_ext::{Clients, clients};

const START_DEADLINE: Duration = Duration::from_mins(2);

struct ControlPlane {
    kubeconfig: PathBuf,
    /// Its standard input stays open as long as this lives, and so does the control plane.
    _child: Child,
}

/// The admin's configuration; starts the control plane if it is not there yet.
pub async fn config() -> Config {
    static RUNNING: OnceLock<ControlPlane> = OnceLock::new();
    static PREPARED: tokio::sync::OnceCell<()> = tokio::sync::OnceCell::const_new();
    let running = tokio::task::spawn_blocking(|| RUNNING.get_or_init(start))
        .await
        .unwrap();
    let kubeconfig = Kubeconfig::read_from(&running.kubeconfig).unwrap();
    let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default())
        .await
        .unwrap();
    PREPARED.get_or_init(|| install_crds(config.clone())).await;
    config
}

/// Clients as the operator has them, and a namespace of its own for the calling test.
pub async fn clients_and_namespace() -> (Clients, String) {
    let clients = clients(&config().await).unwrap();
    let namespace = namespace(&clients).await;
    (clients, namespace)
}

async fn namespace(clients: &Clients) -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let name = format!("test-{}", NEXT.fetch_add(1, Ordering::Relaxed));
    let metadata = ObjectMeta {
        name: Some(name.clone()),
        ..ObjectMeta::default()
    };
    let namespaces: Api<Namespace> = Api::all(clients.write.clone());
    namespaces
        .create(
            &PostParams::default(),
            &Namespace {
                metadata,
                ..Namespace::default()
            },
        )
        .await
        .unwrap();
    name
}

/// Excludes the other tests that have instances, or ask for all instances of the cluster.
pub async fn only_user_of_instances() -> tokio::sync::MutexGuard<'static, ()> {
    static INSTANCES: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());
    INSTANCES.lock().await
}

fn start() -> ControlPlane {
    let program = std::env::var_os("AGENTFLEET_TEST_CONTROL_PLANE").map_or_else(
        || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("target/control-plane/control-plane"),
        PathBuf::from,
    );
    assert!(
        program.is_file(),
        "no control plane at {}: build it with `make control-plane` or name it in AGENTFLEET_TEST_CONTROL_PLANE",
        program.display()
    );
    let dir = std::env::temp_dir().join(format!("agentfleet-process-{}", std::process::id()));
    let ready = dir.with_extension("ready");
    let mut child = Command::new(&program)
        .arg("run")
        .args(["--exit-with-stdin", "--dir"])
        .arg(&dir)
        .arg("--ready-file")
        .arg(&ready)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let deadline = Instant::now() + START_DEADLINE;
    while !ready.is_file() {
        assert!(
            child.try_wait().unwrap().is_none(),
            "the control plane ended before it was ready"
        );
        assert!(
            Instant::now() < deadline,
            "the control plane is not ready after {START_DEADLINE:?}"
        );
        std::thread::sleep(Duration::from_millis(50));
    }
    std::fs::remove_file(&ready).unwrap();
    ControlPlane {
        kubeconfig: dir.join("admin.kubeconfig"),
        _child: child,
    }
}

async fn install_crds(config: Config) {
    let crds: Api<CustomResourceDefinition> = Api::all(clients(&config).unwrap().write);
    for (_, text) in agentfleet::api::crds().unwrap() {
        let crd: CustomResourceDefinition = serde_saphyr::from_str(&text).unwrap();
        crds.create(&PostParams::default(), &crd).await.unwrap();
        let is_established = async || {
            let crd = crds.get(&crd.name_any()).await.unwrap();
            let conditions = crd
                .status
                .unwrap_or_default()
                .conditions
                .unwrap_or_default();
            conditions
                .iter()
                .any(|condition| condition.type_ == "Established" && condition.status == "True")
        };
        eventually("the resource is established", is_established).await;
    }
}

/// Asks until the answer is yes, or fails after three minutes.
pub async fn eventually(what: &str, condition: impl AsyncFn() -> bool) {
    let asked = async {
        while !condition().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    assert!(
        tokio::time::timeout(Duration::from_mins(3), asked)
            .await
            .is_ok(),
        "not within 3 minutes: {what}"
    );
}
