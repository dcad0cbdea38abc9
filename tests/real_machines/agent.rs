//! A real agent, the one of `tests/agent`: cloned, installed, given its secrets, updated. What it got, it proves in its own log.
//!
//! Its class has the fields that the one of `examples/rachel8` has: source, install, secret files in all three forms, service, probe.

use base64::prelude::{BASE64_STANDARD, Engine as _};
use bed::{
    AgentRepository, Bed, Failure, HARD_VALUES, Instance, Outcome, TENANT, manifests,
    service_environment,
};
use hmac::{Hmac, KeyInit as _, Mac as _};
use serde_json::{Map, Value, json};
use sha2::Sha256;

/// Where it is cloned to.
const DIRECTORY: &str = "/home/agent/agent";
/// Where the guest keeps the class's environment.
const ENVIRONMENT: &str = "/etc/agentfleet/environment";
/// Its login, which it writes anew when it refreshes it.
const CREDENTIALS: &str = "/home/agent/.credentials.json";
/// Holds one value, byte for byte.
const KEY_FILE: &str = "/home/agent/keys/signing.pem";
const TEMPLATE: &str = r#"{
  "claudeAiOauth": {
    "accessToken": {{ ACCESS_TOKEN | json }},
    "refreshToken": {{ REFRESH_TOKEN | json }},
    "expiresAt": {{ EXPIRES_AT | int }}
  }
}
"#;
/// What is not in the environment file; as hard for JSON, and for a file, as it gets.
const OTHERS: [(&str, &str); 4] = [
    ("ACCESS_TOKEN", "sk-\"oat\"\\\n\t\u{2028}é\u{1f600}</x>"),
    ("REFRESH_TOKEN", "sk-ort-1"),
    ("EXPIRES_AT", "1790000000000"),
    (
        "KEY",
        "-----BEGIN KEY-----\r\n'\"$x\\\n-----END KEY-----\n\n",
    ),
];

/// The small agent as an instance, and where its code comes from.
struct SmallAgent {
    bed: Bed,
    class: Value,
    secrets: Map<String, Value>,
    /// Serves the code while this lives.
    _repository: AgentRepository,
}

impl SmallAgent {
    /// Its version `v1`, Ready; none where there are no real machines.
    async fn start() -> Outcome<Option<Self>> {
        let Some(bed) = Bed::start_real().await? else {
            return Ok(None);
        };
        let dir = bed.dir().join("repository");
        std::fs::create_dir(&dir)?;
        let repository = AgentRepository::serve(&dir, bed.host().into(), &[])?;
        let values = HARD_VALUES.into_iter().chain(OTHERS);
        let mut agent = Self {
            class: class(&bed, repository.url()),
            secrets: values.map(|(name, value)| encoded(name, value)).collect(),
            bed,
            _repository: repository,
        };
        agent.bed.change(&agent.class).await?;
        agent.set_secret("REFRESH_TOKEN", "sk-ort-1").await?;
        agent
            .bed
            .cluster
            .apply(&manifests::instance(TENANT, "one"))
            .await?;
        agent.one().ready().await?;
        Ok(Some(agent))
    }

    fn one(&self) -> Instance<'_> {
        self.bed.instance("one")
    }

    /// Changes one value of the Secret, as `data`: the API server reads what is applied as YAML, in which a line separator swallows the space
    /// before it.
    async fn set_secret(&mut self, name: &str, value: &str) -> Outcome {
        self.secrets.extend([encoded(name, value)]);
        let secret = json!({
            "apiVersion": "v1", "kind": "Secret", "metadata": {"namespace": TENANT, "name": "one"}, "data": self.secrets,
        });
        self.bed.cluster.apply(&secret).await?;
        Ok(())
    }

    /// Changes fields of the class's `agent`.
    async fn set(&mut self, pointer: &str, value: Value) -> Outcome {
        let field = self.class["spec"]["agent"].pointer_mut(pointer);
        *field.ok_or_else(|| Failure::new(pointer))? = value;
        self.bed.change(&self.class).await
    }

    /// Waits until its log, from the first start on, has a line, so many times.
    async fn logs(&self, line: &str, times: usize) -> Outcome {
        let mut log = String::new();
        let found = self.bed.wait_until(line, async || {
            log = self
                .one()
                .shell("journalctl --quiet --unit agent --output cat --no-pager")
                .await?;
            Ok(log.lines().filter(|each| *each == line).count() >= times)
        });
        found
            .await
            .map_err(|failure| Failure::new(format!("{failure}; the log: {log}")))
    }

    /// Waits until it has proven that it has a secret.
    async fn proves(&self, name: &str, secret: &[u8]) -> Outcome {
        self.logs(&proof(name, secret)?, 1).await
    }

    /// Waits until it has been started so many times.
    async fn started(&self, times: usize) -> Outcome {
        self.logs("listens on 8080", times).await
    }

    /// What it answers to a request from its own machine.
    async fn asked(&self, method: &str, path: &str) -> Outcome<Value> {
        let curl = format!("curl -fsS -X {method} http://127.0.0.1:8080{path}");
        Ok(serde_json::from_str(&self.one().shell(&curl).await?)?)
    }

    /// The environment of a service with this file.
    async fn environment(&self, file: &str) -> Outcome<Value> {
        let words = service_environment(file);
        let quoted: Vec<String> = words.iter().map(|word| format!("'{word}'")).collect();
        Ok(serde_json::from_str(
            &self.one().shell(&quoted.join(" ")).await?,
        )?)
    }

    async fn file(&self, path: &str) -> Outcome<String> {
        let found = self.one().file(path).await?;
        found.ok_or_else(|| Failure::new(format!("no {path}")))
    }

    /// Ends bed and all.
    async fn end(self) -> Outcome {
        self.bed.delete_all().await?;
        self.bed.finish().await
    }
}

