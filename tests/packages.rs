//! What the packages, units, images and manifests hold: enough to run, and no more than is needed.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

use mesh_tests::privilege::privileged;
use mesh_tests::skip::skip;

/// What is in each package, and with which mode; directories aside.
const MESHD: [(&str, &str); 6] = [
    ("usr/bin/meshd", "-rwxr-xr-x"),
    ("etc/meshd/meshd.toml", "-rw-r--r--"),
    ("etc/meshd/services.toml", "-rw-r--r--"),
    ("usr/lib/systemd/system/meshd.service", "-rw-r--r--"),
    ("usr/lib/systemd/system/meshd-guard.service", "-rw-r--r--"),
    ("usr/lib/tmpfiles.d/meshd.conf", "-rw-r--r--"),
];
const COORDINATOR: [(&str, &str); 6] = [
    ("usr/bin/mesh-coordinator", "-rwxr-xr-x"),
    ("usr/share/mesh-coordinator/examples/coordinator.toml", "-rw-r--r--"),
    ("usr/share/mesh-coordinator/examples/services.toml", "-rw-r--r--"),
    ("usr/lib/systemd/system/mesh-coordinator.service", "-rw-r--r--"),
    ("usr/lib/sysusers.d/mesh-coordinator.conf", "-rw-r--r--"),
    ("usr/lib/tmpfiles.d/mesh-coordinator.conf", "-rw-r--r--"),
];

#[test]
fn a_deb_holds_the_daemon_its_units_and_its_examples() {
    for (name, expected) in [("meshd", MESHD), ("mesh-coordinator", COORDINATOR)] {
        let Some(package) = package(name, "deb") else {
            return skip(&format!("the deb of {name}"), "make package");
        };
        let Some(listing) = output("dpkg-deb", &["-c", &package]) else {
            return skip("the contents of debs", "apt-get install dpkg");
        };
        let listed: Vec<(String, String)> = listing
            .lines()
            .filter(|line| !line.starts_with('d'))
            .filter_map(|line| {
                let (mode, path) = (line.split(' ').next()?, line.split("./").nth(1)?);
                (!path.starts_with("usr/share/doc/")).then(|| (path.to_owned(), mode.to_owned()))
            })
            .collect();
        assert_same(name, listed, &expected);

        let control = output("dpkg-deb", &["-I", &package]).unwrap_or_default();
        for line in ["postinst", "prerm", "postrm", &format!("Package: {name}"), "Depends: libc6"] {
            assert!(control.contains(line), "{name}: no {line} in\n{control}");
        }
        let wanted = expected.iter().filter(|(path, _)| path.starts_with("etc/")).count();
        if wanted > 0 {
            let conffiles = output("dpkg-deb", &["-I", &package, "conffiles"]).unwrap_or_default();
            assert_eq!(conffiles.lines().filter(|line| !line.is_empty()).count(), wanted, "{name}: {conffiles}");
        }
    }
}

#[test]
fn an_rpm_holds_the_daemon_its_units_and_its_examples() {
    for (name, expected) in [("meshd", MESHD), ("mesh-coordinator", COORDINATOR)] {
        let Some(package) = package(name, "rpm") else {
            return skip(&format!("the rpm of {name}"), "make package");
        };
        let Some(listing) = output("rpm", &["-qp", "--qf", "[%{FILEMODES:perms} %{FILENAMES}\n]", &package]) else {
            return skip("the contents of rpms", "apt-get install rpm");
        };
        let listed: Vec<(String, String)> = listing
            .lines()
            .filter_map(|line| line.split_once(" /"))
            .filter(|(mode, path)| !mode.starts_with('d') && !path.starts_with("usr/share/licenses/"))
            .map(|(mode, path)| (path.to_owned(), mode.to_owned()))
            .collect();
        assert_same(name, listed, &expected);
        let scripts = output("rpm", &["-qp", "--scripts", &package]).unwrap_or_default();
        assert!(scripts.contains("systemctl"), "{name} has no scripts: {scripts}");
    }
}

