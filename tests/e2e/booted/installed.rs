//! A mesh that was installed by README's lines works, is well, and is there again after a reboot.

use mesh_tests::daemon::wait_until;

use crate::mesh::{BootedMesh, PATIENCE, unit};
use crate::readme::InstallLines;

pub(crate) fn works(mesh: &BootedMesh) {
    let lines = InstallLines::read();
    for line in lines.coordinator.iter().chain(&lines.vm) {
        assert!(mesh.said.iter().any(|(said, ran)| said == line && ran.code == 0), "`{line}` was not typed");
    }
    let typed = |word: &str| mesh.said.iter().filter(|(line, _)| line.starts_with(word)).count();
    // A token and a start for each VM: they all stand in README.
    assert_eq!((typed("meshd join"), typed("systemctl enable --now meshd")), (2, 2), "{:?}", mesh.said);
    mesh.answers(&mesh.vip());
}

pub(crate) fn is_healthy(mesh: &BootedMesh) {
    for vm in [&mesh.vm_1, &mesh.vm_2] {
        mesh.heals(vm);
        let check = vm.run("meshd check").unwrap();
        assert_eq!((check.code, check.out.lines().last()), (0, Some("all is well")), "{}: {check:?}", vm.name);
        let status = vm.run("meshd status").unwrap();
        assert!(status.code == 0 && !status.out.contains("warning"), "{}: {status:?}", vm.name);
        for name in ["meshd", "meshd-guard"] {
            let unit = unit(vm, name);
            assert_eq!(unit, "ActiveState=active ExecMainStatus=0 NRestarts=0", "{name} of {}", vm.name);
        }
    }
    let status = mesh.coordinator.run("mesh-coordinator status").unwrap();
    assert!(status.code == 0 && !status.out.contains("warning"), "{status:?}");
    assert_eq!(unit(&mesh.coordinator, "mesh-coordinator"), "ActiveState=active ExecMainStatus=0 NRestarts=0");
}

pub(crate) fn reboots(mesh: &BootedMesh) {
    let vip = mesh.vip();
    mesh.answers(&vip);
    mesh.coordinator.expect("systemctl stop mesh-coordinator").unwrap();
    mesh.vm_2.reboot().unwrap();
    mesh.answers(&vip);
    mesh.vm_1.reboot().unwrap();
    mesh.answers(&vip);
    for vm in [&mesh.vm_1, &mesh.vm_2] {
        assert_eq!(unit(vm, "meshd-guard"), "ActiveState=active ExecMainStatus=0 NRestarts=0", "{}", vm.name);
    }
    mesh.coordinator.expect("systemctl start mesh-coordinator").unwrap();
    for vm in [&mesh.vm_1, &mesh.vm_2] {
        let connected = || vm.run("meshd status").is_ok_and(|ran| ran.code == 0 && ran.out.contains(": connected"));
        assert!(wait_until(2 * PATIENCE, connected), "{}: {:?}", vm.name, vm.run("meshd status"));
    }
}