fn encoded(name: &str, value: &str) -> (String, Value) {
    (name.to_owned(), json!(BASE64_STANDARD.encode(value)))
}

/// The line by which the agent tells whoever knows a secret, and nobody else, that it has it.
pub(crate) fn proof(name: &str, secret: &[u8]) -> Outcome<String> {
    let mut mac = Hmac::<Sha256>::new_from_slice(b"proof")?;
    mac.update(secret);
    let code = hex::encode(mac.finalize().into_bytes());
    Ok(format!("proof {name} {code}"))
}

/// The name of a hard value in the class's environment, beside that in the Secret.
fn plain(name: &str) -> String {
    format!("PLAIN_{name}")
}

fn class(bed: &Bed, url: &str) -> Value {
    let names = HARD_VALUES.map(|(name, _)| name);
    let keys = names.into_iter().chain(OTHERS.map(|(name, _)| name));
    let secret_keys: Vec<_> = keys.map(|name| json!({"name": name})).collect();
    let mut environment = json!({"SECRETS": names.join(" "), "CREDENTIALS": CREDENTIALS, "STATE": "/home/agent/counter", "MOTTO": ""});
    for (name, value) in HARD_VALUES {
        environment[plain(name)] = json!(value);
    }
    let mut class = bed.class();
    class["spec"]["firewall"]["healthFrom"] = json!([format!("{}/32", bed.host())]);
    class["spec"]["health"] =
        json!({"http": {"port": 8080, "path": "/health"}, "interval": "1s", "failureThreshold": 2});
    class["spec"]["agent"] = json!({
        "packages": [],
        "source": {"url": url, "ref": "v1", "directory": DIRECTORY},
        "install": ["./install.sh"],
        "environment": environment,
        "secretKeys": secret_keys,
        "secretFiles": [
            {"path": manifests::SECRET_FILE, "env": {"keys": names}},
            {"path": CREDENTIALS, "template": TEMPLATE},
            {"path": KEY_FILE, "key": "KEY", "mode": "0400", "agentMayChange": false},
        ],
        "service": {
            "execStart": ["/usr/bin/python3", "agent.py"],
            "environmentFiles": [manifests::SECRET_FILE],
            "restart": "Always",
            "restartSec": "1s",
        },
    });
    class
}