/// Installs, removes and purges the debs on a copy of this machine that vanishes with the process: an overlay in a
/// mount namespace, without a network. `meshd` is replaced by a witness of how it is called.
const INSTALL: &str = r##"
set -e
mount -t tmpfs meshtest "$3" && cd "$3" && mkdir up work root
mount -t overlay meshtest -o lowerdir=/,upperdir=up,workdir=work root || exit 77
mount -t proc proc root/proc
cp "$1" "$2" root/tmp/
chroot root sh -ec '
    dpkg --force-unsafe-io -i /tmp/meshd_*.deb /tmp/mesh-coordinator_*.deb
    ls /etc/systemd/system/multi-user.target.wants/meshd.service /etc/systemd/system/sysinit.target.wants/meshd-guard.service
    ls /etc/systemd/system/multi-user.target.wants/mesh-coordinator.service
    [ "$(stat -c %a:%U /var/lib/meshd)" = 700:root ]
    [ "$(stat -c %a:%U /var/lib/mesh-coordinator)" = 700:mesh-coordinator ]
    printf "#!/bin/sh\necho \"\$@\" >> /tmp/called\n" > /usr/bin/meshd
    dpkg -r meshd mesh-coordinator
    [ ! -e /tmp/called ] || { echo "a removal opened the mesh range"; exit 1; }
    ls /etc/meshd/meshd.toml
    dpkg -P meshd mesh-coordinator
    [ "$(cat /tmp/called)" = "cleanup --all --files --config /var/lib/meshd/.purge.toml" ]
    for left in /etc/meshd /etc/mesh-coordinator /var/lib/meshd /var/lib/mesh-coordinator; do
        [ ! -e $left ] || { echo "$left is left"; exit 1; }
    done
    [ -z "$(find /etc/systemd -name "mesh*")" ] || { echo "units are left"; exit 1; }
'
"##;

#[test]
fn purging_opens_the_range_and_leaves_nothing_behind() {
    if !privileged("installing the debs in an overlay") {
        return;
    }
    let (Some(meshd), Some(coordinator)) = (package("meshd", "deb"), package("mesh-coordinator", "deb")) else {
        return skip("installing the debs", "make package");
    };
    let place = tempfile::tempdir().expect("a temporary directory");
    let arguments =
        ["--mount", "--net", "bash", "-c", INSTALL, "install", &meshd, &coordinator, &place.path().to_string_lossy()];
    let Ok(run) = Command::new("unshare").args(arguments).output() else {
        return skip("installing the debs", "apt-get install util-linux");
    };
    if run.status.code() == Some(77) {
        return skip("installing the debs", "run where an overlay may be mounted on /");
    }
    let text = [run.stdout, run.stderr].concat();
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&text));
}

#[test]
fn every_key_of_an_example_is_a_comment_with_its_default() {
    for file in ["packaging/meshd/meshd.toml", "packaging/coordinator/coordinator.toml"] {
        let text = read(file);
        let set: Vec<_> = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')).collect();
        assert!(set.is_empty(), "{file} sets {set:?}");
    }
    let all_set = |file: &str| {
        let text = read(file);
        let keys = text.lines().filter_map(|line| line.strip_prefix('#')).filter(|line| !line.starts_with(' '));
        keys.collect::<Vec<_>>().join("\n")
    };
    // `pods` and `public` stand there twice, as a word and as a list.
    let meshd = all_set("packaging/meshd/meshd.toml").replacen("pods = \"10.8.1.0/24\"\n", "", 1);
    let config = meshd::config::Config::parse("meshd.toml", &meshd).expect("the example is valid");
    let default = meshd::config::Config::default();
    assert_eq!((config.port, config.interface, config.services), (default.port, default.interface, default.services));
    assert_eq!((config.state_dir, config.socket, config.metrics), (default.state_dir, default.socket, default.metrics));

    let coordinator = all_set("packaging/coordinator/coordinator.toml");
    let lines = coordinator.lines().filter(|line| *line != "public = \"coordinator.example.com:7700\"");
    let text = lines.collect::<Vec<_>>().join("\n");
    let config = coordinator::config::Config::parse(&text, Path::new("/etc/mesh-coordinator/coordinator.toml"));
    let default = coordinator::config::Config::default();
    let config = config.expect("the example is valid");
    assert_eq!(
        (config.listen, config.state_dir, config.services),
        (default.listen, default.state_dir, default.services)
    );
    assert_eq!((config.admin_socket, config.metrics), (default.admin_socket, default.metrics));
}

