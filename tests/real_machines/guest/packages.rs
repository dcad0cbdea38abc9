//! Packages of the distribution, from an archive: what the class names at first, and what it names later.

use std::fmt::Write as _;
use std::fs;
use std::process::Command;

use bed::{Bed, Instance, Outcome, Served, ensure};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::AS_IT_IS;

/// An archive of packages without files, served while this lives.
fn archive(bed: &Bed, names: &[&str]) -> Outcome<Served> {
    let dir = bed.dir().join("archive");
    let mut index = String::new();
    fs::create_dir(&dir)?;
    for name in names {
        let control = format!(
            "Package: {name}\nVersion: 1.0\nArchitecture: all\nMaintainer: tests <tests@example.com>\nDescription: none\n"
        );
        let (tree, file) = (bed.dir().join(name), format!("{name}.deb"));
        fs::create_dir_all(tree.join("DEBIAN"))?;
        fs::write(tree.join("DEBIAN/control"), &control)?;
        let mut build = Command::new("dpkg-deb");
        build.args(["--build", "--root-owner-group"]);
        let ran = build.arg(&tree).arg(dir.join(&file)).output()?;
        ensure(ran.status.success(), || format!("{ran:?}"))?;
        let package = fs::read(dir.join(&file))?;
        let (size, hash) = (package.len(), hex::encode(Sha256::digest(&package)));
        writeln!(
            index,
            "{control}Filename: {file}\nSize: {size}\nSHA256: {hash}\n"
        )?;
    }
    fs::write(dir.join("Packages"), index)?;
    Served::start(&dir, bed.host().into(), &[])
}

/// Fails unless a package is on the server, and this log tells so.
async fn is_there(one: &Instance<'_>, package: &str, log: &str) -> Outcome {
    let status = one.shell(&format!("dpkg -s {package}")).await?;
    ensure(status.contains("Status: install ok installed"), || {
        status.clone()
    })?;
    let log = one.file(log).await?.unwrap_or_default();
    let steps: Result<Vec<Value>, _> = log.lines().map(serde_json::from_str).collect();
    let told = steps?.into_iter().any(|step| {
        let tail = step["tail"].to_string();
        step["name"] == "packages" && step["state"] == "Done" && tail.contains(package)
    });
    ensure(told, || format!("{package} is not in {log}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_package_is_installed_from_an_archive_and_a_later_one_beside_the_agent_that_runs()
-> Outcome {
    let Some(bed) = Bed::start_real().await? else {
        return Ok(());
    };
    let archive = archive(&bed, &["first-tool", "second-tool"])?;
    let mut class = bed.class();
    let agent = &mut class["spec"]["agent"];
    let list = format!("deb [trusted=yes] {} ./\n", archive.url());
    let list = json!({"path": "/etc/apt/sources.list.d/archive.list", "content": list});
    agent["cloudInit"] = json!(format!("#cloud-config\n{}", json!({"write_files": [list]})));
    agent["packages"] = json!(["first-tool"]);
    bed.change(&class).await?;
    let one = bed.create("one").await?;
    one.ready().await?;
    is_there(&one, "first-tool", "/var/lib/agentfleet/install.log").await?;
    one.shell("! dpkg -s second-tool").await?;

    let before = one.shell(AS_IT_IS).await?;
    let revision = one.status().await?["configRevision"].clone();
    class["spec"]["agent"]["packages"] = json!(["first-tool", "second-tool=1.0"]);
    bed.change(&class).await?;
    bed.wait_until("the other configuration is applied", async || {
        Ok(one.status().await?["configRevision"] != revision)
    })
    .await?;
    one.ready().await?;
    is_there(&one, "second-tool", "/var/lib/agentfleet/changes.log").await?;
    assert_eq!(one.shell(AS_IT_IS).await?, before);
    bed.delete_all().await?;
    bed.finish().await
}
