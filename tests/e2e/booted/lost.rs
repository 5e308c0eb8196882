//! What a daemon lost and no start brings back ends its unit once, and the command that the journal names is the way back.

use mesh_tests::daemon::wait_until;

use crate::mesh::{BootedMesh, PATIENCE, journal, unit};

/// A unit that ended with a loss, and stays down.
const ENDED: &str = "ActiveState=failed ExecMainStatus=78 NRestarts=0";

/// The command in backticks that follows some words.
fn command_after<'a>(words: &str, told: &'a str) -> &'a str {
    let mut rest = told.split_once(words).map_or("", |(_, rest)| rest).split('`').skip(1);
    rest.next().unwrap_or_else(|| panic!("no command after `{words}`: {told}"))
}

pub(crate) fn store(mesh: &BootedMesh) {
    let machine = &mesh.coordinator;
    let vip = mesh.vip();
    machine.expect("systemctl stop mesh-coordinator && mv /var/lib/mesh-coordinator/store.redb /root").unwrap();
    let start = machine.run("systemctl start mesh-coordinator").unwrap();
    assert_ne!(start.code, 0, "it starts without its store");
    // Longer than the unit waits before it starts again.
    machine.expect("sleep 2.5").unwrap();
    assert_eq!(unit(machine, "mesh-coordinator"), ENDED, "{}", journal(machine, "mesh-coordinator"));

    let told = journal(machine, "mesh-coordinator");
    let restored = machine.expect(command_after("store.redb is missing", &told)).unwrap();
    machine.expect(command_after("next: ", &restored)).unwrap();
    for vm in [&mesh.vm_1, &mesh.vm_2] {
        mesh.heals(vm);
    }
    let live = || machine.run("mesh-coordinator status").is_ok_and(|ran| ran.out.contains("2/2 nodes, 2 connected"));
    assert!(wait_until(PATIENCE, live), "{:?}", machine.run("mesh-coordinator status"));
    mesh.answers(&vip);
}

pub(crate) fn key(mesh: &BootedMesh) {
    let vm = &mesh.vm_1;
    vm.expect("systemctl stop meshd && mv /var/lib/meshd/identity.key /root").unwrap();
    let start = vm.run("systemctl start meshd").unwrap();
    assert_ne!(start.code, 0, "it starts without its key");
    vm.expect("sleep 1.5").unwrap();
    assert_eq!(unit(vm, "meshd"), ENDED, "{}", journal(vm, "meshd"));
    let told = journal(vm, "meshd");
    assert!(told.contains("identity.key"), "{told}");
    vm.expect("mv /root/identity.key /var/lib/meshd && systemctl start meshd").unwrap();
    mesh.heals(vm);
}
