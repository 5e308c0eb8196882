//! A real etcd of our own: members on free loopback ports, in a directory of their own, ended by their pid.

#[path = "../../../tests/harness/skip.rs"]
mod skip;

use std::fs::{File, Permissions, set_permissions};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::EtcdOptions;
use skip::{in_path, skip};

/// How long a member may take to listen.
const START: Duration = Duration::from_secs(20);

/// Members that know each other. Dropping it ends them.
pub(crate) struct Cluster {
    dir: TempDir,
    members: Vec<Member>,
    /// Arguments for all members.
    more: Vec<String>,
    tls: bool,
}

struct Member {
    client: u16,
    peer: u16,
    child: Option<Child>,
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for place in 0..self.members.len() {
            self.kill(place);
        }
    }
}

impl Cluster {
    /// Starts members; none if there is no etcd here, which fails under MESH_STRICT=1.
    pub(crate) fn start(count: usize) -> Option<Self> {
        Self::start_with(count, false, &[])
    }

    /// Starts members with more arguments, and with TLS if these name certificates.
    pub(crate) fn start_with(count: usize, tls: bool, more: &[String]) -> Option<Self> {
        if !is_there("etcd", "etcd-server") {
            return None;
        }
        let dir = tempfile::Builder::new().prefix("mesh-etcd-").tempdir().expect("a directory");
        let ports: Vec<TcpListener> =
            (0..2 * count).map(|_| TcpListener::bind("127.0.0.1:0").expect("a free port")).collect();
        let mut ports = ports.iter().map(|port| port.local_addr().expect("a bound port").port());
        let members = std::iter::from_fn(|| Some(Member { client: ports.next()?, peer: ports.next()?, child: None }));
        let members = members.collect();
        let mut cluster = Self { dir, members, more: more.to_vec(), tls };
        for place in 0..count {
            cluster.run(place);
        }
        for place in 0..count {
            cluster.await_listening(place);
        }
        Some(cluster)
    }

    /// Where the members lie.
    pub(crate) fn options(&self) -> EtcdOptions {
        let endpoints = self.members.iter().map(|member| format!("127.0.0.1:{}", member.client)).collect();
        EtcdOptions { endpoints, tls: self.tls, ..EtcdOptions::default() }
    }

    /// Ends a member at once.
    pub(crate) fn kill(&mut self, place: usize) {
        if let Some(mut child) = self.members[place].child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Starts a member again on what it has on the disk.
    pub(crate) fn restart(&mut self, place: usize) {
        self.run(place);
        self.await_listening(place);
    }

    /// Lets a member stand still, or go on.
    pub(crate) fn stand_still(&self, place: usize, still: bool) {
        use rustix::process::{Pid, Signal, kill_process};
        let pid = self.members[place].child.as_ref().and_then(|child| Pid::from_raw(child.id().cast_signed()));
        let signal = if still { Signal::STOP } else { Signal::CONT };
        kill_process(pid.expect("a running member"), signal).expect("our own child");
    }

    fn run(&mut self, place: usize) {
        let scheme = if self.tls { "https" } else { "http" };
        let all = self.members.iter().enumerate();
        let all: Vec<_> = all.map(|(i, member)| format!("m{i}=http://127.0.0.1:{}", member.peer)).collect();
        let member = &self.members[place];
        let client = format!("{scheme}://127.0.0.1:{}", member.client);
        let peer = format!("http://127.0.0.1:{}", member.peer);
        let data = self.data(place);
        let log = File::create(self.dir.path().join(format!("m{place}.log"))).expect("a log");
        let mut command = Command::new("etcd");
        command
            .args(["--name", &format!("m{place}"), "--data-dir", &data.display().to_string()])
            .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
            .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster", &all.join(","), "--initial-cluster-state", "new"])
            .args(["--logger", "zap", "--log-level", "warn"])
            .args(&self.more)
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a log"))
            .stderr(log);
        let child = command.spawn().expect("etcd starts");
        self.members[place].child = Some(child);
    }

    fn data(&self, place: usize) -> PathBuf {
        let data = self.dir.path().join(format!("m{place}"));
        std::fs::create_dir_all(&data).expect("a directory");
        set_permissions(&data, Permissions::from_mode(0o700)).expect("our own directory");
        data
    }

    fn await_listening(&mut self, place: usize) {
        let began = Instant::now();
        let member = &mut self.members[place];
        while TcpStream::connect(("127.0.0.1", member.client)).is_err() {
            let ended = member.child.as_mut().and_then(|child| child.try_wait().ok()).flatten();
            if ended.is_some() || began.elapsed() > START {
                let log = std::fs::read_to_string(self.dir.path().join(format!("m{place}.log")));
                panic!("etcd does not listen ({ended:?}): {}", log.unwrap_or_default());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// Says whether a program is installed; if not, how to get it.
///
/// # Panics
/// With `MESH_STRICT=1` in the environment, instead of skipping.
pub(crate) fn is_there(program: &str, package: &str) -> bool {
    let found = in_path(program).is_some();
    if !found {
        skip(program, &format!("apt-get install {package}"));
    }
    found
}
