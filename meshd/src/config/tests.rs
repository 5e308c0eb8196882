#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::time::Duration;

use super::*;

fn mistakes(text: &str) -> Vec<String> {
    let mistakes = Config::parse("m.toml", text).unwrap_err();
    mistakes.to_string().lines().map(Into::into).collect()
}

#[test]
fn an_empty_file_means_defaults() {
    assert_eq!(Config::parse("m.toml", "").unwrap(), Config::default());
    assert!(!Config::default().name.as_str().is_empty());
    assert!((1..=16).contains(&Config::default().lanes));
}

#[test]
fn every_key_is_read() {
    let text = r#"
        name = "pc-vm-1"
        state_dir = "/s"
        interface = "m1"
        port = 4000
        endpoints = ["192.0.2.1", "[2001:db8::1]:7"]
        pods = "10.8.1.0/24"
        pod_interfaces = ["lxc*", "eni1"]
        services = "/e/services.toml"
        socket = "/r/m.sock"
        metrics = "127.0.0.1:1"
        lanes = 2
        mtu = 1300
        max_offline = "12h"
        [dns]
        enabled = false
        upstreams = "192.0.2.53"
        [offload]
        tun = "off"
        udp = "auto"
        [keys]
        rotate = "12h"
        overlap = "10s"
        preshared = "off"
    "#;
    let config = Config::parse("m.toml", text).unwrap();
    assert_eq!(config.name.as_str(), "pc-vm-1");
    assert_eq!(config.runtime_dir, PathBuf::from("/r"));
    assert_eq!(config.endpoints, ["192.0.2.1:4000".parse().unwrap(), "[2001:db8::1]:7".parse().unwrap()]);
    assert_eq!(config.pods, ["10.8.1.0/24".parse().unwrap()]);
    assert_eq!(config.pod_interfaces, ["lxc*", "eni1"]);
    assert_eq!((config.lanes, config.mtu), (2, Some(1300)));
    assert!(!config.dns.enabled);
    assert_eq!(config.dns.upstreams, ["192.0.2.53:53".parse().unwrap()]);
    assert_eq!(config.offload, Offload { tun: false, udp: true });
    let (rotate, overlap) = (Duration::from_secs(43_200), Duration::from_secs(10));
    assert_eq!(config.keys, KeysConfig { rotate, overlap, preshared: false });
    assert!(Config::default().keys.preshared);
    let off = Config::parse("m.toml", "metrics = \"off\"").unwrap();
    assert_eq!(off.metrics, None);
    assert_eq!(config.max_offline, Some(Duration::from_secs(43_200)));
    assert_eq!(Config::default().max_offline, Some(Duration::from_secs(7 * 86_400)));
    assert_eq!(Config::parse("m.toml", "max_offline = \"never\"").unwrap().max_offline, None);
    assert!(mistakes("max_offline = \"9s\"")[0].contains("10s or more"));
}

#[test]
fn all_mistakes_are_found_at_once_with_their_places() {
    let text =
        "nmae = \"x\"\nport = 0\npods = [\"10.8.1.1/24\", \"10.8.0.0/16\", \"10.8.2.0/24\"]\n[dns]\n  upstream = []\n";
    let found = mistakes(text);
    assert_eq!(found[0], "m.toml:1:1: unknown key `nmae`; did you mean `name`?");
    assert!(found[1].starts_with("m.toml:2:8: this must be a number from 1"), "{found:?}");
    assert!(found[2].starts_with("m.toml:3:9: `10.8.1.1/24` has host bits"), "{found:?}");
    assert!(found[3].starts_with("m.toml:3:39: `10.8.2.0/24` overlaps"), "{found:?}");
    assert!(
        found[4].starts_with("m.toml:5:3: unknown key `upstream` in [dns]; did you mean `upstreams`?"),
        "{found:?}"
    );
    assert_eq!(found.len(), 5);
}

#[test]
fn interfaces_of_pods_are_names_or_their_beginnings() {
    let config = Config::parse("m.toml", "pod_interfaces = \"lxc*\"").unwrap();
    assert_eq!(config.pod_interfaces, ["lxc*"]);
    for bad in ["*", "lo", "", "a/b", "l*c*", "sixteen-letters1"] {
        let found = mistakes(&format!("pod_interfaces = [\"{bad}\"]"));
        assert!(found[0].contains("is no interface of pods"), "{bad}: {found:?}");
    }
    assert!(
        mistakes("pod_interfaces = [\"a\",\"b\",\"c\",\"d\",\"e\",\"f\",\"g\",\"h\",\"i\"]")[0].contains("at most 8")
    );
}

#[test]
fn an_offload_is_auto_or_off() {
    let found = mistakes("[offload]\ntun = \"on\"\nudp = false\ntap = \"off\"\n");
    assert_eq!(found[0], "m.toml:2:7: `tun` is \"auto\" or \"off\"");
    assert_eq!(found[1], "m.toml:3:7: `udp` is \"auto\" or \"off\"");
    assert!(found[2].starts_with("m.toml:4:1: unknown key `tap` in [offload]"), "{found:?}");
    assert!(mistakes("offload = \"off\"")[0].contains("write `[offload]`"));
}

#[test]
fn preshared_keys_are_auto_or_off() {
    assert_eq!(mistakes("[keys]\npreshared = true\n"), ["m.toml:2:13: `preshared` is \"auto\" or \"off\""]);
    assert!(Config::parse("m.toml", "[keys]\npreshared = \"auto\"").unwrap().keys.preshared);
}

#[test]
fn an_mtu_below_what_every_host_must_take_is_refused_with_a_sentence_and_so_is_nonsense() {
    for wrong in ["575", "0", "-1", "8921", "70000", "\"1420\"", "\"auto\"", "1420.5", "true", "[1420]"] {
        let found = mistakes(&format!("mtu = {wrong}"));
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].starts_with("m.toml:1:7: `mtu` is ") && found[0].contains("576 to 8920"), "{found:?}");
    }
    for good in [576, 1280, 8920] {
        assert_eq!(Config::parse("m.toml", &format!("mtu = {good}")).unwrap().mtu, Some(good));
    }
    assert_eq!(Config::default().mtu, None);
}

#[test]
fn what_is_no_toml_has_a_place_too() {
    assert!(mistakes("name = \n")[0].starts_with("m.toml:1:"));
}

#[test]
fn ports_of_all_lanes_must_exist() {
    assert!(Config::parse("m.toml", "port = 65535\nlanes = 1").is_ok());
    assert!(mistakes("port = 65535\nlanes = 2")[0].contains("at most 65534"));
}

#[test]
fn any_host_name_becomes_a_name() {
    for (host, name) in [("PC_VM.example.com", "pc-vm"), ("--", "node"), ("", "node"), ("é1", "1")] {
        assert_eq!(label(host).as_str(), name);
    }
}

#[test]
fn new_connections_wake_no_watcher_of_services_toml() {
    let config = Config::parse("f", "socket = \"/x/s\"\nservices = \"/x/services.toml\"").unwrap();
    assert_eq!(config.runtime_dir, PathBuf::from("/x"));
    assert_ne!(config.flow_file().parent(), config.services.parent());
}
