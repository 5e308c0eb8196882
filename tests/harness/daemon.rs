//! The real binaries as processes: built if need be, started inside namespaces, killed, asked.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use mesh_proto::ops::status::Status;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::netns::Namespace;
use crate::undo::{self, Leftover, Ticket};

/// How long a process may take to end after SIGTERM.
const FAREWELL: Duration = Duration::from_secs(5);
/// How long a verb of the command line may take.
const VERB: Duration = Duration::from_secs(30);

/// Where the built programs are.
#[derive(Debug, Clone)]
pub struct Binaries {
    folder: PathBuf,
}

impl Binaries {
    /// Builds the programs with the cargo and the profile that built us, and finds them; or takes those of the folder
    /// that `MESH_BINARIES` names.
    ///
    /// # Errors
    /// If they do not build.
    pub fn build() -> io::Result<Self> {
        if let Some(folder) = std::env::var_os("MESH_BINARIES") {
            return Ok(Self::of(folder.into()));
        }
        let mut folder = std::env::current_exe()?;
        folder.pop();
        if folder.ends_with("deps") {
            folder.pop();
        }
        let profile = match folder.file_name().and_then(|n| n.to_str()) {
            Some("debug") | None => "dev",
            Some(name) => name,
        };
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let mut command = Command::new(cargo);
        command
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .args(["build", "--quiet", "--profile", profile])
            // With one target of tests, dependencies have the features that `cargo test --workspace` built them with.
            .args(["--workspace", "--test", "packages"])
            .args(["--bin", "meshd", "--bin", "mesh-coordinator", "--bin", "boutique"]);
        // What `cargo run` says of its own package would make build scripts that watch it run again, each time.
        for (name, _) in std::env::vars_os() {
            let own = name.to_str().is_some_and(|n| n.starts_with("CARGO_PKG_") || n.starts_with("CARGO_MANIFEST_"));
            if own {
                command.env_remove(name);
            }
        }
        let status = command.status()?;
        if !status.success() {
            return Err(io::Error::other("meshd and mesh-coordinator do not build"));
        }
        Ok(Self { folder })
    }

    /// Takes the programs of a folder, built earlier.
    pub fn of(folder: PathBuf) -> Self {
        Self { folder }
    }

    /// Returns the path of one of them.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }
}

/// A process inside a namespace; killed when the value goes. Its output goes to a file.
pub struct Process {
    child: Child,
    ticket: Ticket,
    log: PathBuf,
}

impl Process {
    /// Starts a program; its output is appended to `log`.
    ///
    /// # Errors
    /// As `Command::spawn`.
    pub fn start(namespace: &Namespace, command: Command, log: &Path) -> io::Result<Self> {
        let file = File::options().create(true).append(true).open(log)?;
        Self::start_telling(namespace, command, log, file.try_clone()?, file)
    }

    /// Starts a program that prints to one place and tells another what goes wrong; `log` is where `tail` looks.
    ///
    /// # Errors
    /// As `Command::spawn`.
    fn start_telling(
        namespace: &Namespace,
        mut command: Command,
        log: &Path,
        stdout: impl Into<Stdio>,
        stderr: impl Into<Stdio>,
    ) -> io::Result<Self> {
        command.stdin(Stdio::null()).stdout(stdout).stderr(stderr);
        let child = namespace.spawn(command)?;
        let ticket = undo::note(Leftover::Process(child.id()));
        Ok(Self { child, ticket, log: log.into() })
    }

    /// Returns its id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Says whether it still runs.
    pub fn running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Waits until it ends, and returns its exit code; none if a signal ended it.
    pub fn exit_code(&mut self) -> Option<i32> {
        self.child.wait().ok()?.code()
    }

    /// Ends it at once.
    pub fn kill(mut self) {
        self.end();
    }

