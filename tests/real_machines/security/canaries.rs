//! Each secret stands in its own file and nowhere else: every file of the server, its journal and its processes are searched, and all that is
//! told elsewhere.

use std::collections::BTreeMap;

use bed::{Bed, Instance, Outcome, TOKEN, ensure, manifests, oracle, run_in};
use hetzner_sim::Shell;
use secrecy::ExposeSecret as _;
use serde_json::{Value, json};

use super::{master_key, server_keys};

/// Made by a template, and of one value as it is.
const TEMPLATE_FILE: &str = "/home/agent/.credentials.json";
const KEY_FILE: &str = "/home/agent/keys/signing.pem";

/// Files, each with what was found in it.
const ON_THE_DISK: &str =
    "grep -raFo --exclude-dir=proc --exclude-dir=sys -f - / | sort -u || true";
const IN_THE_JOURNAL: &str = "cat > /dev/shm/sought; journalctl --all -o export --no-pager | grep -aFo -f /dev/shm/sought | sed s/^/journal:/ | sort -u; rm /dev/shm/sought";
/// Of processes of the agent's user: `agent`, else the file.
const IN_PROCESSES: &str = r#"
    grep -aFo -f - /proc/[0-9]*/cmdline /proc/[0-9]*/environ 2> /dev/null | sort -u | while IFS=: read -r file found; do
        case "$(stat -c %U "$file") $file" in "agent "*/environ) file=agent ;; esac
        echo "$file:$found"
    done"#;

/// Secrets by name, each in the forms that are sought.
struct Sought(BTreeMap<&'static str, Vec<String>>);

impl Sought {
    /// The server's own, and the values of the instance's Secret now and before.
    async fn of(bed: &Bed, one: &Instance<'_>, former: &Values, values: &Values) -> Outcome<Self> {
        let keys = server_keys(bed, one).await?;
        let seed = keys
            .login
            .key_data()
            .ed25519()
            .map(|pair| pair.private.to_bytes());
        let seed = seed.unwrap_or_default();
        let bytes = |bytes: &[u8]| {
            let base64 = forms_of(bytes);
            [base64, vec![hex::encode(bytes)]].concat()
        };
        Ok(Self(BTreeMap::from([
            ("value", oracle::forms(&values.env)),
            ("value in the template", oracle::forms(&values.template)),
            ("value by itself", oracle::forms(&values.key)),
            ("former value", former.forms()),
            ("token", oracle::forms(TOKEN)),
            ("master key", bytes(&master_key(bed).await?)),
            ("login key", bytes(&seed)),
            (
                "resume proof",
                oracle::forms(keys.resume_proof.to_hex().expose_secret()),
            ),
            (
                "boot proof",
                oracle::forms(keys.boot_proof.to_hex().expose_secret()),
            ),
        ])))
    }

    fn name_of(&self, found: &str) -> &'static str {
        let named = self
            .0
            .iter()
            .find(|(_, forms)| forms.iter().any(|form| form == found));
        named.map_or("", |(name, _)| name)
    }

    /// Where each of them is found by a search on the server of an instance.
    async fn found_by(
        &self,
        bed: &Bed,
        server: u64,
        search: &str,
    ) -> Outcome<Vec<(&'static str, String)>> {
        let all: Vec<&str> = self.0.values().flatten().map(String::as_str).collect();
        let shell = Shell {
            command: search.to_owned(),
            stdin: all.join("\n"),
            user: None,
        };
        let found = run_in(&bed.cloud(), server, &shell).await?;
        let hits = found.lines().filter_map(|line| line.rsplit_once(':'));
        Ok(hits
            .map(|(file, hit)| (self.name_of(hit), file.to_owned()))
            .collect())
    }
}

fn forms_of(bytes: &[u8]) -> Vec<String> {
    use base64::Engine as _;
    let engine = base64::engine::general_purpose::STANDARD_NO_PAD;
    let aligned = |skip: usize| engine.encode(&bytes[skip..skip + (bytes.len() - skip) / 3 * 3]);
    (0..3).map(aligned).collect()
}

/// The values of a Secret, each for a secret file of another form.
struct Values {
    env: String,
    template: String,
    key: String,
}

impl Values {
    /// New ones for the instance.
    async fn give(bed: &Bed) -> Outcome<Self> {
        let fresh = || bed.canaries.fresh();
        let values = Self {
            env: fresh(),
            template: fresh(),
            key: fresh(),
        };
        let mut secret = manifests::secret(bed::TENANT, "one", "API_KEY", &values.env);
        secret["stringData"]["TOKEN"] = json!(values.template);
        secret["stringData"]["SIGNING"] = json!(values.key);
        bed.cluster.apply(&secret).await?;
        Ok(values)
    }