#[test]
fn the_etcd_of_the_example_is_valid() {
    let text = read("packaging/coordinator/coordinator.toml");
    let (_, table) = text.split_once("##[etcd]").expect("the example shows [etcd]");
    let table = table.lines().skip(1).map_while(|line| line.strip_prefix('#'));
    let keys: String =
        table.filter_map(|line| line.strip_prefix('#')).fold(String::new(), |all, line| all + line + "\n");
    let stores = text.lines().filter_map(|line| line.strip_prefix("##store = "));
    let with_tls: Vec<_> = stores.filter(|store| store.starts_with("\"etcds:")).collect();
    assert!(!with_tls.is_empty(), "the example shows a store with TLS");
    for store in with_tls {
        let text = format!("store = {store}\n[etcd]\n{keys}");
        let config = coordinator::config::Config::parse(&text, Path::new("/etc/mesh-coordinator/coordinator.toml"));
        assert!(config.is_ok(), "{text}{:?}", config.err());
    }
}

#[test]
fn the_services_of_the_examples_are_valid_and_so_is_what_stands_there_as_a_comment() {
    let text = read("packaging/coordinator/services.toml");
    let with_comments = |text: &str| text.replace("\n#", "\n");
    for text in [text.clone(), with_comments(&text)] {
        // The first comment is prose.
        let text = text.split_once("version = 1").map_or_else(String::new, |(_, rest)| format!("version = 1{rest}"));
        let read = mesh_proto::services::parse(&text, "services.toml");
        assert!(read.is_ok(), "{}", read.err().map_or_else(String::new, |d| d.to_string()));
    }
    let text = read("packaging/meshd/services.toml");
    assert!(mesh_proto::services::parse_node(&text, "services.toml").is_ok());
    let (_, serve) = text.split_once("#[[serve]]").expect("an example of [[serve]]");
    let text = format!("version = 1\n[[serve]]{}", with_comments(serve));
    let read = mesh_proto::services::parse_node(&text, "services.toml");
    assert!(read.is_ok_and(|(serves, _)| serves.len() == 1));
}

#[test]
fn units_confine_the_daemons() {
    let meshd = read("systemd/meshd.service");
    for line in [
        "Type=notify",
        "ExecStart=/usr/bin/meshd run",
        "ExecReload=/usr/bin/meshd reload",
        "Restart=always",
        "RestartPreventExitStatus=78",
        "CapabilityBoundingSet=CAP_NET_ADMIN CAP_NET_BIND_SERVICE CAP_BPF",
        "DeviceAllow=/dev/net/tun rw",
        "NoNewPrivileges=yes",
        "ProtectSystem=strict",
        "RuntimeDirectoryPreserve=yes",
        "StateDirectoryMode=0700",
    ] {
        assert!(meshd.lines().any(|l| l.starts_with(line)), "meshd.service: no {line}");
    }
    assert!(!meshd.contains("cleanup\n") && !meshd.contains("ExecStop"), "a stop must leave the mesh range closed");

    let guard = read("systemd/meshd-guard.service");
    for line in ["Type=oneshot", "ExecStart=/usr/bin/meshd guard", "DefaultDependencies=no"] {
        assert!(guard.lines().any(|l| l.starts_with(line)), "meshd-guard.service: no {line}");
    }
    let before = guard.lines().find(|line| line.starts_with("Before=")).unwrap_or("");
    assert!(before.contains("network-pre.target"), "the guard comes after the network");

    let coordinator = read("systemd/mesh-coordinator.service");
    for line in [
        "User=mesh-coordinator",
        // A reload that only sent a signal would succeed whatever became of the file.
        "ExecReload=/usr/bin/mesh-coordinator reload --config /etc/mesh-coordinator/coordinator.toml",
        "RestartPreventExitStatus=78",
        "NoNewPrivileges=yes",
        "ProtectSystem=strict",
        "PrivateDevices=yes",
    ] {
        assert!(coordinator.lines().any(|l| l.starts_with(line)), "mesh-coordinator.service: no {line}");
    }
    assert!(!coordinator.contains("CAP_NET_ADMIN"), "the coordinator never touches the network's set-up");
}

#[test]
fn systemd_finds_no_fault_with_the_units() {
    for unit in ["meshd.service", "meshd-guard.service", "mesh-coordinator.service"] {
        let path = root().join("systemd").join(unit);
        let Ok(run) = Command::new("systemd-analyze").arg("verify").arg(&path).output() else {
            return skip("systemd's own check of the units", "apt-get install systemd");
        };
        let text = String::from_utf8_lossy(&run.stderr).into_owned();
        // The daemons are not installed where tests run.
        let faults: Vec<_> = text.lines().filter(|l| l.contains(unit) && !l.contains("is not executable")).collect();
        assert!(faults.is_empty(), "{unit}: {faults:?}");
    }
}