    /// Asks it to end, waits, and says whether it did so by itself, with status 0.
    pub fn terminate(mut self) -> bool {
        let id = Pid::from_raw(i32::try_from(self.child.id()).unwrap_or(0));
        let _ = kill(id, Signal::SIGTERM);
        let end = Instant::now() + FAREWELL;
        while Instant::now() < end {
            if let Ok(Some(status)) = self.child.try_wait() {
                return status.success();
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        false
    }

    fn end(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Returns the last lines of its output.
    pub fn tail(&self, lines: usize) -> String {
        tail(&self.log, lines)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.end();
        undo::done(self.ticket);
    }
}

/// Returns the last lines of a file.
pub fn tail(path: &Path, lines: usize) -> String {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

/// Runs a program inside a namespace to its end.
///
/// # Errors
/// As `Command::spawn`; `TimedOut` if it does not end.
pub fn run(namespace: &Namespace, mut command: Command) -> io::Result<Output> {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = namespace.spawn(command)?;
    let ticket = undo::note(Leftover::Process(child.id()));
    let id = Pid::from_raw(i32::try_from(child.id()).unwrap_or(0));
    let (sender, waiter) = std::sync::mpsc::channel();
    std::thread::spawn(move || sender.send(child.wait_with_output()));
    let result = match waiter.recv_timeout(VERB) {
        Ok(output) => output,
        Err(_) => {
            let _ = kill(id, Signal::SIGKILL);
            Err(io::ErrorKind::TimedOut.into())
        }
    };
    undo::done(ticket);
    result
}

/// A program with a configuration, a control socket and verbs.
pub struct Daemon {
    /// Its name in logs.
    pub name: String,
    /// Where it runs.
    pub namespace: Namespace,
    /// Its folder: configuration, state, socket, log.
    pub folder: PathBuf,
    program: PathBuf,
    config: PathBuf,
    socket: PathBuf,
    process: Mutex<Option<Process>>,
}

impl Daemon {
    /// Describes a meshd whose files lie in `folder`: meshd.toml, meshd.sock.
    pub fn meshd(name: &str, namespace: &Namespace, folder: &Path, binaries: &Binaries) -> Self {
        Self::new(name, namespace, folder, binaries.path("meshd"), "meshd")
    }

    /// Describes a mesh-coordinator whose files lie in `folder`: coordinator.toml, coordinator.sock.
    pub fn coordinator(namespace: &Namespace, folder: &Path, binaries: &Binaries) -> Self {
        let program = binaries.path("mesh-coordinator");
        Self::new("coordinator", namespace, folder, program, "coordinator")
    }

    fn new(name: &str, namespace: &Namespace, folder: &Path, program: PathBuf, word: &str) -> Self {
        Self {
            name: name.into(),
            namespace: namespace.clone(),
            folder: folder.into(),
            program,
            config: folder.join(format!("{word}.toml")),
            socket: folder.join(format!("{word}.sock")),
            process: Mutex::new(None),
        }
    }

    /// Returns where its configuration lies.
    pub fn config(&self) -> &Path {
        &self.config
    }

    /// Returns where its control socket will lie.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Returns where its output goes.
    pub fn log(&self) -> PathBuf {
        self.folder.join("log")
    }

    /// Starts it; a running one is replaced.
    ///
    /// # Errors
    /// As `Command::spawn`.
    pub fn start(&self) -> io::Result<()> {
        let mut command = Command::new(&self.program);
        // As a unit starts it: to print a backtrace, a program reads by calls whose answers a test may falsify.
        command.arg("run").arg("--config").arg(&self.config).env("RUST_BACKTRACE", "0");
        let process = Process::start(&self.namespace, command, &self.log())?;
        self.replace(Some(process));
        Ok(())
    }

    /// Starts it with this standard error, and variables of its own; a running one is replaced.
    ///
    /// # Errors
    /// As `Command::spawn`.
    pub fn start_telling(&self, stderr: impl Into<Stdio>, variables: &[(&str, &str)]) -> io::Result<()> {
        let mut command = Command::new(&self.program);
        command.arg("run").arg("--config").arg(&self.config).env("RUST_BACKTRACE", "0").envs(variables.iter().copied());
        let process = Process::start_telling(&self.namespace, command, &self.log(), Stdio::null(), stderr)?;
        self.replace(Some(process));
        Ok(())
    }

    fn replace(&self, process: Option<Process>) -> Option<Process> {
        let mut held = self.process.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::replace(&mut held, process)
    }

    /// Kills it with SIGKILL.
    pub fn kill(&self) {
        if let Some(process) = self.replace(None) {
            process.kill();
        }
    }

    /// Stops it with SIGTERM; says whether it ended by itself and well.
    pub fn terminate(&self) -> bool {
        self.replace(None).is_some_and(Process::terminate)
    }

    /// Says whether it runs.
    pub fn running(&self) -> bool {
        let mut held = self.process.lock().unwrap_or_else(PoisonError::into_inner);
        held.as_mut().is_some_and(Process::running)
    }

    /// Waits until it ends, and returns its exit code; none if a signal ended it, or it was not started.
    pub fn exit_code(&self) -> Option<i32> {
        let mut held = self.process.lock().unwrap_or_else(PoisonError::into_inner);
        held.as_mut()?.exit_code()
    }

    /// Returns its process id.
    pub fn id(&self) -> Option<u32> {
        let held = self.process.lock().unwrap_or_else(PoisonError::into_inner);
        held.as_ref().map(Process::id)
    }

    /// Runs a verb that speaks to the running daemon.
    ///
    /// # Errors
    /// As `Command::spawn`; `TimedOut` if it does not end.
    pub fn verb(&self, words: &[&str]) -> io::Result<Output> {
        let mut command = Command::new(&self.program);
        command.args(words).arg("--socket").arg(&self.socket);
        run(&self.namespace, command)
    }

    /// Runs a verb that prints elsewhere; returns its exit code and what it said on standard error.
    ///
    /// # Errors
    /// As `Command::spawn`.
    pub fn prints_to(&self, words: &[&str], stdout: impl Into<Stdio>) -> io::Result<(Option<i32>, String)> {
        let mut command = Command::new(&self.program);
        command.args(words).arg("--socket").arg(&self.socket);
        command.stdin(Stdio::null()).stdout(stdout).stderr(Stdio::piped());
        let output = self.namespace.spawn(command)?.wait_with_output()?;
        Ok((output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned()))
    }

    /// Runs a verb that reads the configuration.
    ///
    /// # Errors
    /// As `Command::spawn`; `TimedOut` if it does not end.
    pub fn config_verb(&self, words: &[&str]) -> io::Result<Output> {
        let mut command = Command::new(&self.program);
        command.args(words).arg("--config").arg(&self.config);
        run(&self.namespace, command)
    }

    /// Runs a verb of which success is expected and returns what it printed.
    ///
    /// # Errors
    /// With everything it said, if it failed.
    pub fn expect(&self, words: &[&str]) -> io::Result<String> {
        succeeded(&self.name, words, self.verb(words)?)
    }

    /// Like `expect`, for verbs that read the configuration.
    ///
    /// # Errors
    /// With everything it said, if it failed.
    pub fn expect_config(&self, words: &[&str]) -> io::Result<String> {
        succeeded(&self.name, words, self.config_verb(words)?)
    }

    /// Returns what a running meshd tells of itself.
    ///
    /// # Errors
    /// If it does not run or its answer is not as documented.
    pub fn status(&self) -> io::Result<Status> {
        Ok(serde_json::from_value(self.json(&["status"])?)?)
    }

    /// Runs a reading verb with `-o json`, whatever its exit code says of the mesh's health.
    ///
    /// # Errors
    /// If it does not print JSON.
    pub fn json(&self, words: &[&str]) -> io::Result<Value> {
        let output = self.verb(&[words, &["-o", "json"]].concat())?;
        serde_json::from_slice(&output.stdout).map_err(|e| {
            let said = String::from_utf8_lossy(&output.stderr);
            io::Error::other(format!("{}: {words:?} printed no JSON ({e}): {said}", self.name))
        })
    }
}

fn succeeded(name: &str, words: &[&str], output: Output) -> io::Result<String> {
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.success() {
        return Ok(said);
    }
    let complaint = String::from_utf8_lossy(&output.stderr);
    let verb = words.first().unwrap_or(&"");
    Err(io::Error::other(format!("{name}: {verb} failed with {}: {said}{complaint}", output.status)))
}

/// Asks again and again until the answer is yes; says whether it was in time.
pub fn wait_until(patience: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let end = Instant::now() + patience;
    loop {
        if condition() {
            return true;
        }
        if Instant::now() >= end {
            return false;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Daemons are shared by checks that run at the same time.
pub type SharedDaemon = Arc<Daemon>;