#[tokio::test(flavor = "multi_thread")]
async fn a_small_agent_reads_exactly_the_declared_bytes_and_serves() -> Outcome {
    let Some(mut agent) = SmallAgent::start().await? else {
        return Ok(());
    };
    let secrets = agent.environment(manifests::SECRET_FILE).await?;
    let environment = agent.environment(ENVIRONMENT).await?;
    // As the API server took it, which reads what is applied as YAML.
    let class = agent
        .bed
        .cluster
        .get("AgentClass", None, manifests::CLASS)
        .await?;
    let declared = class.unwrap_or_default()["spec"]["agent"]["environment"].clone();
    for (name, value) in HARD_VALUES {
        assert_eq!(secrets[name], value, "systemd reads {name}");
        let plain = plain(name);
        assert!(declared[&plain].is_string());
        assert_eq!(environment[&plain], declared[&plain]);
        agent.proves(name, value.as_bytes()).await?;
    }
    let python = format!("python3 -m json.tool {CREDENTIALS}");
    let read: Value = serde_json::from_str(&agent.one().shell(&python).await?)?;
    let [(_, access), (_, refresh), (_, expires), (_, key)] = OTHERS;
    let login = json!({"accessToken": access, "refreshToken": refresh, "expiresAt": expires.parse::<u64>()?});
    assert_eq!(read["claudeAiOauth"], login);
    let written = agent.file(CREDENTIALS).await?;
    agent.proves("credentials", written.as_bytes()).await?;
    assert_eq!(agent.file(KEY_FILE).await?, key);
    let modes = format!(
        "stat -c '%a %U' {} {CREDENTIALS} {KEY_FILE}",
        manifests::SECRET_FILE
    );
    assert_eq!(
        agent.one().shell(&modes).await?,
        "600 agent\n600 agent\n400 agent\n"
    );

    assert_eq!(agent.asked("GET", "/health").await?["version"], "v1");
    assert_eq!(agent.asked("GET", "/counter").await?["counter"], 1);
    let rotated = agent.bed.canaries.fresh();
    agent.set_secret("DOLLAR", &rotated).await?;
    agent.proves("DOLLAR", rotated.as_bytes()).await?;
    agent.started(2).await?;
    agent.one().ready().await?;
    assert_eq!(agent.asked("GET", "/counter").await?["counter"], 2);

    agent.asked("POST", "/exit/3").await?;
    agent.logs("exits", 1).await?;
    agent.started(3).await?;
    agent
        .bed
        .wait_until(
            "it serves again, with the counter of its disk",
            async || {
                let counter = agent.asked("GET", "/counter").await;
                Ok(counter.is_ok_and(|counter| counter["counter"].as_u64() > Some(2)))
            },
        )
        .await?;
    agent.one().ready().await?;
    agent.end().await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_agent_refreshed_is_written_again_only_for_another_declared_value() -> Outcome {
    let Some(mut agent) = SmallAgent::start().await? else {
        return Ok(());
    };
    let declared = agent.file(CREDENTIALS).await?;
    agent.asked("POST", "/refresh").await?;
    let refreshed = agent.file(CREDENTIALS).await?;
    assert_ne!(refreshed, declared);

    agent.set_secret("HASH", "another #1").await?;
    agent.started(2).await?;
    assert_eq!(
        agent.file(CREDENTIALS).await?,
        refreshed,
        "the Secret changed elsewhere"
    );
    agent.set("/environment/MOTTO", json!("50% \"#1\"")).await?;
    agent.started(3).await?;
    assert_eq!(
        agent.file(CREDENTIALS).await?,
        refreshed,
        "the class changed"
    );
    agent.bed.operator.stop().await?;
    agent.set_secret("HASH", "another #2").await?;
    agent.bed.operator.start()?;
    agent.started(4).await?;
    assert_eq!(
        agent.file(CREDENTIALS).await?,
        refreshed,
        "another operator configured it"
    );

    agent.set_secret("REFRESH_TOKEN", "sk-ort-2").await?;
    let expected = declared.replace("sk-ort-1", "sk-ort-2");
    agent.proves("credentials", expected.as_bytes()).await?;
    assert_eq!(agent.file(CREDENTIALS).await?, expected);
    agent.one().ready().await?;
    agent.end().await
}

#[tokio::test(flavor = "multi_thread")]
async fn another_ref_is_taken_in_place_and_one_that_fails_leaves_the_agent_as_it_was() -> Outcome {
    let Some(mut agent) = SmallAgent::start().await? else {
        return Ok(());
    };
    let server = agent.one().ready().await?;
    assert_eq!(agent.asked("GET", "/counter").await?["counter"], 1);
    agent.set("/source/ref", json!("v2")).await?;
    agent.logs("agent v2", 1).await?;
    agent.started(2).await?;
    assert_eq!(agent.one().ready().await?, server);
    assert_eq!(agent.asked("GET", "/health").await?["version"], "v2");
    let installed = format!("{DIRECTORY}/installed.log");
    assert_eq!(agent.file(&installed).await?, "v1\nv2\n");
    let files = [manifests::SECRET_FILE, CREDENTIALS, KEY_FILE];
    let as_it_is = format!(
        "systemctl show -p InvocationID agent && sha256sum {}",
        files.join(" ")
    );
    let before = agent.one().shell(&as_it_is).await?;

    agent.class["spec"]["agent"]["update"] = json!(["echo no room for models; exit 3"]);
    agent.set("/source/ref", json!("v1")).await?;
    let told = ["update command 1 ended with 3", "no room for models"];
    assert_eq!(agent.one().told(&told).await?["type"], "UpToDate");
    assert_eq!(agent.one().ready().await?, server);
    assert_eq!(agent.one().shell(&as_it_is).await?, before);
    assert_eq!(agent.file(&format!("{DIRECTORY}/VERSION")).await?, "v2\n");
    assert_eq!(agent.asked("GET", "/counter").await?["counter"], 2);

    agent.class["spec"]["agent"]["update"] = json!([]);
    agent.set("/source/ref", json!("v1")).await?;
    agent.logs("agent v1", 2).await?;
    assert_eq!(agent.one().ready().await?, server);
    agent.end().await
}
