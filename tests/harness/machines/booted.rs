//! One machine: booted, asked, rebooted, and gone without a trace.

use std::fs;
use std::io::{self, Write as _};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use nix::mount::{MsFlags, mount};

use super::groups;
use crate::daemon::{Process, tail, wait_until};
use crate::netns::Namespace;

/// How long a machine may take to boot, or to end.
const BOOT: Duration = Duration::from_secs(60);
/// How long a command may take, in seconds; it is killed then.
const COMMAND: &str = "300";
/// How large what a machine writes may become, in kB.
const DISK: u32 = 1 << 20;
/// What systemd-nspawn ends with when the machine wants to be booted again.
const REBOOT: i32 = 133;
/// Where root finds programs.
const SEARCH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The address of machine `number`; 1 is the gateway's.
pub fn address(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 60, 0, number)
}

/// What a command did.
#[derive(Debug)]
pub struct Ran {
    /// Its exit status; -1 if a signal ended it, 124 if it took too long.
    pub code: i32,
    /// What it printed.
    pub out: String,
    /// What it told of errors.
    pub err: String,
}

/// A machine that runs; it ends with the value.
pub struct BootedMachine {
    /// Its host name.
    pub name: String,
    namespace: Namespace,
    /// The group of its processes.
    group: String,
    /// Where its files are, seen from the namespace.
    root: PathBuf,
    console: PathBuf,
    process: Mutex<Option<Process>>,
}

impl BootedMachine {
    /// Boots machine `number` from a base system; what it needs here lies in `folder`.
    ///
    /// # Errors
    /// If it does not come up, with what it printed last.
    pub(super) fn boot(
        namespace: &Namespace,
        folder: &Path,
        prefix: &str,
        name: &str,
        base: &Path,
        number: u8,
    ) -> io::Result<Self> {
        let home = folder.join(name);
        let root = home.join("root");
        fs::create_dir(&home)?;
        namespace.disk(&home, DISK).map_err(io::Error::other)?;
        let options = format!(
            "lowerdir={},upperdir={},workdir={}",
            base.display(),
            home.join("up").display(),
            home.join("work").display()
        );
        let (place, own_name) = (root.clone(), name.to_owned());
        namespace.run(move || {
            for part in ["up", "work", "root"] {
                fs::create_dir(home.join(part))?;
            }
            mount(Some("overlay"), &place, Some("overlay"), MsFlags::empty(), Some(options.as_str()))?;
            set_up(&place, &own_name, number)
        })?;
        let machine = Self {
            name: name.to_owned(),
            namespace: namespace.clone(),
            group: format!("{prefix}-{name}"),
            root,
            console: folder.join(format!("{name}.console")),
            process: Mutex::new(None),
        };
        machine.start()?;
        Ok(machine)
    }

