//! Real machines. They need root, systemd-nspawn, ip, nft and `make machine-root`; with `CI=true` a test
//! fails where these are missing, and else says that it was skipped.

use std::io::Write;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use flate2::Compression;
use flate2::write::GzEncoder;
use hetzner_sim::{
    Config, FleetError, MachineFaults, MachineKind, MachineView, Shell, Simulator, SshFault, Stage,
    StartError,
};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

use crate::machines::{connect, create, key, log_in, machine, run};
use crate::support::{DEADLINE, ask, control, request, wait_for, wish};

/// Longer than a connection on this machine takes that is to come about.
const BLOCKED: Duration = Duration::from_secs(1);

/// A simulator with real machines, where they can be had.
async fn simulator() -> Option<Simulator> {
    let config = Config {
        machines: MachineKind::Nspawn,
        ..Config::default()
    };
    let started = Simulator::start(config).await;
    let cannot = matches!(
        started,
        Err(StartError::Machines(
            FleetError::Keeper(_) | FleetError::NoRoot(_)
        ))
    );
    if cannot && std::env::var("CI").as_deref() != Ok("true") {
        let test = std::thread::current();
        let test = test.name().unwrap_or_default();
        let why = "needs root, systemd-nspawn, ip, nft and make machine-root";
        // Not by a macro: what those print is held back of a test that passes.
        let told = format!("{test}: skipped: {why}\n");
        std::io::stderr().write_all(told.as_bytes()).unwrap();
        return None;
    }
    Some(started.unwrap())
}

fn cloud_config() -> String {
    let public = key().public_key().to_openssh().unwrap();
    let config = json!({
        "users": [{"name": "bob", "shell": "/bin/sh", "sudo": "ALL=(ALL) NOPASSWD:ALL",
                   "ssh_authorized_keys": [public]}],
        "ssh_genkeytypes": ["ed25519"],
        "write_files": [{"path": "/etc/marked", "content": "by user-data"}],
    });
    format!("#cloud-config\n{config}")
}

/// The machine of a server once its cloud-init is through.
async fn booted(simulator: &Simulator, id: u64) -> MachineView {
    let up = |view: &MachineView| view.stage == Stage::Up && view.ssh_since.is_some();
    let view = wait_for("the boot", || Some(machine(simulator, id)).filter(up)).await;
    assert_eq!(view.boot_error, None);
    view
}

async fn server(simulator: &Simulator, name: &str) -> u64 {
    let id = create(simulator, name, cloud_config()).await;
    booted(simulator, id).await;
    id
}

async fn api(simulator: &Simulator, method: &str, path: &str, body: Value) -> Value {
    let answer = ask(simulator, method, path, &body).await.unwrap();
    assert!(answer.status < 300, "{method} {path}: {}", answer.text);
    serde_json::from_str(&answer.text).unwrap_or_default()
}

async fn act(simulator: &Simulator, id: u64, command: &str, body: Value) -> Value {
    api(
        simulator,
        "POST",
        &format!("/servers/{id}/actions/{command}"),
        body,
    )
    .await
}

/// The machine after a reboot or a reset.
async fn boot_again(simulator: &Simulator, id: u64, command: &str) -> MachineView {
    let earlier = machine(simulator, id).ssh_since;
    act(simulator, id, command, Value::Null).await;
    wait_for("the end", || {
        (machine(simulator, id).ssh_since != earlier).then_some(())
    })
    .await;
    booted(simulator, id).await
}

/// The machine after a rebuild.
async fn rebuilt(simulator: &Simulator, id: u64, before: &MachineView) {
    let fresh = |view: &MachineView| {
        !view.host_key.is_empty() && view.host_key != before.host_key && view.stage == Stage::Up
    };
    wait_for("the rebuild", || Some(machine(simulator, id)).filter(fresh)).await;
}

async fn status(simulator: &Simulator, id: u64) -> String {
    let server = api(simulator, "GET", &format!("/servers/{id}"), Value::Null).await;
    server["server"]["status"].as_str().unwrap().to_owned()
}