#[test]
fn maintainer_scripts_parse_and_purge_opens_the_range() {
    for script in [
        "meshd/postinst",
        "meshd/prerm",
        "meshd/postrm",
        "coordinator/postinst",
        "coordinator/prerm",
        "coordinator/postrm",
    ] {
        let path = root().join("packaging/deb").join(script);
        let run = Command::new("sh").arg("-n").arg(&path).output().expect("sh starts");
        assert!(run.status.success(), "{script}: {}", String::from_utf8_lossy(&run.stderr));
    }
    let postrm = read("packaging/deb/meshd/postrm");
    let (remove, purge) = postrm.split_once("purge)").expect("postrm handles purge");
    assert!(purge.contains("cleanup") && !remove.contains("cleanup"), "only purge opens the range");
    assert!(read("packaging/rpm/meshd.preun").contains("/usr/bin/meshd cleanup --all"));
}

#[test]
fn the_daemonset_asks_for_no_more_than_it_needs() {
    let manifest = read("packaging/kubernetes/meshd.yaml");
    for line in [
        "kind: DaemonSet",
        "kind: ConfigMap",
        "kind: ClusterRole",
        "hostNetwork: true",
        "privileged: false",
        "allowPrivilegeEscalation: false",
        "readOnlyRootFilesystem: true",
        "drop: [ALL]",
        "add: [NET_ADMIN, NET_BIND_SERVICE, BPF]",
        "path: /dev/net/tun",
        "path: /var/lib/meshd",
        "host: 127.0.0.1",
        "--token-file",
    ] {
        assert!(manifest.contains(line), "no `{line}`");
    }
    let ports = manifest.lines().any(|line| line.trim() == "ports:" || line.contains("hostPort"));
    assert!(!ports, "ports of a host-network pod are host ports and block a rolling update");
    assert!(!manifest.contains("privileged: true"));
}

#[test]
fn an_image_holds_one_binary_and_nothing_else() {
    let text = read("packaging/image/Dockerfile");
    for (stage, binary) in [("meshd", "/usr/bin/meshd"), ("mesh-coordinator", "/usr/bin/mesh-coordinator")] {
        let start = format!("FROM scratch AS {stage}\n");
        let (_, rest) = text.split_once(&start).unwrap_or_else(|| panic!("no `{start}`"));
        let stage = rest.split("\nFROM ").next().unwrap_or("");
        assert_eq!(stage.lines().filter(|line| line.starts_with("COPY")).count(), 1);
        assert!(stage.contains(&format!("ENTRYPOINT [\"{binary}\"]")));
        assert!(!stage.contains("RUN "));
    }
}

fn assert_same(name: &str, mut listed: Vec<(String, String)>, expected: &[(&str, &str)]) {
    let mut expected: Vec<_> = expected.iter().map(|(p, m)| ((*p).to_owned(), (*m).to_owned())).collect();
    listed.sort();
    expected.sort();
    assert_eq!(listed, expected, "{name}");
}

/// Returns the path of a built package.
fn package(name: &str, kind: &str) -> Option<String> {
    let dir = fs::read_dir(target()?.join("package")).ok()?;
    let mut found = dir.flatten().map(|entry| entry.path()).filter(|path| {
        let file = path.file_name().and_then(|f| f.to_str()).unwrap_or("");
        let version = file.strip_prefix(name).unwrap_or("");
        path.extension().is_some_and(|e| e == kind)
            && version.starts_with(['-', '_'])
            && version[1..].starts_with(|c: char| c.is_ascii_digit())
    });
    found.next().map(|path| path.to_string_lossy().into_owned())
}

fn output(program: &str, arguments: &[&str]) -> Option<String> {
    let run = Command::new(program).args(arguments).output().ok()?;
    assert!(run.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&run.stderr));
    Some(String::from_utf8_lossy(&run.stdout).into_owned())
}

/// The target directory: this test runs from target/PROFILE/deps.
fn target() -> Option<PathBuf> {
    env::current_exe().ok()?.ancestors().nth(3).map(Path::to_path_buf)
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn read(file: &str) -> String {
    fs::read_to_string(root().join(file)).unwrap_or_else(|error| panic!("{file}: {error}"))
}
