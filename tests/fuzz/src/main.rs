//! `fuzz`: libFuzzer over the target that `MESH_FUZZ_TARGET` names. `make fuzz` runs them all.
#![no_main]

mod targets;

use std::sync::OnceLock;

use targets::{TARGETS, Target};

libfuzzer_sys::fuzz_target!(|data: &[u8]| chosen()(data));

fn chosen() -> Target {
    static CHOSEN: OnceLock<Target> = OnceLock::new();
    *CHOSEN.get_or_init(|| {
        let name = std::env::var("MESH_FUZZ_TARGET").unwrap_or_default();
        let names = TARGETS.map(|(name, _)| name).join(", ");
        let found = TARGETS.iter().find(|(target, _)| *target == name);
        found.unwrap_or_else(|| panic!("set MESH_FUZZ_TARGET to one of {names}")).1
    })
}
