//! The programs that peers are made of: where they lie, and how to get what is missing.
//!
//! Looked for in `$PEERS_DIR` (`~/.cache/mesh-peers`) as `tests/bench/fetch` leaves them, then in `$PATH`. Nothing of
//! theirs is part of this repository, and none is needed to measure ours.

use std::io;
use std::path::PathBuf;

use mesh_tests::daemon::Binaries;
use mesh_tests::skip::{in_path, skip};

use crate::system::System;

/// What measuring itself needs.
const TOOLS: [(&str, &str); 3] = [("iperf3", "iperf3"), ("ip", "iproute2"), ("ping", "iputils-ping")];

/// The programs found, and ours.
pub(crate) struct Programs {
    peers: PathBuf,
    ours: Binaries,
    before: Option<Binaries>,
}

impl Programs {
    /// Builds ours, unless a folder with them is given, and looks for the others.
    ///
    /// # Errors
    /// If ours do not build.
    pub(crate) fn find(ours: Option<PathBuf>, before: Option<PathBuf>) -> io::Result<Self> {
        let ours = ours.map_or_else(Binaries::build, |folder| Ok(Binaries::of(folder)))?;
        let before = before.map(Binaries::of);
        let home = || PathBuf::from(std::env::var_os("HOME").unwrap_or_else(|| "/root".into()));
        let peers = std::env::var_os("PEERS_DIR").map_or_else(|| home().join(".cache/mesh-peers"), PathBuf::from);
        Ok(Self { peers, ours, before })
    }

    /// Returns ours.
    pub(crate) fn ours(&self) -> &Binaries {
        &self.ours
    }

    /// Returns ours as they were before.
    ///
    /// # Errors
    /// If none were given.
    pub(crate) fn before(&self) -> io::Result<&Binaries> {
        self.before.as_ref().ok_or_else(|| io::Error::other("no folder of earlier binaries was given"))
    }

    /// Returns the path of a program.
    pub(crate) fn path(&self, name: &str) -> Option<PathBuf> {
        let folders = ["bin", "debian/usr/bin", "debian/usr/sbin", "ceiling/release"];
        let own = folders.iter().map(|folder| self.peers.join(folder).join(name)).find(|path| path.is_file());
        own.or_else(|| in_path(name))
    }

    /// Says whether everything is there that a system needs.
    pub(crate) fn has(&self, system: System) -> bool {
        if system == System::Before {
            return self.before.is_some();
        }
        needed(system).iter().all(|name| self.path(name).is_some())
    }
}

/// Says whether the tools are there that measuring needs; prints what to install if they are not.
pub(crate) fn tools() -> bool {
    let missing = TOOLS.iter().find(|(tool, _)| in_path(tool).is_none());
    if let Some((_, package)) = missing {
        skip("mesh-bench", &format!("apt-get install {package}"));
    }
    missing.is_none()
}

fn needed(system: System) -> &'static [&'static str] {
    match system {
        System::Ours | System::Before | System::Veth => &[],
        System::BoringtunCli => &["boringtun-cli", "wg"],
        System::Gotatun => &["gotatun", "wg"],
        System::WireguardGo => &["wireguard-go", "wg"],
        System::Nebula => &["nebula", "nebula-cert"],
        System::Haproxy => &["haproxy", "openssl"],
        System::Ceiling => &["ceiling"],
    }
}

/// Says what to type to get a system's programs.
pub(crate) fn how_to_get(system: System) -> &'static str {
    match system {
        System::Ours | System::Veth => "it needs nothing",
        System::Before => "--before FOLDER, with binaries built earlier",
        System::BoringtunCli => "apt-get install wireguard-tools; tests/bench/fetch boringtun-cli",
        System::Gotatun => "apt-get install wireguard-tools; tests/bench/fetch gotatun",
        System::WireguardGo => "apt-get install wireguard-tools; tests/bench/fetch wireguard-go",
        System::Nebula => "tests/bench/fetch nebula",
        System::Haproxy => "apt-get install haproxy openssl",
        System::Ceiling => "tests/bench/fetch ceiling FOLDER, with the folder of its source",
    }
}
