//! What systemd's journal has of the daemons, and that they wait for nobody who reads it.

use std::time::Instant;

use mesh_tests::daemon::wait_until;
use mesh_tests::machines::booted::BootedMachine;
use serde_json::Value;

use crate::mesh::{ANSWER, BootedMesh, PATIENCE, json};

/// How the words of lines are related to what journald sorts by.
const PRIORITIES: [(&str, &str); 4] = [("ERROR", "3"), ("WARN", "4"), ("INFO", "6"), ("DEBUG", "7")];
/// Has a daemon tell more.
const LOUD: &str = "mkdir -p /run/systemd/system/NAME.service.d && \
    printf '[Service]\\nEnvironment=VARIABLE=LEVEL\\n' > /run/systemd/system/NAME.service.d/debug.conf && \
    systemctl daemon-reload && systemctl restart NAME";
const USUAL: &str = "rm -r /run/systemd/system/NAME.service.d && systemctl daemon-reload && systemctl restart NAME";
/// Has a daemon write lines until some are lost, if LINES is 0: the kernel keeps 8 MiB for a journal that does not read.
const SPEAK: &str = "python3 -c '
import socket
def ask(text):
    stream, said = socket.create_connection((\"127.0.0.1\", PORT), 2), b\"\"
    stream.sendall(text)
    while part := stream.recv(65536): said += part
    stream.close()
    return said
def lost():
    page = ask(b\"GET /metrics HTTP/1.1\\r\\nhost: localhost\\r\\nconnection: close\\r\\n\\r\\n\").splitlines()
    return any(b\"_log_lines_dropped_total \" in line and float(line.split()[1]) > 0 for line in page)
for count in range(1, 60000):
    ask(b\"no request\\r\\n\\r\\n\")
    if count == LINES or LINES == 0 and count % 500 == 0 and lost(): break
else: raise SystemExit(\"no line is lost\")
'";
/// Some lines, and lines until some are lost.
const SOME: &str = "500";
const LOST: &str = "0";
const JOURNALD: &str = "$(systemctl show systemd-journald -p MainPID --value)";
const SOCKETS: &str = "systemd-journald.socket systemd-journald-dev-log.socket systemd-journald-audit.socket";

/// A daemon: its unit, the variable of its log, and the port of its metrics.
const MESHD: [&str; 3] = ["meshd", "MESHD_LOG", "9586"];
const COORDINATOR: [&str; 3] = ["mesh-coordinator", "RUST_LOG", "9587"];

fn of(script: &str, [name, variable, port]: [&str; 3]) -> String {
    script.replace("NAME", name).replace("VARIABLE", variable).replace("PORT", port)
}

/// Starts a daemon again that tells everything down to this level.
fn loud(machine: &BootedMachine, daemon: [&str; 3], level: &str) {
    machine.expect(&of(LOUD, daemon).replace("LEVEL", level)).unwrap();
}

/// The lines of a daemon's own, not those of systemd about it: priority and text.
fn lines(machine: &BootedMachine, name: &str) -> Vec<(String, String)> {
    let ran = machine.expect(&format!("journalctl -o json _SYSTEMD_UNIT={name}.service")).unwrap();
    let read = ran.lines().map(|line| {
        let line: Value = serde_json::from_str(line).unwrap();
        let field = |key: &str| line[key].as_str().unwrap_or_default().to_owned();
        (field("PRIORITY"), field("MESSAGE"))
    });
    read.collect()
}

pub(crate) fn priorities(mesh: &BootedMesh) {
    let vm = &mesh.vm_1;
    loud(vm, MESHD, "debug");
    vm.expect("cp /etc/meshd/services.toml /root && echo '[[serve]' > /etc/meshd/services.toml").unwrap();
    let warned = wait_until(PATIENCE, || lines(vm, "meshd").iter().any(|(priority, _)| priority == "4"));
    vm.expect("mv /root/services.toml /etc/meshd/services.toml").unwrap();
    assert!(warned, "{:?}", lines(vm, "meshd"));
    // A second one of the same mesh says why it does not begin.
    vm.run("systemd-run --wait --quiet --unit=second meshd run --config /dev/missing.toml").unwrap();
    loud(&mesh.coordinator, COORDINATOR, "debug");
    mesh.heals(vm);
    vm.expect("journalctl --sync").unwrap();
    let (mut node, second) = (lines(vm, "meshd"), lines(vm, "second"));
    assert!(second.iter().any(|(priority, text)| priority == "3" && text.contains("error")), "{second:?}");
    for priority in ["4", "6", "7"] {
        assert!(node.iter().any(|(found, _)| found == priority), "meshd has no line of priority {priority}");
    }
    node.extend(lines(&mesh.coordinator, "mesh-coordinator"));
    for (priority, text) in node {
        let word = text.trim_start().split(' ').next().unwrap_or_default();
        let expected = PRIORITIES.iter().find(|(known, _)| *known == word);
        assert_eq!(expected.map(|(_, priority)| *priority), Some(priority.as_str()), "{text}");
    }
    vm.expect(&of(USUAL, MESHD)).unwrap();
    mesh.coordinator.expect(&of(USUAL, COORDINATOR)).unwrap();
    mesh.heals(vm);
}

/// Proves that a node and the coordinator work, while nobody takes what they say.
fn goes_on(mesh: &BootedMesh, vip: &str, lines: &str) {
    for (machine, daemon, lines, verb) in [
        (&mesh.vm_1, MESHD, lines, "meshd status -o json"),
        (&mesh.coordinator, COORDINATOR, SOME, "mesh-coordinator status -o json"),
    ] {
        machine.expect(&of(SPEAK, daemon).replace("LINES", lines)).unwrap();
        let began = Instant::now();
        assert!(json(machine, verb).is_object(), "{}: `{verb}` does not answer", machine.name);
        assert!(began.elapsed() < ANSWER, "{}: `{verb}` took {:?}", machine.name, began.elapsed());
    }
    let began = Instant::now();
    let call = mesh.call(vip);
    assert!(call.code == 0 && began.elapsed() < ANSWER, "{call:?} after {:?}", began.elapsed());
}

/// Runs something while both log every trifle.
fn telling(mesh: &BootedMesh, prove: impl FnOnce()) {
    loud(&mesh.vm_1, MESHD, "debug");
    loud(&mesh.coordinator, COORDINATOR, "debug");
    mesh.heals(&mesh.vm_1);
    prove();
    mesh.vm_1.expect(&of(USUAL, MESHD)).unwrap();
    mesh.coordinator.expect(&of(USUAL, COORDINATOR)).unwrap();
    for vm in [&mesh.vm_1, &mesh.vm_2] {
        mesh.heals(vm);
    }
}

pub(crate) fn nobody_reads(mesh: &BootedMesh) {
    let vip = mesh.vip();
    mesh.answers(&vip);
    telling(mesh, || {
        let both = [&mesh.vm_1, &mesh.coordinator];
        for machine in both {
            machine.expect(&format!("kill -STOP {JOURNALD}")).unwrap();
        }
        goes_on(mesh, &vip, LOST);
        let status = mesh.vm_1.run("meshd status").unwrap();
        assert!(status.out.contains("of the log were lost"), "{status:?}");
        for machine in both {
            machine.expect(&format!("kill -CONT {JOURNALD}")).unwrap();
        }
        let told =
            || lines(&mesh.vm_1, "meshd").iter().any(|(_, text)| text.contains("lines of the log were lost here"));
        assert!(wait_until(PATIENCE, told), "the journal does not say that lines are missing");
    });
}

pub(crate) fn ended(mesh: &BootedMesh) {
    let vip = mesh.vip();
    mesh.answers(&vip);
    telling(mesh, || {
        let both = [&mesh.vm_1, &mesh.coordinator];
        for machine in both {
            machine.run(&format!("systemctl stop {SOCKETS} systemd-journald")).unwrap();
        }
        goes_on(mesh, &vip, SOME);
        for machine in both {
            machine.run(&format!("systemctl start {SOCKETS} systemd-journald")).unwrap();
        }
    });
}
