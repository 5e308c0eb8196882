//! A coordinator and two VMs, installed by README's lines, and what all facts ask of them.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use mesh_tests::daemon::wait_until;
use mesh_tests::machines::base::{DebianSuite, make_all};
use mesh_tests::machines::booted::{BootedMachine, Ran, address};
use mesh_tests::machines::lan::MachineLan;
use serde_json::Value;

use crate::readme::InstallLines;

/// How long anything may take to come back by itself.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);
/// How soon a daemon that is well answers its operator.
pub(crate) const ANSWER: Duration = Duration::from_secs(2);
/// The name that README gives the coordinator, which the machines' DNS server knows.
const COORDINATOR: &str = "coord.example.com";
/// What the operator adds to the file that `init` wrote.
pub(crate) const SERVICES: &str = r#"
[[service]]
name = "hello"
port = 8080
backends = [{ host = "vm-1" }]

[[allow]]
from = ["host:vm-2"]
to = ["hello"]
"#;
/// The file of the operator.
pub(crate) const SERVICES_FILE: &str = "/etc/mesh-coordinator/services.toml";
/// A server on a VM, which begins with it.
const SERVER: &str = r#"
cat > /usr/local/bin/hello <<'END'
import socket
listener = socket.create_server(("0.0.0.0", 8080))
while True:
    stream, caller = listener.accept()
    stream.sendall(("hello " + caller[0]).encode())
    stream.close()
END
cat > /etc/systemd/system/hello.service <<'END'
[Service]
ExecStart=/usr/bin/python3 /usr/local/bin/hello
[Install]
WantedBy=multi-user.target
END
systemctl enable --now hello
"#;
/// A client of it: prints what the server says, or why it does not.
const CLIENT: &str =
    "python3 -c 'import socket, sys; print(socket.create_connection((sys.argv[1], 8080), 2).recv(99).decode())' ";
/// What meshd and its packages may alter on a machine. After a reboot the far end of its link has another number, and addresses
/// of the link itself may take a moment to come.
const TRACES: &str = "ip rule; ip route show table all | grep -v 'fe80:'; { ip -br link; ip -br -4 address; } | sed 's/@if[0-9]*//'; nft list ruleset; \
    ls -d /etc/meshd /run/meshd /var/lib/meshd; find /etc/systemd /var/lib/systemd -name '*mesh*'; true";

/// The packages under test.
pub(crate) struct Packages {
    coordinator: PathBuf,
    meshd: PathBuf,
}

impl Packages {
    /// Finds what `make package` made, or those in the folder that `MESH_PACKAGES` names.
    pub(crate) fn find() -> Option<Self> {
        let folder = match std::env::var_os("MESH_PACKAGES") {
            Some(folder) => folder.into(),
            // This test runs from target/PROFILE/deps.
            None => std::env::current_exe().ok()?.ancestors().nth(3)?.join("package"),
        };
        let find = |name: &str| {
            let files = std::fs::read_dir(&folder).ok()?.flatten().map(|entry| entry.path());
            let is_one = |path: &PathBuf| {
                path.extension().is_some_and(|kind| kind == "deb")
                    && path.file_name().and_then(|file| file.to_str()).is_some_and(|file| file.starts_with(name))
            };
            files.filter(is_one).max()
        };
        Some(Self { coordinator: find("mesh-coordinator_")?, meshd: find("meshd_")? })
    }
}

/// The machines. They go before the bridge that they stand on.
pub(crate) struct BootedMesh {
    pub(crate) coordinator: BootedMachine,
    /// The server.
    pub(crate) vm_1: BootedMachine,
    /// The client.
    pub(crate) vm_2: BootedMachine,
    /// What README's lines said, in order.
    pub(crate) said: Vec<(String, Ran)>,
    /// What the second VM was like before it had our package.
    pub(crate) before: String,
    _lan: MachineLan,
}

impl BootedMesh {
    /// The virtual address of the service.
    pub(crate) fn vip(&self) -> String {
        let mut found = None;
        wait_until(PATIENCE, || {
            let services = json(&self.vm_2, "meshd services -o json");
            let mut all = services["services"].as_array().into_iter().flatten();
            found = all.find(|s| s["name"] == "hello").and_then(|s| s["vip"].as_str().map(str::to_owned));
            found.is_some()
        });
        found.expect("the map of vm-2 has the service")
    }

    /// Calls the service once, and returns what it said.
    pub(crate) fn call(&self, vip: &str) -> Ran {
        self.vm_2.run(&format!("{CLIENT}{vip}")).unwrap()
    }

    /// Waits until calls are answered; the server sees the VM's own address in the mesh.
    pub(crate) fn answers(&self, vip: &str) {
        let mut last = None;
        let in_time = wait_until(PATIENCE, || {
            let ran = self.call(vip);
            let is_well = ran.code == 0 && ran.out.starts_with("hello 241.");
            last = Some(ran);
            is_well
        });
        assert!(in_time, "the service is not reached: {last:?}; {}", journal(&self.vm_2, "meshd"));
    }