    fn start(&self) -> io::Result<()> {
        let group = groups::group(&self.group);
        fs::create_dir_all(&group)?;
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "unshare", "--pid", "--mount-proc", "--fork", "--kill-child"]);
        command.args(["sh", "-c", "echo 0 > \"$0/cgroup.procs\" && exec \"$@\""]).arg(group);
        command.args(["systemd-nspawn", "--quiet", "--boot", "--network-bridge=lan", "--register=no", "--keep-unit"]);
        command.args(["--capability=CAP_NET_ADMIN,CAP_BPF,CAP_SYS_ADMIN", "--bind=/dev/net/tun"]);
        command.arg(format!("--machine={}", self.name)).arg(format!("--directory={}", self.root.display()));
        let process = Process::start(&self.namespace, command, &self.console)?;
        *self.process.lock().unwrap_or_else(PoisonError::into_inner) = Some(process);
        let is_up = || {
            let state = self.run("systemctl is-system-running").map(|ran| ran.out).unwrap_or_default();
            let has_address =
                || self.run("ip -4 -brief address show host0").is_ok_and(|ran| ran.out.contains("10.60.0."));
            matches!(state.trim(), "running" | "degraded") && has_address()
        };
        if wait_until(BOOT, is_up) {
            return Ok(());
        }
        Err(io::Error::other(format!("{} does not boot: {}", self.name, tail(&self.console, 10))))
    }

    /// Runs lines of a shell as root, in /root.
    ///
    /// # Errors
    /// If the machine does not run.
    pub fn run(&self, script: &str) -> io::Result<Ran> {
        self.run_reading(script, "")
    }

    /// Runs lines of a shell that read `input`, at most 64 kB.
    ///
    /// # Errors
    /// If the machine does not run.
    pub fn run_reading(&self, script: &str, input: &str) -> io::Result<Ran> {
        let first = self.first()?.to_string();
        let mut command = Command::new("timeout");
        command.args([
            "--kill-after=5",
            COMMAND,
            "nsenter",
            "--target",
            &first,
            "--all",
            "env",
            "-i",
            "HOME=/root",
            SEARCH,
        ]);
        command.args(["TERM=dumb", "LANG=C.UTF-8", "sh", "-c", &format!("cd /root\n{script}")]);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        if let Some(mut pipe) = child.stdin.take() {
            // Who does not read does not care.
            let _ = pipe.write_all(input.as_bytes());
        }
        let output = child.wait_with_output()?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Ok(Ran { code: output.status.code().unwrap_or(-1), out: text(&output.stdout), err: text(&output.stderr) })
    }

    /// Runs lines of a shell that must succeed, and returns what they printed.
    ///
    /// # Errors
    /// With everything they said, if the last fails.
    pub fn expect(&self, script: &str) -> io::Result<String> {
        let ran = self.run(script)?;
        if ran.code == 0 {
            return Ok(ran.out);
        }
        Err(io::Error::other(format!("{}: `{script}` failed with {}: {}{}", self.name, ran.code, ran.out, ran.err)))
    }

    /// Copies a file to /root.
    ///
    /// # Errors
    /// If it cannot be read or written.
    pub fn put(&self, file: &Path) -> io::Result<()> {
        let name = file.file_name().ok_or(io::ErrorKind::InvalidInput)?;
        fs::copy(file, Path::new("/proc").join(self.first()?.to_string()).join("root/root").join(name)).map(drop)
    }

    /// Boots it again, as its user would, and waits until it is up.
    ///
    /// # Errors
    /// If it does not come up, with what it printed last.
    pub fn reboot(&self) -> io::Result<()> {
        self.run("systemctl reboot")?;
        let mut held = self.process.lock().unwrap_or_else(PoisonError::into_inner);
        let process = held.as_mut().ok_or(io::ErrorKind::NotFound)?;
        let ended = wait_until(BOOT, || !process.running());
        let code = if ended { process.exit_code() } else { None };
        drop(held.take());
        drop(held);
        if code != Some(REBOOT) {
            return Err(io::Error::other(format!("{} ends with {code:?}: {}", self.name, tail(&self.console, 10))));
        }
        self.start()
    }

    /// The first process of the machine, as it is called out here: another one after a reboot.
    fn first(&self) -> io::Result<u32> {
        let held = self.process.lock().unwrap_or_else(PoisonError::into_inner);
        let outer = held.as_ref().map(Process::id).ok_or(io::ErrorKind::NotFound)?;
        let first = child_of(child_of(outer)?)?;
        // Until it is the first of a tree of its own, inside that of this machine's, it is still out here.
        let status = fs::read_to_string(format!("/proc/{first}/status"))?;
        let ids = status.lines().find_map(|line| line.strip_prefix("NSpid:")).unwrap_or_default();
        let ids: Vec<&str> = ids.split_whitespace().collect();
        if ids.len() < 3 || ids.last() != Some(&"1") {
            return Err(io::Error::new(io::ErrorKind::NotFound, "the machine has not begun"));
        }
        Ok(first)
    }
}

impl Drop for BootedMachine {
    fn drop(&mut self) {
        drop(self.process.get_mut().unwrap_or_else(PoisonError::into_inner).take());
        // The kernel takes a moment to end those inside.
        let name = self.group.clone();
        wait_until(Duration::from_secs(2), || {
            groups::remove(&name);
            !groups::group(&name).exists()
        });
    }
}

/// The first child of a process.
fn child_of(id: u32) -> io::Result<u32> {
    let children = fs::read_to_string(format!("/proc/{id}/task/{id}/children"))?;
    let first = children.split_whitespace().next().and_then(|word| word.parse().ok());
    first.ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "the machine has not begun"))
}

/// Writes what tells one machine from another.
fn set_up(root: &Path, name: &str, number: u8) -> io::Result<()> {
    let etc = root.join("etc");
    let (own, gateway) = (address(number), address(1));
    fs::write(etc.join("machine-id"), format!("{:032x}\n", 0x6d65_7368_0000_u64 + u64::from(number)))?;
    fs::write(etc.join("hostname"), format!("{name}\n"))?;
    fs::write(etc.join("hosts"), format!("127.0.0.1 localhost\n127.0.1.1 {name}\n"))?;
    let network = etc.join("systemd/network");
    fs::create_dir_all(&network)?;
    let text = format!("[Match]\nName=host0\n[Network]\nAddress={own}/24\nGateway={gateway}\nDNS={gateway}\n");
    fs::write(network.join("10-host0.network"), text)
}
