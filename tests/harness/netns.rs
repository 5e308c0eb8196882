//! Network namespaces made from Rust: one thread lives in each and does what is asked of it there.
//!
//! ```text
//!  test thread ──closure──▶ thread of namespace "c1-n1" ── netlink, sockets, child processes
//!                                   │ unshare(NEWNET | NEWNS)
//!                                   └ bound to /run/netns/<prefix>-c1-n1, where `ip netns` finds it
//! ```
//! A child inherits the network and the mounts of the thread that starts it, so that each namespace can
//! have a resolv.conf of its own, as a pod has. Sockets opened by the thread stay in the namespace and may
//! be used from any thread.

mod wiring;

use std::fs::File;
use std::future::Future;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::unistd::gettid;
use rtnetlink::Handle;
use tokio::runtime::{Builder, Runtime};

use crate::undo::{self, Leftover, Ticket};

/// Where namespaces are bound, as `ip netns` expects them.
pub const FOLDER: &str = "/run/netns";

/// Says what could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum NetnsError {
    /// The kernel refused a system call.
    #[error("{0}: {1}")]
    System(String, #[source] io::Error),
    /// The kernel refused a netlink request.
    #[error("{0}: {1}")]
    Netlink(String, #[source] rtnetlink::Error),
}

type Job = Box<dyn FnOnce(&Runtime) + Send>;

/// A network namespace; it goes with its last clone.
#[derive(Clone)]
pub struct Namespace(Arc<Shared>);

struct Shared {
    name: String,
    path: PathBuf,
    handle: File,
    jobs: Mutex<Option<Sender<Job>>>,
    thread: Mutex<Option<JoinHandle<()>>>,
    ticket: Ticket,
}

impl Namespace {
    /// Makes a namespace with its loopback up, bound as `<prefix>-<name>`. With `resolv` it sees that text
    /// as its /etc/resolv.conf; the text is kept in `folder`.
    ///
    /// # Errors
    /// `NetnsError` where the kernel refuses, mostly for lack of privilege.
    pub fn new(prefix: &str, name: &str, resolv: Option<(&Path, &str)>) -> Result<Self, NetnsError> {
        let path = Path::new(FOLDER).join(format!("{prefix}-{name}"));
        std::fs::create_dir_all(FOLDER).map_err(system("create /run/netns"))?;
        File::create(&path).map_err(system(&format!("create {}", path.display())))?;
        let ticket = undo::note(Leftover::Mount(path.clone()));
        let resolv = match resolv {
            None => None,
            Some((folder, text)) => {
                let file = folder.join(format!("{name}.resolv.conf"));
                std::fs::write(&file, text).map_err(system("write resolv.conf"))?;
                Some(file)
            }
        };
        let (jobs, inbox) = channel::<Job>();
        let (ready, started) = channel();
        let thread = std::thread::Builder::new()
            .name(format!("ns-{name}"))
            .spawn(move || {
                let entered = enter(resolv.as_deref());
                let failed = entered.is_err();
                let _ = ready.send(entered);
                if !failed {
                    live(&inbox);
                }
            })
            .map_err(system("start a thread"))?;
        let thread_id =
            started.recv().map_err(|_| NetnsError::System("enter".into(), io::ErrorKind::BrokenPipe.into()))??;
        let own = format!("/proc/{}/task/{thread_id}/ns/net", std::process::id());
        mount(Some(own.as_str()), &path, None::<&str>, MsFlags::MS_BIND, None::<&str>)
            .map_err(|e| NetnsError::System(format!("bind {}", path.display()), e.into()))?;
        let handle = File::open(&path).map_err(system("open the namespace"))?;
        let namespace = Self(Arc::new(Shared {
            name: name.into(),
            path,
            handle,
            jobs: Mutex::new(Some(jobs)),
            thread: Mutex::new(Some(thread)),
            ticket,
        }));
        namespace.up("lo")?;
        Ok(namespace)
    }

    /// Returns the name without the prefix.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// Returns the file that it is bound to.
    pub fn path(&self) -> &Path {
        &self.0.path
    }

    /// Returns the inode by which `/proc/PID/ns/net` tells who is inside.
    pub fn inode(&self) -> u64 {
        use std::os::unix::fs::MetadataExt;
        self.0.handle.metadata().map_or(0, |m| m.ino())
    }

    /// Runs a closure inside and waits for its result.
    ///
    /// # Panics
    /// If the closure panicked.
    pub fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        self.submit(move |_| work())
    }

    /// Runs a future inside, on the namespace's own runtime, and waits for its result.
    ///
    /// # Panics
    /// If the future panicked.
    pub fn block_on<T, F>(&self, work: impl FnOnce() -> F + Send + 'static) -> T
    where
        T: Send + 'static,
        F: Future<Output = T>,
    {
        self.submit(move |runtime| runtime.block_on(async { work().await }))
    }

    /// Starts a process inside.
    ///
    /// # Errors
    /// As `Command::spawn`.
    pub fn spawn(&self, mut command: Command) -> io::Result<Child> {
        self.run(move || command.spawn())
    }

    fn submit<T: Send + 'static>(&self, work: impl FnOnce(&Runtime) -> T + Send + 'static) -> T {
        let (result, wait) = channel();
        let job: Job = Box::new(move |runtime| {
            let _ = result.send(work(runtime));
        });
        let jobs = self.0.jobs.lock().unwrap_or_else(PoisonError::into_inner);
        let sent = jobs.as_ref().map(|jobs| jobs.send(job));
        drop(jobs);
        assert!(matches!(sent, Some(Ok(()))), "namespace {} is gone", self.0.name);
        wait.recv().expect("a job inside a namespace does not panic")
    }

    fn netlink<T, F>(&self, what: String, request: impl FnOnce(Handle) -> F + Send + 'static) -> Result<T, NetnsError>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, rtnetlink::Error>>,
    {
        let name = self.0.name.clone();
        self.block_on(move || async move {
            let (connection, handle, _) =
                rtnetlink::new_connection().map_err(|e| NetnsError::System(format!("{name}: open netlink"), e))?;
            let driver = tokio::spawn(connection);
            let result = request(handle).await;
            driver.abort();
            result.map_err(|e| NetnsError::Netlink(format!("{name}: {what}"), e))
        })
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        let jobs = self.jobs.get_mut().unwrap_or_else(PoisonError::into_inner);
        drop(jobs.take());
        let thread = self.thread.get_mut().unwrap_or_else(PoisonError::into_inner);
        if let Some(thread) = thread.take() {
            let _ = thread.join();
        }
        undo::unmount(&self.path);
        undo::done(self.ticket);
    }
}

fn system(what: &str) -> impl Fn(io::Error) -> NetnsError + use<> {
    let what = what.to_owned();
    move |e| NetnsError::System(what.clone(), e)
}

/// Moves the calling thread into namespaces of its own and returns its id.
fn enter(resolv: Option<&Path>) -> Result<i32, NetnsError> {
    let refused = |what: &str| {
        let what = what.to_owned();
        move |e: nix::Error| NetnsError::System(what, e.into())
    };
    unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).map_err(refused("unshare (root is needed)"))?;
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(None::<&str>, "/", None::<&str>, private, None::<&str>).map_err(refused("make mounts private"))?;
    // Not fatal: where it cannot be mounted, /sys/class/net shows the host's interfaces.
    let _ = mount(Some("sysfs"), "/sys", Some("sysfs"), MsFlags::empty(), None::<&str>);
    if let Some(file) = resolv {
        let target = Path::new("/etc/resolv.conf");
        mount(Some(file), target, None::<&str>, MsFlags::MS_BIND, None::<&str>).map_err(refused("bind resolv.conf"))?;
    }
    Ok(gettid().as_raw())
}