    /// Waits until a node is well, with its coordinator.
    pub(crate) fn heals(&self, vm: &BootedMachine) {
        let mut last = None;
        let in_time = wait_until(PATIENCE, || {
            let ran = vm.run("meshd status").unwrap();
            let is_well = ran.code == 0 && ran.out.contains(": connected");
            last = Some(ran);
            is_well
        });
        assert!(in_time, "{} is not well: {last:?}; {}", vm.name, journal(vm, "meshd"));
    }

    /// Waits until a node warns of all of this.
    pub(crate) fn warns(&self, vm: &BootedMachine, words: &[&str]) -> Ran {
        let mut last = None;
        let in_time = wait_until(PATIENCE, || {
            let ran = vm.run("meshd status").unwrap();
            let told = ran.code == 3 && words.iter().all(|word| ran.out.contains(word));
            last = Some(ran);
            told
        });
        assert!(in_time, "{} does not warn of {words:?}: {last:?}", vm.name);
        last.unwrap()
    }
}

/// Boots the machines and types what README says.
pub(crate) fn set_up(suite: DebianSuite, packages: Option<&Packages>) -> io::Result<BootedMesh> {
    let packages = packages.ok_or_else(|| io::Error::other("there are no packages"))?;
    make_all()?;
    let lan = MachineLan::new(suite.name(), (COORDINATOR, address(10)))?;
    let boot = |name: &str, number, package: &Path| {
        let machine = lan.boot(name, suite, number)?;
        machine.put(package)?;
        Ok::<_, io::Error>(machine)
    };
    let coordinator = boot("coord", 10, &packages.coordinator)?;
    let (vm_1, vm_2) = (boot("vm-1", 21, &packages.meshd)?, boot("vm-2", 22, &packages.meshd)?);
    vm_1.expect(SERVER)?;
    let before = traces(&vm_2)?;
    let lines = InstallLines::read();
    let mut said = Vec::new();
    let mut token = type_all(&coordinator, &lines.coordinator, "", &mut said)?;
    for vm in [&vm_1, &vm_2] {
        if token.is_empty() {
            // One token is good for one node.
            token = type_all(&coordinator, &lines.coordinator[lines.coordinator.len() - 1..], "", &mut said)?;
        }
        type_all(vm, &lines.vm, &std::mem::take(&mut token), &mut said)?;
    }
    coordinator.run_reading(&format!("cat >> {SERVICES_FILE}"), SERVICES)?;
    let mesh = BootedMesh { coordinator, vm_1, vm_2, said, before, _lan: lan };
    let in_force = wait_until(PATIENCE, || {
        json(&mesh.vm_2, "meshd services -o json")["services"].as_array().is_some_and(|all| !all.is_empty())
    });
    if !in_force {
        return Err(io::Error::other(format!("the service is not known on vm-2: {}", journal(&mesh.vm_2, "meshd"))));
    }
    Ok(mesh)
}

/// Types lines on a machine, as they stand; returns what the last one printed. `pasted` is what a person pastes.
fn type_all(
    machine: &BootedMachine,
    lines: &[String],
    pasted: &str,
    said: &mut Vec<(String, Ran)>,
) -> io::Result<String> {
    let mut printed = String::new();
    for line in lines {
        let ran = machine.run_reading(line, pasted)?;
        if ran.code != 0 {
            let why =
                format!("{}: README's line `{line}` fails with {}: {}{}", machine.name, ran.code, ran.out, ran.err);
            return Err(io::Error::other(why));
        }
        printed.clone_from(&ran.out);
        said.push((line.clone(), ran));
    }
    Ok(printed)
}

/// What a verb prints as JSON; nothing while the daemon does not answer.
pub(crate) fn json(machine: &BootedMachine, verb: &str) -> Value {
    let ran = machine.run(verb).unwrap();
    serde_json::from_str(&ran.out).unwrap_or(Value::Null)
}

/// The end of a unit's journal.
pub(crate) fn journal(machine: &BootedMachine, unit: &str) -> String {
    machine.run(&format!("journalctl -u {unit} -o cat -n 15")).map(|ran| ran.out).unwrap_or_default()
}

/// What meshd and its packages may alter, as text.
pub(crate) fn traces(machine: &BootedMachine) -> io::Result<String> {
    Ok(machine.run(TRACES)?.out)
}

/// What systemd says of a unit: its exit status, how often it was started again, and its state.
pub(crate) fn unit(machine: &BootedMachine, unit: &str) -> String {
    let shown =
        machine.expect(&format!("systemctl show {unit} -p ExecMainStatus -p NRestarts -p ActiveState")).unwrap();
    let mut lines: Vec<&str> = shown.lines().collect();
    lines.sort_unstable();
    lines.join(" ")
}
