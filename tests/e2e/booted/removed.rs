//! What stays of a node that is stopped, removed, purged.

use std::time::Instant;

use crate::mesh::{ANSWER, BootedMesh, traces};

/// What closes the range: a rule, an unreachable route behind it, and the table of guards.
const CLOSED: [&str; 3] = ["from all to 241.0.0.0/8 lookup", "unreachable 241.0.0.0/8 table", "table ip meshd {"];

/// The range is closed: calls fail at once, and nothing of the mesh is left for them to take.
fn is_closed(mesh: &BootedMesh, vip: &str, when: &str) {
    let vm = &mesh.vm_2;
    let began = Instant::now();
    let call = mesh.call(vip);
    assert!(call.code != 0 && call.err.contains("No route to host"), "{when}: {call:?}");
    assert!(began.elapsed() < ANSWER, "{when}: a call fails after {:?}", began.elapsed());
    let found = traces(vm).unwrap();
    for word in CLOSED {
        assert!(found.contains(word), "{when}: no `{word}` in\n{found}");
    }
    assert!(!found.lines().any(|line| line.starts_with("mesh0")), "{when}: the interface is left:\n{found}");
}

pub(crate) fn node(mesh: &BootedMesh) {
    let (vm, vip) = (&mesh.vm_2, mesh.vip());
    mesh.answers(&vip);
    vm.expect("systemctl stop meshd").unwrap();
    is_closed(mesh, &vip, "stopped");
    vm.expect("systemctl start meshd").unwrap();
    mesh.answers(&vip);

    vm.expect("apt-get remove --yes meshd").unwrap();
    is_closed(mesh, &vip, "removed");
    vm.reboot().unwrap();
    let key = vm.run("test -e /var/lib/meshd/identity.key -a -e /etc/meshd/meshd.toml").unwrap();
    assert_eq!(key.code, 0, "a removed package leaves settings and keys");

    vm.expect("apt-get purge --yes meshd").unwrap();
    assert_eq!(traces(vm).unwrap(), mesh.before, "what a purge leaves");
}