fn live(inbox: &Receiver<Job>) {
    let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime needs only an epoll descriptor");
    while let Ok(job) = inbox.recv() {
        job(&runtime);
    }
}

/// Says who is inside a namespace: the processes whose network namespace has this inode.
pub fn inhabitants(inode: u64) -> Vec<u32> {
    use std::os::unix::fs::MetadataExt;
    let Ok(processes) = std::fs::read_dir("/proc") else {
        return Vec::new();
    };
    let ids = processes.flatten().filter_map(|p| p.file_name().to_str()?.parse::<u32>().ok());
    ids.filter(|id| std::fs::metadata(format!("/proc/{id}/ns/net")).is_ok_and(|ns| ns.ino() == inode)).collect()
}

/// Returns the namespaces bound under a prefix.
pub fn bound(prefix: &str) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(FOLDER) else {
        return Vec::new();
    };
    let ours = |path: &PathBuf| path.file_name().and_then(|n| n.to_str()).is_some_and(|n| n.starts_with(prefix));
    entries.flatten().map(|e| e.path()).filter(ours).collect()
}

/// Removes what killed labs left: namespaces bound as `<word><pid>…-NAME` whose pid is dead, and whoever is inside.
pub fn sweep(word: &str) -> usize {
    use std::os::unix::fs::MetadataExt;
    let mut swept = 0;
    for path in bound(word) {
        let name = path.file_name().and_then(|n| n.to_str()).unwrap_or("");
        let digits: String = name[word.len()..].chars().take_while(char::is_ascii_digit).collect();
        let Ok(owner) = digits.parse::<u32>() else {
            continue;
        };
        if Path::new(&format!("/proc/{owner}")).exists() {
            continue;
        }
        if let Ok(meta) = std::fs::metadata(&path) {
            for process in inhabitants(meta.ino()) {
                let id = nix::unistd::Pid::from_raw(i32::try_from(process).unwrap_or(0));
                let _ = nix::sys::signal::kill(id, nix::sys::signal::Signal::SIGKILL);
            }
        }
        undo::unmount(&path);
        swept += 1;
    }
    swept
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;
    use crate::privilege::privileged;
    use std::net::{TcpListener, TcpStream};

    #[test]
    fn two_namespaces_joined_by_a_veth_talk_and_leave_nothing() {
        if !privileged("network namespaces") {
            return;
        }
        let prefix = format!("hn{}", std::process::id());
        let a = Namespace::new(&prefix, "a", None).unwrap();
        let b = Namespace::new(&prefix, "b", None).unwrap();
        a.veth("eth0", &b, "eth0").unwrap();
        a.address("eth0", "10.99.0.1/24".parse().unwrap()).unwrap();
        b.address("eth0", "10.99.0.2/24".parse().unwrap()).unwrap();

        let listener = b.run(|| TcpListener::bind("10.99.0.2:80")).unwrap();
        let stream = a.run(|| TcpStream::connect("10.99.0.2:80")).unwrap();
        assert_eq!(stream.peer_addr().unwrap().to_string(), "10.99.0.2:80");
        assert!(listener.accept().is_ok());

        assert_eq!(bound(&prefix).len(), 2);
        drop((a, b));
        assert!(bound(&prefix).is_empty());
    }

    #[test]
    fn a_process_sees_the_resolv_conf_of_its_namespace() {
        if !privileged("network namespaces") {
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        let prefix = format!("hr{}", std::process::id());
        let text = "nameserver 241.0.0.53\n";
        let ns = Namespace::new(&prefix, "pod", Some((folder.path(), text))).unwrap();

        let mut cat = Command::new("cat");
        cat.arg("/etc/resolv.conf").stdout(std::process::Stdio::piped());
        let output = ns.spawn(cat).unwrap().wait_with_output().unwrap();

        assert_eq!(String::from_utf8_lossy(&output.stdout), text);
    }
}