    fn forms(&self) -> Vec<String> {
        let all = [&self.env, &self.template, &self.key];
        all.into_iter()
            .flat_map(|value| oracle::forms(value))
            .collect()
    }

    /// Waits until the server has each in its file.
    async fn arrive(&self, one: &Instance<'_>) -> Outcome {
        for (path, value) in [
            (manifests::SECRET_FILE, &self.env),
            (TEMPLATE_FILE, &self.template),
            (KEY_FILE, &self.key),
        ] {
            one.has_in_file(path, value).await?;
        }
        Ok(())
    }
}

/// The usual class with a secret file of each form.
fn class(bed: &Bed) -> Value {
    let mut class = bed.class();
    let agent = &mut class["spec"]["agent"];
    agent["secretKeys"] = json!([{"name": "API_KEY"}, {"name": "TOKEN"}, {"name": "SIGNING"}]);
    agent["secretFiles"] = json!([
        {"path": manifests::SECRET_FILE, "env": {"keys": ["API_KEY"]}},
        {"path": TEMPLATE_FILE, "template": r#"{"token": {{ TOKEN | json }}}"#},
        {"path": KEY_FILE, "key": "SIGNING", "agentMayChange": false},
    ]);
    class
}

#[tokio::test(flavor = "multi_thread")]
async fn i5_every_secret_of_a_real_server_stands_in_its_file_and_nowhere_else() -> Outcome {
    let Some(mut bed) = Bed::start_real().await? else {
        return Ok(());
    };
    bed.operator.stop().await?;
    bed.operator
        .start_with(&[("AGENTFLEET_LOG_LEVEL", "trace"), ("RUST_LOG", "trace")])?;
    bed.change(&class(&bed)).await?;
    let former = Values::give(&bed).await?;
    bed.cluster
        .apply(&manifests::instance(bed::TENANT, "one"))
        .await?;
    let one = bed.instance("one");
    let server = one.ready().await?;
    former.arrive(&one).await?;
    let values = Values::give(&bed).await?;
    values.arrive(&one).await?;
    one.ready().await?;

    let sought = Sought::of(&bed, &one, &former, &values).await?;
    let on_disk = sought.found_by(&bed, server, ON_THE_DISK).await?;
    let (left_by_cloud_init, mut on_disk): (Vec<_>, Vec<_>) = on_disk
        .into_iter()
        .partition(|(name, _)| *name == "boot proof");
    for (_, file) in &left_by_cloud_init {
        // Worthless by now, and root's alone all the same.
        let of_root_alone = format!("find {file} -user root ! -perm /077 | grep .");
        one.shell(&of_root_alone).await?;
        ensure(!file.starts_with("/etc/agentfleet/"), || {
            format!("the boot proof key was used up and is left in {file}")
        })?;
    }
    assert_ne!(left_by_cloud_init, [], "the search finds what is there");
    let declared = [
        ("resume proof", "/var/lib/agentfleet/state.json".to_owned()),
        ("value", manifests::SECRET_FILE.to_owned()),
        ("value by itself", KEY_FILE.to_owned()),
        ("value in the template", TEMPLATE_FILE.to_owned()),
    ];
    on_disk.sort();
    assert_eq!(on_disk, declared);
    assert_eq!(sought.found_by(&bed, server, IN_THE_JOURNAL).await?, []);
    let in_processes = sought.found_by(&bed, server, IN_PROCESSES).await?;
    assert_eq!(in_processes, [("value", "agent".to_owned())]);
    let answered = one.shell("curl -sf http://169.254.169.254/hetzner/v1/userdata; curl -sf http://169.254.169.254/hetzner/v1/metadata").await?;
    let (user_data, metadata) = answered.split_once("availability-zone").unwrap_or_default();
    let mut told = oracle::told(&bed).await?;
    told.push(("metadata".into(), metadata.into()));
    told.push(("the console".into(), bed.cloud().console(server)?.into()));
    let user_data = oracle::decoded(user_data)?;
    is_nowhere_in(&sought, &told, "")?;
    is_nowhere_in(&sought, &[("user-data".into(), user_data)], "boot proof")?;
    assert!(bed.operator.log().contains(r#""level":"DEBUG""#));
    bed.delete_all().await?;
    bed.finish().await
}

/// Fails when one of them, but this one, stands in one of these texts.
fn is_nowhere_in(sought: &Sought, told: &[(String, Vec<u8>)], but: &str) -> Outcome {
    for (place, content) in told {
        let text = String::from_utf8_lossy(content);
        for (name, forms) in sought.0.iter().filter(|(name, _)| **name != but) {
            let found = forms.iter().any(|form| text.contains(form));
            ensure(!found, || format!("the {name} stands in {place}"))?;
        }
    }
    Ok(())
}
