//! A state directory that takes nothing, below a unit that confines its daemon.

use mesh_tests::daemon::wait_until;

use crate::mesh::{BootedMesh, PATIENCE, SERVICES_FILE, json, unit};

/// Moves a node's state to a file system of its own, of 1 MB, and back.
const SMALL: &str = "systemctl stop meshd && cp -a /var/lib/meshd /root/kept && \
    mount -t tmpfs -o size=1m,mode=0700 disk /var/lib/meshd && cp -a /root/kept/. /var/lib/meshd/ && \
    rm -r /root/kept && systemctl start meshd";
const BACK: &str = "systemctl stop meshd && cp -a /var/lib/meshd /root/kept && umount /var/lib/meshd && \
    cp -a /root/kept/. /var/lib/meshd/ && rm -r /root/kept && systemctl start meshd";
/// Fills it, and what the daemon gives back meanwhile, too.
const FILL: &str = "for _ in 1 2 3 4; do \
    dd if=/dev/zero of=/var/lib/meshd/fill bs=4k oflag=append conv=notrunc 2>/dev/null; sleep 0.3; done; true";
const FULL: [&str; 2] = ["tunnel key is not changed", "No space left on device"];

pub(crate) fn full(mesh: &BootedMesh) {
    let (vm, vip) = (&mesh.vm_2, mesh.vip());
    vm.expect(SMALL).unwrap();
    mesh.heals(vm);
    mesh.answers(&vip);
    vm.expect(FILL).unwrap();
    mesh.coordinator
        .expect(&format!("cp {SERVICES_FILE} /root && sed -i 's/host:vm-2/host:vm-1/' {SERVICES_FILE}"))
        .unwrap();
    assert!(wait_until(PATIENCE, || mesh.call(&vip).code != 0), "the edit does not arrive");
    vm.expect("meshd rotate").unwrap();
    mesh.warns(vm, &FULL);
    vm.expect("rm /var/lib/meshd/fill").unwrap();
    mesh.heals(vm);
    // What was removed stays so, with nobody to ask.
    mesh.coordinator.expect("systemctl stop mesh-coordinator").unwrap();
    vm.expect("systemctl restart meshd").unwrap();
    let knows_none = || json(vm, "meshd services -o json")["services"].as_array().is_some_and(Vec::is_empty);
    assert!(wait_until(PATIENCE, knows_none), "a removed permission is back: {:?}", vm.run("meshd services"));
    assert_ne!(mesh.call(&vip).code, 0, "a removed permission is back");
    mesh.coordinator
        .expect(&format!("cp /root/services.toml {SERVICES_FILE} && systemctl start mesh-coordinator"))
        .unwrap();
    mesh.answers(&vip);
    mesh.heals(vm);
    vm.expect(BACK).unwrap();
    mesh.heals(vm);
}

pub(crate) fn read_only(mesh: &BootedMesh) {
    let (vm, vip) = (&mesh.vm_2, mesh.vip());
    vm.expect(SMALL).unwrap();
    mesh.heals(vm);
    vm.expect("systemctl stop meshd && mount -o remount,ro /var/lib/meshd && systemctl start meshd").unwrap();
    mesh.answers(&vip);
    assert_eq!(unit(vm, "meshd"), "ActiveState=active ExecMainStatus=0 NRestarts=0");
    let told = mesh.warns(vm, &["read-only", "remount,rw"]).out;
    // As it is printed: what stands in backquotes, but for what only looks.
    let advice = told.lines().find(|line| line.contains("remount,rw")).unwrap();
    let commands: Vec<&str> = advice.split('`').skip(1).step_by(2).collect();
    assert!(commands.contains(&"systemctl restart meshd"), "a unit keeps its read-only view: {advice}");
    vm.expect("mount -o remount,rw /var/lib/meshd && systemctl restart meshd").unwrap();
    mesh.heals(vm);
    vm.expect(BACK).unwrap();
    mesh.heals(vm);
}