async fn shown_as(simulator: &Simulator, id: u64, wanted: &str) {
    let waiting = async {
        while status(simulator, id).await != wanted {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(DEADLINE, waiting).await.unwrap();
}

/// What a command in the machine writes; it must end well.
async fn shell(simulator: &Simulator, id: u64, command: &str) -> String {
    let command = command.to_owned();
    let shell = Shell {
        command,
        ..Shell::default()
    };
    let ran = simulator.control().shell(id, &shell).await.unwrap();
    assert_eq!(ran.exit, 0, "{}: {}", shell.command, ran.output);
    ran.output
}

/// Whether a connection to SSH comes about.
async fn reachable(view: &MachineView) -> bool {
    let address = view.address.clone().unwrap();
    matches!(
        timeout(BLOCKED, TcpStream::connect(address)).await,
        Ok(Ok(_))
    )
}

async fn becomes_reachable(view: &MachineView, wanted: bool) {
    let waiting = async { while reachable(view).await != wanted {} };
    timeout(DEADLINE, waiting).await.unwrap();
}

#[tokio::test]
async fn a_real_machine_boots_from_its_user_data_and_answers_ssh() {
    let Some(simulator) = simulator().await else {
        return;
    };
    let public = key().public_key().to_openssh().unwrap();
    let known = json!({"name": "k", "public_key": public});
    api(&simulator, "POST", "/ssh_keys", known).await;
    let mut packed = GzEncoder::new(Vec::new(), Compression::best());
    packed.write_all(cloud_config().as_bytes()).unwrap();
    let packed = STANDARD.encode(packed.finish().unwrap());
    let mut wanted = wish("first-1");
    wanted["user_data"] = packed.clone().into();
    wanted["ssh_keys"] = json!(["k"]);
    let made = api(&simulator, "POST", "/servers", wanted).await;
    let id = made["server"]["id"].as_u64().unwrap();
    let view = booted(&simulator, id).await;
    let ip = &made["server"]["public_net"]["ipv4"]["ip"];
    assert_eq!(view.address, Some(format!("{}:22", ip.as_str().unwrap())));

    let (_, shown) = connect(&view).await.unwrap();
    assert_eq!(shown, view.host_key);
    let bob = log_in(&view, "bob").await.unwrap();
    let (exit, output) = run(&bob, "hostname; cat /etc/marked; sudo id -u", Vec::new())
        .await
        .unwrap();
    assert_eq!((exit, output.as_str()), (0, "first-1\nby user-data0\n"));
    log_in(&view, "root").await.unwrap();

    let metadata = "curl -sf http://169.254.169.254/hetzner/v1/";
    let ask = async |path: &str| shell(&simulator, id, &format!("{metadata}{path}")).await;
    assert_eq!(ask("metadata/hostname").await, "first-1");
    assert_eq!(ask("metadata/instance-id").await.trim(), id.to_string());
    assert_eq!(ask("metadata/public-ipv4").await, ip.as_str().unwrap());
    assert_eq!(ask("metadata/region").await, "eu-central");
    assert!(ask("metadata/public-keys").await.contains(&public));
    assert!(
        ask("metadata")
            .await
            .contains("availability-zone: nbg1-dc3")
    );
    assert_eq!(ask("userdata").await, packed);

    let input = Shell {
        command: "cat; id -un; exit 3".to_owned(),
        user: Some("bob".to_owned()),
        stdin: "given ".to_owned(),
    };
    let ran = simulator.control().shell(id, &input).await.unwrap();
    assert_eq!((ran.exit, ran.output.as_str()), (3, "given bob\n"));
    let asked = json!({"command": "cat; id -un; exit 3", "user": "bob", "stdin": "given "});
    let path = format!("/servers/{id}/shell");
    let ran = control(&simulator, "POST", &path, &asked).await;
    assert_eq!(ran, json!({"exit": 3, "output": "given bob\n"}));
    assert_eq!(
        shell(&simulator, id, "systemctl is-system-running --wait").await,
        "running\n"
    );
    let path = format!("/servers/{id}/console");
    let shown = control(&simulator, "GET", &path, &Value::Null).await;
    assert!(shown["output"].as_str().unwrap().contains("cloud-init"));
    let out = "curl -s --connect-timeout 1 http://192.0.2.1 || echo no way out";
    assert_eq!(shell(&simulator, id, out).await, "no way out\n");
    simulator.shutdown().await;
}

#[tokio::test]
async fn power_keeps_disk_and_host_key_and_a_rebuild_changes_both() {
    let Some(simulator) = simulator().await else {
        return;
    };
    let id = server(&simulator, "a").await;
    let before = machine(&simulator, id);
    shell(&simulator, id, "touch /root/kept").await;

    shell(&simulator, id, MARKS_AN_ORDERLY_END).await;
    act(&simulator, id, "poweroff", Value::Null).await;
    shown_as(&simulator, id, "off").await;
    becomes_reachable(&before, false).await;
    wait_for("the end of the machine", || {
        (machine(&simulator, id).stage == Stage::Off).then_some(())
    })
    .await;
    let orderly = before.root.join("root/orderly");
    assert!(!orderly.exists(), "the plug was pulled");
    act(&simulator, id, "poweron", Value::Null).await;
    let after = booted(&simulator, id).await;
    assert_eq!(after.host_key, before.host_key);
    becomes_reachable(&after, true).await;

    for (command, orderly) in [("reboot", true), ("reset", false)] {
        shell(&simulator, id, MARKS_AN_ORDERLY_END).await;
        let view = boot_again(&simulator, id, command).await;
        let found = view.root.join("root/orderly").exists();
        assert_eq!(found, orderly, "{command}");
        assert!(view.root.join("root/kept").exists());
    }

    shell(&simulator, id, MARKS_AN_ORDERLY_END).await;
    act(&simulator, id, "shutdown", Value::Null).await;
    shown_as(&simulator, id, "off").await;
    assert!(orderly.exists(), "it was asked to end");
    act(&simulator, id, "poweron", Value::Null).await;
    booted(&simulator, id).await;
    shell(&simulator, id, "systemctl poweroff --no-block").await;
    shown_as(&simulator, id, "off").await;
    let other = json!({"server_type": "cx33", "upgrade_disk": false});
    act(&simulator, id, "change_type", other).await;
    booted(&simulator, id).await;
    shell(&simulator, id, "ls /root/kept").await;

    let anew = cloud_config().replace("by user-data", "anew");
    let anew = json!({"image": "debian-13", "user_data": anew});
    act(&simulator, id, "rebuild", anew).await;
    rebuilt(&simulator, id, &before).await;
    assert_eq!(
        shell(&simulator, id, "ls /root; cat /etc/marked").await,
        "anew"
    );
    simulator.shutdown().await;
}

#[tokio::test]
async fn a_boot_that_was_cut_short_is_not_taken_for_the_next_one() {
    let Some(simulator) = simulator().await else {
        return;
    };
    let slow = json!({"path": "/var/lib/cloud/scripts/per-boot/slow", "permissions": "0755",
                      "content": "#!/bin/sh\nsleep 2\n"});
    let marked = r#""write_files":["#;
    let user_data = cloud_config().replace(marked, &format!("{marked}{slow},"));
    assert!(user_data.contains("per-boot"));
    let id = create(&simulator, "a", user_data).await;
    let up = booted(&simulator, id).await;
    act(&simulator, id, "reboot", Value::Null).await;
    let reachable_again = |view: &MachineView| {
        view.stage == Stage::Booting && view.ssh_since.is_some() && view.ssh_since != up.ssh_since
    };
    wait_for("SSH before cloud-init is through", || {
        Some(machine(&simulator, id)).filter(reachable_again)
    })
    .await;
    boot_again(&simulator, id, "reboot").await;
    simulator.shutdown().await;
}

/// A unit whose end is seen on the disk.
const MARKS_AN_ORDERLY_END: &str = "
    rm -f /root/orderly
    systemd-run --quiet --collect --unit=o -p Type=oneshot -p RemainAfterExit=yes \\
        -p ExecStop='touch /root/orderly' true";

#[tokio::test]
async fn a_server_from_a_snapshot_or_its_snapshot_has_the_disk_is_another_instance_and_outlives_both()
 {
    let Some(simulator) = simulator().await else {
        return;
    };
    let id = server(&simulator, "a").await;
    let first = machine(&simulator, id);
    shell(&simulator, id, "echo seen > /root/copied; rm /etc/marked; rm -r /usr/share/git-core; echo later > /etc/motd").await;
    let made = act(&simulator, id, "create_image", json!({"description": "d"})).await;
    let image = made["image"]["id"].clone();
    let mut wanted = wish("b");
    wanted["image"] = image.clone();
    wanted["user_data"] = cloud_config().replace("by user-data", "again").into();
    let made = api(&simulator, "POST", "/servers", wanted).await;
    let copy = made["server"]["id"].as_u64().unwrap();
    let second = booted(&simulator, copy).await;
    assert_ne!(second.host_key, first.host_key);
    assert!(!first.host_key.is_empty());
    let told = shell(
        &simulator,
        copy,
        "hostname; cat /root/copied /etc/motd /etc/marked; ls -d /usr/share/git-core || true",
    )
    .await;
    assert!(told.starts_with("b\nseen\nlater\nagain"), "{told}");
    assert!(told.contains("No such file"), "{told}");
    // The first one is as it was, until it is made anew from a snapshot of the second.
    assert_eq!(
        shell(&simulator, id, "hostname; cat /root/copied").await,
        "a\nseen\n"
    );
    shell(&simulator, copy, "echo added > /root/second").await;
    let again = act(&simulator, copy, "create_image", json!({})).await;
    let anew = json!({"image": again["image"]["id"]});
    act(&simulator, id, "rebuild", anew).await;
    rebuilt(&simulator, id, &first).await;
    let told = shell(&simulator, id, "cat /root/copied /root/second /etc/motd").await;
    assert_eq!(told, "seen\nadded\nlater\n");

    // Its disk lies on both snapshots, and takes them along when it goes.
    let images = [&image, &again["image"]["id"]];
    let directory = first.root.ancestors().nth(3).unwrap();
    let layers = images.map(|image| directory.join("snapshots").join(image.to_string()));
    for path in [format!("/servers/{copy}")]
        .into_iter()
        .chain(images.map(|image| format!("/images/{image}")))
    {
        api(&simulator, "DELETE", &path, Value::Null).await;
    }
    wait_for("the end of the second disk", || {
        (!second.root.exists()).then_some(())
    })
    .await;
    assert_eq!(shell(&simulator, id, "cat /root/second").await, "added\n");
    assert!(layers.iter().all(|layer| layer.exists()));
    api(&simulator, "DELETE", &format!("/servers/{id}"), Value::Null).await;
    wait_for("the end of the snapshots", || {
        layers.iter().all(|layer| !layer.exists()).then_some(())
    })
    .await;
    simulator.shutdown().await;
}

#[tokio::test]
async fn firewalls_stop_and_pass_real_packets() {
    let Some(simulator) = simulator().await else {
        return;
    };
    let host = simulator.host();
    let firewall = api(&simulator, "POST", "/firewalls", json!({"name": "f"})).await;
    let firewall = firewall["firewall"]["id"].clone();
    let mut wanted = wish("a");
    wanted["user_data"] = cloud_config().into();
    wanted["firewalls"] = json!([{"firewall": firewall}]);
    let made = api(&simulator, "POST", "/servers", wanted).await;
    let id = made["server"]["id"].as_u64().unwrap();
    let view = booted(&simulator, id).await;
    assert!(!reachable(&view).await, "nothing is let in without a rule");

    let rule = |direction: &str, protocol: &str, port: Option<&str>, cidr: String| {
        let (side, other) = if direction == "in" {
            ("source_ips", "destination_ips")
        } else {
            ("destination_ips", "source_ips")
        };
        json!({"direction": direction, "protocol": protocol, "port": port, side: [cidr], other: []})
    };
    let set = |rules: Value| {
        let path = format!("/firewalls/{firewall}/actions/set_rules");
        let simulator = &simulator;
        async move { api(simulator, "POST", &path, json!({"rules": rules})).await }
    };
    set(json!([rule(
        "in",
        "tcp",
        Some("20-22"),
        format!("{host}/32")
    )]))
    .await;
    becomes_reachable(&view, true).await;
    let bob = log_in(&view, "bob").await.unwrap();
    set(json!([rule(
        "in",
        "tcp",
        Some("22"),
        "10.0.0.0/32".to_owned()
    )]))
    .await;
    becomes_reachable(&view, false).await;
    let alive = run(&bob, "echo alive", Vec::new()).await.unwrap();
    assert_eq!(
        alive,
        (0, "alive\n".to_owned()),
        "what is established passes"
    );

    // Between two machines, with and without a rule for the protocol.
    let neighbour = server(&simulator, "b").await;
    let target = view.address.clone().unwrap().replace(":22", "");
    let ping = format!("python3 -c '{PING}' {target} || true");
    assert_eq!(shell(&simulator, neighbour, &ping).await, "silence\n");
    set(json!([rule("in", "icmp", None, "0.0.0.0/0".to_owned())])).await;
    let answered = async { while shell(&simulator, neighbour, &ping).await != "answer\n" {} };
    timeout(DEADLINE, answered).await.unwrap();

    // Outbound is open until there is a rule for it.
    let listener = TcpListener::bind((host, 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let out = format!("nc -z -w 1 {host} {port} 2>/dev/null && echo out || echo kept in");
    assert_eq!(shell(&simulator, id, &out).await, "out\n");
    set(json!([rule(
        "out",
        "udp",
        Some("53"),
        "0.0.0.0/0".to_owned()
    )]))
    .await;
    let kept = async { while shell(&simulator, id, &out).await != "kept in\n" {} };
    timeout(DEADLINE, kept).await.unwrap();
    let still = "curl -sf http://169.254.169.254/hetzner/v1/metadata/hostname";
    assert_eq!(shell(&simulator, id, still).await, "a");

    // Off the server, on again by its label.
    let detach = json!({"remove_from": [{"type": "server", "server": {"id": id}}]});
    let path = format!("/firewalls/{firewall}/actions/remove_from_resources");
    api(&simulator, "POST", &path, detach).await;
    becomes_reachable(&view, true).await;
    let selector = json!({"type": "label_selector", "label_selector": {"selector": "class=x"}});
    let path = format!("/firewalls/{firewall}/actions/apply_to_resources");
    api(&simulator, "POST", &path, json!({"apply_to": [selector]})).await;
    assert!(reachable(&view).await);
    let labels = json!({"labels": {"class": "x"}});
    api(&simulator, "PUT", &format!("/servers/{id}"), labels).await;
    becomes_reachable(&view, false).await;
    simulator.shutdown().await;
}

/// One echo request, and a second to wait for its answer.
const PING: &str = "
import socket, struct, sys
s = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
s.settimeout(1)
s.sendto(struct.pack(\"!BBHHH\", 8, 0, 0xf7fd, 1, 1), (sys.argv[1], 0))
try:
    s.recv(99)
    print(\"answer\")
except TimeoutError:
    print(\"silence\")
";

#[tokio::test]
async fn a_real_machine_freezes_and_its_ssh_refuses_and_hangs() {
    let Some(simulator) = simulator().await else {
        return;
    };
    let id = server(&simulator, "a").await;
    let control = simulator.control();
    let view = machine(&simulator, id);
    let fault = |ssh| MachineFaults {
        ssh,
        ..MachineFaults::default()
    };
    control
        .set_machine_faults(id, fault(SshFault::Refuse))
        .unwrap();
    let refused = async {
        while timeout(BLOCKED, connect(&view))
            .await
            .is_ok_and(|c| c.is_ok())
        {}
    };
    timeout(DEADLINE, refused).await.unwrap();
    control
        .set_machine_faults(id, fault(SshFault::Hang))
        .unwrap();
    let hanging = async { while timeout(BLOCKED, connect(&view)).await.is_ok() {} };
    timeout(DEADLINE, hanging).await.unwrap();
    control
        .set_machine_faults(id, fault(SshFault::None))
        .unwrap();
    becomes_reachable(&view, true).await;

    let bob = log_in(&view, "bob").await.unwrap();
    let frozen = MachineFaults {
        frozen: true,
        ..MachineFaults::default()
    };
    control.set_machine_faults(id, frozen).unwrap();
    assert!(
        timeout(BLOCKED, run(&bob, "true", Vec::new()))
            .await
            .is_err()
    );
    act(&simulator, id, "shutdown", Value::Null).await;
    control
        .set_machine_faults(id, MachineFaults::default())
        .unwrap();
    timeout(DEADLINE, run(&bob, "true", Vec::new()))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(status(&simulator, id).await, "running");

    let cut = MachineFaults {
        cut_input_after: Some(1),
        ..MachineFaults::default()
    };
    let refused = control.set_machine_faults(id, cut).unwrap_err().to_string();
    assert!(refused.contains("ssh and frozen only"), "{refused}");
    assert!(control.change_host_key(id, false).is_err());
    simulator.shutdown().await;
}

#[tokio::test]
async fn the_agent_speaks_while_its_unit_holds_a_process() {
    let Some(simulator) = simulator().await else {
        return;
    };
    let id = server(&simulator, "a").await;
    let describe = r#"mkdir -p /etc/agentfleet && echo '{"unit": {"name": "rachel.service"}}' > /etc/agentfleet/agent.json"#;
    shell(&simulator, id, describe).await;
    let spoke = || -> Vec<bool> {
        let changes = simulator.control().voices();
        changes.iter().map(|change| change.speaks).collect()
    };
    assert!(spoke().is_empty());
    let start = "systemd-run --quiet --unit=rachel sleep infinity";
    shell(&simulator, id, start).await;
    wait_for("the voice", || (spoke() == [true]).then_some(())).await;
    shell(&simulator, id, "systemctl stop rachel").await;
    wait_for("silence", || (spoke() == [true, false]).then_some(())).await;
    shell(&simulator, id, start).await;
    wait_for("the voice", || (spoke().len() == 3).then_some(())).await;
    api(&simulator, "DELETE", &format!("/servers/{id}"), Value::Null).await;
    wait_for("silence", || {
        (spoke() == [true, false, true, false]).then_some(())
    })
    .await;
    simulator.shutdown().await;
}

#[tokio::test]
async fn somebody_in_the_middle_takes_ssh_over_and_can_relay() {
    let Some(simulator) = simulator().await else {
        return;
    };
    let id = server(&simulator, "a").await;
    let view = machine(&simulator, id);
    let control = simulator.control();
    let prefix = control.on_router().unwrap();
    let [first, second, ..] = simulator.host().octets();
    let attacker = Ipv4Addr::new(first, second, 255, 66);
    let script = format!(
        "ip address add {attacker}/32 dev lo; exec python3 -c '{RELAY}' {attacker} {}",
        view.address.clone().unwrap().replace(":22", "")
    );
    let mut relay = tokio::process::Command::new(&prefix[0])
        .args(&prefix[1..])
        .args(["sh", "-c", &script])
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut ready = [0; 6];
    relay
        .stdout
        .take()
        .unwrap()
        .read_exact(&mut ready)
        .await
        .unwrap();
    control
        .divert_ssh(id, Some(SocketAddrV4::new(attacker, 2222)))
        .await
        .unwrap();
    let mut stream = TcpStream::connect(view.address.clone().unwrap())
        .await
        .unwrap();
    let mut line = [0; 15];
    timeout(DEADLINE, stream.read_exact(&mut line))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(&line, b"relayed SSH-2.0");
    control.divert_ssh(id, None).await.unwrap();
    let mut stream = TcpStream::connect(view.address.unwrap()).await.unwrap();
    stream.write_all(b"SSH-2.0-test\r\n").await.unwrap();
    timeout(DEADLINE, stream.read_exact(&mut line))
        .await
        .unwrap()
        .unwrap();
    assert!(line.starts_with(b"SSH-2.0"));
    simulator.shutdown().await;
}

/// Says what the machine's SSH says, with a word before it.
const RELAY: &str = "
import socket, sys
listener = socket.create_server((sys.argv[1], 2222))
print(\"ready\", flush=True)
while True:
    client, _ = listener.accept()
    server = socket.create_connection((sys.argv[2], 22), source_address=(sys.argv[1], 0))
    client.sendall(b\"relayed \" + server.recv(99))
";

#[tokio::test]
async fn two_simulators_side_by_side_do_not_meet() {
    let (Some(one), Some(other)) = (simulator().await, simulator().await) else {
        return;
    };
    assert_ne!(one.machine_net(), other.machine_net());
    let (first, second) = tokio::join!(server(&one, "a"), server(&other, "a"));
    let (here, there) = (machine(&one, first), machine(&other, second));
    assert_ne!(here.host_key, there.host_key);
    log_in(&here, "bob").await.unwrap();
    log_in(&there, "bob").await.unwrap();
    let target = there.address.clone().unwrap().replace(':', " ");
    let cross = format!("nc -z -w 1 {target} 2>/dev/null && echo met || echo apart");
    assert_eq!(shell(&one, first, &cross).await, "apart\n");
    one.shutdown().await;
    assert!(!here.root.exists());
    log_in(&there, "bob").await.unwrap();
    other.shutdown().await;
}

/// What there is of a simulator with a machine, as long as there is something.
struct Traces {
    /// The process whose namespaces hold its machines.
    keeper: String,
    directory: PathBuf,
    link: String,
}

impl Traces {
    /// Of the simulator of a machine with this root, on this network.
    fn of(root: &str, net: &str) -> Self {
        let (keeper, inside) = root
            .trim_start_matches("/proc/")
            .split_once("/root")
            .unwrap();
        let number = net.split('.').nth(1).unwrap();
        Self {
            keeper: keeper.to_owned(),
            directory: Path::new(inside).ancestors().nth(3).unwrap().to_owned(),
            link: format!("/sys/class/net/hsim{number}"),
        }
    }

    /// Whether no process that names its directory or is in such a group, no mount and no interface is left.
    fn is_dead(&self, group: &str) -> bool {
        let name = self.directory.to_string_lossy().into_owned();
        let processes = std::fs::read_dir("/proc").unwrap().flatten();
        let mut left = processes.filter(|entry| {
            let read = |file: &str| std::fs::read_to_string(entry.path().join(file));
            let (command, groups) = (read("cmdline"), read("cgroup"));
            command.is_ok_and(|command| command.contains(&name))
                || groups.is_ok_and(|groups| groups.contains(group))
        });
        let mounts = std::fs::read_to_string("/proc/mounts").unwrap();
        left.next().is_none() && !mounts.contains(&name) && !Path::new(&self.link).exists()
    }
}

/// A simulator as a program of its own, with one machine on its way up.
struct Program {
    process: std::process::Child,
    traces: Traces,
}

impl Program {
    async fn start() -> Self {
        let ready = std::env::temp_dir().join(format!("ready-{}", rand::random::<u64>()));
        let process = Command::new(env!("CARGO_BIN_EXE_hetzner-sim"))
            .args(["--token", "t", "--machines", "nspawn", "--time-factor", "0"])
            .arg("--ready-file")
            .arg(&ready)
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let told = wait_for("the program", || std::fs::read(&ready).ok()).await;
        std::fs::remove_file(&ready).unwrap();
        let told: Value = serde_json::from_slice(&told).unwrap();
        let mut wanted = wish("a");
        wanted["user_data"] = cloud_config().into();
        let servers = format!("{}/servers", told["endpoint"].as_str().unwrap());
        let made = request(&servers, "t", "POST", &wanted)
            .await
            .unwrap()
            .json();
        let machine = format!(
            "{}/machines/{}",
            told["control"].as_str().unwrap(),
            made["server"]["id"]
        );
        let root = loop {
            let view = request(&machine, "", "GET", &Value::Null)
                .await
                .unwrap()
                .json();
            if view["machine"]["hostKey"] != "" {
                break view["machine"]["root"].as_str().unwrap().to_owned();
            }
        };
        Self {
            process,
            traces: Traces::of(&root, told["machineNet"].as_str().unwrap()),
        }
    }

    fn kill(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }

    /// What the control groups of its machines begin with.
    fn group(&self) -> String {
        format!("hetzner-sim-{}-", self.process.id())
    }

    fn is_dead(&self) -> bool {
        self.traces.is_dead(&self.group())
    }

    fn is_gone(&self) -> bool {
        self.is_dead() && !self.traces.directory.exists()
    }
}

/// Sends signals to processes by their ids.
fn signal(words: &[&str]) {
    assert!(Command::new("kill").args(words).status().unwrap().success());
}

#[tokio::test]
async fn nothing_is_left_of_a_simulator_that_was_told_to_end() {
    let Some(simulator) = simulator().await else {
        return;
    };
    let mut program = Program::start().await;
    assert!(!program.is_dead());
    signal(&["-TERM", &program.process.id().to_string()]);
    assert!(program.process.wait().unwrap().success());
    let directory = &program.traces.directory;
    assert!(!directory.exists(), "it waits for its machines");
    // The kernel takes interfaces back when it has time.
    wait_for("the end of all", || program.is_dead().then_some(())).await;
    simulator.shutdown().await;
}

#[test]
fn nothing_is_left_of_a_run_that_failed() {
    let mut traces = None;
    let run = async {
        let Some(simulator) = simulator().await else {
            return;
        };
        let id = server(&simulator, "a").await;
        let root = machine(&simulator, id).root;
        let left = Traces::of(&root.to_string_lossy(), &simulator.machine_net());
        assert!(!left.is_dead(NO_GROUP));
        traces = Some(left);
        // As a failed assertion does, without a word of it.
        resume_unwind(Box::new("a failure"));
    };
    let runtime = || tokio::runtime::Runtime::new().unwrap();
    let ended = catch_unwind(AssertUnwindSafe(|| runtime().block_on(run)));
    let Some(traces) = traces else {
        return ended.unwrap();
    };
    assert!(ended.is_err());
    let gone = || (traces.is_dead(NO_GROUP) && !traces.directory.exists()).then_some(());
    runtime().block_on(wait_for("the end of all", gone));
}

/// The groups of one simulator of several in one process cannot be told from the others'.
const NO_GROUP: &str = "no such group";

#[tokio::test]
async fn nothing_is_left_of_a_simulator_that_was_killed() {
    let Some(simulator) = simulator().await else {
        return;
    };
    let mut program = Program::start().await;
    assert!(!program.is_dead());
    program.kill();
    wait_for("the end of all", || program.is_gone().then_some(())).await;
    simulator.shutdown().await;
}

#[tokio::test]
async fn the_next_start_removes_what_a_killed_simulator_and_its_keeper_left() {
    let Some(simulator) = simulator().await else {
        return;
    };
    let mut program = Program::start().await;
    let group = program.group();
    let prefix = simulator.control().on_router().unwrap();
    let groups = || {
        let list = Command::new(&prefix[0])
            .args(&prefix[1..])
            .args(["ls", "/sys/fs/cgroup"])
            .output()
            .unwrap();
        String::from_utf8(list.stdout).unwrap()
    };
    assert!(groups().contains(&group) && program.traces.directory.join("machines").exists());
    signal(&["-9", &program.traces.keeper]);
    program.kill();
    wait_for("the end of all", || program.is_dead().then_some(())).await;
    let next = self::simulator().await.unwrap();
    // A simulator of another test may have begun meanwhile, and be at the same work.
    wait_for("the removal", || {
        (!program.traces.directory.exists() && !groups().contains(&group)).then_some(())
    })
    .await;
    next.shutdown().await;
    simulator.shutdown().await;
}
