//! Fake machines, as an SSH client meets them. A stand-in for the machine host tells what it was asked.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hetzner_sim::{
    Config, GuestFaults, MachineFaults, MachineKind, MachineView, Simulator, SshFault,
};
use russh::client::{self, Handle};
use russh::keys::{PrivateKey, PrivateKeyWithHashAlg, PublicKeyOrCertificate};
use russh::{ChannelMsg, Disconnect};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::time::timeout;

use crate::support::{DEADLINE, ask, wait_for, wish};

const GUEST: &str = "/usr/local/lib/agentfleet/guest";

pub(crate) struct Client {
    host_key: Arc<std::sync::Mutex<String>>,
}

impl client::Handler for Client {
    type Error = russh::Error;

    async fn check_server_key(
        &mut self,
        key: &PublicKeyOrCertificate,
    ) -> Result<bool, Self::Error> {
        if let PublicKeyOrCertificate::PublicKey { key, .. } = key {
            *self.host_key.lock().unwrap() = key.to_openssh().unwrap();
        }
        Ok(true)
    }
}

pub(crate) fn key() -> PrivateKey {
    PrivateKey::from(russh::keys::ssh_key::private::Ed25519Keypair::from_seed(
        &[7; 32],
    ))
}

fn cloud_config(more: &Value) -> String {
    let public = key().public_key().to_openssh().unwrap();
    let forced =
        format!(r#"restrict,command="sudo -n {GUEST} ssh \"$SSH_ORIGINAL_COMMAND\"" {public}"#);
    let unit = format!("[Service]\nType=oneshot\nExecStart={GUEST} install\n");
    let mut config = json!({
        "users": [
            {"name": "agentfleet", "ssh_authorized_keys": [forced]},
            {"name": "agentfleet-admin", "ssh_authorized_keys": [public]},
        ],
        "write_files": [
            {"path": "/etc/systemd/system/agentfleet-install.service", "content": unit},
            {"path": "/etc/agentfleet/secret", "content": STANDARD.encode("x"), "encoding": "b64",
             "permissions": "0600"},
        ],
        "runcmd": [["systemctl", "enable", "--now", "agentfleet-install.service"]],
    });
    for (field, value) in more.as_object().unwrap() {
        config[field] = value.clone();
    }
    format!("#cloud-config\n{config}")
}

async fn simulator() -> Simulator {
    let here = env!("CARGO_MANIFEST_DIR");
    let config = Config {
        machines: MachineKind::Fake,
        machine_host: format!("{here}/tests/stand_in_host.py").into(),
        guest: format!("{here}/tests/stand_in_host.py").into(),
        ..Config::default()
    };
    Simulator::start(config).await.unwrap()
}

pub(crate) async fn create(simulator: &Simulator, name: &str, user_data: String) -> u64 {
    let mut wanted = wish(name);
    wanted["user_data"] = user_data.into();
    let answer = ask(simulator, "POST", "/servers", &wanted).await.unwrap();
    answer.json()["server"]["id"].as_u64().unwrap()
}

pub(crate) fn machine(simulator: &Simulator, id: u64) -> MachineView {
    simulator.control().machine(id).unwrap()
}

/// A server whose machine answers SSH and was installed.
async fn server(simulator: &Simulator, name: &str) -> u64 {
    let id = create(simulator, name, cloud_config(&json!({}))).await;
    wait_for("the boot", || {
        calls(simulator, id).contains("install").then_some(())
    })
    .await;
    wait_for("SSH", || machine(simulator, id).ssh_since).await;
    id
}

fn calls(simulator: &Simulator, id: u64) -> String {
    std::fs::read_to_string(machine(simulator, id).root.join("calls")).unwrap_or_default()
}

pub(crate) async fn connect(
    machine: &MachineView,
) -> Result<(Handle<Client>, String), russh::Error> {
    let host_key = Arc::default();
    let handler = Client {
        host_key: Arc::clone(&host_key),
    };
    let address = machine.address.clone().unwrap();
    let handle = client::connect(Arc::default(), address, handler).await?;
    let shown = host_key.lock().unwrap().clone();
    Ok((handle, shown))
}

pub(crate) async fn log_in(
    machine: &MachineView,
    user: &str,
) -> Result<Handle<Client>, russh::Error> {
    let (mut handle, _) = connect(machine).await?;
    let key = PrivateKeyWithHashAlg::new(Arc::new(key()), None);
    let accepted = handle.authenticate_publickey(user, key).await?.success();
    accepted
        .then_some(handle)
        .ok_or(russh::Error::NotAuthenticated)
}

/// Exit status and output of a command, or nothing where the connection broke before its end.
pub(crate) async fn run(
    handle: &Handle<Client>,
    command: &str,
    input: Vec<u8>,
) -> Option<(u32, String)> {
    let channel = handle.channel_open_session().await.ok()?;
    channel.exec(true, command).await.ok()?;
    let (mut reading, writing) = channel.split();
    let write = async {
        writing.data(input.as_slice()).await?;
        writing.eof().await
    };
    let read = async {
        let (mut output, mut exit) = (Vec::new(), None);
        while let Some(message) = reading.wait().await {
            match message {
                ChannelMsg::Data { data } | ChannelMsg::ExtendedData { data, .. } => {
                    output.extend_from_slice(&data);
                }
                ChannelMsg::ExitStatus { exit_status } => exit = Some(exit_status),
                _ => {}
            }
        }
        exit.map(|exit| (exit, String::from_utf8(output).unwrap()))
    };
    tokio::join!(write, read).1
}

#[tokio::test]
async fn a_machine_boots_as_its_user_data_says_and_runs_the_guest_for_its_login() {
    let simulator = simulator().await;
    let id = server(&simulator, "a").await;
    let view = machine(&simulator, id);
    assert_eq!(
        std::fs::read_to_string(view.root.join("etc/agentfleet/secret")).unwrap(),
        "x"
    );
    let on_disk =
        std::fs::read_to_string(view.root.join("etc/ssh/ssh_host_ed25519_key.pub")).unwrap();
    assert!(on_disk.starts_with(&view.host_key));
    let (_, shown) = connect(&view).await.unwrap();
    assert_eq!(shown, view.host_key);
    let handle = log_in(&view, "agentfleet").await.unwrap();
    let (exit, output) = run(&handle, "hello", b"{}".to_vec()).await.unwrap();
    let output: Value = serde_json::from_str(&output).unwrap();
    assert_eq!(
        (exit, &output["argv"], &output["stdin"]),
        (0, &json!(["ssh", "hello"]), &json!(2))
    );
    handle
        .disconnect(Disconnect::ByApplication, "", "")
        .await
        .unwrap();
}

#[tokio::test]
async fn only_the_keys_of_user_data_log_in_and_nobody_gets_a_shell() {
    let simulator = simulator().await;
    let id = server(&simulator, "a").await;
    let view = machine(&simulator, id);
    assert!(log_in(&view, "root").await.is_err());
    let admin = log_in(&view, "agentfleet-admin").await.unwrap();
    let (exit, output) = run(&admin, "id", Vec::new()).await.unwrap();
    assert_eq!(exit, 1);
    assert!(output.contains("no shell"));
}

#[tokio::test]
async fn megabytes_of_input_arrive_whole() {
    let simulator = simulator().await;
    let id = server(&simulator, "a").await;
    let handle = log_in(&machine(&simulator, id), "agentfleet")
        .await
        .unwrap();
    let input = vec![7; 8 << 20];
    let (_, output) = timeout(DEADLINE, run(&handle, "configure", input))
        .await
        .unwrap()
        .unwrap();
    assert!(
        output.contains(&format!("\"stdin\": {}", 8 << 20)),
        "{output}"
    );
}

#[tokio::test]
async fn a_transfer_is_cut_after_the_bytes_that_were_asked_for() {
    let simulator = simulator().await;
    let id = server(&simulator, "a").await;
    let faults = MachineFaults {
        cut_input_after: Some(1000),
        ..MachineFaults::default()
    };
    simulator.control().set_machine_faults(id, faults).unwrap();
    let handle = log_in(&machine(&simulator, id), "agentfleet")
        .await
        .unwrap();
    let cut = timeout(DEADLINE, run(&handle, "configure", vec![7; 100_000]))
        .await
        .unwrap();
    assert_eq!(cut, None);
    wait_for("the truncated call", || {
        calls(&simulator, id)
            .contains("\"stdin\": 1000")
            .then_some(())
    })
    .await;
    let faults = MachineFaults {
        cut_output_after: Some(10),
        ..MachineFaults::default()
    };
    simulator.control().set_machine_faults(id, faults).unwrap();
    let handle = log_in(&machine(&simulator, id), "agentfleet")
        .await
        .unwrap();
    assert_eq!(
        timeout(DEADLINE, run(&handle, "status", Vec::new()))
            .await
            .unwrap(),
        None
    );
}

#[tokio::test]
async fn ssh_refuses_and_hangs_and_comes_back() {
    let simulator = simulator().await;
    let id = server(&simulator, "a").await;
    let control = simulator.control();
    let view = machine(&simulator, id);
    let refuse = MachineFaults {
        ssh: SshFault::Refuse,
        ..MachineFaults::default()
    };
    control.set_machine_faults(id, refuse).unwrap();
    let mut refused = false;
    while !refused {
        refused = timeout(DEADLINE, connect(&view)).await.unwrap().is_err();
    }
    let hang = MachineFaults {
        ssh: SshFault::Hang,
        ..MachineFaults::default()
    };
    control.set_machine_faults(id, hang).unwrap();
    let mut hanging = false;
    while !hanging {
        // Refused until it listens again, and then there is no answer.
        hanging = timeout(Duration::from_millis(300), connect(&view))
            .await
            .is_err();
    }
    control
        .set_machine_faults(id, MachineFaults::default())
        .unwrap();
    timeout(DEADLINE, connect(&view)).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_frozen_machine_stands_still_until_it_thaws() {
    let simulator = simulator().await;
    let id = server(&simulator, "a").await;
    let handle = log_in(&machine(&simulator, id), "agentfleet")
        .await
        .unwrap();
    let frozen = MachineFaults {
        frozen: true,
        ..MachineFaults::default()
    };
    simulator.control().set_machine_faults(id, frozen).unwrap();
    let still = timeout(
        Duration::from_millis(300),
        run(&handle, "status", Vec::new()),
    )
    .await;
    assert!(still.is_err());
    simulator
        .control()
        .set_machine_faults(id, MachineFaults::default())
        .unwrap();
    let thawed = timeout(DEADLINE, run(&handle, "status", Vec::new()))
        .await
        .unwrap();
    assert_eq!(thawed.unwrap().0, 0);
}

#[tokio::test]
async fn faults_of_the_guest_reach_the_machine_host() {
    let simulator = simulator().await;
    let id = server(&simulator, "a").await;
    let guest = GuestFaults {
        disk_full: true,
        ..GuestFaults::default()
    };
    let faults = MachineFaults {
        guest,
        ..MachineFaults::default()
    };
    simulator.control().set_machine_faults(id, faults).unwrap();
    let handle = log_in(&machine(&simulator, id), "agentfleet")
        .await
        .unwrap();
    let (_, output) = run(&handle, "status", Vec::new()).await.unwrap();
    let output: Value = serde_json::from_str(&output).unwrap();
    assert_eq!(output["faults"]["diskFull"], true);
    assert_eq!(output["faults"]["unitFails"], false);
}

#[tokio::test]
async fn power_off_cuts_connections_and_power_on_keeps_the_host_key() {
    let simulator = simulator().await;
    let id = server(&simulator, "a").await;
    let before = machine(&simulator, id);
    let handle = log_in(&before, "agentfleet").await.unwrap();
    ask(
        &simulator,
        "POST",
        &format!("/servers/{id}/actions/poweroff"),
        &Value::Null,
    )
    .await
    .unwrap();
    wait_for("the connection's end", || handle.is_closed().then_some(())).await;
    wait_for("the plug", || {
        calls(&simulator, id)
            .contains(r#"["@power", "off"]"#)
            .then_some(())
    })
    .await;
    assert!(connect(&before).await.is_err());
    ask(
        &simulator,
        "POST",
        &format!("/servers/{id}/actions/poweron"),
        &Value::Null,
    )
    .await
    .unwrap();
    let after = wait_for("SSH", || {
        Some(machine(&simulator, id)).filter(|m| m.ssh_since.is_some())
    })
    .await;
    assert_eq!(after.host_key, before.host_key);
    let again = || calls(&simulator, id).matches(r#"["install"]"#).count() == 2;
    wait_for("the second install", || again().then_some(())).await;
}

#[tokio::test]
async fn rebuild_gives_a_fresh_disk_and_another_host_key() {
    let simulator = simulator().await;
    let id = server(&simulator, "a").await;
    let before = machine(&simulator, id);
    std::fs::write(before.root.join("left"), "").unwrap();
    let image = json!({"image": "debian-13"});
    ask(
        &simulator,
        "POST",
        &format!("/servers/{id}/actions/rebuild"),
        &image,
    )
    .await
    .unwrap();
    let after = wait_for("another key", || {
        Some(machine(&simulator, id))
            .filter(|m| m.host_key != before.host_key && m.ssh_since.is_some())
    })
    .await;
    assert!(!after.root.join("left").exists());
    log_in(&after, "agentfleet").await.unwrap();
}

#[tokio::test]
async fn a_deleted_server_leaves_no_machine_and_no_directory() {
    let simulator = simulator().await;
    let id = server(&simulator, "a").await;
    let view = machine(&simulator, id);
    std::fs::create_dir(view.root.join(".machine")).unwrap();
    std::fs::write(view.root.join(".machine/voice.log"), "start 5\nstop 9\n").unwrap();
    ask(
        &simulator,
        "DELETE",
        &format!("/servers/{id}"),
        &Value::Null,
    )
    .await
    .unwrap();
    assert!(simulator.control().machine(id).is_err());
    wait_for("the directory's end", || {
        (!view.root.exists()).then_some(())
    })
    .await;
    let spoke: Vec<bool> = simulator
        .control()
        .voices()
        .iter()
        .map(|change| change.speaks)
        .collect();
    assert_eq!(spoke, [true, false]);
    assert!(connect(&view).await.is_err());
}

#[tokio::test]
async fn a_changed_host_key_is_shown_with_or_without_the_machines_knowing() {
    let simulator = simulator().await;
    let id = server(&simulator, "a").await;
    let before = machine(&simulator, id);
    let on_disk = before.root.join("etc/ssh/ssh_host_ed25519_key.pub");
    simulator.control().change_host_key(id, false).unwrap();
    let (_, shown) = connect(&before).await.unwrap();
    assert_ne!(shown, before.host_key);
    assert!(
        std::fs::read_to_string(&on_disk)
            .unwrap()
            .starts_with(&before.host_key)
    );
    simulator.control().change_host_key(id, true).unwrap();
    let (_, shown) = connect(&before).await.unwrap();
    assert!(
        std::fs::read_to_string(&on_disk)
            .unwrap()
            .starts_with(&shown)
    );
}

#[tokio::test]
async fn a_booted_machine_phones_home_with_its_host_key() {
    use axum::Form;
    use std::collections::HashMap;
    let (posted, mut received) = tokio::sync::mpsc::unbounded_channel();
    let answer = move |Form(form): Form<HashMap<String, String>>| {
        posted.send(form).unwrap();
        std::future::ready("")
    };
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let app = axum::Router::new().route("/phone/{token}", axum::routing::post(answer));
    let endpoint = tokio::spawn(async { axum::serve(listener, app).await });
    let simulator = simulator().await;
    let phone = json!({"phone_home": {
        "url": format!("http://127.0.0.1:{port}/phone/t"),
        "post": ["pub_key_ed25519", "instance_id", "hostname"],
        "tries": 3,
    }});
    let id = create(&simulator, "a", cloud_config(&phone)).await;
    let form = timeout(DEADLINE, received.recv()).await.unwrap().unwrap();
    assert_eq!(form["pub_key_ed25519"], machine(&simulator, id).host_key);
    assert_eq!(
        (form["instance_id"].as_str(), form["hostname"].as_str()),
        (id.to_string().as_str(), "a")
    );
    endpoint.abort();
}

#[tokio::test]
async fn user_data_that_is_no_cloud_config_leaves_a_machine_that_nobody_can_log_in_to() {
    let simulator = simulator().await;
    let id = create(&simulator, "a", "#!/bin/sh\n".to_owned()).await;
    let error = wait_for("the error", || machine(&simulator, id).boot_error).await;
    assert_eq!(error, "user-data is not a cloud-config");
    wait_for("SSH", || machine(&simulator, id).ssh_since).await;
    assert!(
        log_in(&machine(&simulator, id), "agentfleet")
            .await
            .is_err()
    );
}

#[tokio::test]
async fn nothing_is_left_after_the_end() {
    let simulator = simulator().await;
    let id = server(&simulator, "a").await;
    let view = machine(&simulator, id);
    simulator.shutdown().await;
    assert!(connect(&view).await.is_err());
    assert!(!view.root.exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_machines_stand_in_one_process() {
    let simulator = simulator().await;
    simulator.control().set_rate_limit(0, 100_000).unwrap();
    for number in 0..1000 {
        create(
            &simulator,
            &format!("m{number}"),
            cloud_config(&json!({"runcmd": []})),
        )
        .await;
    }
    let up = || {
        simulator
            .control()
            .machines()
            .iter()
            .all(|machine| machine.ssh_since.is_some())
    };
    wait_for("all of them", || up().then_some(())).await;
    let machines = simulator.control().machines();
    assert_eq!(machines.len(), 1000);
    for view in machines.iter().step_by(100) {
        log_in(view, "agentfleet").await.unwrap();
    }
}
